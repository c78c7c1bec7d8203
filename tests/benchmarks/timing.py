"""How long work takes beside a memcpy of the same bytes, on a machine that does other things too."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BesideMemcpy:
    """Seconds that the work took, and that one copy of the same bytes took, each the best of many rounds."""

    working: float
    copying: float

    @property
    def ratio(self) -> float:
        return self.working / self.copying


def _seconds(work: Callable[[], object]) -> float:
    """CPU time of this thread (all the work is in it): what else the machine runs meanwhile is not counted."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def beside_memcpy(work: Callable[[], object], blob: bytes, rounds: int) -> BesideMemcpy:
    """The work and a copy of ``blob`` (always to the same place) in turns, so that whatever disturbs disturbs both.

    One copy a turn: it then finds the caches as the work does, full of the other's data.  A second copy in a row would
    find its own, and be three times as fast.
    """
    copy = ctypes.create_string_buffer(len(blob))
    copying = working = float("inf")
    for _ in range(rounds):
        copying = min(copying, _seconds(lambda: ctypes.memmove(copy, blob, len(blob))))
        working = min(working, _seconds(work))
    assert copy.raw == blob
    return BesideMemcpy(working, copying)
