"""Bits of system registers that this room decides by, and the CPU features from the ID registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inspector.target.api import Cpu

HCR_VM = 1 << 0
HCR_TGE = 1 << 27
HCR_E2H = 1 << 34
PSTATE_EL_SHIFT = 2

# name -> (register, lowest bit): four-bit ID fields, DDI 0487 D24.2
_ID_FIELDS = {
    "parange": ("ID_AA64MMFR0_EL1", 0),
    "tgran4_2": ("ID_AA64MMFR0_EL1", 40),
    "tgran4": ("ID_AA64MMFR0_EL1", 28),
    "tgran16_2": ("ID_AA64MMFR0_EL1", 32),
    "hafdbs": ("ID_AA64MMFR1_EL1", 0),
    "vmidbits": ("ID_AA64MMFR1_EL1", 4),
    "vh": ("ID_AA64MMFR1_EL1", 8),
    "xnx": ("ID_AA64MMFR1_EL1", 28),
    "fwb": ("ID_AA64MMFR2_EL1", 40),
    "ttl": ("ID_AA64MMFR2_EL1", 48),
    "nv": ("ID_AA64MMFR2_EL1", 24),
    "tlb": ("ID_AA64ISAR0_EL1", 56),
}


def id_field(registers: Mapping[str, int], name: str) -> int | None:
    """The field of one CPU, or ``None`` where the stub does not show the register."""
    register, low = _ID_FIELDS[name]
    value = registers.get(register)
    return None if value is None else (value >> low) & 0xF


def features(cpus: Sequence[Cpu]) -> dict[str, int]:
    """Features that all CPUs have (the kernel's "sanitised" view for lower-safe fields), by name.

    A field whose register the stub does not show is absent.  ``lpa2`` follows TGRAN4_2: 3 = 52 bits at stage 2, 0 =
    as TGRAN4 (where 1 = 52 bits) (DDI 0487 D24.2.98 ID_AA64MMFR0_EL1).
    """
    raw: dict[str, int] = {}
    for name in _ID_FIELDS:
        values = [v for v in (id_field(cpu.registers, name) for cpu in cpus) if v is not None]
        if values:
            raw[name] = min(values)
    result: dict[str, int] = {k: raw[k] for k in ("parange", "hafdbs", "xnx", "nv") if k in raw}
    if "vmidbits" in raw:
        result["vmid16"] = int(raw["vmidbits"] == 2)
    if "vh" in raw:
        result["vhe"] = raw["vh"]
    for name in ("fwb", "ttl"):
        if name in raw:
            result[name] = int(raw[name] >= 1)
    if "tlb" in raw:
        result["tlbirange"] = int(raw["tlb"] >= 2)
    if "tgran4_2" in raw:
        result["lpa2"] = int(raw["tgran4_2"] == 3 or (raw["tgran4_2"] == 0 and raw.get("tgran4") == 1))
    return result


def exception_level(registers: Mapping[str, int]) -> int | None:
    """Current EL from the stub's ``cpsr`` (SPSR format, M[3:2]), or ``None``."""
    cpsr = registers.get("cpsr")
    return None if cpsr is None else (cpsr >> PSTATE_EL_SHIFT) & 3
