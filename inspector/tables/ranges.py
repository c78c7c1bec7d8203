"""Leaves merged into ranges, and ranges kept as columns.

A run of leaves that map contiguous memory with equal attributes differs from one entry to the next by exactly the size
of a leaf, so runs are found on the raw words, without decoding them.  What that test cannot see (an address field in
two parts, a carry out of it) is put right on the runs, of which there are few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Format, Geometry, bulk, decode
from inspector.tables.shapes import Entry, Range, Table, Tree
from inspector.tables.walk import chunks, reachable

Columns = dict[str, NDArray[np.uint64]]
_NAMES = ("ia", "size", "pa", "level", "raw", "leaves")


class RangeTable(Sequence[Range]):
    """Ranges in order of input address, as numpy columns; `Range` objects are made as they are asked for.

    ``ia``, ``size``, ``pa`` in bytes, ``raw`` the first leaf, ``leaves`` a count (uint64 each), ``level`` int8.
    """

    __slots__ = ("format", "geometry", "ia", "leaves", "level", "pa", "raw", "size")

    def __init__(
        self,
        geometry: Geometry,
        fmt: Format,
        ia: bulk.Words,
        size: bulk.Words,
        pa: bulk.Words,
        level: NDArray[np.int8],
        raw: bulk.Words,
        leaves: bulk.Words,
    ) -> None:
        self.geometry = geometry
        self.format = fmt
        self.ia = ia
        self.size = size
        self.pa = pa
        self.level = level
        self.raw = raw
        self.leaves = leaves

    def __len__(self) -> int:
        return len(self.ia)

    def _range(self, ia: int, size: int, pa: int, level: int, raw: int, leaves: int) -> Range:
        return Range(ia, size, pa, level, decode(raw, level, self.geometry, self.format), leaves)

    @overload
    def __getitem__(self, index: int) -> Range: ...

    @overload
    def __getitem__(self, index: slice) -> RangeTable: ...

    def __getitem__(self, index: int | slice) -> Range | RangeTable:
        if isinstance(index, slice):
            return self.where(index)
        return self._range(
            int(self.ia[index]),
            int(self.size[index]),
            int(self.pa[index]),
            int(self.level[index]),
            int(self.raw[index]),
            int(self.leaves[index]),
        )

    def __iter__(self) -> Iterator[Range]:
        for first in range(0, len(self), 1024):
            part = slice(first, first + 1024)
            columns = (self.ia, self.size, self.pa, self.level, self.raw, self.leaves)
            for row in zip(*(column[part].tolist() for column in columns), strict=True):
                yield self._range(*row)

    def where(self, chosen: slice | NDArray[np.bool_] | NDArray[np.intp]) -> RangeTable:
        """The rows that a slice, a mask or an array of positions chooses."""
        return RangeTable(
            self.geometry,
            self.format,
            self.ia[chosen],
            self.size[chosen],
            self.pa[chosen],
            self.level[chosen],
            self.raw[chosen],
            self.leaves[chosen],
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RangeTable({len(self)} ranges, {int(self.leaves.sum())} leaves)"


def _level_runs(tree: Tree, tables: Sequence[Table], level: int) -> tuple[bulk.Words, ...]:
    """Runs of one level: (ia, first raw, leaves), in order of ``ia``."""
    geometry, fmt = tree.geometry, tree.format
    shift = geometry.level_shift(level)
    step = np.uint64(1 << shift)
    per_table = reachable(geometry, level)
    span = per_table << shift
    ias, firsts, counts = [], [], []
    for some, raw in chunks(tables, per_table):
        leaf = bulk.are(raw, bulk.LEAVES, level, geometry, fmt)
        if not leaf.any():
            continue
        page_ia = np.fromiter((table.ia for table in some), dtype=np.uint64, count=len(some))
        joined = (raw[1:] - raw[:-1]) == step
        joined &= leaf[1:]
        joined &= leaf[:-1]
        gaps = np.flatnonzero(page_ia[1:] - page_ia[:-1] != np.uint64(span))
        joined[(gaps + 1) * per_table - 1] = False
        apart = ~joined
        begin = leaf.copy()
        begin[1:] &= apart
        leaf[:-1] &= apart
        start = np.flatnonzero(begin)
        count = np.flatnonzero(leaf) - start + 1
        page, index = np.divmod(start, per_table)
        ias.append(page_ia[page] + (index.astype(np.uint64) << np.uint64(shift)))
        firsts.append(raw[start])
        counts.append(count.astype(np.uint64))
    if not ias:
        empty = np.empty(0, dtype=np.uint64)
        return empty, empty, empty
    return np.concatenate(ias), np.concatenate(firsts), np.concatenate(counts)


def _split_carries(
    ia: bulk.Words, raw: bulk.Words, leaves: bulk.Words, shift: int, low_mask: int
) -> tuple[bulk.Words, bulk.Words, bulk.Words]:
    """Cut runs in which the address field overflowed into the bits above it, where it did."""
    room = ((np.uint64(low_mask) - (raw & np.uint64(low_mask))) >> np.uint64(shift)) + np.uint64(1)
    while (over := leaves > room).any():
        rest = leaves[over] - room[over]
        used = room[over]
        leaves = np.where(over, room, leaves)
        ia = np.concatenate((ia, ia[over] + (used << np.uint64(shift))))
        raw = np.concatenate((raw, raw[over] + (used << np.uint64(shift))))
        leaves = np.concatenate((leaves, rest))
        room = ((np.uint64(low_mask) - (raw & np.uint64(low_mask))) >> np.uint64(shift)) + np.uint64(1)
        order = np.argsort(ia, kind="stable")
        ia, raw, leaves, room = ia[order], raw[order], leaves[order], room[order]
    return ia, raw, leaves


def _level_ranges(tree: Tree, tables: Sequence[Table], level: int) -> Columns | None:
    ia, raw, leaves = _level_runs(tree, tables, level)
    if not ia.size:
        return None
    geometry = tree.geometry
    shift = geometry.level_shift(level)
    address = bulk.address_field(bulk.leaf_kind(level), level, geometry, tree.format)
    ia, raw, leaves = _split_carries(ia, raw, leaves, shift, address.parts[0].mask)
    pa = bulk.field(raw, address)
    size = leaves << np.uint64(shift)
    attributes = raw & ~np.uint64(address.mask)
    merges = ia[:-1] + size[:-1] == ia[1:]
    merges &= pa[:-1] + size[:-1] == pa[1:]
    merges &= attributes[:-1] == attributes[1:]
    if merges.any():
        keep = np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(~merges) + 1))
        size, leaves = np.add.reduceat(size, keep), np.add.reduceat(leaves, keep)
        ia, pa, raw = ia[keep], pa[keep], raw[keep]
    levels = np.full(ia.shape, level, dtype=np.int64).view(np.uint64)
    return {"ia": ia, "size": size, "pa": pa, "level": levels, "raw": raw, "leaves": leaves}


def merged_ranges(tree: Tree) -> RangeTable:
    """The leaves of a tree as ranges, in order of input address.

    Neighbours merge when they are of the same level, contiguous in input and output address, and equal in every bit that
    is not output address: AF, software bits and bits without a name included.
    """
    by_level: dict[int, list[Table]] = {}
    for table in tree.tables:
        by_level.setdefault(table.level, []).append(table)
    found = [columns for level, tables in by_level.items() if (columns := _level_ranges(tree, tables, level))]
    if not found:
        found = [{name: np.empty(0, dtype=np.uint64) for name in _NAMES}]
    columns = found[0]
    if len(found) > 1:
        columns = {name: np.concatenate([part[name] for part in found]) for name in _NAMES}
        order = np.argsort(columns["ia"], kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    return RangeTable(
        tree.geometry,
        tree.format,
        columns["ia"],
        columns["size"],
        columns["pa"],
        columns["level"].astype(np.int8),
        columns["raw"],
        columns["leaves"],
    )


def reverse(tree: Tree, pa: int, size: int = 1) -> list[tuple[int, Entry]]:
    """Every leaf that maps a byte of ``[pa, pa + size)``, in order of input address.

    Each comes with the input address of the first such byte.
    """
    geometry, fmt = tree.geometry, tree.format
    hits: list[tuple[int, Entry]] = []
    by_level: dict[int, list[Table]] = {}
    for table in tree.tables:
        by_level.setdefault(table.level, []).append(table)
    for level, tables in by_level.items():
        per_table = reachable(geometry, level)
        block = geometry.block_size(level)
        if level not in geometry.arch_block_levels:
            continue
        address = bulk.address_field(bulk.leaf_kind(level), level, geometry, fmt)
        for some, raw in chunks(tables, per_table):
            output = bulk.field(raw, address)
            match = bulk.are(raw, bulk.LEAVES, level, geometry, fmt)
            match &= output < np.uint64(pa + size)
            match &= output + np.uint64(block) > np.uint64(pa)
            for n in np.flatnonzero(match).tolist():
                table, index = some[n // per_table], n % per_table
                ia = table.ia + index * block
                entry = Entry(table.pa, index, level, ia, decode(int(raw[n]), level, geometry, fmt))
                hits.append((ia + max(0, pa - int(output[n])), entry))
    hits.sort(key=lambda hit: hit[0])
    return hits
