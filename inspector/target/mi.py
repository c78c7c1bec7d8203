"""A gdb/MI session: every command carries a token and is answered by the record with that token.

The parser is pygdbmi's; the reading and writing are our own, because pygdbmi's ``GdbController.write`` waits
for a quiet 0.2 s after every answer (measured: 202 ms for a 4 KiB read that takes 0.6 ms; cs01/pygdbmi issues
37, 50, 104).
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pygdbmi.gdbmiparser import parse_response

from inspector.findings import BadInput, InspectorError, TargetLost
from inspector.printable import SHORT, printable
from inspector.target.deadline import Deadline

GDB_NAMES = ("gdb-multiarch", "gdb", "aarch64-linux-gnu-gdb")

# Before any file is read (-iex): nothing of the user's configuration, nothing a debuggee brings along.
_BEFORE = (
    "set auto-load off",
    "set debuginfod enabled off",
    "set confirm off",
    "set pagination off",
    "set style enabled off",
    "set history save off",
)
_SETTINGS = (
    "mi-async on",
    "confirm off",
    "pagination off",
    "width 0",
    "stack-cache off",
    "code-cache off",
)
_STDERR_KEPT = 40
_MAX_LINE = 64 << 20  # characters; the longest is a read of 4 MiB in hexadecimal digits
_MAX_TEXT = 16 << 20  # characters that one command may print; QEMU's longest monitor text has some 100 KB


class GdbError(InspectorError):
    """gdb answered a command with ``^error``; the message is gdb's."""


@dataclass(frozen=True)
class Reply:
    """What one command brought: result class, its payload, and the streams printed meanwhile.

    ``console`` is gdb's own text, ``target`` the remote side's (QEMU's monitor), ``log`` gdb's warnings.
    """

    result: str
    payload: dict[str, Any]
    console: str
    target: str
    log: str


@dataclass
class _Pending:
    console: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, stream: list[str], text: str) -> None:
        """Raises `TargetLost` when a command prints without end."""
        self.size += len(text)
        if self.size > _MAX_TEXT:
            raise TargetLost(f"a command to gdb printed more than {_MAX_TEXT >> 20} MiB: the stub is not QEMU's")
        stream.append(text)


def find_gdb(gdb: str | None = None) -> str:
    """The path of a gdb that knows AArch64: ``gdb`` when given, else gdb-multiarch, else any that does.

    Raises `BadInput` when there is none.
    """
    for name in (gdb,) if gdb else GDB_NAMES:
        path = shutil.which(name)
        if path is not None and (name == "gdb-multiarch" or _knows_aarch64(path)):
            return path
        if gdb:
            trouble = "is not there or not executable" if path is None else "does not support AArch64"
            raise BadInput(f"the gdb given, {gdb}, {trouble}: give another or install gdb-multiarch")
    raise BadInput("no gdb for AArch64 found on PATH: install gdb-multiarch (Debian, Ubuntu) or give --gdb PATH")


def _knows_aarch64(path: str) -> bool:
    command = [path, "-nx", "-q", "-batch", "-iex", "set auto-load off", "-ex", "set architecture aarch64"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return '"aarch64"' in done.stdout


class MiSession:
    """One gdb child.  It runs in a session of its own, so the terminal's Ctrl-C reaches us and not it."""

    def __init__(
        self, gdb: str, *, timeout: float = 10.0, pass_fds: Sequence[int] = (), deadline: Deadline | None = None
    ) -> None:
        """Starts ``gdb`` (a path).  ``timeout`` is the default for one command, in seconds; ``deadline``, while it is
        set, is for all of them."""
        self.timeout = timeout
        self.deadline = deadline
        self._token = 0
        self._buffer = bytearray()
        self._searched = 0
        self._dead: str | None = None
        self._pending = _Pending()
        self._events: deque[dict[str, Any]] = deque(maxlen=1000)
        self._stderr: deque[bytes] = deque(maxlen=_STDERR_KEPT)
        self.running = False
        self.target_gone = False
        command = [gdb, "-nx", "-q", "--interpreter=mi3"]
        for option in _BEFORE:
            command += ["-iex", option]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
                env={**os.environ, "LC_ALL": "C", "DEBUGINFOD_URLS": ""},
            )
        except OSError as error:
            raise BadInput(f"{gdb} cannot be started ({error}): install gdb-multiarch or give --gdb PATH") from error
        # A gdb that meets an error of its own raises its limit and dumps tens of megabytes where the user stands.
        with contextlib.suppress(OSError):
            resource.prlimit(self._process.pid, resource.RLIMIT_CORE, (0, 0))
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._drain = threading.Thread(target=self._drain_stderr, args=(self._process.stderr,), daemon=True)
        self._drain.start()
        try:
            for setting in _SETTINGS:
                self.command(f"-gdb-set {setting}")
            self.command("-gdb-set architecture aarch64")
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._dead is None and self._process.poll() is None

    def command(self, text: str, *, timeout: float | None = None) -> Reply:
        """Send ``text`` and wait for its own result record.

        Raises `GdbError` on ``^error``, `TargetLost` when gdb dies or does not answer in time.
        """
        reply, _ = self._command(text, text.split()[0], timeout, None)
        return reply

    def console(self, text: str, *, timeout: float | None = None) -> Reply:
        """A command of gdb's command line."""
        reply, _ = self._command(f"-interpreter-exec console {quote(text)}", f"'{text}'", timeout, None)
        return reply

    def monitor(self, text: str, *, timeout: float | None = None) -> str:
        """The output of a command of QEMU's monitor."""
        reply = self.console(f"monitor {text}", timeout=timeout)
        return reply.target or reply.console

    def raw_result(self, text: str, *, timeout: float | None = None) -> str:
        """As `command`, but the unparsed result record: for answers of many kilobytes of hex digits, on which
        a general parser takes longer than the read."""
        _, line = self._command(text, text.split()[0], timeout, _RAW)
        return line

    def wait_event(self, wanted: Callable[[dict[str, Any]], bool], timeout: float | None = None) -> dict[str, Any]:
        """The first queued or coming asynchronous record that is ``wanted``; those before are dropped."""
        deadline = self._until(timeout)
        while True:
            while self._events:
                event = self._events.popleft()
                if wanted(event):
                    return event
            if self.target_gone:
                raise TargetLost("QEMU went away; start it and attach again")
            self._handle(self._read_line(deadline, "the machine to change state"))

    def forget_events(self) -> None:
        self._events.clear()

    def quit(self, timeout: float = 3.0) -> None:
        """Ask gdb to end, wait for it, and kill it when it does not."""
        with contextlib.suppress(InspectorError):
            self.command("-gdb-exit", timeout=timeout)
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        self.kill()

    def kill(self) -> None:
        """End gdb at once, with everything in its session, and reap it."""
        self._dead = self._dead or "gdb was ended"
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._drain.join(1.0)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()

    def drain(self, timeout: float) -> None:
        """Wait until gdb has answered everything sent so far (after an exception cut a command short)."""
        self.command("-gdb-show confirm", timeout=timeout)

    # -- reading and writing

    def _until(self, timeout: float | None) -> Deadline:
        """The deadline of what is asked now."""
        seconds = self.timeout if timeout is None else timeout
        return self.deadline.within(seconds) if self.deadline else Deadline.after(seconds)

    def _command(self, text: str, called: str, timeout: float | None, raw: object) -> tuple[Reply, str]:
        """The answer to ``text``, which is ``called`` so when it does not come."""
        if "\n" in text:
            raise ValueError("one command is one line")
        deadline = self._until(timeout)
        self._token += 1
        token = str(self._token)
        self._pending = pending = _Pending()
        self._write(f"{token}{text}\n".encode(), deadline)
        prefix = (token + "^").encode()
        while True:
            line = self._read_line(deadline, f"the answer to {called}")
            if not line.startswith(prefix):
                self._handle(line)
                continue
            if raw is _RAW and line.startswith(prefix + b"done"):
                return _EMPTY, line.decode("ascii", "replace")
            record = parse_record(line)
            result = record["message"]
            payload = record["payload"] or {}
            if result == "error":
                # gdb quotes what the stub sent, whole.
                raise GdbError(printable(" ".join(str(payload.get("msg", "gdb gave no reason")).split()), SHORT))
            if result == "running":
                self.running = True
            console, target, log = ("".join(part) for part in (pending.console, pending.target, pending.log))
            return Reply(result, payload, console, target, log), ""

    def _handle(self, line: bytes) -> None:
        """A record that is not the result waited for: a stream, an event, an abandoned command's result."""
        if not line or line.startswith(b"(gdb)"):
            return
        record = parse_record(line)
        kind, payload = record["type"], record["payload"]
        if kind == "console":
            self._pending.add(self._pending.console, payload)
        elif kind == "target":
            self._pending.add(self._pending.target, payload)
        elif kind == "log":
            self._pending.add(self._pending.log, payload)
        elif kind == "notify":
            if record["message"] == "stopped":
                self.running = False
            elif record["message"] == "thread-group-exited":
                # A remote target that ended, or a connection that broke: gdb says it this way first.
                self.running, self.target_gone = False, True
            elif record["message"] == "running":
                self.running = True
            self._events.append(record)

    def _write(self, data: bytes, deadline: Deadline) -> None:
        while data:
            if self._dead:
                raise TargetLost(self._dead)
            try:
                data = data[os.write(self._in, data) :]
            except BlockingIOError:
                if not select.select([], [self._in], [], deadline.left)[1]:
                    raise TargetLost("gdb does not take commands any more; attach again") from None
            except (OSError, ValueError):
                self._lost()

    def _read_line(self, deadline: Deadline, what: str) -> bytes:
        """The next line.  A stream of lines does not put the deadline off."""
        while True:
            if deadline.passed:
                raise TargetLost(f"{what} did not come in time; is the machine still there?")
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line.rstrip(b"\r")
            self._searched = len(self._buffer)
            if self._dead:
                raise TargetLost(self._dead)
            if len(self._buffer) > _MAX_LINE:
                raise TargetLost("gdb printed a line without end; attach again")
            if not select.select([self._out], [], [], deadline.left)[0]:
                continue
            try:
                data = os.read(self._out, 1 << 20)
            except (OSError, ValueError):
                data = b""
            if not data:
                self._lost()
            self._buffer += data

    def _lost(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        status = self._process.poll()
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        self._drain.join(1.0)
        said = [line.decode(errors="replace").strip() for line in self._stderr if line.strip()]
        self._dead = f"gdb ended ({how}{': ' + said[-1] if said else ''}) while it was needed; attach again"
        raise TargetLost(self._dead)

    def _drain_stderr(self, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                self._stderr.append(line.rstrip())


_RAW = object()
_EMPTY = Reply("done", {}, "", "", "")
_NEEDS_ESCAPE = re.compile(r'[\\"]')


def parse_record(line: bytes) -> dict[str, Any]:
    """One output record of gdb/MI as pygdbmi reads it.  Raises `TargetLost` for a line that is none."""
    try:
        record: dict[str, Any] = parse_response(line.decode(errors="replace"))
    except (AssertionError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise TargetLost(f"gdb printed something that is not MI: {printable(repr(line[:80]))}") from error
    if record["type"] in ("console", "target", "log") and not isinstance(record["payload"], str):
        record["payload"] = ""
    return record


def quote(text: str) -> str:
    """``text`` as one MI argument: a C string (gdb manual, "GDB/MI Input Syntax")."""
    return '"' + _NEEDS_ESCAPE.sub(lambda match: "\\" + match[0], text) + '"'
