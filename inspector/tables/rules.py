"""What a level's entries are held against, put together once for each geometry and format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from inspector.codec import Format, Geometry, Kind, bulk
from inspector.codec.bits import Field
from inspector.codec.layouts import Rule, layout


@dataclass(frozen=True)
class Pointing:
    """Entries with an address, of one kind: the rules that make one, and the address field.

    Bits that such an entry must not have: ``too_high``, of an address above the output size, and ``below``, of one
    below a block's size (DDI 0487 D8.3).
    """

    kind: Kind
    rules: tuple[Rule, ...]
    address: Field
    too_high: int
    below: int


@dataclass(frozen=True)
class LevelRules:
    """One level: what its entries can be (``table`` and ``leaf`` are ``None`` where there is no such thing).

    An entry covers ``1 << shift`` bytes, and input addresses reach the first ``reachable`` entries of a table.
    """

    level: int
    shift: int
    reachable: int
    table: Pointing | None
    leaf: Pointing | None
    reserved: tuple[Rule, ...]


def _pointing(kind: Kind, level: int, geometry: Geometry, fmt: Format) -> Pointing:
    fields = layout(kind, level, geometry, fmt).by_name
    address = fields["output_address"]
    too_high = address.put(address.value_mask >> geometry.pa_bits << geometry.pa_bits)
    below = fields["oa_res0"].mask if kind is Kind.BLOCK else 0
    return Pointing(kind, bulk.exact_rules(kind, level, geometry, fmt), address, too_high, below)


def reachable(geometry: Geometry, level: int) -> int:
    """Entries of a table page at ``level`` that some input address reaches; a power of two."""
    return geometry.root_entries if level == geometry.start_level else geometry.entries


@lru_cache(maxsize=64)
def level_rules(geometry: Geometry, fmt: Format) -> dict[int, LevelRules]:
    """The rules of every level of a tree, by level."""
    return {
        level: LevelRules(
            level,
            geometry.level_shift(level),
            reachable(geometry, level),
            _pointing(Kind.TABLE, level, geometry, fmt) if level < 3 else None,
            _pointing(bulk.leaf_kind(level), level, geometry, fmt) if level in geometry.arch_block_levels else None,
            bulk.exact_rules(Kind.RESERVED, level, geometry, fmt),
        )
        for level in geometry.levels
    }
