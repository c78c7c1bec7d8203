"""How KVM runs on this host: VHE, nVHE, hVHE, protected, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inspector.codec import decode_register, has_e2h, table_address
from inspector.kernel.accessors import accessor_variable
from inspector.kernel.idregs import id_registers
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.snapshot import Mode
from inspector.target.api import Cpu
from inspector.target.register_names import exception_level


def kvm_mode(kernel: HostKernel, cpus: Sequence[Cpu]) -> Mode:
    """How KVM runs; ``NONE`` also where it is absent or switched off.

    ``kvm_mode`` and ``kvm_arm_initialised`` (arch/arm64/kvm/arm.c; the latter from 6.4 on) are static; their accessors
    name them.  VBAR_EL2 tells nothing: without protected mode KVM puts the boot stub's vectors back while there is no
    VM (``_kvm_arch_hardware_disable``).
    """
    if kernel.symbol("kvm_vm_release") is None:
        return Mode.NONE
    selected = _enum_value(kernel, "kvm_get_mode", "kvm_mode")
    if selected is not None and selected == kernel.symbols.enumerator("kvm_mode", "KVM_MODE_NONE"):
        return Mode.NONE
    initialised = accessor_variable(kernel, "is_kvm_arm_initialised")
    if initialised is not None and not _byte(kernel, initialised):
        return Mode.NONE
    protected = selected is not None and selected == kernel.symbols.enumerator("kvm_mode", "KVM_MODE_PROTECTED")
    e2h = any(has_e2h(cpu.registers) for cpu in cpus)
    if protected:
        return Mode.PROTECTED
    if not any("HCR_EL2" in cpu.registers for cpu in cpus):
        return _mode_of_dump(kernel, cpus)
    if not e2h:
        return Mode.NVHE
    # hVHE sets E2H at EL2 while the kernel stays at EL1.  A VHE kernel has its tables in TTBR1_EL2, but while the
    # trampoline's are there (CONFIG_UNMAP_KERNEL_AT_EL0): then the host runs, with HCR_EL2.TGE, which hVHE never has.
    root = kernel.space.root_pa
    page = kernel.space.geometry.granule
    at_el2 = any(
        table_address(cpu.registers.get("TTBR1_EL2", 0)) & -page == root or _is_vhe_host(cpu.registers) for cpu in cpus
    )
    return Mode.VHE if at_el2 else Mode.HVHE


def _is_vhe_host(registers: Mapping[str, int]) -> bool:
    """HCR_EL2.{E2H,TGE}: what runs is of the EL2&0 regime (DDI 0487 D24.2, HCR_EL2)."""
    return has_e2h(registers) and bool(decode_register("hcr_el2", registers["HCR_EL2"])["TGE"])


def _mode_of_dump(kernel: HostKernel, cpus: Sequence[Cpu]) -> Mode:
    """By where the kernel runs: at EL2 with VHE.  What is at EL1 may be hVHE, which changes nothing in a stage 2.

    With every CPU in a guest or in user space: VHE where the kernel uses it (it takes VH out of the register else).
    """
    levels = {
        exception_level(cpu.registers["cpsr"])
        for cpu in cpus
        if "cpsr" in cpu.registers and kernel.space.in_image(cpu.registers.get("pc", 0))
    }
    if levels:
        return Mode.VHE if 2 in levels else Mode.NVHE
    vhe = decode_register("ID_AA64MMFR1_EL1", id_registers(kernel).get("ID_AA64MMFR1_EL1", 0))["VH"]
    return Mode.VHE if vhe else Mode.NVHE


def _enum_value(kernel: HostKernel, accessor: str, variable: str) -> int | None:
    address = kernel.symbol(variable) or accessor_variable(kernel, accessor)
    try:
        return None if address is None else kernel.space.u32(address)
    except BadPointer:
        return None


def _byte(kernel: HostKernel, address: int) -> int:
    try:
        return kernel.space.read(address, 1)[0]
    except BadPointer:
        return 1
