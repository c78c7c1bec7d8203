"""The detection matrix: a kernel built with each seeded fault, and the clean one, in front of every oracle."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from inspector.findings import BadInput
from inspector.machines import NotBuilt, require
from inspector.trace.file import Trace
from inspector.validate.configurations import workload
from inspector.validate.detect import DEFAULT, Found, look_at
from inspector.validate.kernels import Build, Kernel
from inspector.validate.seeded import MACHINES, MODEL, Seeded
from inspector.validate.shape import Shapes, shapes

CLEAN: Final = ""
"""The name of the fault that is none."""
_BASELINES: Final = 2
"""Of the clean kernel's runs, those that faults are compared with; one more is compared with them itself."""
_ROUNDS: Final = _BASELINES + 1
_CELLS: Final = "cells.jsonl"
WORKLOADS: Final = (DEFAULT, *(line.removeprefix("run ") for line in workload("quick", 0)))


@dataclass(frozen=True)
class Cell:
    """One kernel in one machine.

    ``fault`` is `CLEAN` for the clean kernel, of which there are several runs, told apart by ``number``.  ``verdict``:
    ``found`` by its ``owner``, or ``missed``; ``clean``, or ``false alarm``; ``not tested`` for ``reason``, which else
    says what did not go as it should: a broken kernel may be the end of its guests, or of itself.  ``of`` is what it
    was made from.
    """

    fault: str
    number: int
    machine: str
    owner: str
    verdict: str
    found: tuple[Found, ...]
    operations: int
    build_seconds: float
    seconds: float
    release: str
    reason: str
    of: str

    @property
    def first(self) -> Found | None:
        """By which its owner found it, soonest."""
        return next((each for each in self.found if _is_owner(self.owner, each)), None)


def _is_owner(owner: str, found: Found) -> bool:
    return found.oracle == MODEL if owner == MODEL else (found.oracle, found.what) == ("protocol", owner)


@dataclass(frozen=True)
class Matrix:
    """What is to be done: the faults, the source without them, and the folder where cells and traces are kept."""

    faults: Sequence[Seeded]
    source: Build
    folder: Path


def run_matrix(matrix: Matrix, tell: Callable[[str], None]) -> Iterator[Cell]:
    """Each cell when it is done, the clean kernel's first; one that the folder has is not done again.

    Raises `BadInput`, also for a folder that is not this command's.
    """
    require()
    if not matrix.source.place.exists():
        raise BadInput(f"{matrix.source.place} does not exist: give a kernel tree, its tarball, or its package's file")
    with _alone(matrix.folder):
        yield from _cells(matrix, tell)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise BadInput(f"{folder} cannot be written to: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"another matrix is being made in {folder}: name another folder with -o") from None
        yield


def _cells(matrix: Matrix, tell: Callable[[str], None]) -> Iterator[Cell]:
    clean = _Built(matrix.source)
    known = {(each.fault, each.number, each.machine, each.of): each for each in _read(matrix.folder / _CELLS)}
    baselines: dict[str, list[Shapes]] = {}
    for machine in dict.fromkeys(fault.machine for fault in matrix.faults):
        for number in range(1, _ROUNDS + 1):
            of = _made_from(matrix.source, None)
            trace = matrix.folder / f"clean-{machine}-{number}.s2trace"
            cell = known.get((CLEAN, number, machine, of))
            if cell is None or not trace.is_file():
                seen = baselines.get(machine, []) if number > _BASELINES else []
                cell = _cell(matrix, clean, None, number, machine, of, trace, seen, tell)
            if number <= _BASELINES and trace.is_file():
                baselines.setdefault(machine, []).append(shapes(Trace(trace).events()))
            yield cell
    for fault in matrix.faults:
        of = _made_from(matrix.source, fault)
        done = known.get((fault.name, 1, fault.machine, of))
        trace = matrix.folder / f"{fault.name}.s2trace"
        faulty = _Built(replace(matrix.source, edits=[fault.path]))
        yield done or _cell(matrix, faulty, fault, 1, fault.machine, of, trace, baselines.get(fault.machine, []), tell)


class _Built:
    """A kernel that is built when it is first asked for."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._kernel: Kernel | None = None

    def kernel(self, tell: Callable[[str], None]) -> Kernel:
        """Raises `NotBuilt`."""
        if self._kernel is None:
            self._kernel = self._build.make(tell)
        return self._kernel


def _made_from(source: Build, fault: Seeded | None) -> str:
    """A fault that is edited, or another state of the source, is another cell."""
    facts = source.place.stat()
    what = [str(source.place.resolve()), str(facts.st_size), str(facts.st_mtime_ns), source.page_size, *WORKLOADS]
    what += [fault.digest, fault.owner] if fault is not None else []
    return hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]


def _cell(
    matrix: Matrix,
    built: _Built,
    fault: Seeded | None,
    number: int,
    machine: str,
    of: str,
    trace: Path,
    baselines: Sequence[Shapes],
    tell: Callable[[str], None],
) -> Cell:
    name = fault.name if fault is not None else CLEAN
    title = fault.name if fault is not None else f"clean, run {number}"
    cell = Cell(name, number, machine, fault.owner if fault is not None else "", "not tested", (), 0, 0, 0, "", "", of)
    began = time.monotonic()
    try:
        kernel = built.kernel(lambda said: tell(f"{title}: {said}"))
    except NotBuilt as error:
        return replace(cell, reason="; ".join([str(error), *error.errors[:1]]))
    seconds = round(time.monotonic() - began, 1)
    cell = _looked(cell, kernel, trace, baselines, lambda said: tell(f"{title} on {machine}: {said}"))
    cell = replace(cell, build_seconds=seconds)
    if cell.verdict != "not tested":
        with (matrix.folder / _CELLS).open("a") as stream:
            stream.write(json.dumps(asdict(cell)) + "\n")
    return cell


def _looked(cell: Cell, kernel: Kernel, trace: Path, baselines: Sequence[Shapes], tell: Callable[[str], None]) -> Cell:
    look = look_at(kernel, MACHINES[cell.machine], WORKLOADS, trace, baselines, tell)
    cell = replace(
        cell,
        found=tuple(look.found),
        operations=look.operations,
        seconds=look.seconds,
        release=look.release,
        reason=look.reason,
    )
    return replace(cell, verdict=_verdict(cell, look.followed))


def _verdict(cell: Cell, followed: bool) -> str:
    """A clean kernel whose workloads failed is not tested; a faulty one that its owner found is found all the same."""
    if cell.fault == CLEAN:
        return "false alarm" if cell.found else "clean" if followed and not cell.reason else "not tested"
    if cell.first is not None:
        return "found"
    return "missed" if followed and not cell.reason else "not tested"


def _read(path: Path) -> list[Cell]:
    """The cells of a file with one a line.  Raises `BadInput` for another file."""
    if not path.exists():
        return []
    try:
        # A last line that was cut is a cell that is not done.
        whole = path.read_text().rpartition("\n")[0]
        return [_cell_of(json.loads(line)) for line in whole.splitlines()]
    except (OSError, ValueError, TypeError, KeyError):
        raise BadInput(f"{path} is not a file of this command's: name another folder with -o") from None


def _cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(**{**row, "found": tuple(Found(**each) for each in row["found"])})
