"""A tree as columns: every entry that is not zero, one array element each, and its attributes decoded once a pattern.

Attributes that mean something take a handful of values in a real table, and a few thousand in one that holds anything.
Entries are grouped by (level, kind, those bits), each group is decoded once by the codec, and a question about
attributes is asked once a group: so 262,144 leaves are judged at the price of a few.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Descriptor, Format, Geometry, Kind, Regime, bulk, decode, layouts
from inspector.codec.bits import WORD
from inspector.codec.bulk import Flags, Flat, Words
from inspector.tables.intervals import runs
from inspector.tables.rules import level_rules, reachable
from inspector.tables.shapes import Tree
from inspector.tables.walk import chunks

_PIECE = 1 << 18
"""Entries taken at a time where that saves memory: as many as stay in a cache."""

_TELLING = ("valid", "type", "memattr", "s2ap", "sh", "af", "xn", "output_address")
"""Fields of a stage-2 leaf or table that tell one pattern from another; `Columns.raw` has the others."""


def address_mask(geometry: Geometry) -> int:
    """The descriptor bits that are address in every encoding of this granule: [47 or 49:granule shift].

    DDI 0487 D8.3.1; the further address bits of a 52-bit encoding stay in the pattern and are resolved by the codec.
    """
    top = 50 if geometry.lpa2 else 48
    return (1 << top) - (1 << geometry.granule_shift)


T = TypeVar("T", bound=np.generic)


@lru_cache(maxsize=256)
def _telling(kind: Kind, level: int, geometry: Geometry, fmt: Format) -> int:
    """The bits of an entry of ``kind`` that its pattern has: none but those of `_TELLING`, where it is valid."""
    if not (kind.is_leaf or kind is Kind.TABLE):
        return 0
    named = layouts.layout(kind, level, geometry, fmt).by_name
    return functools.reduce(operator.or_, (named[name].mask for name in _TELLING if name in named)) & ~address_mask(
        geometry
    )


def packed(raw: Words, mask: int) -> Flat:
    """The bits of ``mask`` side by side, as small numbers."""
    found = np.zeros(len(raw), dtype=np.intp)
    at = 0
    while mask:
        low = (mask & -mask).bit_length() - 1
        width = (~(mask >> low) & (mask >> low) + 1).bit_length() - 1
        part = (raw >> np.uint64(low)).astype(np.intp)
        part &= (1 << width) - 1
        part <<= at
        found |= part
        at += width
        mask &= ~((1 << width) - 1 << low)
    return found


@dataclass(frozen=True, eq=False)
class Columns:
    """The table pages of a tree and the non-zero entries in them that an input address reaches.

    Pages come level by level from the start level on, in order of input address in each: ``page_pa``, ``page_ia``,
    ``page_level``, and ``page_entry``, the position of the entry that leads to it (-1: a root).  Entries come in order
    of their pages: ``row`` is an entry's page, ``index`` its place in it, ``raw`` what it holds.
    """

    geometry: Geometry
    format: Format
    page_pa: Words
    page_ia: Words
    page_level: Flat
    page_entry: Flat
    row: NDArray[np.int32]
    index: NDArray[np.uint16]
    raw: Words

    # --- a part of them ---

    def at(self, which: Flat | Flags | slice | list[int]) -> Columns:
        """Some of the entries alone, with the same pages: what is asked of it costs only those."""
        return replace(self, row=self.row[which], index=self.index[which], raw=self.raw[which])

    def pieces(self) -> Iterator[Columns]:
        """All of them, some at a time."""
        for start in range(0, len(self.raw), _PIECE):
            yield self.at(slice(start, start + _PIECE))

    def among(self, mask: Flags, rule: Callable[[Columns], Flags]) -> Flags:
        """Where ``rule`` holds of the entries of ``mask``, asked for some of them at a time."""
        found = np.zeros(len(mask), dtype=bool)
        for start in range(0, len(mask), _PIECE):
            chosen = mask[start : start + _PIECE]
            if chosen.all():
                found[start : start + _PIECE] = rule(self.at(slice(start, start + _PIECE)))
            elif chosen.any():
                at = np.flatnonzero(chosen) + start
                found[at] = rule(self.at(at))
        return found

    # --- where an entry is ---

    @cached_property
    def level(self) -> Flat:
        return self.page_level[self.row]

    @cached_property
    def table_pa(self) -> Words:
        """The table page that the entry is in."""
        return self.page_pa[self.row]

    @cached_property
    def _shift(self) -> Words:
        shifts = [self.geometry.level_shift(level) for level in range(-1, 4)]
        return np.array(shifts, dtype=np.uint64)[self.level + 1]

    @cached_property
    def size(self) -> Words:
        """Bytes covered by each entry."""
        found: Words = np.uint64(1) << self._shift
        return found

    @cached_property
    def ia(self) -> Words:
        """The first input address that each entry covers."""
        found: Words = self.page_ia[self.row] + (self.index.astype(np.uint64) << self._shift)
        return found

    # --- what an entry is ---

    @cached_property
    def _grouped(self) -> tuple[NDArray[np.integer[Any]], tuple[Descriptor, ...]]:
        if self.format.regime is not Regime.STAGE2:
            return self._grouped_exactly
        edges = [*(np.flatnonzero(np.diff(self.page_level)) + 1).tolist(), len(self.page_pa)]
        patterns: list[Descriptor] = []
        pattern = np.zeros(len(self.raw), dtype=np.uint32)
        first = 0
        for last in edges:
            here = slice(int(self.page_bounds[first]), int(self.page_bounds[last]))
            if here.start < here.stop:
                patterns += self._group_level(pattern[here], self.raw[here], int(self.page_level[first]), len(patterns))
            first = last
        return pattern.astype(np.min_scalar_type(len(patterns))), tuple(patterns)

    def _group_level(self, pattern: NDArray[np.uint32], raw: Words, level: int, before: int) -> list[Descriptor]:
        """Write the number of each entry's pattern, counted from ``before`` on, and return the patterns."""
        rules = level_rules(self.geometry, self.format)[level]
        known = [one.kind for one in (rules.table, rules.leaf) if one is not None]
        telling = functools.reduce(operator.or_, (_telling(kind, level, self.geometry, self.format) for kind in known))
        tells = np.array([kind in known for kind in bulk.KINDS])
        # A number for each: its kind, and above that its telling bits; an entry that has each number.
        having = np.zeros(len(bulk.KINDS) + 1 << telling.bit_count(), dtype=np.uint64)
        for start in range(0, len(raw), _PIECE):
            some = raw[start : start + _PIECE]
            kinds = bulk.kinds(some, level, self.geometry, self.format)
            number = packed(some, telling)
            number *= tells[kinds]
            number *= len(bulk.KINDS) + 1
            number += kinds
            having[number] = some
            pattern[start : start + _PIECE] = number
        numbers = np.flatnonzero(having)
        rank = np.zeros(len(having), dtype=np.uint32)
        rank[numbers] = np.arange(before, before + len(numbers))
        for start in range(0, len(raw), _PIECE):
            pattern[start : start + _PIECE] = rank[pattern[start : start + _PIECE]]
        return [
            decode(
                one & (telling if tells[number % (len(bulk.KINDS) + 1)] else ~address_mask(self.geometry) & WORD),
                level,
                self.geometry,
                self.format,
            )
            for number, one in zip(numbers.tolist(), having[numbers].tolist(), strict=True)
        ]

    @property
    def _grouped_exactly(self) -> tuple[Flat, tuple[Descriptor, ...]]:
        """By all bits but the address: what Linux says of a page that is not mapped is anywhere in it."""
        bits = self.raw & np.uint64(~address_mask(self.geometry) & WORD)
        start, end = runs((bits, 0), (self.level, 0))
        # By level, then by bits: only the runs are sorted, of which there are few.
        order = np.lexsort((bits[start], self.level[start]))
        first, last = runs((bits[start][order], 0), (self.level[start][order], 0))
        number = np.empty(len(start), dtype=np.intp)
        number[order] = np.repeat(np.arange(len(first)), last - first)
        kinds = start[order][first]
        patterns = tuple(
            decode(one, level, self.geometry, self.format)
            for one, level in zip(bits[kinds].tolist(), self.level[kinds].tolist(), strict=True)
        )
        return np.repeat(number, end - start), patterns

    @property
    def pattern(self) -> NDArray[np.integer[Any]]:
        """Which of `patterns` each entry has."""
        return self._grouped[0]

    @property
    def patterns(self) -> tuple[Descriptor, ...]:
        """Every combination of level, kind and telling attributes that occurs, with the common address bits zero."""
        return self._grouped[1]

    def matching(self, rule: Callable[[Descriptor], bool]) -> Flags:
        """Where the entry's pattern satisfies ``rule``."""
        verdicts = np.fromiter((rule(one) for one in self.patterns), dtype=bool, count=len(self.patterns))
        found: Flags = verdicts[self.pattern]
        return found

    @cached_property
    def leaf(self) -> Flags:
        """Where the entry is a block or a page."""
        return self.matching(lambda d: d.kind.is_leaf)

    @cached_property
    def table(self) -> Flags:
        """Where the entry leads to a table."""
        return self.matching(lambda d: d.kind is Kind.TABLE)

    @cached_property
    def valid(self) -> Flags:
        """Where bit 0 is set."""
        return self.having(1)

    def having(self, bits: int) -> Flags:
        """Where some of ``bits`` are set."""
        found = np.empty(len(self.raw), dtype=bool)
        for start in range(0, len(self.raw), _PIECE):
            found[start : start + _PIECE] = self.raw[start : start + _PIECE] & np.uint64(bits) != 0
        return found

    @cached_property
    def address_bits(self) -> Words:
        """The common address bits as they stand."""
        found: Words = self.raw & np.uint64(address_mask(self.geometry))
        return found

    @cached_property
    def attributes(self) -> Words:
        """All bits but the common address bits."""
        found: Words = self.raw & np.uint64(~address_mask(self.geometry) & WORD)
        return found

    @cached_property
    def child(self) -> Words:
        """Where table entries lead to (meaningless for entries that are neither table nor leaf)."""
        found = self.address_bits
        rules = level_rules(self.geometry, self.format)[self.geometry.start_level]
        pointing = rules.table or rules.leaf
        for part in () if pointing is None else pointing.address.parts:
            if part.mask & ~address_mask(self.geometry):
                found = found | (self.raw & np.uint64(part.mask)) >> np.uint64(part.lo) << np.uint64(part.at)
        return found

    @cached_property
    def output(self) -> Words:
        """Output addresses of leaves, rounded down to the size of the leaf (meaningless for other entries)."""
        found: Words = self.child & ~(self.size - np.uint64(1))
        return found

    @cached_property
    def followed(self) -> Flags:
        """The entries that lead to a page of this tree (the walk reports the other table entries)."""
        found = np.zeros(len(self.raw), dtype=bool)
        found[self.page_entry[self.page_entry >= 0]] = True
        return found

    # --- one entry, one page ---

    def decoded(self, at: int) -> Descriptor:
        """The entry at a position."""
        return decode(int(self.raw[at]), int(self.page_level[self.row[at]]), self.geometry, self.format)

    def find(self, table_pa: int, index: int) -> int | None:
        """The position of an entry by its place; ``None`` when it is zero or not of this tree."""
        for row in np.flatnonzero(self.page_pa == np.uint64(table_pa)).tolist():
            first, last = int(self.page_bounds[row]), int(self.page_bounds[row + 1])
            at = first + int(np.searchsorted(self.index[first:last], index))
            if at < last and int(self.index[at]) == index:
                return at
        return None

    @cached_property
    def page_parent(self) -> Flat:
        """The page with the entry that leads to each page; -1 for a root."""
        found: Flat = np.where(self.page_entry < 0, -1, self.row[self.page_entry] if len(self.row) else -1)
        return found

    @cached_property
    def page_bounds(self) -> Flat:
        """The position of each page's first entry, and the end."""
        return np.searchsorted(self.row, np.arange(len(self.page_pa) + 1, dtype=self.row.dtype))

    def per_page(self, chosen: Flags | None = None) -> Flat:
        """How many entries (of those chosen) each page has."""
        if chosen is None or chosen.all():
            return np.diff(self.page_bounds)
        found = np.zeros(len(self.page_pa), dtype=np.intp)
        for start in range(0, len(chosen), _PIECE):
            rows = self.row[start : start + _PIECE][chosen[start : start + _PIECE]]
            if len(rows):
                counts = np.bincount(rows - rows[0])
                found[rows[0] : rows[0] + len(counts)] += counts
        return found

    def spread(self, pages: Flags) -> Flags:
        """What is said of each page, said of each of its entries."""
        return np.repeat(pages, np.diff(self.page_bounds))

    def below(self, top: Flags) -> Flags:
        """The pages of ``top`` and all pages below them."""
        found = top.copy()
        for row in np.flatnonzero(self.page_parent >= 0).tolist():
            found[row] |= found[self.page_parent[row]]
        return found


def _joined(kind: type[T], parts: list[NDArray[T]]) -> NDArray[T]:
    return np.concatenate([np.empty(0, dtype=kind), *parts])


def columns_of(tree: Tree, fmt: Format | None = None) -> Columns:
    """``tree`` as columns, its entries read as ``fmt`` says (``None``: as the walk read them)."""
    sizes = [min(len(level.raw[0]) // 8, reachable(tree.geometry, level.level)) for level in tree.levels]
    # Counted before, so that nothing is there twice.
    pieces = (words for level, size in zip(tree.levels, sizes, strict=True) for _, words in chunks(level.raw, size))
    total = sum(int(np.count_nonzero(words)) for words in pieces)
    rows, indexes = np.empty(total, dtype=np.int32), np.empty(total, dtype=np.uint16)
    raw = np.empty(total, dtype=np.uint64)
    leading: list[Flat] = []
    above, per_above, pages, entries = np.empty(0, dtype=np.intp), 0, 0, 0
    for level, per_table in zip(tree.levels, sizes, strict=True):
        entry = np.searchsorted(above, level.parent_row * per_above + level.parent_index) + entries - len(above)
        leading.append(np.where(level.parent_row < 0, -1, entry))
        places: list[Flat] = []
        for first, words in chunks(level.raw, per_table):
            at = np.flatnonzero(words)
            here = slice(entries, entries + len(at))
            rows[here] = (at >> per_table.bit_length() - 1) + (first + pages)
            indexes[here] = at & (per_table - 1)
            raw[here] = words[at]
            entries += len(at)
            if level is not tree.levels[-1]:
                places.append(at + first * per_table)
        above, per_above, pages = _joined(np.intp, places), per_table, pages + len(level.pa)
    return Columns(
        geometry=tree.geometry,
        format=tree.format if fmt is None else fmt,
        page_pa=_joined(np.uint64, [level.pa for level in tree.levels]),
        page_ia=_joined(np.uint64, [level.ia for level in tree.levels]),
        page_level=_joined(np.intp, [np.full(len(level.pa), level.level, dtype=np.intp) for level in tree.levels]),
        page_entry=_joined(np.intp, leading),
        row=rows,
        index=indexes,
        raw=raw,
    )
