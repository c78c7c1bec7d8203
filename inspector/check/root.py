"""S1 and S2: the root of each table and the VTCR_EL2 that says how to read it, in memory and in the CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from inspector.capture.view import is_left_out
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.live import live_cpus
from inspector.check.places import where_view, where_vm
from inspector.codec import RES, Geometry, decode_register, encode_register, table_address
from inspector.codec.registers import PS_BITS, TG0_SHIFT
from inspector.findings import Finding, Where
from inspector.snapshot import Mmu, Mode, PageState

_LOAD = "__load_stage2"
_UNREAD = "nothing of the table is shown or judged"
_DAMAGED = "the host's own record of the guest is damaged: nothing more of it is checked"

_PS_48, _PS_52 = PS_BITS.index(48), PS_BITS.index(52)
_LEAST_IPA_BITS = 32
"""``ARM64_MIN_PARANGE_BITS``."""
#: What KVM writes of VTCR_EL2 (kernel.md 2.1, DDI 0487 D24.2 VTCR_EL2); HD and SL2, for example, are never set.
_WRITTEN = {"T0SZ", "SL0", "IRGN0", "ORGN0", "SH0", "TG0", "PS", "VS", "HA", "RES1", "DS"}


@invariant(
    "S1",
    "The root in VTTBR_EL2 is mmu->pgd_phys, which is the address of pgt->pgd: allocated RAM, aligned to the size of "
    "all concatenated root tables.",
    "DDI 0487 D8.2.3, VTTBR_EL2; kvm_init_stage2_mmu, kvm_get_vttbr",
    function="kvm_init_stage2_mmu",
    form=True,
)
def root(rule: Judge, context: Context) -> Iterator[Finding]:
    for vm in context.capture.vms:
        if vm.unreadable is not None and not is_left_out(vm.unreadable):
            yield rule.error(Where(vm=vm.name), "a struct kvm that can be read", vm.unreadable, _DAMAGED, "")
        for mmu in vm.mmus:
            where = where_vm(vm, mmu)
            if mmu.unreadable is not None and mmu.damaged:
                yield rule.error(where, "a struct kvm_pgtable that can be read", mmu.unreadable, _DAMAGED, "")
            elif mmu.unreadable is not None:
                yield rule.note(where, "a table that can be read", "none", mmu.unreadable, "")
            elif mmu.pgd_pa is not None and mmu.pgd_pa != mmu.pgd_phys:
                yield rule.error(
                    where,
                    f"pgd_phys {mmu.pgd_pa:#x}, the address of pgt->pgd",
                    f"pgd_phys {mmu.pgd_phys:#x}",
                    "the CPU is given pgd_phys, and KVM edits the table at pgt->pgd: the guest runs on another table",
                )
    yield from _root_pages(rule, context)
    yield from _live_roots(rule, context)


def _root_pages(rule: Judge, context: Context) -> Iterator[Finding]:
    for view in context.views:
        geometry = view.geometry
        size = geometry.root_pages * geometry.granule
        if view.root_pa % size:
            yield rule.error(
                where_view(view, table_pa=view.root_pa),
                f"a root aligned to {size:#x}",
                f"{view.root_pa:#x}",
                "VTTBR_EL2.BADDR has no bits for a lower alignment: the CPU would start at another address",
            )
        for pa in view.root_pages():
            where = where_view(view, table_pa=pa, level=geometry.start_level)
            info = context.capture.page_info.get(pa)
            if not context.ram.has(pa, pa + geometry.granule):
                yield rule.error(
                    where, "a root table in RAM", f"{pa:#x} is not RAM", "the CPU would walk a table that is not there"
                )
            elif pa not in context.capture.pages:
                reason = context.capture.unreadable.get(pa, "it cannot be read")
                yield rule.error(where, "a root table that can be read", f"{pa:#x}: {reason}", _UNREAD, "")
            elif info is not None and info.state is not PageState.USED:
                yield rule.error(
                    where,
                    "an allocated root page",
                    f"page is {info.state} (reference count {info.refcount})",
                    "a root that was given back may be overwritten while the guest runs on it",
                    "kvm_free_stage2_pgd",
                )


def _live_roots(rule: Judge, context: Context) -> Iterator[Finding]:
    for live in live_cpus(context.capture):
        actual = f"VTTBR_EL2 {live.vttbr:#018x} on CPU {live.cpu.index}: root {table_address(live.vttbr):#x}"
        if live.vm is None or live.mmu is None:
            yield rule.error(
                Where(table_pa=table_address(live.vttbr)),
                "a root that a VM has",
                actual,
                "this CPU translates guest addresses with a table that belongs to no VM",
                _LOAD,
            )
        elif table_address(live.vttbr) != live.mmu.pgd_phys:
            yield rule.error(
                where_vm(live.vm, live.mmu),
                f"root {live.mmu.pgd_phys:#x}, of the vCPU loaded there",
                actual,
                "this CPU translates guest addresses with a table that is not its guest's",
                _LOAD,
            )


@invariant(
    "S2",
    "VTCR_EL2 agrees with the table (T0SZ, SL0, TG0), with the CPU (PS, VS, DS) and with what KVM writes (WB "
    "inner-shareable walks, RES1 bit 31, no HD, no SL2), is alike in all VMs but for T0SZ and SL0, and is what the "
    "CPUs that run the VM hold.",
    "DDI 0487 D19.2 VTCR_EL2; kvm_get_vtcr (5.10: kvm_arm_setup_stage2)",
    function="kvm_get_vtcr",
)
def vtcr(rule: Judge, context: Context) -> Iterator[Finding]:
    common: tuple[int, str] | None = None
    for vm in context.capture.vms:
        for mmu in vm.mmus:
            # A VM under creation, and an MMU whose table this tool cannot read, may have no VTCR yet.
            if mmu.vtcr == 0 and mmu.pgd_pa is None:
                continue
            where, fields = where_vm(vm, mmu), decode_register("vtcr_el2", mmu.vtcr)
            for expected, actual, why in _vtcr_disagreements(context, mmu, fields):
                yield rule.error(where, expected, f"{actual} in VTCR_EL2 {mmu.vtcr:#x}", why)
            mine = mmu.vtcr & ~encode_register("vtcr_el2", {name: fields[name] for name in ("T0SZ", "SL0")})
            if common is None:
                common = mine, vm.name
            elif mine != common[0]:
                yield rule.error(
                    where,
                    f"the fields of {common[1]}'s, {common[0]:#x} (T0SZ and SL0 aside)",
                    f"{mine:#x}",
                    "all but T0SZ and SL0 comes from the CPUs and the kernel's configuration, one for all VMs",
                )
    for live in live_cpus(context.capture):
        if live.mmu is None or live.vm is None or live.vtcr is None or table_address(live.vttbr) != live.mmu.pgd_phys:
            continue
        if live.vtcr != live.mmu.vtcr and context.capture.host.mode is not Mode.PROTECTED:
            yield rule.error(
                where_vm(live.vm, live.mmu),
                f"{live.mmu.vtcr:#x}, as the VM has it",
                f"VTCR_EL2 {live.vtcr:#x} on CPU {live.cpu.index}",
                "this CPU reads the VM's table with another geometry",
                _LOAD,
            )


def _sl0(ia_bits: int, granule_shift: int, start_level: int | None = None) -> tuple[int, int] | None:
    """SL0 and start level of ``ia_bits`` as KVM walks them (or from ``start_level`` on); ``None``: no encoding."""
    shape = Geometry.for_ipa(ia_bits, granule_shift)
    shape = shape if start_level is None else replace(shape, start_level=start_level)
    try:
        value = shape.to_vtcr(vmid16=False, ha=False)
    except ValueError:
        return None
    return decode_register("vtcr_el2", value)["SL0"], shape.start_level


def _vtcr_disagreements(context: Context, mmu: Mmu, fields: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """(expected, actual, why) of each field of ``mmu.vtcr`` that is not what KVM writes."""
    ia_bits, sl0 = 64 - fields["T0SZ"], fields["SL0"]
    granule_shift = TG0_SHIFT.get(fields["TG0"])
    if granule_shift is None or 1 << granule_shift != context.capture.host.page_size:
        page = context.capture.host.page_size
        yield f"TG0 for pages of {page:#x}", f"TG0 {fields['TG0']}", "KVM's granule is the host's page"
    if mmu.ia_bits is not None and ia_bits != mmu.ia_bits:
        yield f"T0SZ {64 - mmu.ia_bits}", f"T0SZ {fields['T0SZ']}", f"pgt->ia_bits is {mmu.ia_bits}"
    if granule_shift is not None:
        if mmu.start_level is not None:
            stated = _sl0(ia_bits, granule_shift, mmu.start_level)
            if stated is not None and stated[0] != sl0:
                yield f"SL0 {stated[0]}", f"SL0 {sl0}", f"pgt->start_level is {mmu.start_level}"
        walked = _sl0(ia_bits, granule_shift)
        if walked is not None and walked[0] != sl0:
            yield (
                f"SL0 {walked[0]}, start level {walked[1]}",
                f"SL0 {sl0}",
                f"KVM walks {4 - walked[1]} levels for {ia_bits} bits, with up to 16 concatenated root tables",
            )
    for name, want in (("IRGN0", 1), ("ORGN0", 1), ("SH0", 3)):
        if fields[name] != want:
            yield f"{name} {want}", f"{name} {fields[name]}", "KVM's walks are write-back, inner shareable"
    if not fields["RES1"]:
        yield "bit 31 set", "bit 31 clear", "the bit is RES1"
    yield from _vtcr_against_cpu(context, fields)
    others = {name: value for name, value in fields.items() if name not in _WRITTEN and name != RES}
    bits = encode_register("vtcr_el2", others) | fields[RES]
    if bits:
        yield "no other bit", f"bits {bits:#x}", "KVM writes none of them (HD is bit 22, SL2 is bit 33)"


def _pa_sizes(parange: int | None, lpa2: bool, page_size: int) -> set[int]:
    """The values of VTCR_EL2.PS that KVM may write on these CPUs; a PARange that is not known is taken for 52 bits.

    ``kvm_get_parange_max`` (6.12, 7.3; 6.1: ``ID_AA64MMFR0_EL1_PARANGE_MAX``): 52 bits with LPA2, and with 64K pages if
    CONFIG_ARM64_PA_BITS_52 is set, which a capture does not tell; else 48.
    """
    limits = {_PS_52} if lpa2 else {_PS_48, _PS_52} if page_size == 1 << 16 else {_PS_48}
    return {min(_PS_52 if parange is None else parange, limit) for limit in limits}


def _vtcr_against_cpu(context: Context, fields: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    host, ps = context.capture.host, fields["PS"]
    parange, vmid16 = host.features.get("parange"), host.features.get("vmid16")
    sizes = _pa_sizes(parange, bool(fields["DS"]), host.page_size)
    if ps >= len(PS_BITS):
        yield "PS 0 to 6", f"PS {ps}", "the value is reserved"
    elif parange is not None and ps not in sizes:
        yield (
            f"PS {' or '.join(map(str, sorted(sizes)))}",
            f"PS {ps}",
            f"it is the CPUs' PARange, {parange}, as far as this granule goes",
        )
    # kvm_set_ipa_limit, kvm_init_ipa_range (6.1: kvm_arm_setup_stage2): with 64K pages the limit is the CPUs' size even
    # where the kernel, without CONFIG_ARM64_PA_BITS_52, keeps its own addresses and PS to 48 bits.
    most = PS_BITS[max(sizes)]
    if not _LEAST_IPA_BITS <= 64 - fields["T0SZ"] <= most:
        yield (
            f"an IPA size of {_LEAST_IPA_BITS} to {most} bits",
            f"T0SZ {fields['T0SZ']}",
            "KVM makes no VM with another: the most is the CPUs' PARange as far as this granule goes",
        )
    if vmid16 is not None and bool(fields["VS"]) != bool(vmid16):
        yield f"VS {int(bool(vmid16))}", f"VS {fields['VS']}", "it follows the CPUs' VMID size"
    if fields["DS"] and host.features.get("lpa2") == 0:
        yield "DS 0", "DS 1", "these CPUs have no 52-bit descriptors with this granule (FEAT_LPA2)"
    if context.code.behaviours.ha_always and not fields["HA"]:
        yield "HA 1", "HA 0", "this kernel generation always sets it"
