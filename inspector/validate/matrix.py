"""Cells done, one after the other or several at once, here or on a cluster; what is done is kept as it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from inspector import machines
from inspector.jobs.files import Remote
from inspector.jobs.spread import spread
from inspector.target.signals import Interrupted
from inspector.validate import kept
from inspector.validate.cells import Cell, Result, Sent, perform, perform_into, perform_there, scripts, sent
from inspector.validate.run import Run

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Where cells are done: in so many processes, or on a ``scheduler``'s cluster; what is done is in ``resume``."""

    jobs: int = 1
    scheduler: str | None = None
    resume: Path | None = None

    @property
    def by_content(self) -> bool:
        """What is booted has to be known by its content."""
        return self.scheduler is not None or self.resume is not None


_GRACE: Final = 20.0
"""Seconds that a worker has to end its machine; it takes one."""

SERIAL: Final = Spread()
"""One after the other, here."""


def run_cells(cells: Sequence[Cell], how: Spread, keep: Path | None, tell: Tell) -> tuple[list[Run | None], bool]:
    """What came of each, ``None`` where it was not done, and whether they were interrupted.

    Raises `BadInput`, `Untestable` and `TargetLost` where a cluster cannot be used.
    """
    runs: list[Run | None] = [None] * len(cells)
    known: list[Sent] = []

    def arrived(number: int, result: Result) -> None:
        runs[number] = result.run
        if how.resume is not None:
            kept.store(how.resume, known[number], result)
        if keep is not None and result.trace:
            (keep / cells[number].trace).write_bytes(result.trace)

    try:
        if how.by_content:
            known = [sent(cell) for cell in cells]
        if how.resume is not None:
            kept.make(how.resume)
            for number, cell in enumerate(known):
                if (found := kept.load(how.resume, cell)) is not None:
                    tell(f"{cells[number].label}: was done before")
                    arrived(number, found)
        left = [number for number, result in enumerate(runs) if result is None]
        if how.scheduler is None and how.jobs == 1:
            for number in left:
                runs[number] = result = Run(cells[number].configuration)
                arrived(number, Result(result, perform_into(result, cells[number], tell)))
        else:
            _spread(cells, known, left, how, arrived, tell)
    except (KeyboardInterrupt, Interrupted):
        return runs, True
    return runs, False


def _spread(
    cells: Sequence[Cell],
    known: Sequence[Sent],
    left: Sequence[int],
    how: Spread,
    arrived: Callable[[int, Result], None],
    tell: Tell,
) -> None:
    done: list[str] = []

    def heard(index: int, result: Result) -> None:
        arrived(left[index], result)
        done.append(cells[left[index]].label)
        tell(f"{len(done)} of {len(left)} cells: {done[-1]} is done")

    if how.scheduler is None:
        wanted = [cells[number] for number in left]
        here = spread(perform, wanted, min(how.jobs, max(2, len(left))), tell=tell, arrived=heard, grace=_GRACE)
        with closing(here) as results:
            for _ in results:
                pass
        return
    files = {known[n].digests[role]: Path(path) for n in left for role, path in known[n].files.items()}
    there = spread(
        partial(perform_there, mark=scripts()),
        [known[number] for number in left],
        scheduler=how.scheduler,
        tell=tell,
        arrived=heard,
        remote=Remote(files, machines.end_all),
    )
    with closing(there) as results:
        for _ in results:
            pass
