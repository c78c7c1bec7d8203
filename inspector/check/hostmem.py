"""The host's own memory, which no guest may reach: stage-2 tables, the kernel's image, each ``struct kvm``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from inspector.check.own import Own
from inspector.check.ownership import Owned
from inspector.codec import Kind
from inspector.codec.bulk import Flags
from inspector.snapshot import Capture
from inspector.tables.intervals import Intervals


@dataclass(frozen=True)
class Forbidden:
    """Memory that no guest may reach: ``[start, end)`` and what it is."""

    start: int
    end: int
    what: str


def _forbidden(capture: Capture, tables: Sequence[Owned], hosts: Sequence[Own]) -> Iterator[Forbidden]:
    for start, end in capture.host.kernel_pa:
        yield Forbidden(start, end, "the host kernel's image")
    for vm in capture.vms:
        yield Forbidden(*vm.object_pa, f"struct kvm of {vm.name}")
    for owned in tables:
        view, columns = owned.view, owned.columns
        for pa, level in zip(columns.page_pa.tolist(), columns.page_level.tolist(), strict=True):
            yield Forbidden(pa, pa + view.geometry.granule, f"a level-{level} table of {view.regime} of {view.vm.name}")
    for own in hosts:
        for pa, level in zip(own.columns.page_pa.tolist(), own.columns.page_level.tolist(), strict=True):
            yield Forbidden(pa, pa + own.columns.geometry.granule, f"a level-{level} table of {own.view.regime}")


@dataclass(frozen=True)
class HostMemory:
    """All of it: range by range, and together."""

    ranges: tuple[Forbidden, ...]
    union: Intervals
    zero_page: int | None

    def mapped_by(self, owned: Owned) -> Flags:
        """The leaves that map any of it; the zero page, which lies in the image, may be read."""
        columns = owned.columns
        hit = columns.among(owned.leaf, lambda c: self.union.touch(c.output, c.size))
        if self.zero_page is not None:
            read = owned.matching(lambda d: d.kind is Kind.PAGE and not d.writable)
            zero = np.uint64(self.zero_page)
            hit &= ~columns.among(hit & read, lambda c: c.output == zero)
        return hit

    def at(self, pa: int, size: int) -> Forbidden:
        """The first range that ``[pa, pa+size)`` touches, which there is."""
        return next(f for f in self.ranges if f.start < pa + size and pa < f.end)


def host_memory(capture: Capture, tables: Sequence[Owned], hosts: Sequence[Own]) -> HostMemory:
    """The host's own memory in ``capture``."""
    ranges = sorted(_forbidden(capture, tables, hosts), key=lambda f: f.start)
    return HostMemory(tuple(ranges), Intervals.of((f.start, f.end) for f in ranges), capture.host.zero_page)
