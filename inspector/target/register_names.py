"""The registers that are read from every CPU, and the names that QEMU versions give them.

Names are the architectural ones (DDI 0487, "AArch64 System Register Descriptions"); general registers,
``sp``, ``pc`` and ``cpsr`` are lower case, as in gdb's ``org.gnu.gdb.aarch64.core``.  QEMU shows the raw
storage of a register (``read_raw_cp_reg``, target/arm/gdbstub.c, 7.2 to 10.0): under VHE ``TCR_EL1`` is EL1's
register, not the one that an access at EL2 is redirected to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

GENERAL = (*(f"x{number}" for number in range(31)), "sp", "pc", "cpsr")

SYSTEM = (
    # virtualisation control and stage 2
    "HCR_EL2",
    "HCRX_EL2",
    "VTTBR_EL2",
    "VTCR_EL2",
    "VSTTBR_EL2",
    "VSTCR_EL2",
    "VPIDR_EL2",
    "VMPIDR_EL2",
    "VNCR_EL2",
    "MDCR_EL2",
    "CPTR_EL2",
    "HSTR_EL2",
    # translation
    "SCTLR_EL1",
    "SCTLR_EL2",
    "SCTLR_EL12",
    "TCR_EL1",
    "TCR_EL2",
    "TCR_EL12",
    "TCR2_EL1",
    "TCR2_EL2",
    "TTBR0_EL1",
    "TTBR1_EL1",
    "TTBR0_EL2",
    "TTBR1_EL2",
    "TTBR0_EL12",
    "TTBR1_EL12",
    "MAIR_EL1",
    "MAIR_EL2",
    "MAIR_EL12",
    "CONTEXTIDR_EL1",
    "CONTEXTIDR_EL2",
    # exceptions
    "VBAR_EL1",
    "VBAR_EL2",
    "ESR_EL1",
    "ESR_EL2",
    "FAR_EL1",
    "FAR_EL2",
    "HPFAR_EL2",
    "ELR_EL1",
    "ELR_EL2",
    "SPSR_EL1",
    "SPSR_EL2",
    "SP_EL0",
    "SP_EL1",
    "SP_EL2",
    "PAR_EL1",
    # thread pointers (the kernel's per-CPU offset: TPIDR_EL1 without VHE, TPIDR_EL2 with)
    "TPIDR_EL0",
    "TPIDRRO_EL0",
    "TPIDR_EL1",
    "TPIDR_EL2",
    # identification
    "MIDR_EL1",
    "MPIDR_EL1",
    "CTR_EL0",
    "ID_AA64PFR0_EL1",
    "ID_AA64PFR1_EL1",
    "ID_AA64ISAR0_EL1",
    "ID_AA64ISAR1_EL1",
    "ID_AA64MMFR0_EL1",
    "ID_AA64MMFR1_EL1",
    "ID_AA64MMFR2_EL1",
    "ID_AA64MMFR3_EL1",
    "ID_AA64MMFR4_EL1",
)

REGISTERS = GENERAL + SYSTEM

ALIASES: Mapping[str, tuple[str, ...]] = {
    # QEMU 7.2.22 (measured): EL1 registers with an AArch32 twin go by the short name.
    "SCTLR_EL1": ("SCTLR",),
    "VBAR_EL1": ("VBAR",),
    # QEMU 7.2.22: ID registers that were unallocated in its time
    "ID_AA64MMFR3_EL1": ("ID_AA64MMFR3_EL1_RESERVED",),
    "ID_AA64MMFR4_EL1": ("ID_AA64MMFR4_EL1_RESERVED",),
}
"""Canonical name -> other names, tried in order after the canonical one."""


def choose(available: Iterable[str]) -> dict[str, str]:
    """Canonical name -> the name this stub has for it; registers it lacks are left out.

    Case is ignored, so that a change of QEMU's habits does not make a register vanish.
    """
    by_lower: dict[str, str] = {}
    for name in available:
        if name:
            by_lower.setdefault(name.lower(), name)
    chosen = {}
    for canonical in REGISTERS:
        for candidate in (canonical, *ALIASES.get(canonical, ())):
            if candidate.lower() in by_lower:
                chosen[canonical] = by_lower[candidate.lower()]
                break
    return chosen


def exception_level(cpsr: int) -> int:
    """PSTATE.EL in SPSR format, M[3:2], for a CPU in AArch64 state (DDI 0487, "SPSR_EL2")."""
    return cpsr >> 2 & 3


def is_aarch32(cpsr: int) -> bool:
    """Whether the CPU executes AArch32: M[4] (DDI 0487, "SPSR_EL2")."""
    return bool(cpsr >> 4 & 1)
