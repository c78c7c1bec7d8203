"""The tables of the host's own, as the checks see them: entries as columns, and questions about all bits of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from inspector.capture.view import OwnView, judged_own_views
from inspector.check.places import Span, spans
from inspector.codec import Descriptor, decode
from inspector.codec.bulk import Flags, Flat
from inspector.generations import KernelCode
from inspector.snapshot import Area, Capture, CpuState, OwnKind
from inspector.tables.columns import Columns, columns_of

_M, _WXN = 1 << 0, 1 << 19
"""SCTLR_EL2.M and WXN (DDI 0487 D24.2)."""


@dataclass(frozen=True, eq=False)
class Own:
    """One table of the host's own; ``code`` is the kernel's."""

    view: OwnView
    columns: Columns
    code: KernelCode

    @cached_property
    def _shapes(self) -> tuple[tuple[Descriptor, ...], Flat]:
        """Every level and pattern of attributes that occurs, decoded, and which of them each entry has."""
        columns = self.columns
        key = columns.attributes ^ columns.level.astype(np.uint64) + np.uint64(1) << np.uint64(_LEVEL_AT)
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        return tuple(columns.decoded(int(at)) for at in first), which.reshape(-1)

    def where(self, rule: Callable[[Descriptor], bool]) -> Flags:
        """The entries whose level and attributes, with all bits but the common address bits, satisfy ``rule``."""
        shapes, which = self._shapes
        verdicts = np.fromiter((rule(one) for one in shapes), dtype=bool, count=len(shapes))
        found: Flags = verdicts[which]
        return found

    @cached_property
    def leaf(self) -> Flags:
        return self.where(lambda d: d.kind.is_leaf)

    @cached_property
    def table(self) -> Flags:
        return self.columns.table

    def spans(self, wrong: Flags) -> Iterator[Span]:
        """The ``wrong`` entries as places."""
        return spans(self.view, self.columns, wrong)

    def descriptor(self, span: Span) -> Descriptor:
        """The first entry of ``span``."""
        return decode(span.where.raw or 0, span.where.level or 0, self.columns.geometry, self.columns.format)

    def area(self, name: str) -> Area | None:
        return next((area for area in self.view.table.areas if area.name == name), None)


_LEVEL_AT = 20
"""A place for the level among the common address bits, which `Columns.attributes` has not."""


def own_tables(capture: Capture, code: KernelCode, kind: OwnKind) -> list[Own]:
    """The tables of one kind: one, or none."""
    views = (view for view in judged_own_views(capture) if view.table.kind is kind)
    return [Own(view, columns_of(view.tree), code) for view in views]


def translating(capture: Capture) -> list[CpuState]:
    """The CPUs on which EL2's stage 1 is on; one on which KVM has put the boot stub back has it off."""
    return [cpu for cpu in capture.host.cpus if cpu.registers.get("SCTLR_EL2", 0) & _M]


def writable_is_never_executed(capture: Capture) -> bool:
    """SCTLR_EL2.WXN of every CPU that translates: what EL2 can write it cannot execute (``INIT_SCTLR_EL2_MMU_ON``)."""
    return all(cpu.registers["SCTLR_EL2"] & _WXN for cpu in translating(capture))


def linear(own: Own) -> Flags | None:
    """The leaves of the half that maps memory at one offset; the idmap and private ranges are in the other.

    ``kvm_compute_layout`` (va_layout.c) takes the half by the idmap's top bit.  ``None`` where the idmap is not known,
    or the kernel's own VA size (by which the half is chosen) is another.
    """
    idmap, top = own.area("hyp idmap text"), own.columns.geometry.ia_bits - 1
    if idmap is None or own.view.capture.host.va_bits != top + 1:
        return None
    half = np.uint64(idmap.start >> top & 1)
    found: Flags = own.leaf & (own.columns.ia >> np.uint64(top) != half)
    return found
