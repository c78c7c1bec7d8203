"""The CPU features that stage 2 depends on, from the ID registers."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.codec import decode_register
from inspector.target.api import Cpu


def _least(cpus: Sequence[Cpu], register: str, field: str) -> int | None:
    """The field's lowest value on any CPU (the kernel's "sanitised" view for lower-safe fields).

    ``None`` where the stub shows the register of none.
    """
    values = [cpu.registers[register] for cpu in cpus if register in cpu.registers]
    return min((decode_register(register, value)[field] for value in values), default=None)


def features(cpus: Sequence[Cpu]) -> dict[str, int]:
    """Features that all CPUs have, by name; one whose register the stub does not show is absent.

    ``lpa2`` follows TGran4_2: 3 = 52 bits at stage 2, 0 = as TGran4 (where 1 = 52 bits) (DDI 0487 D24.2
    ID_AA64MMFR0_EL1).
    """
    mmfr0, mmfr1, mmfr2 = (f"ID_AA64MMFR{n}_EL1" for n in range(3))
    vmid_bits, tlb = _least(cpus, mmfr1, "VMIDBits"), _least(cpus, "ID_AA64ISAR0_EL1", "TLB")
    fwb, ttl = _least(cpus, mmfr2, "FWB"), _least(cpus, mmfr2, "TTL")
    stage2_4k, stage1_4k = _least(cpus, mmfr0, "TGran4_2"), _least(cpus, mmfr0, "TGran4")
    found = {
        "parange": _least(cpus, mmfr0, "PARange"),
        "hafdbs": _least(cpus, mmfr1, "HAFDBS"),
        "xnx": _least(cpus, mmfr1, "XNX"),
        "nv": _least(cpus, mmfr2, "NV"),
        "vmid16": None if vmid_bits is None else vmid_bits == 2,
        "vhe": _least(cpus, mmfr1, "VH"),
        "fwb": None if fwb is None else fwb >= 1,
        "ttl": None if ttl is None else ttl >= 1,
        "tlbirange": None if tlb is None else tlb >= 2,
        "lpa2": None if stage2_4k is None else stage2_4k == 3 or (stage2_4k == 0 and stage1_4k == 1),
    }
    return {name: int(value) for name, value in found.items() if value is not None}
