"""What every check is handed: the capture, its walked tables, and the questions that several checks ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from inspector.capture.view import TableView, judged_views
from inspector.check.backing import GuestMemory
from inspector.check.composed import Nested, nested
from inspector.check.counts import References, references
from inspector.check.hostmem import HostMemory, host_memory
from inspector.check.own import Own, own_tables
from inspector.check.ownership import Owned, Pointer, ownership
from inspector.compare.machine import format_of
from inspector.compare.rebuild import Rebuilt, rebuild
from inspector.generations import KernelCode, functions
from inspector.snapshot import Capture, MmuKind, Mode, OwnKind
from inspector.tables.columns import columns_of
from inspector.tables.intervals import Intervals


def title(view: TableView) -> tuple[str, int]:
    """What tells one view of a capture from the others."""
    return view.vm.name, view.number


@dataclass(frozen=True, eq=False)
class Context:
    """A capture and what is computed from it once for all checks.

    ``code`` is the page-table code whose rules hold, and whose model the tables are compared with; only those of
    ``compared`` are (``None``: all of them).
    """

    capture: Capture
    code: KernelCode
    compared: Collection[tuple[str, int]] | None = None

    @cached_property
    def views(self) -> tuple[TableView, ...]:
        return tuple(judged_views(self.capture))

    @cached_property
    def _ownership(self) -> tuple[list[Owned], list[Pointer]]:
        return ownership(self.views, [columns_of(view.tree, format_of(self.code, view)) for view in self.views])

    @property
    def owned(self) -> Sequence[Owned]:
        """Every view with the pages and entries it is judged by: each table page once."""
        return self._ownership[0]

    @property
    def pointers(self) -> Sequence[Pointer]:
        """Every reference to a table page: all roots, then the table entries of every tree."""
        return self._ownership[1]

    @cached_property
    def hyp(self) -> Sequence[Own]:
        """EL2's own stage 1, where there is one."""
        return own_tables(self.capture, self.code, OwnKind.HYP)

    @cached_property
    def host_stage2(self) -> Sequence[Own]:
        """The stage 2 of a protected host, where there is one."""
        return own_tables(self.capture, self.code, OwnKind.HOST)

    @property
    def own(self) -> Sequence[Own]:
        """Every table of the host's own."""
        return (*self.hyp, *self.host_stage2)

    @cached_property
    def models(self) -> Sequence[tuple[Owned, Rebuilt]]:
        """The tables to compare, each with what the model makes of its mappings."""
        return [
            (owned, rebuild(owned.view, self.code, owned.columns))
            for owned in self.owned
            if self.compared is None or title(owned.view) in self.compared
        ]

    @cached_property
    def references(self) -> Mapping[tuple[str, int], References]:
        """The reference counts that each view's pages must have, by its `title`."""
        return {title(owned.view): references(owned.columns, self.code.behaviours) for owned in self.owned}

    @cached_property
    def functions(self) -> Mapping[str, str]:
        """The kernel functions of this generation by what they write."""
        return functions(self.code.behaviours)

    @cached_property
    def ram(self) -> Intervals:
        """Everything that QEMU calls RAM."""
        return Intervals.of(self.capture.host.ram)

    @cached_property
    def host_memory(self) -> HostMemory:
        """What no guest may reach."""
        return host_memory(self.capture, self.owned, self.own)

    @cached_property
    def guests(self) -> Sequence[GuestMemory]:
        """Every VM's own table against its slots (a shadow table's input addresses are the nested guest's)."""
        page = self.capture.host.page_size
        return [
            GuestMemory(owned, page, self.host_memory.mapped_by(owned))
            for owned in self.owned
            if owned.view.mmu.kind is MmuKind.VM
        ]

    @cached_property
    def nested(self) -> Sequence[Nested]:
        """Every shadow table that stands for a context of a guest hypervisor's, against what it must be made of."""
        found = (nested(owned, self.host_memory.mapped_by(owned)) for owned in self.owned)
        return [one for one in found if one is not None]

    @property
    def protected(self) -> bool:
        """The hypervisor is in charge of (some) tables: ``kvm-arm.mode=protected``."""
        return self.capture.host.mode is Mode.PROTECTED
