"""CPUs whose VTTBR_EL2 is in force, and the MMU that each must be running on.

Outside of the guest VTTBR_EL2 is stale by design (kernel.md 2.4: it keeps the last guest's value on VHE, 0 under
nVHE), so only CPUs with ``vttbr_live`` are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.codec import table_address
from inspector.snapshot import Capture, CpuState, Mmu, Mode, Vm


@dataclass(frozen=True)
class Live:
    """A CPU with its stage-2 in force.

    ``vm``/``mmu`` are what it must be running on: the MMU of the vCPU loaded on it, where that is known
    (``loaded`` is then true), else the MMU that has this root; both ``None`` when there is none.
    """

    cpu: CpuState
    vttbr: int
    vtcr: int | None
    vm: Vm | None
    mmu: Mmu | None
    loaded: bool


def _by_loaded_vcpu(capture: Capture, cpu: CpuState) -> tuple[Vm, Mmu] | None:
    loaded = [(vm, vcpu.hw_mmu) for vm in capture.vms for vcpu in vm.vcpus if vcpu.loaded_on == cpu.index]
    return next(((vm, mmu) for vm, address in loaded for mmu in vm.mmus if mmu.address == address), None)


def _by_root(capture: Capture, root: int) -> tuple[Vm, Mmu] | None:
    return next(((vm, mmu) for vm in capture.vms for mmu in vm.mmus if mmu.pgd_phys == root), None)


def live_cpus(capture: Capture) -> Iterator[Live]:
    """Every CPU whose VTTBR_EL2 names the stage-2 in force.

    Under protected mode the host itself runs on a stage-2 with VMID 0, and the hypervisor may run guests on tables of
    its own (6.18+): a root that no VM has says nothing there, so such CPUs are left out.
    """
    for cpu in capture.host.cpus:
        vttbr = cpu.registers.get("VTTBR_EL2")
        if not cpu.vttbr_live or vttbr is None:
            continue
        loaded = _by_loaded_vcpu(capture, cpu)
        found = loaded or _by_root(capture, table_address(vttbr))
        if capture.host.mode is Mode.PROTECTED:
            found, loaded = _by_root(capture, table_address(vttbr)), None
            if found is None:
                continue
        vm, mmu = found or (None, None)
        yield Live(cpu, vttbr, cpu.registers.get("VTCR_EL2"), vm, mmu, loaded is not None)
