"""A tree as columns: every entry that is not zero, one array element each, and its attributes decoded once a pattern.

Attribute bits of a real table take a handful of values.  Entries are grouped by (level, all bits but the address), each
group is decoded once by the codec, and a question about attributes is asked once a group: so 262,144 leaves are judged
at the price of a few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Descriptor, Format, Geometry, Kind, bulk, decode
from inspector.codec.bits import WORD
from inspector.codec.bulk import Flags, Flat, Words
from inspector.tables.intervals import runs
from inspector.tables.rules import reachable
from inspector.tables.shapes import Tree


def address_mask(geometry: Geometry) -> int:
    """The descriptor bits that are address in every encoding of this granule: [47 or 49:granule shift].

    DDI 0487 D8.3.1; the further address bits of a 52-bit encoding stay in the pattern and are resolved by the codec.
    """
    top = 50 if geometry.lpa2 else 48
    return (1 << top) - (1 << geometry.granule_shift)


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
    row: Flat
    index: Flat
    raw: Words

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
    def _grouped(self) -> tuple[Flat, tuple[Descriptor, ...]]:
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
    def pattern(self) -> Flat:
        """Which of `patterns` each entry has."""
        return self._grouped[0]

    @property
    def patterns(self) -> tuple[Descriptor, ...]:
        """Every combination of level and attributes that occurs, with the common address bits zero."""
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
        found: Flags = self.raw & np.uint64(1) != 0
        return found

    @cached_property
    def address_bits(self) -> Words:
        """The common address bits as they stand."""
        found: Words = self.raw & np.uint64(address_mask(self.geometry))
        return found

    @cached_property
    def child(self) -> Words:
        """Where table entries lead to (meaningless for other entries)."""
        high = np.array([one.output_address or 0 for one in self.patterns], dtype=np.uint64)
        found: Words = self.address_bits | high[self.pattern]
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
        return decode(int(self.raw[at]), int(self.level[at]), self.geometry, self.format)

    def find(self, table_pa: int, index: int) -> int | None:
        """The position of an entry by its place; ``None`` when it is zero or not of this tree."""
        at = np.flatnonzero((self.page_pa == np.uint64(table_pa))[self.row] & (self.index == index))
        return int(at[0]) if len(at) else None

    @cached_property
    def page_parent(self) -> Flat:
        """The page with the entry that leads to each page; -1 for a root."""
        return np.where(self.page_entry < 0, -1, self.row[self.page_entry] if len(self.row) else -1)

    @cached_property
    def page_bounds(self) -> Flat:
        """The position of each page's first entry, and the end."""
        return np.searchsorted(self.row, np.arange(len(self.page_pa) + 1))

    def per_page(self, chosen: Flags | None = None) -> Flat:
        """How many entries (of those chosen) each page has."""
        if chosen is None or chosen.all():
            return np.diff(self.page_bounds)
        return np.bincount(self.row[chosen], minlength=len(self.page_pa))

    def below(self, top: Flags) -> Flags:
        """The pages of ``top`` and all pages below them."""
        found = top.copy()
        for row in np.flatnonzero(self.page_parent >= 0).tolist():
            found[row] |= found[self.page_parent[row]]
        return found


def columns_of(tree: Tree, fmt: Format | None = None) -> Columns:
    """``tree`` as columns, its entries read as ``fmt`` says (``None``: as the walk read them)."""
    rows: list[Flat] = []
    indexes: list[Flat] = []
    raws: list[Words] = []
    leading: list[Flat] = []
    above, per_above, pages, entries = np.empty(0, dtype=np.intp), 0, 0, 0
    for level in tree.levels:
        words = bulk.words(b"".join(level.raw))
        per_table = len(level.raw[0]) // 8  # a power of two
        at = np.flatnonzero(words)
        if (bound := reachable(tree.geometry, level.level)) < per_table:
            at = at[at & (per_table - 1) < bound]
        entry = np.searchsorted(above, level.parent_row * per_above + level.parent_index) + entries - len(above)
        leading.append(np.where(level.parent_row < 0, -1, entry))
        rows.append((at >> per_table.bit_length() - 1) + pages)
        indexes.append(at & (per_table - 1))
        raws.append(words[at])
        above, per_above, pages, entries = at, per_table, pages + len(level.pa), entries + len(at)

    def joined(parts: list[NDArray[np.uint64]]) -> Words:
        return np.concatenate([np.empty(0, dtype=np.uint64), *parts])

    def flat(parts: list[Flat]) -> Flat:
        return np.concatenate([np.empty(0, dtype=np.intp), *parts])

    return Columns(
        geometry=tree.geometry,
        format=tree.format if fmt is None else fmt,
        page_pa=joined([level.pa for level in tree.levels]),
        page_ia=joined([level.ia for level in tree.levels]),
        page_level=flat([np.full(len(level.pa), level.level, dtype=np.intp) for level in tree.levels]),
        page_entry=flat(leading),
        row=flat(rows),
        index=flat(indexes),
        raw=joined(raws),
    )
