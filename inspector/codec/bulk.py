"""The numpy side of the codec: the same rules and field tables, applied to whole arrays of entries.

Not imported by the package itself: the interpreter inside gdb has no numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.codec.bits import Field
from inspector.codec.formats import Format, Kind
from inspector.codec.geometry import Geometry
from inspector.codec.layouts import Rule, layout, rules

Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]

KINDS: tuple[Kind, ...] = tuple(Kind)
"""Kind by the code that `kinds` gives."""

_CODE = {kind: code for code, kind in enumerate(KINDS)}


def words(raw: bytes | bytearray | memoryview) -> Words:
    """Little-endian table memory as an array of entries, without a copy."""
    return np.frombuffer(raw, dtype="<u8")


def _holds(raw: Words, rule: Rule) -> Flags:
    masked = raw & np.uint64(rule.mask)
    return np.not_equal(masked, rule.value) if rule.negate else np.equal(masked, rule.value)


def kinds(raw: Words, level: int, geometry: Geometry, fmt: Format) -> NDArray[np.uint8]:
    """The kind of every entry, as an index into `KINDS`: `layouts.classify` for an array."""
    result = np.zeros(raw.shape, dtype=np.uint8)
    for rule in reversed(rules(level, geometry, fmt)):
        result[_holds(raw, rule)] = _CODE[rule.kind]
    return result


def are(raw: Words, wanted: frozenset[Kind], level: int, geometry: Geometry, fmt: Format) -> Flags:
    """Which entries are of one of the kinds ``wanted``.

    Only for kinds whose rules are exact by themselves: TABLE, BLOCK, PAGE and RESERVED (see `layouts.rules`), which
    saves the passes over the others.
    """
    found: Flags | None = None
    for rule in rules(level, geometry, fmt):
        if rule.kind in wanted:
            assert not rule.negate
            holds = _holds(raw, rule)
            found = holds if found is None else found | holds
    return np.zeros(raw.shape, dtype=np.bool_) if found is None else found


LEAVES = frozenset({Kind.BLOCK, Kind.PAGE})


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
