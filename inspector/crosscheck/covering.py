"""Runs random operations on a library that counts for gcov: a process of its own, which leaves its counts at its end.

``python -m inspector.crosscheck.covering`` reads a pickled `Work` on standard input.
"""

from __future__ import annotations

import pickle
import sys
import time
from dataclasses import dataclass

from inspector.crosscheck import campaign


@dataclass(frozen=True)
class Work:
    """``plan`` of a kernel with ``coverage``; ``ops`` operations from ``seed``, or ``seconds`` of them."""

    plan: campaign.Plan
    ops: int
    seconds: float
    seed: int


def main() -> None:
    """Do it.  A difference ends one campaign; what comes after it in other tables is run all the same."""
    work: Work = pickle.load(sys.stdin.buffer)
    left, seed, end = work.ops, work.seed, time.monotonic() + work.seconds
    while left > 0 and (seconds := end - time.monotonic()) > 0:
        outcome = campaign.Outcome(work.plan.kernel, seed)
        campaign.fill(outcome, work.plan, left, seconds=seconds)
        left -= max(outcome.operations, 1)
        seed += 1
        if outcome.difference is None:
            return


if __name__ == "__main__":
    main()
