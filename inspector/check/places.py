"""Places that findings are about: a VM, a table, and neighbouring entries that are wrong in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.capture.view import TableView, regime_name
from inspector.codec import Descriptor
from inspector.codec.bulk import Flags
from inspector.findings import Where
from inspector.snapshot import Mmu, Vm
from inspector.tables import Problem
from inspector.tables.columns import Columns
from inspector.tables.intervals import runs

#: At most this many findings of one kind a table; the last one says how many more there are.
LIMIT = 64


def where_vm(vm: Vm, mmu: Mmu | None = None) -> Where:
    """The place ``vm``, or one MMU of it."""
    return Where(vm=vm.name, regime=None if mmu is None else regime_name(mmu))


def where_view(
    view: TableView,
    *,
    ipa: int | None = None,
    size: int | None = None,
    level: int | None = None,
    table_pa: int | None = None,
    index: int | None = None,
    raw: int | None = None,
) -> Where:
    """A place in the table ``view``."""
    return Where(view.vm.name, view.regime, ipa, size, level, table_pa, index, raw)


def where_problem(view: TableView, found: Problem) -> Where:
    """The place of what the walk reported."""
    size = None if found.index is None else view.geometry.block_size(found.level)
    return where_view(
        view,
        ipa=found.ia,
        size=size,
        level=found.level,
        table_pa=found.table_pa,
        index=found.index,
        raw=found.raw,
    )


def where_entry(view: TableView, columns: Columns, at: int, size: int | None = None, ipa: int | None = None) -> Where:
    """The entry at position ``at``, and what it covers (or ``size`` bytes from its address, or from ``ipa``, on)."""
    return where_view(
        view,
        ipa=int(columns.ia[at]) if ipa is None else ipa,
        size=int(columns.size[at]) if size is None else size,
        level=int(columns.level[at]),
        table_pa=int(columns.table_pa[at]),
        index=int(columns.index[at]),
        raw=int(columns.raw[at]),
    )


def where_page(view: TableView, columns: Columns, row: int) -> Where:
    """A whole table page."""
    return where_view(
        view, ipa=int(columns.page_ia[row]), level=int(columns.page_level[row]), table_pa=int(columns.page_pa[row])
    )


@dataclass(frozen=True)
class Span:
    """``count`` neighbouring entries of one page and pattern, from position ``first`` on, that are wrong alike."""

    where: Where
    first: int
    count: int
    pattern: Descriptor
    output: int

    @property
    def raw(self) -> str:
        """The first entry, in hexadecimal."""
        return f"{self.where.raw:#018x}"

    @property
    def many(self) -> str:
        """What is added to the first entry's value: `` (512 entries)``."""
        return f" ({self.count} entries)" if self.count > 1 else ""


def spans(view: TableView, columns: Columns, mask: Flags, *alike: NDArray[Any]) -> Iterator[Span]:
    """The masked entries as places, neighbours in one page with one pattern (and equal in ``alike``) joined.

    At most `LIMIT` of them: when there are more, the last one covers all the rest by number only (its ``count``).
    """
    at = np.flatnonzero(mask)
    same = ((column[at], 0) for column in (columns.row, columns.pattern, *alike))
    starts, ends = runs((columns.index[at], 1), *same)
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if number == LIMIT:
            return
        rest = number == LIMIT - 1 and len(starts) > LIMIT
        first, count = int(at[start]), (len(at) if rest else end) - start
        size = int(columns.size[first]) * (1 if rest else count)
        pattern = columns.patterns[columns.pattern[first]]
        yield Span(where_entry(view, columns, first, size), first, count, pattern, int(columns.output[first]))
