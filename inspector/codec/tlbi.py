"""TLBI instructions and their operands: what an invalidation covers, and back.

DDI 0487 C5.5 (the TLBI instructions), D8 (TLB maintenance).  Encodings are those of ``SYS #op1, C8, Cm, #op2, Xt``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from inspector.codec.bits import Layout, bits


class Operand(enum.StrEnum):
    """What the register operand holds."""

    NONE = "none"
    IPA = "ipa"
    IPA_RANGE = "ipa-range"
    VA = "va"
    VA_RANGE = "va-range"
    ASID = "asid"


@dataclass(frozen=True)
class TlbiOp:
    """One instruction.

    ``stages`` are the stages of translation it invalidates (1, 2) in the ``regime`` ``EL1&0`` or ``EL2``;
    ``shareability`` is ``nsh`` (this CPU), ``is`` or ``os``.  ``last_level`` ones leave cached table entries alone.
    ``nxs`` is the FEAT_XS variant (CRn = C9).
    """

    name: str
    op1: int
    crm: int
    op2: int
    operand: Operand
    regime: str
    stages: frozenset[int]
    shareability: str
    last_level: bool = False
    nxs: bool = False


_N, _I, _IR, _V, _VR, _A = tuple(Operand)
_ONE, _TWO, _BOTH = frozenset({1}), frozenset({2}), frozenset({1, 2})

# name without shareability suffix, op1, op2, operand, regime, stages, CRm by shareability; last level.
_ROWS: tuple[tuple[str, int, int, Operand, str, frozenset[int], Mapping[str, int], bool], ...] = (
    ("vmalle1", 0, 0, _N, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("vae1", 0, 1, _V, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("aside1", 0, 2, _A, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("vaae1", 0, 3, _V, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("vale1", 0, 5, _V, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, True),
    ("vaale1", 0, 7, _V, "EL1&0", _ONE, {"is": 3, "nsh": 7, "os": 1}, True),
    ("rvae1", 0, 1, _VR, "EL1&0", _ONE, {"is": 2, "nsh": 6, "os": 5}, False),
    ("rvaae1", 0, 3, _VR, "EL1&0", _ONE, {"is": 2, "nsh": 6, "os": 5}, False),
    ("rvale1", 0, 5, _VR, "EL1&0", _ONE, {"is": 2, "nsh": 6, "os": 5}, True),
    ("rvaale1", 0, 7, _VR, "EL1&0", _ONE, {"is": 2, "nsh": 6, "os": 5}, True),
    ("alle2", 4, 0, _N, "EL2", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("vae2", 4, 1, _V, "EL2", _ONE, {"is": 3, "nsh": 7, "os": 1}, False),
    ("alle1", 4, 4, _N, "EL1&0", _BOTH, {"is": 3, "nsh": 7, "os": 1}, False),
    ("vale2", 4, 5, _V, "EL2", _ONE, {"is": 3, "nsh": 7, "os": 1}, True),
    ("vmalls12e1", 4, 6, _N, "EL1&0", _BOTH, {"is": 3, "nsh": 7, "os": 1}, False),
    ("rvae2", 4, 1, _VR, "EL2", _ONE, {"is": 2, "nsh": 6, "os": 5}, False),
    ("rvale2", 4, 5, _VR, "EL2", _ONE, {"is": 2, "nsh": 6, "os": 5}, True),
    ("ipas2e1", 4, 1, _I, "EL1&0", _TWO, {"is": 0, "nsh": 4}, False),
    ("ripas2e1", 4, 2, _IR, "EL1&0", _TWO, {"is": 0, "nsh": 4}, False),
    ("ipas2le1", 4, 5, _I, "EL1&0", _TWO, {"is": 0, "nsh": 4}, True),
    ("ripas2le1", 4, 6, _IR, "EL1&0", _TWO, {"is": 0, "nsh": 4}, True),
    # The outer shareable forms of the by-IPA ones have other op2 values, beside the non-shareable ones.
    ("ipas2e1", 4, 0, _I, "EL1&0", _TWO, {"os": 4}, False),
    ("ripas2e1", 4, 3, _IR, "EL1&0", _TWO, {"os": 4}, False),
    ("ipas2le1", 4, 4, _I, "EL1&0", _TWO, {"os": 4}, True),
    ("ripas2le1", 4, 7, _IR, "EL1&0", _TWO, {"os": 4}, True),
)


def _table() -> Mapping[str, TlbiOp]:
    found: dict[str, TlbiOp] = {}
    for stem, op1, op2, operand, regime, stages, places, last in _ROWS:
        for shareability, crm in places.items():
            name = stem + ("" if shareability == "nsh" else shareability)
            for nxs in (False, True):
                full = name + ("nxs" if nxs else "")
                found[full] = TlbiOp(full, op1, crm, op2, operand, regime, stages, shareability, last, nxs)
    return found


OPS: Mapping[str, TlbiOp] = _table()
"""The TLBI instructions of the EL1&0 and EL2 regimes, by lower-case name."""

_BY_ENCODING = {(op.op1, 9 if op.nxs else 8, op.crm, op.op2): op for op in OPS.values()}


def decode_instruction(word: int) -> tuple[TlbiOp, int] | None:
    """The TLBI that a 32-bit instruction is, and its operand register number; ``None`` for any other instruction.

    DDI 0487 C6.2 SYS: ``1101 0101 0000 1 op1 CRn CRm op2 Rt``.
    """
    if word >> 19 != 0b1101010100001:
        return None
    op = _BY_ENCODING.get((word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7))
    return None if op is None else (op, word & 31)


def encode_instruction(name: str, rt: int = 31) -> int:
    """The 32-bit instruction with operand register ``rt`` (31: none).  ValueError for an unknown name."""
    if name not in OPS:
        raise ValueError(f"unknown TLBI {name!r}")
    op = OPS[name]
    return 0b1101010100001 << 19 | op.op1 << 16 | (9 if op.nxs else 8) << 12 | op.crm << 8 | op.op2 << 5 | rt


_IPA = Layout((bits("address", 39, 0), bits("ttl", 47, 44), bits("ns", 63)))
_VA = Layout((bits("address", 43, 0), bits("ttl", 47, 44), bits("asid", 63, 48)))
_RANGE = (bits("base", 36, 0), bits("ttl", 38, 37), bits("num", 43, 39), bits("scale", 45, 44), bits("tg", 47, 46))
_IPA_RANGE = Layout((*_RANGE, bits("ns", 63)))
_VA_RANGE = Layout((*_RANGE, bits("asid", 63, 48)))

OPERANDS: Mapping[Operand, Layout] = {
    Operand.NONE: Layout(()),
    Operand.IPA: _IPA,
    Operand.IPA_RANGE: _IPA_RANGE,
    Operand.VA: _VA,
    Operand.VA_RANGE: _VA_RANGE,
    Operand.ASID: Layout((bits("asid", 63, 48),)),
}
"""The fields of each kind of operand."""

TG_SHIFT = {1: 12, 2: 14, 3: 16}
"""TTL[3:2] and TG to granule shift; 0: no hint in TTL, reserved in TG (DDI 0487 C5.5)."""

_TG = {shift: tg for tg, shift in TG_SHIFT.items()}


@dataclass(frozen=True)
class Covered:
    """The addresses an operand covers: ``[start, start + size)`` in bytes, and what it says of the entries.

    ``level`` is the level hint (``None``: entries of every level).  A by-address operand covers the whole of whatever
    entry translates ``start``; its ``size`` is then that of a leaf at the hinted level, else of one granule (4K when no
    granule is hinted).  ``granule_shift`` is ``None`` when the operand does not say.  ``asid`` is 0 for an IPA.
    """

    start: int
    size: int
    level: int | None
    granule_shift: int | None
    asid: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size


def _hint(ttl: int, lpa2: bool) -> tuple[int | None, int | None]:
    """TTL[3:0] to (granule shift, level); a reserved value means no hint (DDI 0487 C5.5: treated as TTL[3:2]=0)."""
    shift, level = TG_SHIFT.get(ttl >> 2), ttl & 3
    if shift is None:
        return None, None
    smallest = {12: 0 if lpa2 else 1, 14: 1 if lpa2 else 2, 16: 1}[shift]
    return (shift, level) if level >= smallest else (None, None)


def _level_shift(granule_shift: int, level: int) -> int:
    return (granule_shift - 3) * (4 - level) + 3


def covered(operand: Operand, value: int, lpa2: bool = False) -> Covered | None:
    """What an address or range operand covers; ``None`` for operands without an address, and for a range with TG=0.

    ``lpa2``: the regime runs with DS=1, so that a range's base is in units of 64K whatever the granule.
    """
    fields = OPERANDS[operand].decode(value)
    asid = fields.get("asid", 0)
    if operand in (Operand.IPA, Operand.VA):
        granule_shift, level = _hint(fields["ttl"], lpa2)
        shift = 12 if granule_shift is None else granule_shift
        size_shift = shift if granule_shift is None or level is None else _level_shift(granule_shift, level)
        start = fields["address"] << 12 >> size_shift << size_shift
        return Covered(start, 1 << size_shift, level, granule_shift, asid)
    if operand in (Operand.IPA_RANGE, Operand.VA_RANGE):
        granule_shift = TG_SHIFT.get(fields["tg"])
        if granule_shift is None:
            return None
        start = fields["base"] << (16 if lpa2 else granule_shift)
        size = (fields["num"] + 1) << (5 * fields["scale"] + 1 + granule_shift)
        return Covered(start, size, fields["ttl"] or None, granule_shift, asid)
    return None


def by_ipa(ipa: int, level: int | None = None, granule_shift: int = 12) -> int:
    """The operand of ``ipas2e1*`` for an IPA in bytes, with a level hint (0 to 3) or none (``__tlbi_level``).

    Raises ValueError when the IPA is not page aligned or needs more than 52 bits.
    """
    if ipa & 0xFFF:
        raise ValueError(f"IPA {ipa:#x} is not aligned to 4K")
    ttl = 0 if level is None else _TG[granule_shift] << 2 | level
    return _IPA.encode({"address": ipa >> 12, "ttl": ttl})


def by_ipa_range(
    start: int, num: int, scale: int, granule_shift: int = 12, level: int | None = None, lpa2: bool = False
) -> int:
    """The operand of ``ripas2e1*`` (``__TLBI_VADDR_RANGE``): ``(num + 1) << (5 * scale + 1)`` granules from ``start``.

    ``level`` is the hint (1 to 3).  Raises ValueError when a value does not fit or ``start`` is not aligned to the
    unit of the base address: a granule, or 64K with ``lpa2``.
    """
    unit = 16 if lpa2 else granule_shift
    if start & ((1 << unit) - 1):
        raise ValueError(f"range start {start:#x} is not aligned to {1 << unit:#x}")
    fields = {"base": start >> unit, "ttl": level or 0, "num": num, "scale": scale, "tg": _TG[granule_shift]}
    return _IPA_RANGE.encode(fields)
