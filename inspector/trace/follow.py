"""Reading along while a machine writes: from the probe's file into a trace file, judged on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from inspector.findings import BadInput
from inspector.trace.assemble import Assembler
from inspector.trace.file import Trace, Writer
from inspector.trace.gdb_rules import OperationJudge, is_by_gdb
from inspector.trace.names import names_of
from inspector.trace.only import Only
from inspector.trace.performed import NONSENSE
from inspector.trace.plan import of_header
from inspector.trace.raw import BadRecord, Reader
from inspector.trace.replay import Judge

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


def is_alive(folder: Path) -> bool:
    """The machine of this run folder runs."""
    try:
        return Path("/proc", (folder / "pid").read_text().strip(), "stat").exists()
    except OSError:
        return False


@dataclass
class Following:
    """Reads along: `go` until it is told to end, `end` for the verdict on what was taken, whatever ended it."""

    folder: Path
    header: dict[str, Any]
    only: Only | None = None
    interrupted: bool = False
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._assembler = Assembler(of_header(self.header), names_of(self.folder))
        self._judge = Judge(self.header)

    @property
    def judge(self) -> Judge:
        """What it has come to so far; it grows as `go` goes."""
        return self._judge

    def go(
        self, out: IO[bytes] | None, seconds: float | None, alive: Callable[[], bool], tell: Callable[[str], None]
    ) -> None:
        """Everything since the machine's start, and for ``seconds`` more (``None``: until it is gone).

        What was taken is in ``out`` whatever ends it.  Raises `BadInput` when the probe's records cannot be read, or
        make no sense.
        """
        writer: Writer | None = None
        reader, began = Reader(), time.monotonic()
        try:
            writer = Writer(out, self.header) if out is not None else None
            with (self.folder / RECORDS).open("rb") as stream:
                while True:
                    data = stream.read(_PIECE)
                    self._take(reader, data, writer)
                    self.seconds = time.monotonic() - began
                    tell(progress_line(self._judge, self.seconds))
                    if len(data) == _PIECE:
                        continue
                    if not alive() or (seconds is not None and self.seconds >= seconds):
                        break
                    time.sleep(_PAUSE)
        except OSError as error:
            raise BadInput(f"the probe's records cannot be read, or the trace not written: {error.strerror}") from None
        except BadRecord as error:
            raise BadInput(f"the probe's records make no sense: {error}") from None
        finally:
            flush(writer)

    def _take(self, reader: Reader, data: bytes, writer: Writer | None) -> None:
        for record in reader.take(data):
            for lane, raw in self._assembler.take(record):
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
    judge: Judging = OperationJudge(trace.header) if is_by_gdb(trace.header) else Judge(trace.header)
    began = time.monotonic()
    try:
        for lane, raw in trace.events():
            judge.take(lane, raw)
    except NONSENSE as error:
        raise BadInput(f"{path}: its event {judge.counts.events} makes no sense: {error}") from None
    judge.finish()
    return Followed(trace.header, judge, {}, time.monotonic() - began, trace.cut)
