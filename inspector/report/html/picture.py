"""A stage-2 table as data to draw: ranges, table pages, other entries, memslots; within a budget, and saying so.

The columns are of the same `merged_ranges` that ``dump --json`` prints.  Addresses are JSON numbers (of at most 52
bits), descriptors are strings of hex digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from msgspec import Struct

from inspector.backing import BackingRuns
from inspector.capture.view import TableView
from inspector.codec import Kind, bulk, decode
from inspector.report.decode import Leaf, attributes, leaf
from inspector.report.dump import problem_text
from inspector.report.format import raw, size
from inspector.report.html.budget import Drawn, drawn, shares
from inspector.report.leaves import by_pattern
from inspector.report.memslots import flags_text
from inspector.snapshot import Memslot, PageState
from inspector.tables import RangeTable, merged_ranges
from inspector.tables.walk import chunks

MOST_RANGES: Final = 24_000
MOST_PAGES: Final = 40_000
MOST_OTHERS: Final = 4_000
MOST_SLOTS: Final = 4_000
"""In one file."""
MOST_PROBLEMS: Final = 50
"""Of one table."""


class Pattern(Struct, frozen=True):
    """Attributes that ranges share; ``text`` is what `inspector dump --tree` says of them."""

    leaf: Leaf
    permissions: str
    text: str


class RangeRow(Struct, frozen=True, array_like=True):
    """See `Drawn`."""

    ipa: int
    size: int
    level: int
    pa: int
    pattern: int
    leaves: int
    raw: str
    mapped: int
    ranges: int


class PageRow(Struct, frozen=True, array_like=True):
    """A table page: the row of its parent (-1: a root), its index there (of a root: which of the concatenated).

    ``raw`` is the entry that leads to it; ``entries`` how many of its own are not zero.
    """

    parent: int
    index: int
    pa: int
    page_count: int | None
    state: str | None
    raw: str | None
    entries: int


class OtherRow(Struct, frozen=True, array_like=True):
    """An entry that is neither zero, nor a leaf, nor leads to a page of the tree: the row of its page comes first."""

    page: int
    index: int
    raw: str
    text: str


class SlotRow(Struct, frozen=True, array_like=True):
    """A memslot."""

    ipa: int
    size: int
    id: int
    as_id: int
    hva: str
    flags: str
    backing: str


class Picture(Struct, frozen=True, kw_only=True):
    """One table.  ``left_out`` says what is merged beyond `dump`, or is not in the file."""

    name: str
    vm: str
    regime: str
    ia_bits: int
    shift: int
    start_level: int
    root: int
    patterns: Sequence[Pattern]
    ranges: Sequence[RangeRow]
    pages: Sequence[PageRow]
    others: Sequence[OtherRow]
    slots: Sequence[SlotRow]
    problems: Sequence[str]
    left_out: Sequence[str]


def pictures(views: Sequence[TableView], merged: Sequence[RangeTable]) -> list[Picture]:
    """All of ``views``, whose ranges are ``merged``, within the budget of one file."""
    ranges = shares([len(each) for each in merged], MOST_RANGES)
    pages = shares([sum(len(level.pa) for level in view.tree.levels) for view in views], MOST_PAGES)
    others = shares([MOST_OTHERS] * len(views), MOST_OTHERS)
    slots = shares([len(view.vm.memslots) for view in views], MOST_SLOTS)
    return [_picture(*each) for each in zip(views, merged, ranges, pages, others, slots, strict=True)]


def merged_of(view: TableView) -> RangeTable:
    """What `inspector dump` shows of a table."""
    found = merged_ranges(view.tree)
    assert isinstance(found, RangeTable)
    return found


def _picture(
    view: TableView, found: RangeTable, most_ranges: int, most_pages: int, most_others: int, most_slots: int
) -> Picture:
    left_out: list[str] = []
    patterns, which = by_pattern(found, lambda one: Pattern(leaf(one), one.permissions, attributes(one).strip()))
    shown = drawn(found, which, most_ranges)
    left_out += [shown.how] if shown.how else []
    total = sum(len(level.pa) for level in view.tree.levels)
    if total > most_pages:
        left_out.append(f"of {total:,} table pages the first {most_pages:,} are in this file, upper levels first")
    others = list(_others(view, most_pages, most_others + 1))
    if len(others) > most_others:
        left_out.append(f"only the first {most_others:,} entries that are neither leaf nor table are in this file")
    slots = _in_order(view)
    if len(slots) > most_slots:
        left_out.append(f"of {len(slots):,} memslots the first {most_slots:,} are in this file")
    page = view.capture.host.page_size
    return Picture(
        name=view.title,
        vm=view.vm.name,
        regime=view.regime,
        ia_bits=view.geometry.ia_bits,
        shift=view.geometry.granule_shift,
        start_level=view.geometry.start_level,
        root=view.root_pa,
        patterns=patterns,
        ranges=list(_range_rows(shown)),
        pages=list(_page_rows(view, most_pages)),
        others=others[:most_others],
        slots=[_slot(slot, page) for slot in slots[:most_slots]],
        problems=_problems(view),
        left_out=left_out,
    )


def _problems(view: TableView) -> list[str]:
    found = view.tree.problems
    more = [f"and {len(found) - MOST_PROBLEMS:,} more: see 'inspector dump'"] if len(found) > MOST_PROBLEMS else []
    return [problem_text(problem) for problem in found[:MOST_PROBLEMS]] + more


def _range_rows(shown: Drawn) -> Iterator[RangeRow]:
    columns = (shown.ia, shown.size, shown.level, shown.pa, shown.pattern, shown.leaves)
    rest = shown.mapped.tolist(), shown.ranges.tolist()
    for row in zip(*(column.tolist() for column in columns), map(raw, shown.raw.tolist()), *rest, strict=True):
        yield RangeRow(*row)


def _page_rows(view: TableView, most: int) -> Iterator[PageRow]:
    """Level by level, in order of address."""
    before = done = 0
    above: Sequence[bytes] = ()
    for level in view.tree.levels:
        columns = zip(level.pa.tolist(), level.parent_row.tolist(), level.parent_index.tolist(), level.raw, strict=True)
        for row, (pa, parent, index, held) in enumerate(columns):
            if done == most:
                return
            done += 1
            known = view.capture.page_info.get(pa)
            entry = None
            if parent >= 0:
                entry = raw(int.from_bytes(above[parent][8 * index : 8 * index + 8], "little"))
            yield PageRow(
                before + parent if parent >= 0 else -1,
                index if parent >= 0 else row,
                pa,
                None if known is None else known.refcount,
                None if known is None or known.state is PageState.USED else known.state,
                entry,
                int(np.count_nonzero(bulk.words(held))),
            )
        before = done - len(level.pa)
        above = level.raw


def _others(view: TableView, pages: int, most: int) -> Iterator[OtherRow]:
    """Entries that are no leaf and lead to no page that is walked below them."""
    leaves = [bulk.KINDS.index(kind) for kind in Kind if kind.is_leaf]
    tree, first, found = view.tree, 0, 0
    for number, level in enumerate(tree.levels):
        below = tree.levels[number + 1] if number + 1 < len(tree.levels) else None
        walked = (
            set() if below is None else set(zip(below.parent_row.tolist(), below.parent_index.tolist(), strict=True))
        )
        per_table = len(level.raw[0]) // 8
        for start, words in chunks(level.raw, per_table):
            kinds = bulk.kinds(words, level.level, tree.geometry, tree.format)
            for at in np.flatnonzero((words != 0) & ~np.isin(kinds, leaves)).tolist():
                row, index = start + at // per_table, at % per_table
                if (row, index) in walked:
                    continue
                if found == most or first + row >= pages:
                    return
                found += 1
                value = int(words[at])
                text = decode(value, level.level, tree.geometry, tree.format).describe()
                yield OtherRow(first + row, index, raw(value), text)
        first += len(level.pa)


def _in_order(view: TableView) -> list[Memslot]:
    return sorted(view.vm.memslots, key=lambda slot: (slot.base_gfn, slot.as_id))


def _slot(slot: Memslot, page: int) -> SlotRow:
    totals = BackingRuns.of(slot.backing).totals()
    backing = ", ".join(f"{size(total)} {state}" for state, total in sorted(totals.items()))
    flags = flags_text(slot.flags) + (", dirty bitmap" if slot.dirty_bitmap else "")
    where = slot.base_gfn * page, slot.npages * page, slot.id, slot.as_id
    return SlotRow(*where, f"{slot.userspace_addr:#x}", flags, backing)
