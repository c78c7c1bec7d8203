"""Which physical addresses may be read: RAM, and nothing else.

Reading outside is never tried.  A device register can have side effects, and the stub's physical mode answers
zeros for an address where nothing is (QEMU 7.2.22, measured): an unreadable table would look like an empty
one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from inspector.target.api import RamRange


class RamMap:
    """RAM ranges, ascending; neighbours that touch count as one for `holds`."""

    def __init__(self, ram: Sequence[RamRange]) -> None:
        self.ranges = tuple(sorted(ram, key=lambda one: one.start))
        self._starts = [one.start for one in self.ranges]

    def index(self, pa: int) -> int | None:
        """The number of the range that holds ``pa``."""
        at = bisect_right(self._starts, pa) - 1
        return at if at >= 0 and pa < self.ranges[at].end else None

    def holds(self, pa: int, size: int) -> bool:
        """Whether all of ``[pa, pa + size)`` is RAM."""
        return self.split(pa, size) is not None

    def split(self, pa: int, size: int) -> list[tuple[int, int, int]] | None:
        """``(range number, pa, size)`` parts of ``[pa, pa + size)``; ``None`` when any of it is not RAM."""
        if pa < 0 or size < 0:
            return None
        parts = []
        while size:
            at = self.index(pa)
            if at is None:
                return None
            part = min(size, self.ranges[at].end - pa)
            parts.append((at, pa, part))
            pa, size = pa + part, size - part
        return parts
