"""What each CPU was doing when the machine stopped, and which vCPU is loaded on it."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.codec import Vttbr, decode_register
from inspector.kernel.accessors import accessor_variable
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.snapshot import CpuState, Running
from inspector.target.api import Cpu
from inspector.target.register_names import exception_level

# The TLB invalidation helpers, which load another VM's VTTBR for a moment (arch/arm64/kvm/hyp/vhe/tlb.c; 6.12+ adds
# the enter/exit_vmid_context pair): kernel.md 15.2.
_TLB_HELPERS = ("__kvm_tlb_flush_", "__tlb_switch_to_", "enter_vmid_context", "exit_vmid_context")


def loaded_vcpus(kernel: HostKernel, count: int, notes: list[str]) -> dict[int, int]:
    """CPU index to the address of the vCPU loaded there: the per-CPU ``kvm_running_vcpu`` (virt/kvm/kvm_main.c).

    The variable is static; its accessor ``kvm_get_running_vcpus`` (5.10 and later) names it in any kernel.
    """
    variable = kernel.symbol("kvm_running_vcpu") or accessor_variable(kernel, "kvm_get_running_vcpus")
    offsets = kernel.symbol("__per_cpu_offset")
    if variable is None or offsets is None:
        notes.append("which vCPU is loaded where is not known: kvm_running_vcpu cannot be found in this kernel")
        return {}
    loaded = {}
    for cpu in range(count):
        try:
            # Per-CPU symbols are link-time addresses; the offset already holds the slide.
            vcpu = kernel.space.pointer(variable + kernel.space.u64(offsets + 8 * cpu) & ((1 << 64) - 1))
        except BadPointer as e:
            notes.append(f"which vCPU is loaded on CPU {cpu} is not known: {e}")
            continue
        if vcpu:
            loaded[cpu] = vcpu
    return loaded


def cpu_state(cpu: Cpu, kernel: HostKernel | None, *, protected: bool = False) -> CpuState:
    """One CPU's registers with what they mean.

    A guest runs at EL1 or EL0 with HCR_EL2.VM=1 and TGE=0.  VTTBR_EL2 is live only where a
    stage-2 is in force (kernel.md 2.4): a guest's, or the one that a ``protected`` host itself runs under, VMID 0
    (kernel.md 12.1).
    """
    r = cpu.registers
    hcr = decode_register("hcr_el2", r.get("HCR_EL2", 0))
    stage2 = bool(hcr["VM"]) and not hcr["TGE"]
    level = exception_level(r["cpsr"]) if "cpsr" in r else None
    symbol = None
    if kernel is not None and "pc" in r and kernel.space.in_image(r["pc"]):
        symbol, _ = kernel.symbols.nearest(kernel.space.link(r["pc"])) or (None, 0)
    if "HCR_EL2" not in r:  # of a dump
        at_home = symbol is not None or level == 2
        running = Running.HOST if at_home else Running.USER if level == 0 else Running.GUEST
        return CpuState(cpu.index, dict(r), running, symbol, False)
    if level == 2 and symbol is not None and symbol.startswith(_TLB_HELPERS):
        running = Running.TLB_HELPER
    elif level == 2 and not hcr["E2H"]:
        running = Running.HYP
    elif level == 2:
        running = Running.WORLD_SWITCH if stage2 else Running.HOST
    elif stage2 and not (protected and not Vttbr.decode(r.get("VTTBR_EL2", 0)).vmid):
        running = Running.GUEST
    else:
        running = Running.USER if level == 0 else Running.HOST
    live = stage2 and running not in (Running.HYP, Running.TLB_HELPER)
    return CpuState(cpu.index, dict(r), running, symbol, live)


def cpu_states(cpus: Sequence[Cpu], kernel: HostKernel | None, *, protected: bool) -> tuple[CpuState, ...]:
    return tuple(cpu_state(cpu, kernel, protected=protected) for cpu in cpus)
