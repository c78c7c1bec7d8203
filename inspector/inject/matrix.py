"""Every fault in a machine of its own, and which rules its trace breaks."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from inspector.findings import BadInput, TargetLost, Untestable
from inspector.inject.catalogue import FAULTS, SHARES, Fault
from inspector.inject.perform import inject
from inspector.inject.results import Cell
from inspector.machines import Machine, require
from inspector.symbols import open_symbols
from inspector.trace.follow import Following, read_plan

_WAIT: Final = 30.0
"""Seconds for a fault to be reached, once its workload runs."""
_AFTER: Final = 0.5
MODES: Final[Mapping[str, str]] = {"": "", "nvhe": "kvm-arm.mode=nvhe", "hvhe": "arm64_sw.hvhe=1"}
"""Of KVM, and what the kernel's command line says for it."""


def read_cells(path: Path) -> list[Cell]:
    """Those that are done, of a file with one a line.  Raises `BadInput` for another file."""
    if not path.exists():
        return []
    try:
        # A last line that was cut is a cell that is not done.
        whole = path.read_text().rpartition("\n")[0]
        rows = [json.loads(line) for line in whole.splitlines()]
        return [Cell(**{**row, "found": tuple(row["found"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError):
        raise BadInput(f"{path} is not a file of this command's: name another with -o") from None


def run_matrix(
    names: Iterable[str], kernels: Iterable[str], mode: str, path: Path | None, tell: Callable[[str], None]
) -> Iterator[Cell]:
    """Each cell, when it is done; one that ``path`` has is not run again.  ``mode`` is one of `MODES`.

    Raises `BadInput`, `Untestable`.
    """
    require()
    known = {(cell.fault, cell.kernel, cell.mode): cell for cell in (read_cells(path) if path is not None else [])}
    for kernel in kernels:
        for name in names:
            cell = known.get((name, kernel, mode))
            if cell is None:
                tell(f"{name} in {kernel} {mode}".rstrip())
                cell = _run(FAULTS[name], kernel, mode, tell)
                if path is not None and cell.verdict != "not injected":
                    with path.open("a") as stream:
                        stream.write(json.dumps(asdict(cell)) + "\n")
            yield cell


def _run(fault: Fault, kernel: str, mode: str, tell: Callable[[str], None]) -> Cell:
    began = time.monotonic()
    options = ["--trace", "--scenario", "none", "--memory", "1536", *(["--kernel", kernel] if kernel else [])]
    options += ["--cpu", fault.cpu] if fault.cpu else []
    options += ["--append", MODES[mode]] if MODES[mode] else []
    machine = Machine(f"inject-{os.getpid()}", options)
    owner, reason = fault.owner, ""
    found: tuple[str, ...] = ()
    verdict = "not injected"
    try:
        machine.start()
        symbols = open_symbols(image=Path(machine.state()["image"]))
        owner = fault.owned_by(shared=symbols.address(SHARES) is not None)
        if fault.vhe and mode:
            verdict, reason = "not there", "in VHE alone"
        elif fault.needs and symbols.address(fault.needs) is None:
            verdict, reason = "not there", f"it has no {fault.needs}"
        else:
            found, reason = _break(fault, machine, mode, tell)
            verdict = _judge(owner, found)
    except (Untestable, TargetLost) as error:
        # A fault may be the end of a kernel: the others have machines of their own.
        verdict, reason = "not injected", str(error)
    finally:
        machine.stop()
    return Cell(fault.name, kernel, verdict, found, round(time.monotonic() - began, 1), reason, mode, owner)


def _judge(owner: str, found: Sequence[str]) -> str:
    if not owner:
        return "false alarm" if found else "silent"
    return "found" if owner in found else "missed"


def _break(fault: Fault, machine: Machine, mode: str, tell: Callable[[str], None]) -> tuple[tuple[str, ...], str]:
    """What the trace says, and what is to be said of it.  Raises `Untestable` when nothing was injected."""
    state = machine.state()
    vmlinux = Path(state["vmlinux"]) if state.get("vmlinux") else None
    if mode or fault.cpu:
        # Up to 6.11 EL2 is the kernel's own only while there is a VM (kvm_arch_hardware_enable).
        machine.send("run one")
    work = threading.Thread(target=machine.send, args=(f"run {fault.workload}",))
    done = inject(fault, state["connect"], Path(state["image"]), vmlinux, _WAIT, tell, work.start)
    work.join(_WAIT)
    if not done.done:
        raise Untestable(f"{done.address:#x} was not reached in that way; {done.passed} were let pass")
    folder = machine.folder
    following = Following(folder, read_plan(folder))
    following.go(None, _AFTER, machine.alive, tell)
    judge = following.end().judge
    rules = sorted({broken.violation.rule for broken in judge.broken})
    lost = sum(count for (_, ret), count in judge.counts.returns.items() if ret == -errno.EAGAIN)
    said = "" if fault.owner else f"{lost} operations were told -EAGAIN, {judge.verdicts.raced} raced"
    return (*rules, *(["model"] if judge.differing else [])), said
