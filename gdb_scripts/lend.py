"""Runs inside gdb: lends the machine that this gdb holds to the tool beside it.

The other side is ``inspector/target/lent.py``.  Nothing here moves the machine; the stub's physical mode, the selected
thread and the selected frame are put back after each use, whatever ended it.  Standard library and ``gdb`` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gdb

from gdb_scripts import packets

_TOOL = "inspector"
_MONITOR = frozenset({"info mtree -f", "info version", "info status"})
ENVIRONMENT = "STAGE2_INSPECTOR"
"""Where the tool is, when it is not on PATH."""


def send(packet: bytes) -> bytes:
    """The stub's answer to a packet.  Raises ``gdb.GdbError`` with one sentence when there is nobody to ask."""
    asks = packets.sender()
    if asks is None:
        if gdb.selected_inferior().connection is None:
            raise gdb.GdbError("no machine is attached: 'target remote HOST:PORT' first")
        raise gdb.GdbError("this is no remote target: attach to QEMU's gdbstub ('target remote HOST:PORT')")
    thread = gdb.selected_thread()
    if not _asked and thread is not None and thread.is_running():
        raise gdb.GdbError("the machine runs: interrupt it first")
    return asks(packet) or b""


_asked: list[None] = []


@contextlib.contextmanager
def asked_to_stop() -> Iterator[None]:
    """Inside a ``Breakpoint.stop``: gdb calls the thread running until that has said yes; the machine stands."""
    _asked.append(None)
    try:
        yield
    finally:
        _asked.pop()


def _finish(steps: Sequence[Callable[[], Any]]) -> None:
    """Do each step, Ctrl-C or not; a Ctrl-C meanwhile is raised when all is done."""
    interrupted = False
    for step in steps:
        for _ in range(3):
            try:
                step()
                break
            except KeyboardInterrupt:
                interrupted = True
            except gdb.error:  # the connection is gone: nothing is left to put back
                break
    if interrupted:
        raise KeyboardInterrupt


def physical_mode() -> bytes:
    """``0`` or ``1``.  Raises ``gdb.GdbError``."""
    found = send(b"qqemu.PhyMemMode")
    if found not in (b"0", b"1"):
        raise gdb.GdbError("this gdbstub has no physical memory mode: use QEMU 4.1 or newer (system emulation)")
    return found


def _require_a_host() -> None:
    """Raises ``gdb.GdbError`` with one sentence for what is no arm64 machine of QEMU's, or no machine at all."""
    physical_mode()
    name = gdb.selected_frame().architecture().name()
    if not name.startswith("aarch64"):
        raise gdb.GdbError(f"gdb takes this machine for {name}, not AArch64")


@contextlib.contextmanager
def physical() -> Iterator[None]:
    """The stub reads physical addresses inside.  Raises ``gdb.GdbError`` when it has no such mode."""
    found = physical_mode()
    try:
        send(b"Qqemu.PhyMemMode:1")
        yield
    finally:
        _finish([lambda: send(b"Qqemu.PhyMemMode:" + found)])


@contextlib.contextmanager
def as_selected() -> Iterator[None]:
    """Thread and frame are those of before when this ends."""
    thread = gdb.selected_thread()
    frame = None
    with contextlib.suppress(gdb.error):
        frame = gdb.selected_frame()
    try:
        yield
    finally:
        steps: list[Callable[[], Any]] = []
        if thread is not None:
            steps.append(lambda: thread.is_valid() and thread.switch())
        if frame is not None:
            steps.append(lambda: frame.is_valid() and frame.select())
        _finish(steps)


def read(address: int, size: int) -> bytes | None:
    """``size`` bytes, in the mode that the stub is in; nothing where it refuses."""
    return packets.read(send, address, size)


def read_physical(address: int, size: int) -> bytes | None:
    with physical():
        return read(address, size)


# --- what may be asked


def _where(_: dict[str, Any]) -> dict[str, Any]:
    connection = gdb.selected_inferior().connection
    # The mode is to be put back by the tool when this process is killed while it answers.
    return {"address": getattr(connection, "details", None) or "", "physical_mode": int(physical_mode())}


def _monitor(request: dict[str, Any]) -> dict[str, Any]:
    if request["line"] not in _MONITOR:
        raise gdb.GdbError(f"'{request['line']}' is not one of what may be asked")
    send(b"qAttached")  # one sentence when nothing is attached
    return {"text": gdb.execute(f"monitor {request['line']}", to_string=True)}


def _names(_: dict[str, Any]) -> dict[str, Any]:
    send(b"qAttached")
    return {"names": [register.name for register in gdb.selected_frame().architecture().registers()]}


def _cpus(request: dict[str, Any]) -> dict[str, Any]:
    cpus = []
    with as_selected():
        for thread in sorted(gdb.selected_inferior().threads(), key=lambda one: one.num):
            thread.switch()
            frame = gdb.newest_frame()
            cpus.append(
                {"details": thread.details or "", "values": [_register(frame, name) for name in request["names"]]}
            )
    return {"cpus": cpus}


def _register(frame: Any, name: str) -> int | None:
    """As an unsigned number; nothing for one that this CPU has not."""
    try:
        value = frame.read_register(name)
        if value.is_optimized_out:
            return None
        try:
            number = int(value)
        except gdb.error:  # a type of flags
            number = int(value.cast(gdb.selected_frame().architecture().integer_type(8 * value.type.sizeof, False)))
    except (gdb.error, ValueError):
        return None
    return number & (1 << 8 * int(value.type.sizeof)) - 1


def _read(request: dict[str, Any]) -> dict[str, Any]:
    with physical():
        pieces = [read(pa, size) for pa, size in request["pieces"]]
    return {
        "good": [piece is not None for piece in pieces],
        "bytes": b"".join(piece for piece in pieces if piece is not None),
    }


_ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "where": _where,
    "monitor": _monitor,
    "names": _names,
    "cpus": _cpus,
    "read": _read,
}


def _serve(wire: socket.socket, line: bytes) -> None:
    data = b""
    try:
        request = json.loads(line)
        answer = _ANSWERS[request["ask"]](request)
        data = answer.get("bytes", b"")
        if "bytes" in answer:
            answer["bytes"] = len(data)
    except (gdb.error, gdb.GdbError, ValueError, KeyError) as error:
        answer = {"error": str(error)}
    wire.sendall(json.dumps(answer).encode() + b"\n" + data)


# --- the tool


def tool() -> str:
    """The ``inspector`` to run.  Raises ``gdb.GdbError`` when there is none."""
    given = os.environ.get(ENVIRONMENT)
    found = shutil.which(given or _TOOL)
    if found is None:
        what = f"{given} is no program" if given else "no 'inspector' is on PATH"
        raise gdb.GdbError(f"{what}: install the tool, or take the lines of 'inspector gdb-init'")
    return found


def _kernel_file() -> list[str]:
    """The vmlinux that this gdb has loaded is the kernel's own, if any."""
    name = gdb.current_progspace().filename
    return ["--vmlinux", name] if name and Path(name).is_file() else []


def _environment() -> dict[str, str]:
    """The tool's: gdb's Python is not the tool's, nor is where it would connect by itself."""
    left_out = ("PYTHONHOME", "PYTHONPATH", "INSPECTOR_CONNECT")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment["NO_COLOR"] = "1"
    if width := gdb.parameter("width"):
        environment["COLUMNS"] = str(width)
    return environment


def run_alone(arguments: Sequence[str], write: Callable[[str], None]) -> int:
    """As `run`, for what needs no machine."""
    done = subprocess.run(
        [tool(), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(), check=False
    )
    write(done.stdout + done.stderr)
    return done.returncode


def run(arguments: Sequence[str], write: Callable[[str], None], seconds: float | None = None) -> int:
    """Run the tool with ``arguments`` on this gdb's machine; what it prints goes to ``write`` as it comes.

    Its exit code.  Raises ``gdb.GdbError`` when nothing is attached, or it takes longer than ``seconds``; a Ctrl-C ends
    the tool and is raised.
    """
    program = tool()
    _require_a_host()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [program, "--connect", f"lent:{theirs.fileno()}", *_kernel_file(), *arguments]
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,
            )
        try:
            with as_selected():
                _talk(ours, child, write, seconds)
        except BaseException:
            child.terminate()
            if child.stdout is not None:
                child.stdout.close()  # it may be waiting for us to read
            raise
        finally:
            child.wait()
    return child.returncode


def _talk(wire: socket.socket, child: Any, write: Callable[[str], None], seconds: float | None) -> None:
    """Answer until the tool has closed its output.  Raises ``gdb.GdbError`` when ``seconds`` are not enough."""
    line, text = b"", b""
    end = None if seconds is None else time.monotonic() + seconds
    with selectors.DefaultSelector() as waiting:
        waiting.register(wire, selectors.EVENT_READ)
        waiting.register(child.stdout, selectors.EVENT_READ)
        while True:
            if end is not None and time.monotonic() >= end:
                raise gdb.GdbError(f"the tool takes longer than {seconds:g} s")
            for key, _ in waiting.select(None if end is None else max(end - time.monotonic(), 0)):
                if key.fileobj is wire:
                    piece = wire.recv(1 << 16)
                    if not piece:
                        waiting.unregister(wire)
                    *whole, line = (line + piece).split(b"\n")
                    for one in whole:
                        _serve(wire, one)
                    continue
                piece = os.read(child.stdout.fileno(), 1 << 16)
                *whole, text = (text + piece).split(b"\n")
                if whole:
                    write("".join(one.decode(errors="replace") + "\n" for one in whole))
                if not piece:
                    if text:
                        write(text.decode(errors="replace"))
                    return
