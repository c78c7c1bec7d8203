"""S1 and S2: the root of each table and the VTCR_EL2 that says how to read it, in memory and in the CPUs."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.capture.view import root_of
from inspector.check.catalogue import invariant
from inspector.check.context import Context, error, note, where_view, where_vm
from inspector.check.live import live_cpus
from inspector.codec.registers import PS_BITS
from inspector.findings import Finding, Where
from inspector.snapshot import Capture, Mmu, Mode, PageState

_INIT = "kvm_init_stage2_mmu"
_VTCR = "kvm_get_vtcr"
_LOAD = "__load_stage2"
_DAMAGED = "the host's own record of the guest is damaged: nothing more of it is checked"

_PS_48, _PS_52 = PS_BITS.index(48), PS_BITS.index(52)
_LEAST_IPA_BITS = 32
"""``ARM64_MIN_PARANGE_BITS``."""
#: VTCR_EL2 fields that KVM writes (kernel.md 2.1, DDI 0487 D19.2 VTCR_EL2): T0SZ SL0 IRGN0 ORGN0 SH0 TG0 PS VS HA, RES1
#: bit 31, DS.  HD (22) and SL2 (33) are never set.
_VTCR_WRITTEN = (1 << 20) - 1 | 1 << 21 | 1 << 31 | 1 << 32


@invariant(
    "S1",
    "The root in VTTBR_EL2 is mmu->pgd_phys, which is the address of pgt->pgd: allocated RAM, aligned to the size of "
    "all concatenated root tables.",
    "DDI 0487 D8.2.3, VTTBR_EL2; kvm_init_stage2_mmu, kvm_get_vttbr",
)
def root(context: Context) -> Iterator[Finding]:
    for vm in context.capture.vms:
        if vm.unreadable is not None:
            yield error("S1", Where(vm=vm.name), "a struct kvm that can be read", vm.unreadable, _DAMAGED)
        for mmu in vm.mmus:
            where = where_vm(vm, mmu)
            if mmu.unreadable is not None and mmu.damaged:
                yield error("S1", where, "a struct kvm_pgtable that can be read", mmu.unreadable, _DAMAGED)
            elif mmu.unreadable is not None:
                yield note("S1", where, "a table that can be read", "none", mmu.unreadable)
            elif mmu.pgd_pa is not None and mmu.pgd_pa != mmu.pgd_phys:
                yield error(
                    "S1",
                    where,
                    f"pgd_phys {mmu.pgd_pa:#x}, the address of pgt->pgd",
                    f"pgd_phys {mmu.pgd_phys:#x}",
                    "the CPU is given pgd_phys, and KVM edits the table at pgt->pgd: the guest runs on another table",
                    _INIT,
                )
    for view in context.views:
        size = view.geometry.root_pages * view.geometry.granule
        if view.root_pa % size:
            yield error(
                "S1",
                where_view(view, table_pa=view.root_pa),
                f"a root aligned to {size:#x}",
                f"{view.root_pa:#x}",
                "VTTBR_EL2.BADDR has no bits for a lower alignment: the CPU would start at another address",
                _INIT,
            )
        for pa in view.root_pages():
            if not context.is_ram(pa, view.geometry.granule):
                yield error(
                    "S1",
                    where_view(view, table_pa=pa, level=view.geometry.start_level),
                    "a root table in RAM",
                    f"{pa:#x} is not RAM",
                    "the CPU would walk a table that is not there",
                    _INIT,
                )
                continue
            info = context.capture.page_info.get(pa)
            if info is not None and info.state is not PageState.USED:
                yield error(
                    "S1",
                    where_view(view, table_pa=pa, level=view.geometry.start_level),
                    "an allocated root page",
                    f"page is {info.state} (reference count {info.refcount})",
                    "a root that was given back may be overwritten while the guest runs on it",
                    "kvm_free_stage2_pgd",
                )
    yield from _live_roots(context.capture)


def _live_roots(capture: Capture) -> Iterator[Finding]:
    for live in live_cpus(capture):
        actual = f"VTTBR_EL2 {live.vttbr:#018x} on CPU {live.cpu.index}: root {root_of(live.vttbr):#x}"
        if live.vm is None or live.mmu is None:
            yield error(
                "S1",
                Where(table_pa=root_of(live.vttbr)),
                "a root that a VM has",
                actual,
                "this CPU translates guest addresses with a table that belongs to no VM",
                _LOAD,
            )
        elif root_of(live.vttbr) != live.mmu.pgd_phys:
            yield error(
                "S1",
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
)
def vtcr(context: Context) -> Iterator[Finding]:
    host = context.capture.host
    common: tuple[int, str] | None = None
    for vm in context.capture.vms:
        for mmu in vm.mmus:
            # A VM under creation, and an MMU whose table this tool cannot read, may have no VTCR yet.
            if mmu.vtcr == 0 and mmu.pgd_pa is None:
                continue
            where = where_vm(vm, mmu)
            for expected, actual, why in _vtcr_disagreements(context, mmu):
                yield error("S2", where, expected, f"{actual} in VTCR_EL2 {mmu.vtcr:#x}", why, _VTCR)
            mine = mmu.vtcr & ~0xFF
            if common is None:
                common = mine, vm.name
            elif mine != common[0]:
                yield error(
                    "S2",
                    where,
                    f"the fields of {common[1]}'s, {common[0]:#x} (T0SZ and SL0 aside)",
                    f"{mine:#x}",
                    "all but T0SZ and SL0 comes from the CPUs and the kernel's configuration, one for all VMs",
                    _VTCR,
                )
    for live in live_cpus(context.capture):
        if live.mmu is None or live.vm is None or live.vtcr is None or root_of(live.vttbr) != live.mmu.pgd_phys:
            continue
        if live.vtcr != live.mmu.vtcr and host.mode is not Mode.PROTECTED:
            yield error(
                "S2",
                where_vm(live.vm, live.mmu),
                f"{live.mmu.vtcr:#x}, as the VM has it",
                f"VTCR_EL2 {live.vtcr:#x} on CPU {live.cpu.index}",
                "this CPU reads the VM's table with another geometry",
                _LOAD,
            )


def _vtcr_disagreements(context: Context, mmu: Mmu) -> Iterator[tuple[str, str, str]]:
    """(expected, actual, why) of each field of ``mmu.vtcr`` that is not what KVM writes."""
    host, value = context.capture.host, mmu.vtcr
    granule_shift = {0: 12, 1: 16, 2: 14}.get(value >> 14 & 3)
    t0sz, sl0, ps = value & 0x3F, value >> 6 & 3, value >> 16 & 7
    base = 2 if granule_shift == 12 else 3
    if granule_shift is None or 1 << granule_shift != host.page_size:
        yield f"TG0 for pages of {host.page_size:#x}", f"TG0 {value >> 14 & 3}", "KVM's granule is the host's page"
    if mmu.ia_bits is not None and 64 - t0sz != mmu.ia_bits:
        yield f"T0SZ {64 - mmu.ia_bits}", f"T0SZ {t0sz}", f"pgt->ia_bits is {mmu.ia_bits}"
    if mmu.start_level is not None and base - sl0 != mmu.start_level:
        yield f"SL0 {base - mmu.start_level}", f"SL0 {sl0}", f"pgt->start_level is {mmu.start_level}"
    if granule_shift is not None:
        levels = max(2, (64 - t0sz - 8) // (granule_shift - 3))  # kernel.md 2.1: stage2_pgtable_levels
        if base - sl0 != 4 - levels:
            yield (
                f"SL0 {base - 4 + levels}, start level {4 - levels}",
                f"SL0 {sl0}",
                f"KVM walks {levels} levels for {64 - t0sz} bits, with up to 16 concatenated root tables",
            )
    for name, low, want in (("IRGN0", 8, 1), ("ORGN0", 10, 1), ("SH0", 12, 3)):
        width = 3
        if value >> low & width != want:
            yield f"{name} {want}", f"{name} {value >> low & width}", "KVM's walks are write-back, inner shareable"
    if not value >> 31 & 1:
        yield "bit 31 set", "bit 31 clear", "the bit is RES1"
    yield from _vtcr_against_cpu(context, value, ps)
    odd = value & ~_VTCR_WRITTEN
    if odd:
        yield "no other bit", f"bits {odd:#x}", "KVM writes none of them (HD is bit 22, SL2 is bit 33)"


def _pa_sizes(parange: int | None, lpa2: bool, page_size: int) -> set[int]:
    """The values of VTCR_EL2.PS that KVM may write on these CPUs; a PARange that is not known is taken for 52 bits.

    ``kvm_get_parange_max`` (6.12, 7.3; 6.1: ``ID_AA64MMFR0_EL1_PARANGE_MAX``): 52 bits with LPA2, and with 64K pages if
    CONFIG_ARM64_PA_BITS_52 is set, which a capture does not tell; else 48.
    """
    limits = {_PS_52} if lpa2 else {_PS_48, _PS_52} if page_size == 1 << 16 else {_PS_48}
    return {min(_PS_52 if parange is None else parange, limit) for limit in limits}


def _vtcr_against_cpu(context: Context, value: int, ps: int) -> Iterator[tuple[str, str, str]]:
    host = context.capture.host
    parange, lpa2 = host.features.get("parange"), bool(value >> 32 & 1)
    sizes = _pa_sizes(parange, lpa2, host.page_size)
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
    if not _LEAST_IPA_BITS <= 64 - (value & 0x3F) <= most:
        yield (
            f"an IPA size of {_LEAST_IPA_BITS} to {most} bits",
            f"T0SZ {value & 0x3F}",
            "KVM makes no VM with another: the most is the CPUs' PARange as far as this granule goes",
        )
    vmid16 = host.features.get("vmid16")
    if vmid16 is not None and bool(value >> 19 & 1) != bool(vmid16):
        yield f"VS {int(bool(vmid16))}", f"VS {value >> 19 & 1}", "it follows the CPUs' VMID size"
    if value >> 32 & 1 and host.features.get("lpa2") == 0:
        yield "DS 0", "DS 1", "these CPUs have no 52-bit descriptors with this granule (FEAT_LPA2)"
    if context.code.behaviours.ha_always and not value >> 21 & 1:
        yield "HA 1", "HA 0", "this kernel generation always sets it"
