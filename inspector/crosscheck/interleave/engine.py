"""Schedules of a few operations, run in the harness as fibers (``c/interleave.c``)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from inspector.crosscheck import harness as h
from inspector.crosscheck.interleave.outcome import KINDS, Access, Outcome
from inspector.generations import Generation

MOST_OPERATIONS: Final = 3
_ACCESS: Final = struct.Struct("<II3Q")
_NEW, _LIMIT = 1, 2


def preemptions(schedule: Sequence[int]) -> int:
    """How often a schedule goes on with another fiber although the last one has more to do later."""
    return sum(a != b and a in schedule[at + 1 :] for at, (a, b) in enumerate(pairwise(schedule)))


class Engine:
    """The operations ``ops`` (packed, see `harness.pack`) from the state in which ``harness`` is.

    ``harness`` must be on a library with ``every_access``.  At most ``bound`` preemptions; with ``reduce`` points of
    choice are only accesses to locations that are shared, which leaves out no end.  After `outcomes` has come to its
    end, `schedules` is how many ran, `complete` whether that was all of them.
    """

    def __init__(
        self,
        harness: h.Harness,
        ops: Sequence[bytes],
        behaviours: Generation,
        *,
        bound: int = 2,
        reduce: bool = True,
    ) -> None:
        self._harness = harness
        self._lib = harness.library.functions
        self._handle = harness.handle
        self._count = len(ops)
        self.complete = False
        began = self._lib.h_interleave(
            self._handle,
            b"".join(ops),
            len(ops),
            bound,
            reduce,
            0 if behaviours.counts_nonzero else 1,
            behaviours.locked_mask,
            behaviours.locked_value,
        )
        if not began:
            raise h.StoreFull("the harness has no pages left for fibers")

    def outcomes(self, limit: int = 0) -> Iterator[Outcome]:
        """Each end that is unlike all before; ``limit``: after so many schedules no more (0: all)."""
        while (found := self._lib.h_interleave_next(self._handle, limit)) == _NEW:
            yield self._outcome()
        self.complete = found != _LIMIT

    def exhaust(self) -> int:
        """All schedules, without a look at their ends (for measuring); how many there were."""
        while self._lib.h_interleave_next(self._handle, 0) == _NEW:
            pass
        return self.schedules

    def replay(self, schedule: Sequence[int]) -> Outcome:
        """One schedule again."""
        self._lib.h_interleave_replay(self._handle, bytes(schedule), len(schedule))
        return self._outcome()

    def close(self) -> None:
        """The tables are again as they were before."""
        self._lib.h_interleave_end(self._handle)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _figures(self) -> tuple[int, int, int, int]:
        values = (ctypes.c_uint64 * 4)()
        self._lib.h_interleave_figures(values)
        return (values[0], values[1], values[2], values[3])

    @property
    def schedules(self) -> int:
        """Schedules that ran."""
        return self._figures()[0]

    @property
    def distinct(self) -> int:
        """Ends that differ in what the operations did, or in its order."""
        return self._figures()[1]

    def _bytes(self, name: str, width: int) -> bytes:
        count = ctypes.c_uint64()
        at = getattr(self._lib, name)(ctypes.byref(count))
        return ctypes.string_at(at, count.value * width) if count.value else b""

    def _outcome(self) -> Outcome:
        accesses = tuple(
            Access(fiber, KINDS[kind], pa, old, new)
            for fiber, kind, pa, old, new in _ACCESS.iter_unpack(self._bytes("h_interleave_accesses", _ACCESS.size))
        )
        schedule = tuple(access.fiber for access in accesses)
        buffer = ctypes.create_string_buffer(self._count * h.RESULT_SIZE)
        self._lib.h_interleave_results(buffer)
        counts = self._harness.outstanding()
        return Outcome(
            schedule,
            preemptions(schedule),
            accesses,
            tuple(self._harness.tagged_events()),
            tuple(h.unpack_results(buffer.raw)),
            tuple(self._harness.faults()),
            tuple(self._bytes("h_interleave_broken", 1).decode().splitlines()),
            {page: self._harness.page(page) for page in counts},
            counts,
        )
