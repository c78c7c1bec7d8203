"""What backs a memory slot, as columns: a guest of 64 GiB with scattered memory has sixteen million runs.

The rows are those of the capture file (`inspector.capture.file`), so that reading one makes no object a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from inspector.snapshot import Backing, BackingState

Rows = NDArray[np.void]

ROW = np.dtype(
    [("hva", "<u8"), ("size", "<u8"), ("pa", "<u8"), ("entry_size", "<u8"), ("state", "u1"), ("flags", "u1")]
)
"""A `Backing`: ``state`` indexes `STATES`; ``flags`` are the four below."""
STATES = tuple(BackingState)
READABLE, WRITABLE, KNOWN, SPECIAL = 1, 2, 4, 8
"""``KNOWN``: ``pa`` is (it is 0 otherwise)."""

_CHUNK = 1 << 12


class BackingRuns(Sequence[Backing]):
    """The runs of a slot, ascending by HVA: `Backing` objects are made as they are asked for."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @classmethod
    def of(cls, runs: Sequence[Backing]) -> BackingRuns:
        """The same runs as columns."""
        if isinstance(runs, BackingRuns):
            return runs
        rows = np.zeros(len(runs), dtype=ROW)
        for name in ("hva", "size", "entry_size"):
            rows[name] = np.fromiter((getattr(run, name) for run in runs), np.uint64, len(runs))
        rows["pa"] = np.fromiter((run.pa or 0 for run in runs), np.uint64, len(runs))
        rows["state"] = np.fromiter((STATES.index(run.state) for run in runs), np.uint8, len(runs))
        rows["flags"] = np.fromiter(
            (
                run.readable * READABLE | run.writable * WRITABLE | (run.pa is not None) * KNOWN | run.special * SPECIAL
                for run in runs
            ),
            np.uint8,
            len(runs),
        )
        return cls(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Backing: ...

    @overload
    def __getitem__(self, index: slice) -> BackingRuns: ...

    def __getitem__(self, index: int | slice) -> Backing | BackingRuns:
        if isinstance(index, slice):
            return BackingRuns(self.rows[index])
        return _run(*self.rows[index].tolist())

    def __iter__(self) -> Iterator[Backing]:
        for first in range(0, len(self.rows), _CHUNK):
            for row in self.rows[first : first + _CHUNK].tolist():
                yield _run(*row)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BackingRuns):
            return bool(np.array_equal(self.rows, other.rows))
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"BackingRuns({len(self)} runs)"

    # --- questions that cost no object a run ---

    def having(self, flags: int, state: BackingState | None = None) -> BackingRuns:
        """Those with all of ``flags``, and in this state."""
        chosen = self.rows["flags"] & flags == flags
        if state is not None:
            chosen &= self.rows["state"] == STATES.index(state)
        return BackingRuns(self.rows[chosen])

    def of_entries(self, size: int) -> BackingRuns:
        """Those that entries of ``size`` bytes or more make."""
        return BackingRuns(self.rows[self.rows["entry_size"] >= size])

    def totals(self) -> dict[BackingState, int]:
        """Bytes in each state that occurs."""
        found = {}
        for number, state in enumerate(STATES):
            sizes = self.rows["size"][self.rows["state"] == number]
            if len(sizes):
                found[state] = sum(sizes.tolist()) if len(sizes) < _CHUNK else int(sizes.sum(dtype=np.uint64))
        return found

    def at(self, hva: int) -> Backing | None:
        """The run that ``hva`` lies in."""
        start, size = self.rows["hva"], self.rows["size"]
        found = np.flatnonzero((start <= np.uint64(hva)) & (np.uint64(hva) - start < size))
        return self[int(found[0])] if len(found) else None


def _run(hva: int, size: int, pa: int, entry_size: int, state: int, flags: int) -> Backing:
    return Backing(
        hva,
        size,
        pa if flags & KNOWN else None,
        STATES[state],
        bool(flags & READABLE),
        bool(flags & WRITABLE),
        entry_size,
        bool(flags & SPECIAL),
    )
