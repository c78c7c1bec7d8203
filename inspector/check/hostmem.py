"""The host's own memory, which no guest may reach: stage-2 tables, the kernel's image, each ``struct kvm``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inspector.capture.view import TableView
from inspector.check.entries import U64, Entries, Mask
from inspector.codec import Kind
from inspector.snapshot import Capture


@dataclass(frozen=True)
class Forbidden:
    """Memory that no guest may reach: ``[start, end)`` and what it is."""

    start: int
    end: int
    what: str


def _forbidden(capture: Capture, views: Sequence[TableView]) -> Iterator[Forbidden]:
    for start, end in capture.host.kernel_pa:
        yield Forbidden(start, end, "the host kernel's image")
    for vm in capture.vms:
        start, end = vm.object_pa
        if end > start:
            yield Forbidden(start, end, f"struct kvm of {vm.name}")
    for view in views:
        for table in view.tree.tables:
            what = f"a level-{table.level} table of {view.regime} of {view.vm.name}"
            yield Forbidden(table.pa, table.pa + view.geometry.granule, what)


@dataclass(frozen=True)
class HostMemory:
    """All of it, ascending."""

    ranges: tuple[Forbidden, ...]
    starts: U64
    ends: U64
    zero_page: int | None

    def mapped_by(self, entries: Entries) -> Mask:
        """The leaves that map any of it; the zero page, which lies in the image, may be read."""
        last = np.searchsorted(self.starts, entries.output + entries.size, side="left") - 1
        hit = entries.leaf & (last >= 0)
        if len(self.ends):
            hit &= self.ends[np.maximum(last, 0)] > entries.output
        if self.zero_page is not None:
            read = entries.matching(lambda d: d.kind is Kind.PAGE and not d.writable)
            hit &= ~(read & (entries.output == np.uint64(self.zero_page)))
        return hit

    def at(self, pa: int, size: int) -> Forbidden:
        """The first range that ``[pa, pa+size)`` touches, which there is."""
        return next(f for f in self.ranges if f.start < pa + size and pa < f.end)


def host_memory(capture: Capture, views: Sequence[TableView]) -> HostMemory:
    """The host's own memory in ``capture``."""
    ranges = sorted(_forbidden(capture, views), key=lambda f: f.start)
    starts = np.array([f.start for f in ranges], dtype=np.uint64)
    # Ranges may overlap in a corrupt capture: the highest end so far keeps the search one-dimensional.
    ends = np.array([f.end for f in ranges], dtype=np.uint64)
    return HostMemory(tuple(ranges), starts, np.maximum.accumulate(ends) if len(ends) else ends, capture.host.zero_page)
