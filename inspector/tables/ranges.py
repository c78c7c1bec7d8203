"""Leaves merged into ranges, and ranges kept as columns.

A run of leaves that map contiguous memory with equal attributes differs from one entry to the next by exactly
the size of a leaf, so the walk found runs on the raw words, without decoding them.  What that test cannot see (an
address field in two parts, a run that goes on in the next piece of memory looked at) is put right on the runs, of
which there are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Descriptor, Format, Geometry, bulk
from inspector.codec.bits import WORD
from inspector.tables.columns import columns_of
from inspector.tables.intervals import runs
from inspector.tables.rules import LevelRules, level_rules
from inspector.tables.shapes import Entry, Level, Range, Tree

_Runs = tuple[bulk.Flat, bulk.Flat, bulk.Words]
"""start, count, first entry: see `bulk.Runs`."""

_Columns = tuple[bulk.Words, bulk.Words, bulk.Words, NDArray[np.int8], bulk.Words, bulk.Words]
"""ia, size, pa, level, raw, leaves."""


@dataclass(frozen=True, eq=False, repr=False)
class RangeTable(Sequence[Range]):
    """Ranges in order of input address, as numpy columns; `Range` objects are made as they are asked for.

    ``ia``, ``size``, ``pa`` in bytes, ``raw`` the first leaf, ``leaves`` a count (uint64 each), ``level`` int8.
    """

    geometry: Geometry
    format: Format
    ia: bulk.Words
    size: bulk.Words
    pa: bulk.Words
    level: NDArray[np.int8]
    raw: bulk.Words
    leaves: bulk.Words

    def __len__(self) -> int:
        return len(self.ia)

    def _columns(self) -> _Columns:
        return self.ia, self.size, self.pa, self.level, self.raw, self.leaves

    def _range(self, ia: int, size: int, pa: int, level: int, raw: int, leaves: int) -> Range:
        kind = bulk.leaf_kind(level)
        return Range(ia, size, pa, level, Descriptor(raw, level, kind, self.geometry, self.format), leaves)

    @overload
    def __getitem__(self, index: int) -> Range: ...

    @overload
    def __getitem__(self, index: slice) -> RangeTable: ...

    def __getitem__(self, index: int | slice) -> Range | RangeTable:
        if isinstance(index, slice):
            return self.where(index)
        return self._range(*(int(column[index]) for column in self._columns()))

    def __iter__(self) -> Iterator[Range]:
        for first in range(0, len(self), 1024):
            part = slice(first, first + 1024)
            for row in zip(*(column[part].tolist() for column in self._columns()), strict=True):
                yield self._range(*row)

    def where(self, chosen: slice | NDArray[np.bool_] | NDArray[np.intp]) -> RangeTable:
        """The rows that a slice, a mask or an array of positions chooses."""
        ia, size, pa, level, raw, leaves = self._columns()
        part = ia[chosen], size[chosen], pa[chosen], level[chosen], raw[chosen], leaves[chosen]
        return RangeTable(self.geometry, self.format, *part)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeTable({len(self)} ranges, {int(self.leaves.sum())} leaves)"


def _cut_at_gaps(runs: bulk.Runs, ia: bulk.Words, per_table: int, shift: int) -> _Runs:
    """Runs cut where tables that follow each other are not contiguous in input address."""
    start, count, first = runs.start, runs.count, runs.first
    gaps = (np.flatnonzero(ia[1:] - ia[:-1] != np.uint64(per_table << shift)) + 1) * per_table
    if not gaps.size:
        return start, count, first
    row = np.searchsorted(start, gaps, side="right") - 1
    inside = (row >= 0) & (start[row] < gaps) & (gaps < start[row] + count[row])
    if not inside.any():
        return start, count, first
    gaps, row = gaps[inside], row[inside]
    end = np.sort(np.concatenate((start + count, gaps)))
    cut = first[row] + ((gaps - start[row]).astype(np.uint64) << np.uint64(shift))
    start, first = np.concatenate((start, gaps)), np.concatenate((first, cut))
    order = np.argsort(start)
    return start[order], end - start[order], first[order]


def _level_ranges(at: Level, rules: LevelRules) -> _Columns | None:
    if at.leaves is None or rules.leaf is None:
        return None
    shift, per_table, address = rules.shift, rules.reachable, rules.leaf.address
    start, count, raw = _cut_at_gaps(at.leaves, at.ia, per_table, shift)
    row, leaves = start // per_table, count.astype(np.uint64)
    ia = at.ia[row] + ((start - row * per_table).astype(np.uint64) << np.uint64(shift))
    pa = bulk.field(raw, address)
    size = leaves << np.uint64(shift)
    attributes = raw & np.uint64(WORD & ~address.mask)
    keep, _ = runs((ia, size), (pa, size), (attributes, 0))
    if len(keep) < len(ia):
        size, leaves = np.add.reduceat(size, keep), np.add.reduceat(leaves, keep)
        ia, pa, raw = ia[keep], pa[keep], raw[keep]
    return ia, size, pa, np.full(ia.shape, at.level, dtype=np.int8), raw, leaves


def merged_ranges(tree: Tree) -> RangeTable:
    """The leaves of a tree as ranges, in order of input address.

    Neighbours merge when they are of the same level, contiguous in input and output address, and equal in
    every bit that is not output address: AF, software bits and bits without a name included.
    """
    rules = level_rules(tree.geometry, tree.format)
    found = [columns for at in tree.levels if (columns := _level_ranges(at, rules[at.level])) is not None]
    if not found:
        none = np.empty(0, dtype=np.uint64)
        found = [(none, none, none, np.empty(0, dtype=np.int8), none, none)]
    ia, size, pa, level, raw, leaves = found[0]
    if len(found) > 1:
        ia, size, pa, raw, leaves = (np.concatenate([part[n] for part in found]) for n in (0, 1, 2, 4, 5))
        level = np.concatenate([part[3] for part in found])
        order = np.argsort(ia, kind="stable")
        ia, size, pa, raw, leaves = (part[order] for part in (ia, size, pa, raw, leaves))
        level = level[order]
    return RangeTable(tree.geometry, tree.format, ia, size, pa, level, raw, leaves)


def reverse(tree: Tree, pa: int, size: int = 1) -> list[tuple[int, Entry]]:
    """Every leaf that maps a byte of ``[pa, pa + size)``, in order of input address.

    Each comes with the input address of the first such byte.
    """
    columns = columns_of(tree)
    last = np.uint64(min(pa + size - 1, WORD))
    match = columns.leaf & (columns.output <= last) & (columns.output + columns.size > np.uint64(pa))
    hits = []
    for at in np.flatnonzero(match).tolist():
        leaf, ia = columns.decoded(at), int(columns.ia[at])
        entry = Entry(int(columns.table_pa[at]), int(columns.index[at]), leaf.level, ia, leaf)
        hits.append((ia + max(0, pa - int(columns.output[at])), entry))
    hits.sort(key=lambda hit: hit[0])
    return hits
