"""The VMs with their MMUs and vCPUs (`inspector vms`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.capture.nested import users
from inspector.capture.view import regime_name, vm_title
from inspector.codec import table_address, vttbr
from inspector.codec.nested import guest_stage2
from inspector.report.document import Bytes, Document, Hex, Level, Number, Raw, Record, record
from inspector.report.format import Lines, Painter, address, count, raw, size
from inspector.report.sysregs import Register, register, register_text
from inspector.snapshot import Capture, Mmu, MmuKind, Vm


class Shape(Record, frozen=True):
    """The shape of a tree."""

    granule: Bytes
    ia_bits: Number
    start_level: Level
    root_pages: Number
    pa_bits: Number
    lpa2: bool


class MmuFacts(Record, frozen=True):
    """One `struct kvm_s2_mmu`."""

    regime: str
    kind: MmuKind
    address: Hex
    vmid: Number | None
    vmid_raw: Annotated[Hex, Meta(description="The kernel's own record, with its generation.")]
    pgd_phys: Hex
    pgd_pa: Annotated[Hex | None, Meta(description="The root by `pgt->pgd`.")]
    vtcr: Register
    ia_bits: Number | None
    start_level: Level | None
    pgt_flags: Number | None
    geometry: Shape | None
    unreadable: Annotated[str | None, Meta(description="Why the table cannot be shown.")]
    nested_valid: bool | None
    nested_vttbr: Hex | None
    nested_vtcr: Hex | None
    nested_stage2: Annotated[
        bool | None,
        Meta(description="Whether HCR_EL2.VM was set in the guest hypervisor's context (`nested_stage2_enabled`)."),
    ] = None
    pending_unmap: Annotated[
        bool | None, Meta(description="Its leaves are an earlier context's, and go before it is used.")
    ] = None
    nested_tables: Annotated[
        Number, Meta(description="How many pages of the guest hypervisor's own stage-2 are known.")
    ] = 0


class VcpuFacts(Record, frozen=True):
    """A vCPU."""

    id: Number
    address: Hex
    loaded_on: Annotated[Number | None, Meta(description="The CPU it is loaded on.")]
    hw_mmu: Hex
    el2: Annotated[
        Mapping[str, Raw], Meta(description="The EL2 registers of a guest hypervisor's vCPU; empty for any other.")
    ]


class VmFacts(Record, frozen=True):
    """A VM."""

    name: str
    address: Hex
    pid: Number | None
    fd: Annotated[Number | None, Meta(description="Of the VM in that process.")]
    vmm: str | None
    found_by: Sequence[str]
    invalidating: Annotated[bool, Meta(description="An MMU-notifier invalidation is in progress.")]
    mmus: Sequence[MmuFacts]
    memslots: Annotated[Number, Meta(description="How many.")]
    memory: Bytes
    vcpus: Sequence[VcpuFacts]


class Vms(Document, frozen=True, kw_only=True):
    """`inspector vms`."""

    command: Literal["vms"] = "vms"
    vms: Sequence[VmFacts]


def _mmu(mmu: Mmu) -> MmuFacts:
    shape = None if mmu.geometry is None else record(Shape, mmu.geometry)
    return record(
        MmuFacts,
        mmu,
        regime=regime_name(mmu),
        vtcr=register("vtcr_el2", mmu.vtcr),
        geometry=shape,
        nested_tables=len(mmu.nested_tables),
    )


def document(capture: Capture) -> Vms:
    """`inspector vms`."""
    return Vms(
        vms=[
            record(
                VmFacts,
                vm,
                vmm=vm.command,
                mmus=[_mmu(mmu) for mmu in vm.mmus],
                memslots=len(vm.memslots),
                memory=_memory(vm, capture),
                vcpus=[
                    record(VcpuFacts, vcpu, el2={name: raw(value) for name, value in vcpu.el2.items()})
                    for vcpu in vm.vcpus
                ],
            )
            for vm in capture.vms
        ]
    )


def _memory(vm: Vm, capture: Capture) -> int:
    return sum(slot.npages for slot in vm.memslots) * capture.host.page_size


def geometry_text(mmu: Mmu) -> str:
    """``40-bit IPA, 4K granule, 48-bit PA, starts at level 1 with 2 root tables``."""
    return "geometry unknown" if mmu.geometry is None else mmu.geometry.describe()


def _mmu_lines(vm: Vm, mmu: Mmu, capture: Capture, paint: Painter) -> Lines:
    yield "  " + paint(regime_name(mmu), "cyan") + f", struct kvm_s2_mmu at {address(mmu.address)}"
    if mmu.unreadable is not None:
        yield f"    cannot be shown: {mmu.unreadable}"
        return
    yield f"    {geometry_text(mmu)}"
    value = vttbr(mmu.pgd_phys, mmu.vmid or 0, False) if _fits(mmu) else None
    if value is not None:
        said = f"VMID={mmu.vmid or 0} BADDR={address(mmu.pgd_phys)} (as KVM computes it, CnP aside)"
        yield f"    VTTBR_EL2 {raw(value)}  {said}"
    yield f"    VTCR_EL2  {raw(mmu.vtcr)}  {register_text('vtcr_el2', mmu.vtcr)}"
    if mmu.kind is MmuKind.SHADOW and mmu.nested_vttbr is not None:
        yield from _context(vm, mmu)
    for cpu in capture.host.cpus:
        held = cpu.registers.get("VTTBR_EL2")
        if cpu.vttbr_live and held is not None and mmu.pgd_phys and table_address(held) == mmu.pgd_phys:
            yield f"    in force on CPU {cpu.index}: VTTBR_EL2 {raw(held)}  {register_text('vttbr_el2', held)}"


def _context(vm: Vm, mmu: Mmu) -> Lines:
    """What a shadow stands for: the guest hypervisor's registers, and whether they are in force."""
    if not mmu.nested_valid:
        yield "    stands for no context of the guest hypervisor's"
        return
    vttbr_el2, vtcr_el2 = mmu.nested_vttbr or 0, mmu.nested_vtcr or 0
    using = [vcpu.id for vcpu in users(vm, mmu)]
    state = "in force for vCPU " + ", ".join(map(str, using)) if using else "in force for no vCPU"
    if mmu.pending_unmap:
        state += "; emptied before it is used: the leaves are an earlier context's"
    if mmu.nested_stage2 is False:
        yield f"    for L1's VMID {vttbr_el2 >> 48} with HCR_EL2.VM=0 (nested_stage2_enabled=0); {state}"
        return
    yield f"    for L1's VTTBR_EL2 {raw(vttbr_el2)}  {register_text('vttbr_el2', vttbr_el2)}"
    yield f"             VTCR_EL2  {raw(vtcr_el2)}  {register_text('vtcr_el2', vtcr_el2)}"
    known = guest_stage2(vttbr_el2, vtcr_el2)
    yield f"             {'a shape that KVM walks not' if known is None else known[1].describe()}; {state}"


def _fits(mmu: Mmu) -> bool:
    return bool(mmu.pgd_phys) and not mmu.pgd_phys >> 52 and not mmu.pgd_phys & 0x3F and (mmu.vmid or 0) < 1 << 16


def lines(paint: Painter, capture: Capture) -> Lines:
    """Every VM with its MMUs, slots and vCPUs."""
    if not capture.vms:
        yield "no VMs"
    for vm in capture.vms:
        found = " and ".join(vm.found_by)
        yield paint(vm_title(vm), "bold") + f", struct kvm at {address(vm.address)}, found by {found}"
        for mmu in vm.mmus:
            yield from _mmu_lines(vm, mmu, capture, paint)
        yield f"  {count(len(vm.memslots), 'memslot')}, {size(_memory(vm, capture))}"
        for vcpu in vm.vcpus:
            where = "not loaded" if vcpu.loaded_on is None else f"loaded on CPU {vcpu.loaded_on}"
            yield f"  vCPU {vcpu.id}: {where}, struct kvm_vcpu at {address(vcpu.address)}"
            if vcpu.el2:
                yield "    EL2 of the guest: " + " ".join(f"{name} {raw(value)}" for name, value in vcpu.el2.items())
        if vm.invalidating:
            yield "  an MMU-notifier invalidation is in progress"
