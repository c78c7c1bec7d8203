"""Reading along while a machine writes: from the probe's file into a trace file, judged on the way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from inspector.events import CALL, RawEvent
from inspector.findings import BadInput, Untestable
from inspector.snapshot import Capture, Mode
from inspector.trace.assemble import Assembler
from inspector.trace.cut import Cut, Scan, cut_at, end_of
from inspector.trace.file import Trace, Writer, packed_capture
from inspector.trace.functions import HYP_PREFIX
from inspector.trace.gdb_rules import OperationJudge, is_by_gdb
from inspector.trace.names import names_of
from inspector.trace.only import Only
from inspector.trace.performed import NONSENSE, PROTECTED, words_of
from inspector.trace.plan import of_header
from inspector.trace.raw import BadRecord, Reader
from inspector.trace.replay import Judge
from inspector.trace.taken import taken_over, without_surplus

RECORDS: Final = "trace.raw"
"""In a machine's run folder: what the probe writes."""
_PIECE: Final = 1 << 20
_PAUSE: Final = 0.05

Judging = Judge | OperationJudge
"""What judges a trace, by what its source saw."""


@dataclass
class Followed:
    """What was followed: ``outside`` are things that lay in no operation, by what they were."""

    header: dict[str, Any]
    judge: Judging
    outside: dict[str, int]
    seconds: float
    cut: bool = False


def read_plan(folder: Path) -> dict[str, Any]:
    """The header of a machine's traces.  Raises `BadInput` when it was not started to be traced."""
    try:
        header = json.loads((folder / "plan.json").read_text())
        of_header(header)
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(
            "this machine was not started to be traced: ./run_qemu.sh start --trace starts one that was"
        ) from None
    found: dict[str, Any] = header
    return found


def open_output(path: Path) -> IO[bytes]:
    """Raises `BadInput` when it cannot be written."""
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise BadInput(f"the trace {path} cannot be written: {error.strerror}; name another file with -o") from None


def stub_of(folder: Path) -> str | None:
    """The gdbstub of the machine of this run folder, as run_qemu.sh has left it there."""
    try:
        words = (line.partition("=") for line in (folder / "state").read_text().splitlines())
    except OSError:
        return None
    return next((value for name, _, value in words if name == "connect" and value), None)


def is_alive(folder: Path) -> bool:
    """The machine of this run folder runs."""
    try:
        return Path("/proc", (folder / "pid").read_text().strip(), "stat").exists()
    except OSError:
        return False


@dataclass(frozen=True)
class Beginning:
    """Where a trace begins that is not of a machine's whole life: the instant of ``capture``."""

    cut: Cut
    capture: Capture


def scan_of(folder: Path, header: Mapping[str, Any]) -> Scan:
    """What is under way by now in a machine that runs: `begin` goes on from there.  Raises `BadInput`."""
    plan = of_header(header)
    scan = Scan(plan)
    try:
        scan.go(folder / RECORDS, Assembler(plan).stack_mask)
    except BadRecord as error:
        raise BadInput(f"the probe's records make no sense: {error}") from None
    return scan


def begin(folder: Path, header: Mapping[str, Any], scan: Scan, take: Callable[[], Capture]) -> Beginning | None:
    """The instant at which ``take`` gives a capture of the machine, which stands still until then.

    ``None`` where the probe has seen nothing yet: everything is still to come.  Raises `BadInput`, `Untestable`.
    """
    records = folder / RECORDS
    end = end_of(records)
    try:
        cut = cut_at(records, end, scan, Assembler(scan.plan, names_of(folder)))
    except BadRecord as error:
        raise BadInput(f"the probe's records make no sense: {error}") from None
    if not cut.assembler.features:
        return None
    if end_of(records) != end:
        raise Untestable("the machine did not stand still while a capture of it was to be taken")
    capture = take()
    if capture.host.mode is Mode.PROTECTED:
        raise Untestable(PROTECTED)
    return Beginning(cut, capture)


@dataclass
class Following:
    """Reads along: `go` until it is told to end, `end` for the verdict on what was taken, whatever ended it.

    ``beginning``: from there on; ``None``: everything since the machine's start.
    """

    folder: Path
    header: dict[str, Any]
    only: Only | None = None
    beginning: Beginning | None = None
    interrupted: bool = False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._capture = b""
        self._reader = Reader()
        self._writer: Writer | None = None
        self._read = 0
        if self.only is not None:
            self.header = {**self.header, "only": sorted(self.only.tables)}
        if self.beginning is None:
            self._assembler = Assembler(of_header(self.header), names_of(self.folder))
            self._judge = Judge(self.header)
            return
        self._assembler = self.beginning.cut.assembler
        self._capture = packed_capture(self.beginning.capture)
        self.header = {**self.header, "features": dict(self._assembler.features), "capture": len(self._capture)}
        self._judge = Judge(self.header, self.beginning.capture)
        self._hand_over(self.beginning)

    def _hand_over(self, beginning: Beginning) -> None:
        """The tables' pages to the assembler: counts as the judge takes them over."""
        before = taken_over(beginning.capture, self.header)
        calls = [raw for _, raw in beginning.cut.under_way if raw[0] == CALL]
        under_way = {words_of(str(raw[2])).get("pgt") for raw in calls}
        # Where the hypervisor's structure is, the capture does not say.
        under_way |= {0} if any(raw[1].startswith(HYP_PREFIX) for raw in calls) else set()
        vttbr = {cpu.number: cpu.vttbr for cpu in before.cpus}
        beginning.cut.assembler.take_over({}, {}, vttbr)
        for taken in before.tables:
            truth = taken.truth
            if taken.pgt not in under_way:
                without_surplus(truth, taken.facts)
            beginning.cut.assembler.take_over(truth.pages, truth.counts, vttbr, lpa2=taken.facts.geometry.lpa2)

    @property
    def operations(self) -> int:
        """Those that were taken so far."""
        return self._judge.counts.operations

    @property
    def found(self) -> int:
        """Rules broken, and operations that differ from the model, so far."""
        return len(self._judge.broken) + len(self._judge.differing)

    @property
    def judge(self) -> Judge:
        """What it has come to so far; it grows as `go` goes."""
        return self._judge

    def go(
        self, out: IO[bytes] | None, seconds: float | None, alive: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        """Everything since the start, or the beginning, or since this was called last, and for ``seconds`` more.

        Without a number of seconds until the machine is gone.  What was taken is in ``out``, always the same one,
        whatever ends it.  Raises `BadInput` when the probe's records cannot be read, or make no sense.
        """
        before, began, spent = self.seconds, time.monotonic(), 0.0
        try:
            if out is not None and self._writer is None:
                self._writer = Writer(out, self.header, capture=self._capture)
            with (self.folder / RECORDS).open("rb") as stream:
                if self.beginning is not None and not self._read:
                    self._read = self.beginning.cut.offset
                    self._tell(self.beginning.cut.under_way, self._writer)
                stream.seek(self._read)
                end: int | None = None
                while True:
                    data = stream.read(_PIECE if end is None else min(_PIECE, end - self._read))
                    self._read += len(data)
                    self._take(self._reader, data, self._writer)
                    spent = time.monotonic() - began
                    self.seconds = before + spent
                    tell(progress_line(self._judge, self.seconds))
                    if end is None and (not alive() or (seconds is not None and spent >= seconds)):
                        # A machine may do more than is judged meanwhile: what it has done by now is the end.
                        end = os.fstat(stream.fileno()).st_size
                    elif end is not None and self._read >= end:
                        break
                    elif end is None and len(data) < _PIECE:
                        time.sleep(_PAUSE)
        except OSError as error:
            raise BadInput(f"the probe's records cannot be read, or the trace not written: {error.strerror}") from None
        except BadRecord as error:
            raise BadInput(f"the probe's records make no sense: {error}") from None
        finally:
            flush(self._writer)

    def _take(self, reader: Reader, data: bytes, writer: Writer | None) -> None:
        for record in reader.take(data):
            self._tell(self._assembler.take(record), writer)

    def _tell(self, events: Iterable[tuple[int, RawEvent]], writer: Writer | None) -> None:
        for lane, raw in events:
            if self.only is not None and not self.only.passes(lane, raw):
                continue
            self._judge.take(lane, raw)
            if writer is not None:
                writer.add(lane, raw)

    def end(self) -> Followed:
        """What it came to."""
        self._judge.finish()
        return Followed(self.header, self._judge, dict(self._assembler.outside), self.seconds)


def progress_line(judge: Judging, seconds: float) -> str:
    """How far it has come."""
    counts = judge.counts
    rate = counts.operations / seconds if seconds else 0
    return f"{counts.operations} operations ({rate:.0f} a second), {counts.events} events, {len(judge.broken)} findings"


def flush(writer: Writer | None) -> None:
    """Raises `BadInput` when the disk is full, say; what was written stays a trace."""
    try:
        if writer is not None:
            writer.flush()
    except OSError as error:
        raise BadInput(f"the trace cannot be written to its end: {error.strerror}") from None


def replay(path: Path) -> Followed:
    """The same verdict, from a file.  Raises `BadInput`."""
    trace = Trace(path)
    by_gdb = is_by_gdb(trace.header)
    began = time.monotonic()
    judge: Judging = OperationJudge(trace.header) if by_gdb else Judge(trace.header, trace.capture)
    try:
        for lane, raw in trace.events():
            judge.take(lane, raw)
    except NONSENSE as error:
        raise BadInput(f"{path}: its event {judge.counts.events} makes no sense: {error}") from None
    judge.finish()
    return Followed(trace.header, judge, {}, time.monotonic() - began, trace.cut)
