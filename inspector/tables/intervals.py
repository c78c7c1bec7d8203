"""Address intervals and runs: the union of ranges, what lies in it, and neighbours joined while they go on.

Everything works on whole numpy columns; addresses are bytes, an interval is ``[start, end)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.codec.bulk import Flags, Flat, Words


def runs(*columns: tuple[NDArray[Any], NDArray[Any] | int]) -> tuple[Flat, Flat]:
    """The runs in which every column goes on: positions of their first elements and past their last ones.

    Each column comes with its step (one for all, or one an element): element ``n + 1`` goes on from element ``n``
    where it is that element plus its step.
    """
    size = len(columns[0][0])
    apart = np.zeros(max(size - 1, 0), dtype=bool)
    for values, step in columns:
        if isinstance(step, int):
            apart |= values[1:] != (values[:-1] + values.dtype.type(step) if step else values[:-1])
        else:
            apart |= values[1:] != values[:-1] + step[:-1]
    edges = np.concatenate(([0], np.flatnonzero(apart) + 1, [size])) if size else np.zeros(1, dtype=np.intp)
    return edges[:-1], edges[1:]


@dataclass(frozen=True)
class Intervals:
    """Disjoint intervals, ascending: uint64 columns."""

    start: Words
    end: Words

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Intervals:
        """The union of ``(start, end)`` pairs."""
        table = np.array(list(ranges), dtype=np.uint64).reshape(-1, 2)
        return cls.union(table[:, 0], table[:, 1])

    @classmethod
    def union(cls, start: Words, end: Words) -> Intervals:
        """The union of intervals in any order; those that touch are joined, empty ones are left out."""
        some = end > start
        start, end = start[some], end[some]
        order = np.argsort(start, kind="stable")
        start, end = start[order], np.maximum.accumulate(end[order])
        whole = np.ones(min(start.size, 1), dtype=bool)
        apart = start[1:] > end[:-1]
        return cls(start[np.append(whole, apart)], end[np.append(apart, whole)])

    def without(self, other: Intervals) -> Intervals:
        """What lies in the union and not in ``other``'s."""
        cuts = np.unique(np.concatenate((self.start, self.end, other.start, other.end)))
        size = cuts[1:] - cuts[:-1]
        left = self.contain(cuts[:-1], size) & ~other.touch(cuts[:-1], size)
        return Intervals.union(cuts[:-1][left], cuts[1:][left])

    def holding(self, address: Words) -> Flat:
        """For each address the position of the interval that it lies in, -1 where there is none."""
        if not len(self.start):
            return np.full(len(address), -1, dtype=np.intp)
        at = np.searchsorted(self.start, address, side="right") - 1
        return np.where((at >= 0) & (address < self.end[np.maximum(at, 0)]), at, -1)

    def contain(self, start: Words, size: Words) -> Flags:
        """Where all of ``[start, start + size)`` lies in the union."""
        if not len(self.start):
            return np.zeros(len(start), dtype=bool)
        at = np.searchsorted(self.start, start, side="right") - 1
        found: Flags = (at >= 0) & (start + size <= self.end[np.maximum(at, 0)])
        return found

    def touch(self, start: Words, size: Words) -> Flags:
        """Where any byte of ``[start, start + size)`` lies in the union."""
        if not len(self.start):
            return np.zeros(len(start), dtype=bool)
        at = np.searchsorted(self.start, start + size, side="left") - 1
        found: Flags = (at >= 0) & (self.end[np.maximum(at, 0)] > start)
        return found

    def has(self, start: int, end: int) -> bool:
        """Whether all of ``[start, end)`` lies in the union."""
        return any(low <= start and end <= high for low, high in self.pairs)

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Start and end of each."""
        return list(zip(self.start.tolist(), self.end.tolist(), strict=True))
