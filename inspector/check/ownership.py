"""Which table page belongs to which tree: so that one wrong pointer is one finding, not one for everything below it.

A page reached twice (a shared child, two VMs with one root) is judged once, from where it was reached first.  Where
input addresses matter it is not judged at all: with two parents, nobody can say which of them is the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inspector.capture.view import TableView
from inspector.check.places import Span, spans, where_entry, where_view
from inspector.codec import Descriptor
from inspector.codec.bulk import Flags, Flat, Words
from inspector.findings import Where
from inspector.tables import ProblemKind
from inspector.tables.columns import Columns


@dataclass(frozen=True, eq=False)
class Owned:
    """What one view is judged by: the ``pages`` that were reached first through it, and the entries in them.

    ``contested`` pages are, or lie below, a page with two parents.  ``marked`` entries are those that a rule has
    spoken of (it grows as the rules are asked): what a specific rule says of an entry no general one repeats.
    """

    view: TableView
    columns: Columns
    pages: Flags
    contested: Flags
    marked: Flags

    @cached_property
    def mine(self) -> Flags:
        """The entries of `pages`."""
        return self.columns.spread(self.pages)

    @cached_property
    def leaf(self) -> Flags:
        """The blocks and pages."""
        found: Flags = self.columns.leaf & self.mine
        return found

    def matching(self, rule: Callable[[Descriptor], bool]) -> Flags:
        """The entries whose attributes satisfy ``rule``."""
        found: Flags = self.columns.matching(rule) & self.mine
        return found

    def spans(self, wrong: Flags | Callable[[Descriptor], bool], *alike: Callable[[Flat], Words]) -> Iterator[Span]:
        """The ``wrong`` entries as places (see `places.spans`); they are marked."""
        mask = self.matching(wrong) if callable(wrong) else wrong & self.mine
        self.marked[mask] = True
        return spans(self.view, self.columns, mask, *alike)


@dataclass(frozen=True)
class Pointer:
    """One reference to a table page: from entry ``at`` of ``owned``, or, with ``at`` ``None``, as a root."""

    owned: Owned
    at: int | None
    child: int

    @property
    def where(self) -> Where:
        if self.at is None:
            return where_view(self.owned.view, table_pa=self.child)
        return where_entry(self.owned.view, self.owned.columns, self.at)

    def text(self) -> str:
        """The place in words."""
        place, view = self.where, self.owned.view
        if self.at is None:
            return f"the root of {view.regime} of {view.vm.name}"
        return f"{place.table_pa:#x}[{place.index}] in {view.regime} of {view.vm.name}"


def _first_reached(columns: Sequence[Columns]) -> list[Flags]:
    """For each tree the pages that it reaches first: roots before all others, parents before children."""
    seen: set[int] = set()
    found = [np.zeros(len(tree.page_pa), dtype=bool) for tree in columns]
    for roots in (True, False):
        for tree, mine in zip(columns, found, strict=True):
            parents = tree.page_parent.tolist()
            for row, pa in enumerate(tree.page_pa.tolist()):
                if (parents[row] < 0) is roots and (roots or mine[parents[row]]) and pa not in seen:
                    seen.add(pa)
                    mine[row] = True
    return found


def _pointers(owned: Sequence[Owned]) -> Iterator[Pointer]:
    """Every reference to a table page: first all roots, then the table entries of every tree."""
    for one in owned:
        yield from (Pointer(one, None, pa) for pa in one.view.root_pages())
    for one in owned:
        at = np.flatnonzero(one.columns.table & one.mine)
        for place, child in zip(at.tolist(), one.columns.at(at).child.tolist(), strict=True):
            yield Pointer(one, place, child)


def ownership(views: Sequence[TableView], columns: Sequence[Columns]) -> tuple[list[Owned], list[Pointer]]:
    """What each view is judged by, and every pointer to a table page."""
    owned = [
        Owned(view, tree, mine, np.zeros_like(mine), np.zeros(len(tree.raw), dtype=bool))
        for view, tree, mine in zip(views, columns, _first_reached(columns), strict=True)
    ]
    found = list(_pointers(owned))
    loops = {(p.table_pa, p.index) for view in views for p in view.tree.problems if p.kind is ProblemKind.LOOP}
    roots, once, twice = set[int](), set[int](), set[int]()
    for pointer in found:
        if pointer.at is None:
            (twice if pointer.child in roots else roots).add(pointer.child)
        elif pointer.child not in roots and not (loops and (pointer.where.table_pa, pointer.where.index) in loops):
            (twice if pointer.child in once else once).add(pointer.child)
    if twice:
        tops = np.array(sorted(twice), dtype=np.uint64)
        for one in owned:
            one.contested[:] = one.columns.below(np.isin(one.columns.page_pa, tops))
    return owned, found
