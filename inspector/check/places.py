"""Places that findings are about: a VM, a table, and neighbouring entries that are wrong in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.capture.view import TableView, View, regime_name
from inspector.codec import Descriptor, decode
from inspector.codec.bulk import Flags, Flat, Words
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
    view: View,
    *,
    ipa: int | None = None,
    size: int | None = None,
    level: int | None = None,
    table_pa: int | None = None,
    index: int | None = None,
    raw: int | None = None,
) -> Where:
    """A place in the table ``view``."""
    vm = view.vm.name if isinstance(view, TableView) else None
    return Where(vm, view.regime, ipa, size, level, table_pa, index, raw)


def where_problem(view: View, found: Problem) -> Where:
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


def where_entry(view: View, columns: Columns, at: int, size: int | None = None, ipa: int | None = None) -> Where:
    """The entry at position ``at``, and what it covers (or ``size`` bytes from its address, or from ``ipa``, on)."""
    one = columns.at([at])
    return where_view(
        view,
        ipa=int(one.ia[0]) if ipa is None else ipa,
        size=int(one.size[0]) if size is None else size,
        level=int(one.level[0]),
        table_pa=int(one.table_pa[0]),
        index=int(one.index[0]),
        raw=int(one.raw[0]),
    )


def where_page(view: View, columns: Columns, row: int) -> Where:
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


def _first(mask: Flags, most: int) -> NDArray[np.intp]:
    """The first positions in ``mask``: ``most`` of them, and some more."""
    found = [np.empty(0, dtype=np.intp)]
    start = count = 0
    while start < len(mask) and count < most:
        found.append(np.flatnonzero(mask[start : start + most]) + start)
        start, count = start + most, count + len(found[-1])
    return np.concatenate(found)


def spans(view: View, columns: Columns, mask: Flags, *alike: Callable[[Flat], Words]) -> Iterator[Span]:
    """The masked entries as places, neighbours in one page with equal attributes (and equal in ``alike``) joined.

    At most `LIMIT` of them: when there are more, the last one covers all the rest by number only (its ``count``).
    """
    # None is longer than a page, so that these tell whether there are more than `LIMIT`.
    at = _first(mask, (LIMIT + 1) * columns.geometry.entries)
    found = columns.at(at)
    starts, ends = runs((found.index, 1), (found.row, 0), (found.attributes, 0), *((one(at), 0) for one in alike))
    for number, (start, end) in enumerate(zip(starts[:LIMIT].tolist(), ends.tolist(), strict=False)):
        rest = number == LIMIT - 1 and len(starts) > LIMIT
        first = columns.at([int(at[start])])
        count = int(np.count_nonzero(mask)) - start if rest else end - start
        size = int(first.size[0]) * (1 if rest else count)
        pattern = decode(int(first.attributes[0]), int(first.level[0]), columns.geometry, columns.format)
        yield Span(
            where_entry(view, columns, int(at[start]), size), int(at[start]), count, pattern, int(first.output[0])
        )
