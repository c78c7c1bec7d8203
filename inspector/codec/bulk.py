"""The numpy side of the codec: the same rules and field tables, applied to whole arrays of entries.

Not imported by the package itself: the interpreter inside gdb has no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inspector.codec.bits import Field
from inspector.codec.formats import Format, Kind
from inspector.codec.geometry import Geometry
from inspector.codec.layouts import Rule, layout, rules

Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]
Flat = NDArray[np.intp]

KINDS: tuple[Kind, ...] = tuple(Kind)
"""Kind by the code that `kinds` gives."""

_CODE = {kind: code for code, kind in enumerate(KINDS)}


def words(raw: bytes | bytearray | memoryview) -> Words:
    """Little-endian table memory as an array of entries, without a copy."""
    return np.frombuffer(raw, dtype="<u8")


@dataclass(frozen=True)
class Summary:
    """What is known of a whole array from two passes: the bits ``every`` entry has, and those ``some`` entry has."""

    every: int
    some: int

    def excludes(self, rule: Rule) -> bool:
        """No entry can satisfy the rule."""
        if rule.negate:
            return not (self.every ^ rule.value) & rule.mask and not (self.some ^ rule.value) & rule.mask
        return bool(self.every & rule.mask & ~rule.value or rule.value & ~self.some)

    def implies(self, rule: Rule) -> bool:
        """Every entry satisfies the rule."""
        return not rule.negate and not ((self.every ^ rule.value) | (self.some ^ rule.value)) & rule.mask


def summary(raw: Words) -> Summary:
    """The summary of an array; of an empty one, as if it held a zero."""
    if not raw.size:
        return Summary(0, 0)
    return Summary(int(np.bitwise_and.reduce(raw)), int(np.bitwise_or.reduce(raw)))


def _holds(raw: Words, rule: Rule) -> Flags:
    masked: Words = raw & np.uint64(rule.mask)
    value = np.uint64(rule.value)
    holds: Flags = (masked != value) if rule.negate else (masked == value)
    return holds


def kinds(raw: Words, level: int, geometry: Geometry, fmt: Format) -> NDArray[np.uint8]:
    """The kind of every entry, as an index into `KINDS`: `layouts.classify` for an array."""
    result = np.zeros(raw.shape, dtype=np.uint8)
    for rule in reversed(rules(level, geometry, fmt)):
        result[_holds(raw, rule)] = _CODE[rule.kind]
    return result


@lru_cache(maxsize=256)
def exact_rules(kind: Kind, level: int, geometry: Geometry, fmt: Format) -> tuple[Rule, ...]:
    """The rules that make an entry of ``kind``, each sufficient by itself.

    Only for TABLE, BLOCK, PAGE and RESERVED, whose rules are exact (see `layouts.rules`): it saves the passes over
    the other kinds.
    """
    if kind not in (Kind.TABLE, Kind.BLOCK, Kind.PAGE, Kind.RESERVED):
        raise ValueError(f"the rules for {kind.value} entries are not exact by themselves")
    return tuple(rule for rule in rules(level, geometry, fmt) if rule.kind is kind)


def are(raw: Words, known: Summary, which: tuple[Rule, ...]) -> Flags | bool:
    """Which entries satisfy one of the rules (from `exact_rules`); a plain bool where all or none do."""
    found: Flags | bool = False
    for rule in which:
        if known.implies(rule):
            return True
        if not known.excludes(rule):
            holds = _holds(raw, rule)
            found = holds if found is False else found | holds
    return found


def leaf_kind(level: int) -> Kind:
    """The kind of a leaf at ``level``."""
    return Kind.PAGE if level == 3 else Kind.BLOCK


def field(raw: Words, which: Field) -> Words:
    """One field of every entry: `Field.get` for an array."""
    value = np.zeros(raw.shape, dtype=np.uint64)
    for part in which.parts:
        value |= (raw & np.uint64(part.mask)) >> np.uint64(part.lo) << np.uint64(part.at)
    return value


def address_field(kind: Kind, level: int, geometry: Geometry, fmt: Format) -> Field:
    """The output address field of a leaf or table entry at ``level``."""
    return layout(kind, level, geometry, fmt).by_name["output_address"]


def decode(raw: Words, kind: Kind, level: int, geometry: Geometry, fmt: Format) -> dict[str, Words]:
    """Every field of entries known to be of one ``kind`` (a leaf, TABLE or RESERVED), as `Layout.decode` gives them."""
    table = layout(kind, level, geometry, fmt)
    columns = {which.name: field(raw, which) for which in table}
    columns["res"] = raw & np.uint64(table.unnamed)
    return columns
