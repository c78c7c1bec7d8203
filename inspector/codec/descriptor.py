"""One table entry: decoding any 64-bit value, and encoding as its inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from inspector.codec import layouts
from inspector.codec.bits import WORD, Layout
from inspector.codec.formats import Execute, Format, InvalidForm, Kind, MemoryType, Regime, Shareability
from inspector.codec.geometry import Geometry

_BOTH_WAYS = {0x5: MemoryType.NORMAL_NC, 0x1: MemoryType.DEVICE}
_MEMORY_TYPES: Mapping[bool, Mapping[int, MemoryType]] = {
    False: {0xF: MemoryType.NORMAL, **_BOTH_WAYS},
    True: {0x6: MemoryType.NORMAL, 0x7: MemoryType.AS_S1, **_BOTH_WAYS},
}
"""MemAttr by HCR_EL2.FWB."""

_MAIR_TYPES: Mapping[int, str] = {
    0xFF: MemoryType.NORMAL,
    0xF0: "normal-tagged",
    0x44: MemoryType.NORMAL_NC,
    0xBB: "normal-wt",
    0x00: "device-nGnRnE",
    0x04: MemoryType.DEVICE,
}
"""The attributes that Linux puts into MAIR_ELx (``MAIR_EL1_SET``, arch/arm64/mm/proc.S; DDI 0487 D24.2 MAIR_EL2)."""

_EXECUTABLE = (Execute.ALL, Execute.UNPRIVILEGED, Execute.NEVER, Execute.PRIVILEGED)
"""Stage-2 XN[1:0] with FEAT_XNX (DDI 0487 D8.4): 01 is EL0 only, 11 is EL1 only."""

_SHAREABLE = tuple(Shareability)
_SH = ("non-shareable", "reserved-sh", "outer", "inner")

_IN_WORDS = frozenset(
    ("valid", "type", "output_address", "memattr", "attrindx", "s2ap", "ap", "sh", "af", "xn", "pxn", "uxn", "sw")
)
"""Leaf fields that `Descriptor.describe` puts into words; the others are shown by name when they are not zero."""

_ANNOTATIONS = {layouts.TYPE_DONATION: "donation", layouts.TYPE_POISONED: "poisoned"}
_OWNERS_OLD = {1: "hyp", 2: "ffa"}
_OWNERS_TYPED = {1: "hyp", 2: "guest"}


def _variant(raw: int, kind: Kind, fmt: Format) -> str:
    return layouts.variant(kind, fmt, raw >> 60, raw >> 1 & 7)


@dataclass(frozen=True)
class Descriptor:
    """A decoded entry.  Everything but ``kind`` is computed from ``raw`` when asked for."""

    raw: int
    level: int
    kind: Kind
    geometry: Geometry
    format: Format

    @cached_property
    def layout(self) -> Layout:
        """The field table that this entry is read with."""
        variant = _variant(self.raw, self.kind, self.format) if self.kind is Kind.ANNOTATED else ""
        return layouts.layout(self.kind, self.level, self.geometry, self.format, variant)

    @cached_property
    def fields(self) -> Mapping[str, int]:
        """Every named field, and ``res``: the bits without a name, in place."""
        return self.layout.decode(self.raw)

    def field(self, name: str) -> int:
        """One field's value; 0 when this kind of entry has no such field."""
        found = self.layout.by_name.get(name)
        return found.get(self.raw) if found else 0

    @property
    def res(self) -> int:
        """The bits that have no name here, in place: they should be zero."""
        return self.raw & self.layout.unnamed

    @property
    def valid(self) -> bool:
        """Bit 0: whether the hardware uses the entry."""
        return bool(self.raw & layouts.VALID)

    @property
    def output_address(self) -> int | None:
        """PA that a leaf maps or where the next table is; ``None`` for every other kind.

        For a block the address bits below its size are not part of it (see field ``oa_res0``).
        """
        found = self.layout.by_name.get("output_address")
        return found.get(self.raw) if found else None

    @property
    def size(self) -> int:
        """Bytes of input address that the entry covers."""
        return self.geometry.block_size(self.level)

    @property
    def misaligned(self) -> bool:
        """A block whose address field has bits below the block's size (RES0, DDI 0487 D8.3)."""
        return self.kind is Kind.BLOCK and self.field("oa_res0") != 0

    @property
    def beyond_pa(self) -> bool:
        """The output address needs more bits than the table's output address size: an address size fault."""
        address = self.output_address
        return address is not None and bool(address >> self.geometry.pa_bits)

    @property
    def readable(self) -> bool:
        """The translation regime's lower level may read (stage 2: S2AP[0]); False when not a valid leaf."""
        if not self.kind.is_leaf or not self.valid:
            return False
        return bool(self.field("s2ap") & 1) if self.format.regime is Regime.STAGE2 else True

    @property
    def writable(self) -> bool:
        """Stage 2: S2AP[1].  Hyp: AP[2] clear.  Linux: ``pte_write`` (bit 51), also while not yet dirty."""
        if not self.kind.is_leaf or not self.valid:
            return False
        if self.format.regime is Regime.STAGE2:
            return bool(self.field("s2ap") & 2)
        if self.format.regime is Regime.HYP_STAGE1:
            return not self.field("ap") & 2
        return bool(self.field("dbm"))

    @property
    def executable(self) -> Execute:
        """Which exception levels may execute it; `Execute.NEVER` when not a valid leaf."""
        if not self.kind.is_leaf or not self.valid:
            return Execute.NEVER
        if self.format.regime is Regime.STAGE2:
            xn = self.field("xn")
            return _EXECUTABLE[xn if self.format.xnx else xn << 1]
        if self.format.regime is Regime.HYP_STAGE1 and not self.format.hvhe:
            return Execute.NEVER if self.field("xn") else Execute.ALL
        return tuple(Execute)[self.field("pxn") << 1 | self.field("uxn")]

    @property
    def permissions(self) -> str:
        """``R``, ``W`` and ``X`` (or ``PX``, ``UX``), each ``-`` when absent."""
        return ("R" if self.readable else "-") + ("W" if self.writable else "-") + self.executable

    @property
    def memory_type(self) -> str:
        """A `MemoryType`; ``memattr-0x..`` for what KVM never writes.

        Stage 1 names the MAIR index (``attrindx-4``) unless MAIR is known; empty when not a leaf.
        """
        if not self.kind.is_leaf:
            return ""
        if self.format.regime is not Regime.STAGE2:
            index = self.field("attrindx")
            known = _MAIR_TYPES.get(self.format.mair >> 8 * index & 0xFF) if self.format.mair else None
            return known or f"attrindx-{index}"
        value = self.field("memattr")
        return _MEMORY_TYPES[self.format.fwb].get(value, f"memattr-{value:#x}")

    @property
    def shareability(self) -> int:
        """SH of a leaf: 0 none, 2 outer, 3 inner; 0 with LPA2, where the bits hold an address."""
        return self.field("sh") if self.kind.is_leaf else 0

    @property
    def shareable(self) -> Shareability:
        """`shareability` by name."""
        return _SHAREABLE[self.shareability]

    @property
    def af(self) -> bool:
        """The access flag of a leaf."""
        return self.kind.is_leaf and bool(self.field("af"))

    @property
    def sw(self) -> int:
        """Software bits [58:55] of a leaf, as a number."""
        return (self.raw >> 55) & 0xF if self.kind.is_leaf else 0

    def describe(self) -> str:
        """One line for people, without the raw value."""
        if self.kind.is_leaf:
            return self._describe_leaf()
        if self.kind is Kind.TABLE:
            extra = {k: v for k, v in self.fields.items() if k not in ("valid", "type", "output_address") and v}
            return f"table at PA {self.output_address:#x}" + _extra(extra)
        if self.kind is Kind.RESERVED:
            return f"reserved encoding at level {self.level}"
        return self._describe_invalid()

    def _describe_leaf(self) -> str:
        words = [f"{self.kind.value} PA {self.output_address:#x}", self.permissions, self.memory_type]
        if not self.valid:
            words.append("present-invalid")
        if "sh" in self.layout.by_name:
            words.append(_SH[self.shareability])
        words.append("AF" if self.af else "no-AF")
        if self.sw and "sw" in self.layout.by_name:
            words.append(f"SW={self.sw:#x}")
        return " ".join(words) + _extra({k: v for k, v in self.fields.items() if k not in _IN_WORDS and v})

    def _describe_invalid(self) -> str:
        values = {k: v for k, v in self.fields.items() if k != "valid" and v}
        name = self.kind.value
        if self.format.regime is Regime.LINUX_STAGE1 and self.kind is Kind.ANNOTATED:
            name = "swap or migration entry"
        elif self.format.regime is Regime.STAGE2 and self.kind is Kind.ANNOTATED:
            typed = self.format.invalid is InvalidForm.TYPED
            kind_of = _ANNOTATIONS.get(values.get("annotation_type", 0)) if typed else "owner annotation"
            owner = (_OWNERS_TYPED if typed else _OWNERS_OLD).get(values.get("owner", 0))
            name = f"annotated ({kind_of or 'unknown type'}{': ' + owner if owner else ''})"
        elif self.format.invalid is InvalidForm.STALE and "stale" in values:
            name = "invalid (stale bits left in place)"
        return name + _extra(values)


def _extra(values: Mapping[str, int]) -> str:
    return "".join(f" {name}={value:#x}" for name, value in values.items())


def decode(raw: int, level: int, geometry: Geometry, fmt: Format) -> Descriptor:
    """Decode the entry ``raw`` found in a table at ``level``.

    Never raises for a 64-bit value at a level from -1 to 3; ValueError for anything else.
    """
    if not 0 <= raw <= WORD:
        raise ValueError(f"{raw:#x} is not a 64-bit value")
    return Descriptor(raw, level, layouts.classify(raw, level, geometry, fmt), geometry, fmt)


def decoder(level: int, geometry: Geometry, fmt: Format) -> Callable[[int], Descriptor]:
    """`decode` for many 64-bit values of one level: what does not depend on the value is looked up once."""
    rules = layouts.rules(level, geometry, fmt)

    def decode_one(raw: int) -> Descriptor:
        return Descriptor(raw, level, layouts.first(rules, raw), geometry, fmt)

    return decode_one


def encode(kind: Kind, level: int, geometry: Geometry, fmt: Format, output_address: int = 0, **fields: int) -> int:
    """The 64-bit entry with these fields (absent: 0).

    The inverse of `decode`: ``encode(d.kind, d.level, d.geometry, d.format, **d.fields) == d.raw``.
    Bits 0 and 1 follow from ``kind`` unless given.  Raises ValueError when a field is unknown or does not fit, when the
    address is not aligned or not representable, or when the result would not decode as ``kind``.
    """
    if kind.is_leaf or kind is Kind.TABLE:
        values = {"valid": 1, "type": int(kind is not Kind.BLOCK), "output_address": output_address, **fields}
    elif output_address:
        raise ValueError(f"an entry of kind {kind.value} has no output address")
    else:
        values = {"valid": 1, **fields} if kind is Kind.RESERVED else dict(fields)
        if kind is Kind.LOCKED and fmt.invalid is InvalidForm.LOCKED_BIT10:
            values.setdefault("locked", 1)
        elif kind is Kind.LOCKED and fmt.invalid is InvalidForm.TYPED:
            values.setdefault("annotation_type", layouts.TYPE_LOCKED)
    variant = layouts.variant(kind, fmt, values.get("annotation_type", 0), values.get("owner", 0))
    raw = layouts.layout(kind, level, geometry, fmt, variant).encode(values)
    if layouts.classify(raw, level, geometry, fmt) is not kind:
        actual = layouts.classify(raw, level, geometry, fmt).value
        raise ValueError(f"{raw:#x} at level {level} is {actual}, not {kind.value}")
    return raw
