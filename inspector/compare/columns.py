"""A tree as one column of entries: every table page one after the other, level by level, with what each is.

The order is that of ``Tree.levels``; row r of a level is one table page, entry i of row r is element r * n + i.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Format, Geometry, Kind, bulk
from inspector.tables import Tree
from inspector.tables.shapes import Level
from inspector.tables.walk import reachable

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LevelColumn:
    """The entries of all tables of one level, ``per_table`` to a table; ``pa`` and ``ia`` are those of the tables."""

    geometry: Geometry
    format: Format
    level: int
    per_table: int
    reachable: int
    pa: bulk.Words
    ia: bulk.Words
    raw: bulk.Words

    @property
    def shift(self) -> int:
        """log2 of the bytes an entry covers."""
        return self.geometry.level_shift(self.level)

    def _of(self, kind: Kind) -> Mask:
        rules = bulk.exact_rules(kind, self.level, self.geometry, self.format)
        found = bulk.are(self.raw, bulk.summary(self.raw), rules)
        mask: Mask = np.full(self.raw.shape, found) if isinstance(found, bool) else found
        return mask & self.reached

    @cached_property
    def reached(self) -> Mask:
        """Where an input address reaches the entry (all but the end of a small root)."""
        mask: Mask = np.arange(self.raw.size) % self.per_table < self.reachable
        return mask

    @cached_property
    def table(self) -> Mask:
        """Where the entry is a table entry."""
        return self._of(Kind.TABLE) if self.level < 3 else np.zeros(self.raw.shape, dtype=bool)

    @cached_property
    def leaf(self) -> Mask:
        """Where the entry is a leaf that the architecture knows at this level."""
        if self.level not in self.geometry.arch_block_levels:
            return np.zeros(self.raw.shape, dtype=bool)
        return self._of(bulk.leaf_kind(self.level))

    @cached_property
    def address_mask(self) -> int:
        """The address bits of a leaf at this level."""
        return bulk.address_field(bulk.leaf_kind(self.level), self.level, self.geometry, self.format).mask

    @cached_property
    def table_mask(self) -> int:
        """The address bits of a table entry at this level (level 3, which has none: 0)."""
        if self.level == 3:
            return 0
        return bulk.address_field(Kind.TABLE, self.level, self.geometry, self.format).mask

    def output(self, at: NDArray[np.intp]) -> bulk.Words:
        """The output addresses of the leaves at ``at``."""
        field = bulk.address_field(bulk.leaf_kind(self.level), self.level, self.geometry, self.format)
        return bulk.field(self.raw[at], field)

    def child(self, at: NDArray[np.intp]) -> bulk.Words:
        """The table addresses in the table entries at ``at``."""
        return bulk.field(self.raw[at], bulk.address_field(Kind.TABLE, self.level, self.geometry, self.format))

    def entry_ia(self, at: NDArray[np.intp]) -> bulk.Words:
        """The first input addresses that the entries at ``at`` cover."""
        index = (at % self.per_table).astype(np.uint64)
        result: bulk.Words = self.ia[at // self.per_table] + (index << np.uint64(self.shift))
        return result


def _column(level: Level, geometry: Geometry, fmt: Format) -> LevelColumn:
    return LevelColumn(
        geometry,
        fmt,
        level.level,
        geometry.entries,
        reachable(geometry, level.level),
        np.array(level.pa, dtype=np.uint64),
        np.array(level.ia, dtype=np.uint64),
        bulk.words(b"".join(level.raw)),
    )


def columns_of(tree: Tree, fmt: Format) -> tuple[LevelColumn, ...]:
    """The levels of ``tree`` as columns, read as ``fmt`` says."""
    return tuple(_column(level, tree.geometry, fmt) for level in tree.levels)
