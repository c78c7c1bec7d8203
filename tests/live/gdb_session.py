"""A person at a gdb prompt: a real gdb on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "gdb_scripts/stage2.py"
PROMPT = "(gdb) "
_NOISE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Session:
    """One gdb.  ``rows`` 0: nothing is paged."""

    def __init__(self, program: str | Path = "gdb-multiarch", rows: int = 0, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows or 24, 200, 0, 0))
        self.process = subprocess.Popen(
            [str(program), "-nx", "-q"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", **environment},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._text = ""
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.read_to(PROMPT)
        self("set width 0")
        self("set confirm off")
        if not rows:
            self("set height 0")
        self("set architecture aarch64")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(TimeoutError, OSError):
                self.type("disconnect")
                self.read_to(PROMPT, 10)
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        os.close(self._ours)

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\n")

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def interrupt(self) -> str:
        """Ctrl-C to a machine that runs, until gdb has it back: one that comes before the machine has begun is lost."""
        for _ in range(20):
            self.press(b"\x03")
            with contextlib.suppress(TimeoutError):
                return self.read_to(PROMPT, 3)
        raise TimeoutError("the machine does not stop")

    def _read(self) -> None:
        """Into `_text`, as it comes: a Ctrl-C takes back what the terminal still holds (termios(3), NOFLSH)."""
        with contextlib.suppress(OSError):
            while piece := os.read(self._ours, 1 << 16):
                with self._more:
                    self._text += _NOISE.sub("", piece.decode(errors="replace"))
                    self._more.notify_all()

    def read_to(self, end: str, timeout: float = 120) -> str:
        """What was printed up to and with ``end``; what comes after it is kept.  Raises `TimeoutError`."""
        with self._more:
            if not self._more.wait_for(lambda: end in self._text, timeout):
                raise TimeoutError(f"no {end!r} in {self._text!r}")
            found, _, self._text = self._text.partition(end)
        return found + end

    def __call__(self, line: str, timeout: float = 120) -> str:
        """What a command prints, its echo left out."""
        self.type(line)
        return self.read_to(PROMPT, timeout).partition("\n")[2].removesuffix(PROMPT)

    def attach(self, stub: str, commands: Sequence[str] = ()) -> None:
        """Attach to the stub, with the commands of ours loaded."""
        self(f"target remote {stub}")
        assert (said := self(f"source {SCRIPT}")) == "", said
        for each in commands:
            self(each)
