"""Barriers and invalidations as the instructions that they are (DDI 0487 C6.2, C5.5)."""

from __future__ import annotations

from typing import Final

from inspector.codec import tlbi
from inspector.events import BARRIER, TLBI, RawEvent

_REGISTERS: Final = {0xD51C2100: "vttbr_el2", 0xD51C1100: "hcr_el2"}
"""MSR, without its Rt."""
_DOMAINS: Final = {
    1: "oshld",
    2: "oshst",
    3: "osh",
    5: "nshld",
    6: "nshst",
    7: "nsh",
    9: "ishld",
    10: "ishst",
    11: "ish",
    13: "ld",
    14: "st",
    15: "sy",
}
"""CRm of DSB."""


def register_of(word: int) -> str | None:
    """The system register that an MSR writes, of those that are told."""
    return _REGISTERS.get(word & ~31)


def event_of(word: int, operand: int, lpa2: bool = False) -> RawEvent | None:
    """The event of an instruction whose register holds ``operand``; ``None``: it is none of these.

    A call into the hypervisor is told as a barrier of kind ``hvc``: what it does is not seen here.

    A TLBI by address has the level that its TTL field hints at, ``None`` where that says nothing.
    """
    if word & 0xFFFFF0FF == 0xD503309F:
        return (BARRIER, _DOMAINS[word >> 8 & 15]) if word >> 8 & 15 in _DOMAINS else None
    if word & 0xFFFFF0FF == 0xD50330DF:
        return (BARRIER, "isb")
    if word & 0xFFE0001F == 0xD4000002:
        return (BARRIER, "hvc")
    decoded = tlbi.decode_instruction(word)
    if decoded is None:
        return None
    op = decoded[0]
    covered = tlbi.covered(op.operand, operand, lpa2)
    if covered is None:
        return (TLBI, op.name.removesuffix("nxs"), None, None, None)
    if op.operand in (tlbi.Operand.IPA, tlbi.Operand.VA):
        start = tlbi.OPERANDS[op.operand].decode(operand)["address"] << 12
        return (TLBI, op.name.removesuffix("nxs"), start, covered.level, None)
    pages = covered.size >> (covered.granule_shift or 12)
    return (TLBI, op.name.removesuffix("nxs"), covered.start, covered.level, pages)
