"""One kernel in one machine, looked at by every oracle: what each found, in which workload, and how soon."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from inspector.findings import BadInput, ExitCode, InspectorError
from inspector.machines import Machine, sentence
from inspector.trace.file import Trace
from inspector.trace.follow import Following, open_output, read_plan
from inspector.validate.compare import changes
from inspector.validate.console import reports
from inspector.validate.kernels import Kernel
from inspector.validate.listed import listed
from inspector.validate.shape import Shapes, shapes

Tell = Callable[[str], None]
ORACLES: Final = ("protocol", "model", "tables", "listing", "console", "baseline")
"""Rules on a trace; the model; rules on captures; the kernel's own listing; its own reports; another kernel's trace."""
DEFAULT: Final = "default"
"""The scenario whose tables are looked at while they lie still."""
_QUIET: Final = 0.5
"""Seconds in which the probe's last records come."""
_PATIENCE: Final = 120.0
"""Seconds that a workload may take: it takes some two.  A broken kernel may keep its guests for ever."""
_SETTLED: Final = 20.0
_PAUSE: Final = 0.05


@dataclass(frozen=True)
class Found:
    """What an oracle found first of a kind: ``what`` is a rule, an operation, or a report's first line.

    ``seconds`` since the first workload began, until it was told; ``operations`` that had been followed by then.
    """

    oracle: str
    what: str
    workload: str
    seconds: float
    operations: int


@dataclass
class Look:
    """What came of one machine; ``reason`` says what did not go as it should."""

    found: list[Found] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0
    release: str = ""
    reason: str = ""
    followed: bool = False


class _Watch:
    """Reads along in a thread of its own, and notes what is found when it is."""

    def __init__(self, machine: Machine, look: Look) -> None:
        self.following = Following(machine.folder, read_plan(machine.folder))
        self.workload = ""
        self.began = time.monotonic()
        self.problem = ""
        self._look = look
        self._known: set[tuple[str, str]] = set()
        self._broken = self._differing = 0
        self._end = threading.Event()
        self._round = 0
        self._thread = threading.Thread()
        self._lock = threading.Lock()

    def start(self, out: IO[bytes]) -> None:
        """Writes the trace into ``out``."""
        self._thread = threading.Thread(target=self._go, args=(out,), daemon=True)
        self._thread.start()

    def _go(self, out: IO[bytes]) -> None:
        try:
            self.following.go(out, None, lambda: not self._end.is_set(), self._told)
        except BadInput as error:
            self.problem = str(error)

    def _told(self, _: str) -> None:
        self._gather()
        self._round += 1

    def _gather(self) -> None:
        judge = self.following.judge
        broken, self._broken = judge.broken[self._broken :], len(judge.broken)
        differing, self._differing = judge.differing[self._differing :], len(judge.differing)
        for each in broken:
            self.note("protocol", each.violation.rule)
        for unlike in differing:
            self.note("model", unlike.call.partition(" args=")[0].removeprefix("call fn="))

    def note(self, oracle: str, what: str) -> None:
        """The first of its kind."""
        with self._lock:
            if (oracle, what) in self._known:
                return
            self._known.add((oracle, what))
            seconds = round(time.monotonic() - self.began, 1)
            operations = self.following.judge.counts.operations
            self._look.found.append(Found(oracle, what, self.workload, seconds, operations))

    def settle(self) -> None:
        """Until what was recorded so far is judged: a whole round has brought no event."""
        seen = (-1, -1)
        until = time.monotonic() + _SETTLED
        time.sleep(_QUIET)
        # A broken kernel may be at it for ever.
        while self._thread.is_alive() and time.monotonic() < until:
            now = self._round, self.following.judge.counts.events
            if now[0] > seen[0] + 1 and now[1] == seen[1]:
                return
            seen = now if now[1] != seen[1] else seen
            time.sleep(_PAUSE)

    def end(self) -> None:
        """Takes what is left, of a machine that is gone: one that is at it for ever would have no end."""
        self._end.set()
        self._thread.join()
        self.following.end()
        self._gather()


def look_at(
    kernel: Kernel, options: Sequence[str], lines: Sequence[str], trace: Path, baselines: Sequence[Shapes], tell: Tell
) -> Look:
    """Boot it, run ``lines`` one after the other, and gather; the trace is kept.  The machine is gone afterwards.

    Compared with the ``baselines``, where there are any.
    """
    look = Look()
    began = time.monotonic()
    machine = Machine(
        f"detect-{os.getpid()}", [*kernel.options(), *options, "--trace", "--memory", "1536", "--scenario", "none"]
    )
    try:
        tell("boots")
        machine.start()
        watch = _Watch(machine, look)
        look.release = watch.following.header["release"]
        with open_output(trace) as out:
            watch.start(out)
            try:
                for line in lines:
                    watch.workload = line
                    tell(f"{line}; {len(look.found)} found")
                    failed, goes_on = _drive(machine, line, kernel, watch)
                    look.reason = look.reason or failed
                    watch.settle()
                    if not goes_on:
                        break
            except InspectorError as error:
                look.reason = look.reason or str(error)
            finally:
                console = machine.console()
                machine.stop()
                watch.end()
        look.reason = look.reason or watch.problem
        counts = watch.following.judge.counts
        look.operations = counts.operations
        look.followed = counts.operations > counts.unknown
        for report in reports(console):
            watch.note("console", report[0] if report else "")
        for change in changes(baselines, shapes(Trace(trace).events())) if baselines else ():
            watch.note("baseline", change.operation)
    except InspectorError as error:
        look.reason = look.reason or str(error)
    finally:
        machine.stop()
        look.seconds = round(time.monotonic() - began, 1)
    return look


def _drive(machine: Machine, line: str, kernel: Kernel, watch: _Watch) -> tuple[str, bool]:
    """Why the workload failed (empty when it did not), and whether the machine can go on with another.

    Guests that fail are no end: of a broken kernel the tables are looked at all the same.
    """
    began = time.monotonic()
    done = machine.send(f"run {line}", _PATIENCE)
    failed = f"{line}: {sentence(done) or 'its guests did not do it'}" if done.returncode else ""
    if time.monotonic() - began >= _PATIENCE:
        return failed, False
    if line == DEFAULT:
        for rule in _tables(machine):
            watch.note("tables", rule)
        _listing(machine, kernel, watch)
    ended = machine.send("end", _PATIENCE)
    if ended.returncode:
        failed = failed or f"end of {line}: {sentence(ended) or 'its VMs did not end'}"
    return failed, not ended.returncode


def _tables(machine: Machine) -> Iterator[str]:
    """The rules that its tables break.  Raises `InspectorError` where they cannot be read."""
    done = machine.inspect("check", "--json")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        raise InspectorError(f"its tables could not be checked: {done.stderr.strip()[-200:]}") from None
    yield from (each["check"] for each in found["findings"] if each["severity"] == "error")


def _listing(machine: Machine, kernel: Kernel, watch: _Watch) -> None:
    def add(_: str, code: ExitCode, summary: str, more: Sequence[str] = (), **__: object) -> None:
        if code is ExitCode.FINDINGS:
            watch.note("listing", more[0].rstrip(":") if more else summary)
        elif code is not ExitCode.CLEAN:
            raise InspectorError(f"its listing: {summary}")

    listed(machine, kernel.lists, add)
