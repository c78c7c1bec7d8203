"""Which table page belongs to which tree: so that one wrong pointer is one finding, not one for everything below it.

A page reached twice (a shared child, two VMs with one root) is judged once, from where it was reached first.  Where
input addresses matter it is not judged at all: with two parents, nobody can say which of them is the wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inspector.capture.view import TableView
from inspector.check.entries import Entries, entries_of
from inspector.codec import Kind


@dataclass(frozen=True)
class Pointer:
    """One reference to a table page: from entry ``at`` of ``entries``, or, with ``at`` ``None``, as a root."""

    view: TableView
    entries: Entries
    at: int | None
    child: int

    def place(self) -> str:
        """The place in words."""
        if self.at is None:
            return f"the root of {self.view.regime} of {self.view.vm.name}"
        where = f"{int(self.entries.table_pa[self.at]):#x}[{int(self.entries.index[self.at])}]"
        return f"{where} in {self.view.regime} of {self.view.vm.name}"


@dataclass(frozen=True)
class Owned:
    """What one view is judged by.

    ``entries`` are those of the tables reached first through this view; ``tables`` are these tables, by PA to their
    place in ``view.tree.tables``; ``contested`` are the PAs of tables that are, or lie below, a page with two parents.
    """

    view: TableView
    entries: Entries
    tables: dict[int, int]
    contested: frozenset[int]


def _first_reached(views: Sequence[TableView]) -> list[dict[int, int]]:
    """For each view the tables it reaches first, PA to number in its tree; parents come before children in a tree."""
    seen: set[int] = set()
    result: list[dict[int, int]] = []
    for view in views:
        result.append({})
        for number, table in enumerate(view.tree.tables):
            if table.parent_pa is None and table.pa not in seen:
                seen.add(table.pa)
                result[-1][table.pa] = number
    for view, mine in zip(views, result, strict=True):
        for number, table in enumerate(view.tree.tables):
            if table.parent_pa in mine and table.pa not in seen:
                seen.add(table.pa)
                mine[table.pa] = number
    return result


def pointers(views: Sequence[TableView], entries: Sequence[Entries]) -> Iterator[Pointer]:
    """Every reference to a table page: first all roots, then the table entries of every tree in walk order."""
    for view, mine in zip(views, entries, strict=True):
        for pa in view.root_pages():
            yield Pointer(view, mine, None, pa)
    for view, mine in zip(views, entries, strict=True):
        at = np.flatnonzero(mine.matching(lambda d: d.kind is Kind.TABLE))
        high = np.array([p.output_address or 0 for p in mine.patterns] or [0], dtype=np.uint64)
        children = mine.address_bits[at] | high[mine.pattern[at]]
        for one, child in zip(at.tolist(), children.tolist(), strict=True):
            yield Pointer(view, mine, one, child)


def _below(view: TableView, tops: set[int]) -> frozenset[int]:
    """The tables of ``tops`` and all tables below them in ``view``."""
    found: set[int] = set()
    for table in view.tree.tables:
        if table.pa in tops or table.parent_pa in found:
            found.add(table.pa)
    return frozenset(found)


def ownership(views: Sequence[TableView]) -> tuple[list[Owned], list[Pointer]]:
    """What each view is judged by, and every pointer to a table page."""
    first = _first_reached(views)
    entries = [
        entries_of(view.tree, [view.tree.tables[n] for n in mine.values()])
        for view, mine in zip(views, first, strict=True)
    ]
    found = list(pointers(views, entries))
    loops = {(p.table_pa, p.index) for view in views for p in view.tree.problems if p.kind == "loop"}
    roots: set[int] = set()
    once: set[int] = set()
    twice: set[int] = set()
    for pointer in found:
        if pointer.at is None:
            (twice if pointer.child in roots else roots).add(pointer.child)
            continue
        place = int(pointer.entries.table_pa[pointer.at]), int(pointer.entries.index[pointer.at])
        if place not in loops and pointer.child not in roots:
            (twice if pointer.child in once else once).add(pointer.child)
    owned = [
        Owned(view, mine, tables, _below(view, twice)) for view, mine, tables in zip(views, entries, first, strict=True)
    ]
    return owned, found
