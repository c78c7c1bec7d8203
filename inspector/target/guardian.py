"""A process that outlives the one that drives gdb, and puts the machine back when that one is killed.

Connecting to QEMU's stub stops the machine at once, before anybody knows how it is to be left; whoever is killed then
leaves it stopped for good.  So before the first connection a guardian is started.  It is told, step by step, what
would have to be undone, and it waits for its standard input to end.  Ended without `Guardian.release`, the driver is
dead: the guardian ends gdb, waits for QEMU to see that, and puts physical mode and run state back.

Run as a script (with the standard library alone, so that it is there within some tens of milliseconds).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if __name__ == "__main__":  # isolated from any environment: only this package is needed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inspector.target.address import Address, parse_address
from inspector.target.rsp import put_back

_READY = b"."
_RELEASED = "released"
_START_TIMEOUT = 5.0
_GDB_TIMEOUT = 1.0
_PUT_BACK_TIMEOUT = 5.0


@dataclass(frozen=True)
class Undo:
    """What is to be undone: nothing while ``connected`` is false.

    ``run``: the machine is to run; ``physical_mode``: to be set, ``None``: untouched; ``gdb``: its process.
    """

    connected: bool = False
    run: bool = False
    physical_mode: int | None = None
    gdb: int | None = None


class Guardian:
    """The driver's side.  Where no process can be started, or it is killed, nobody guards and nothing else changes."""

    def __init__(self, address: Address) -> None:
        self._undo = Undo()
        self._process: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-I", "-S", __file__, str(address)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return
        assert self._process.stdout is not None
        # It must be there before the first connection is.
        select.select([self._process.stdout], [], [], _START_TIMEOUT)

    def expect(self, **changes: object) -> None:
        """From now on, undo what these fields of `Undo` say too."""
        self._undo = replace(self._undo, **changes)  # type: ignore[arg-type]
        self._say(json.dumps(asdict(self._undo)))

    def release(self) -> None:
        """Everything is put back: the guardian ends, and is reaped."""
        process = self._process
        if process is None:
            return
        self._say(_RELEASED)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        try:
            process.wait(_START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None

    def _say(self, line: str) -> None:
        if self._process is None or self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(OSError):
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")


def _watch(address: Address) -> None:
    """Read what the driver says until it releases us, or is gone."""
    gdb: int | None = None  # a pidfd: the number may be another process's by the time it is needed
    undo = Undo()
    with os.fdopen(0, "rb", buffering=0, closefd=False) as said, contextlib.suppress(OSError):
        pending = b""
        while data := said.read(4096):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.decode() == _RELEASED:
                    return
                undo = Undo(**json.loads(line))
                if undo.gdb is not None and gdb is None:
                    with contextlib.suppress(OSError):
                        gdb = os.pidfd_open(undo.gdb)
    if gdb is not None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(gdb, signal.SIGKILL)
            select.select([gdb], [], [], _GDB_TIMEOUT)
    if undo.connected and (undo.run or undo.physical_mode is not None):
        put_back(address, physical_mode=undo.physical_mode, run=undo.run, timeout=_PUT_BACK_TIMEOUT)


def main() -> None:
    """``guardian.py ADDRESS``: says that it is ready on standard output, and watches standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    address = parse_address(sys.argv[1])
    os.write(1, _READY)
    _watch(address)


if __name__ == "__main__":
    main()
