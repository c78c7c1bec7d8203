"""Runs inside gdb: the machine moved by packets of our own over gdb's connection.

gdb's own ``watch`` compares values through whatever the stopped CPU translates, and its breakpoint machinery reaches a
sixth of the speed (docs/qemu.md).  While the machine runs nobody in this process can hear: gdb waits for the stop in C
code that holds Python's lock.  So SIGINT is held back here, and another process looks whether one is waiting and
interrupts the machine.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from socket import socket
from typing import NamedTuple

import gdb

from gdb_scripts import lend, packets

_HELD = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_LOOK_SECONDS = 0.05
_MOST_POINTS = 1 << 12
"""Bytes that name them: a translation has at most five entries, and there are two functions."""
_FOR_EVER = 1 << 20
"""Seconds that gdb waits for an answer meanwhile; its own way is a few, and then it asks again."""


class Stopped(NamedTuple):
    """``thread`` as the stub names it, ``cpu`` from 0, ``watch``: at a watchpoint."""

    thread: str
    cpu: int
    watch: bool


class Gone(Exception):
    """The machine is gone."""


def ask(packet: bytes) -> bytes:
    """The stub's answer.  Raises `Gone`."""
    try:
        return lend.send(packet)
    except gdb.error as error:
        raise Gone from error


def must(packet: bytes) -> None:
    """Raises ``gdb.GdbError`` when the stub refuses."""
    if (answer := ask(packet)) != b"OK":
        raise gdb.GdbError(f"the stub refuses {packet.decode()}: {answer.decode(errors='replace') or 'no answer'}")


def registers() -> packets.Registers:
    """Of the CPU that stopped.  Raises `Gone`."""
    return packets.registers(ask)


class Mover:
    """Runs and steps the machine; made by `moving`."""

    def __init__(self) -> None:
        self.points: set[bytes] = set()
        """Breakpoints and watchpoints in place: ``0,ADDRESS,4``, ``2,ADDRESS,8``."""
        self._shared = mmap.mmap(-1, _MOST_POINTS)

    def _share(self, more: bytes = b"") -> None:
        """So that somebody can take them away when this process is killed."""
        text = b"\n".join([*sorted(self.points), more])
        self._shared[: len(text) + 1] = text + b"\0"

    def left(self) -> list[bytes]:
        """The points in place, or about to be, as the other process sees them."""
        return [point for point in self._shared[:].partition(b"\0")[0].split(b"\n") if point]

    def place(self, points: Sequence[bytes]) -> None:
        """These and no others."""
        for point in self.points - set(points):
            must(b"z" + point)
            self.points.discard(point)
        for point in points:
            if point not in self.points:
                self._share(point)
                must(b"Z" + point)
                self.points.add(point)
        self._share()

    def run(self) -> Stopped:
        """Until something stops it.  Raises `Gone`."""
        return _stopped(ask(b"vCont;c"))

    def step(self, thread: str, again: bool = True) -> None:
        """One instruction of one CPU, the others held still, with nothing of ours in its way."""
        points = sorted(self.points)
        self.place([])
        try:
            _stopped(ask(b"vCont;s:" + thread.encode()))
        finally:
            if again:
                self.place(points)


def asked_to_end() -> bool:
    """Whether a signal waits that is to end this."""
    return bool(signal.sigpending() & _HELD)


def _stopped(answer: bytes) -> Stopped:
    if packets.is_end(answer):
        raise Gone
    thread = packets.thread_of(answer)
    return Stopped(thread, packets.cpu_of(thread), b"watch:" in answer)


@contextlib.contextmanager
def moving() -> Iterator[Mover]:
    """The machine is ours to move inside; afterwards no point of ours is left, and gdb knows that it has moved.

    A Ctrl-C inside stops the machine and is then handled by gdb as ever.
    """
    mode = lend.physical_mode()  # one sentence when there is nothing to move
    wire = packets.wire()
    patience = gdb.parameter("remotetimeout")
    mover = Mover()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        with _interrupter(wire, mover, mode):
            gdb.execute(f"set remotetimeout {_FOR_EVER}", to_string=True)
            try:
                yield mover
            finally:
                with contextlib.suppress(Gone, gdb.GdbError):
                    mover.place([])
                gdb.execute(f"set remotetimeout {patience}", to_string=True)
                _tell_gdb()
    finally:
        # A Ctrl-C has done its work: it does not end what the user types next.
        while signal.sigtimedwait({signal.SIGINT}, 0):
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tell_gdb() -> None:
    """gdb knows nothing of what moved: its registers, frames and the stub's current CPU are brought back together."""
    with contextlib.suppress(gdb.error, Gone):
        gdb.execute("maintenance flush register-cache", to_string=True)
        thread = gdb.selected_thread()
        if thread is not None:
            process, number, _ = thread.ptid
            ask(b"Hgp%x.%x" % (process, number))


@contextlib.contextmanager
def _interrupter(wire: int, mover: Mover, mode: bytes) -> Iterator[None]:
    """While inside, another process interrupts the machine as soon as a signal waits for this one.

    When this process is killed outright, it takes the machine's breakpoints away, as far as it was told of them, and
    puts the stub's physical ``mode`` back.
    """
    ours, theirs = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        try:
            os.close(theirs)
            _look(wire, ours, parent)
            _put_back(wire, mover.left(), mode)
        finally:
            os._exit(0)
    os.close(ours)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(theirs)


def _look(wire: int, pipe: int, parent: int) -> None:
    keep = sorted((wire, pipe))
    for low, high in zip([-1, *keep], [*keep, 1 << 16], strict=True):
        os.closerange(low + 1, high)
    status = Path(f"/proc/{parent}/status")
    wanted = sum(1 << number - 1 for number in _HELD)
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
        try:
            text = status.read_text()
        except OSError:
            break
        pending = [line.split()[1] for line in text.splitlines() if line.startswith(("ShdPnd", "SigPnd"))]
        if any(int(value, 16) & wanted for value in pending):
            # What gdb itself would send; while the machine stands QEMU drops it (gdbstub.c, RS_IDLE).
            os.write(wire, b"\x03")


def _put_back(wire: int, points: Sequence[bytes], mode: bytes) -> None:
    """gdb was killed: what it would have done on its way out, by the connection that is still open here."""
    os.write(wire, b"\x03")
    time.sleep(_LOOK_SECONDS)  # QEMU stops and says so; nothing here depends on when
    for packet in (*(b"z" + point for point in points), b"Qqemu.PhyMemMode:" + mode, b"D;1"):
        os.write(wire, b"+$" + packet + b"#%02x" % (sum(packet) & 0xFF))
        _answered(wire)


def _answered(wire: int) -> None:
    """Until a packet has come, and what came before it."""
    data = b""
    with socket(fileno=os.dup(wire)) as one:
        one.settimeout(1)
        with contextlib.suppress(OSError):
            while not data.endswith(b"#9a"):  # of "OK"
                if not (piece := one.recv(1 << 12)):
                    return
                data += piece
