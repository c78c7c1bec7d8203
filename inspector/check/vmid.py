"""V1 and V2: VMIDs name one table each, and fit."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.capture.view import regime_name
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.live import live_cpus
from inspector.check.places import where_vm
from inspector.codec import Vttbr, table_address, vmid_bits
from inspector.findings import Finding, Where
from inspector.snapshot import Mmu, Vm


@invariant(
    "V1",
    "A guest runs with a VMID other than 0 that is its MMU's, and no two MMUs of one generation have the same VMID.",
    "DDI 0487 D8.14; kvm_arm_vmid_update (5.10, 5.15: update_vmid)",
    function="kvm_arm_vmid_update",
)
def unique(rule: Judge, context: Context) -> Iterator[Finding]:
    # The raw value holds the generation as well: equal numbers of different generations never run together.
    seen: dict[int, tuple[Vm, Mmu]] = {}
    for vm in context.capture.vms:
        for mmu in vm.mmus:
            if mmu.vmid is None or mmu.vmid_raw == 0:
                continue
            other = seen.setdefault(mmu.vmid_raw, (vm, mmu))
            if other[1] is not mmu:
                yield rule.error(
                    where_vm(vm, mmu),
                    "a VMID of its own in this generation",
                    f"VMID {mmu.vmid}, also {regime_name(other[1])} of {other[0].name}",
                    "the TLB cannot tell the two guests apart: each uses the other's translations",
                )
    for live in live_cpus(context.capture):
        if live.mmu is None or live.vm is None or table_address(live.vttbr) != live.mmu.pgd_phys:
            continue  # another root altogether is S1's
        vmid, where = Vttbr.decode(live.vttbr).vmid, where_vm(live.vm, live.mmu)
        actual = f"VMID {vmid} in VTTBR_EL2 {live.vttbr:#018x} on CPU {live.cpu.index}"
        if vmid == 0:
            yield rule.error(
                where,
                "a VMID other than 0 while a guest runs",
                actual,
                "VMID 0 is the host's: the guest's translations mix with those",
            )
        elif live.mmu.vmid is not None and vmid != live.mmu.vmid and not vmid >> vmid_bits(live.mmu.vtcr):
            yield rule.error(
                where,
                f"VMID {live.mmu.vmid}, as the MMU has it",
                actual,
                "invalidations by KVM name the MMU's VMID and miss what this CPU caches",
            )


@invariant(
    "V2",
    "A VMID fits VTCR_EL2.VS: 8 bits, or 16 with VS=1.",
    "DDI 0487 VTTBR_EL2.VMID; kvm_get_vmid_bits",
    function="kvm_arm_vmid_update",
)
def width(rule: Judge, context: Context) -> Iterator[Finding]:
    for vm in context.capture.vms:
        for mmu in vm.mmus:
            bits = vmid_bits(mmu.vtcr)
            if mmu.vmid is not None and mmu.vmid >> bits:
                yield rule.error(
                    where_vm(vm, mmu),
                    f"a VMID of {bits} bits",
                    f"VMID {mmu.vmid:#x}",
                    "the CPU drops the upper bits: the VMID is another guest's",
                )
    for live in live_cpus(context.capture):
        if live.vtcr is None or not Vttbr.decode(live.vttbr).vmid >> vmid_bits(live.vtcr):
            continue
        if live.mmu is not None and live.mmu.vmid == Vttbr.decode(live.vttbr).vmid:
            continue  # reported above, from memory
        yield rule.error(
            Where() if live.vm is None or live.mmu is None else where_vm(live.vm, live.mmu),
            "a VMID of 8 bits",
            f"VTTBR_EL2 {live.vttbr:#018x} on CPU {live.cpu.index}",
            "with VTCR_EL2.VS=0 the upper byte is RES0",
        )
