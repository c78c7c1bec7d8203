"""What every check is handed: the capture, its walked tables, and the questions that several checks ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inspector.capture.view import TableView, possible_walkers, regime_name, table_views, walk_in_progress
from inspector.check.backing import Placed
from inspector.check.entries import Entries, Mask
from inspector.check.hostmem import HostMemory, host_memory
from inspector.check.ownership import Owned, Pointer, ownership
from inspector.findings import Finding, Severity, Where
from inspector.generations import KernelCode, code_of
from inspector.snapshot import Capture, CpuState, Mmu, MmuKind, Mode, Vm

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


@dataclass(frozen=True)
class Span:
    """Neighbouring entries of one level and pattern that are wrong in the same way, as one place."""

    where: Where
    first: int
    count: int


@dataclass(frozen=True)
class Context:
    """A capture and what is computed from it once for all checks."""

    capture: Capture

    @cached_property
    def views(self) -> tuple[TableView, ...]:
        return tuple(table_views(self.capture))

    @cached_property
    def _ownership(self) -> tuple[list[Owned], list[Pointer]]:
        return ownership(self.views)

    @property
    def owned(self) -> Sequence[Owned]:
        """Every view with the tables and entries it is judged by: each table page once."""
        return self._ownership[0]

    @property
    def pointers(self) -> Sequence[Pointer]:
        """Every reference to a table page: all roots, then the table entries of every tree."""
        return self._ownership[1]

    @cached_property
    def host_memory(self) -> HostMemory:
        """What no guest may reach."""
        return host_memory(self.capture, self.views)

    @cached_property
    def placed(self) -> Sequence[Placed]:
        """Every VM's own table against its slots (a shadow table's input addresses are the nested guest's)."""
        page = self.capture.host.page_size
        return [
            Placed(owned, page, self.host_memory.mapped_by(owned.entries))
            for owned in self.owned
            if owned.view.mmu.kind is MmuKind.VM
        ]

    @cached_property
    def protected(self) -> bool:
        """The hypervisor is in charge of (some) tables: ``kvm-arm.mode=protected``."""
        return self.capture.host.mode is Mode.PROTECTED

    @cached_property
    def code(self) -> KernelCode:
        """The page-table code of the host's kernel."""
        return code_of(self.capture.host)

    @cached_property
    def walkers(self) -> tuple[CpuState, ...]:
        """The CPUs that may be inside a table walk (see `possible_walkers`)."""
        return possible_walkers(self.capture.host)

    def walk_in_progress(self, vm: Vm | None = None) -> str | None:
        """Who may be inside a table walk (that changes a table of ``vm``), in words, or ``None`` when nobody can be."""
        return walk_in_progress(self.walkers, vm)

    def is_ram(self, pa: int, size: int) -> bool:
        """True when all of ``[pa, pa+size)`` is RAM (ranges that touch count as one)."""
        end = pa + size
        for start, stop in sorted(self.capture.host.ram):
            if start <= pa < stop:
                pa = stop
            if pa >= end:
                return True
        return pa >= end


def spans(view: TableView, entries: Entries, mask: Mask) -> Iterator[Span]:
    """The masked entries as places, neighbours in one table with one pattern joined; at most `LIMIT` of them.

    When there are more, the last one covers all the rest by number only (its ``count``).
    """
    at = np.flatnonzero(mask)
    if not len(at):
        return
    joins = (
        (np.diff(entries.table_pa[at]) == 0)
        & (np.diff(entries.index[at]) == 1)
        & (np.diff(entries.pattern[at]) == 0)
        & (np.diff(at) == 1)
    )
    starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    ends = np.concatenate((starts[1:], [len(at)]))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if number == LIMIT - 1:
            end = len(at)
        first, count = int(at[start]), int(end - start)
        size = int(entries.size[first])
        where = where_view(
            view,
            ipa=int(entries.ia[first]),
            size=size * count if number < LIMIT - 1 or len(starts) == LIMIT else size,
            level=int(entries.level[first]),
            table_pa=int(entries.table_pa[first]),
            index=int(entries.index[first]),
            raw=int(entries.raw[first]),
        )
        yield Span(where, first, count)
        if number == LIMIT - 1:
            return


def many(count: int) -> str:
    """A suffix for the actual value of a span: ``" (512 entries)"``."""
    return f" ({count} entries)" if count > 1 else ""


def error_or_note(
    check: str, where: Where, expected: str, actual: str, why: str, function: str | None, excuse: str | None
) -> Finding:
    """An error, or a note whose ``why`` is the excuse, when there is one."""
    if excuse is None:
        return Finding(check, Severity.ERROR, where, expected, actual, why, function)
    return Finding(check, Severity.NOTE, where, expected, actual, excuse, function)


def error(check: str, where: Where, expected: str, actual: str, why: str, function: str | None = None) -> Finding:
    """A finding that contradicts the rule."""
    return Finding(check, Severity.ERROR, where, expected, actual, why, function)


def note(check: str, where: Where, expected: str, actual: str, why: str, function: str | None = None) -> Finding:
    """A finding that has a legal explanation, which ``why`` states."""
    return Finding(check, Severity.NOTE, where, expected, actual, why, function)
