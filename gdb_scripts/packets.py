"""Runs inside gdb: packets of our own over gdb's connection (gdb 12 on), and what QEMU's stub answers.

Standard library and the ``gdb`` module only.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable
from socket import socket
from typing import NamedTuple

import gdb

Send = Callable[[bytes], bytes | None]
"""The answer to a packet."""

CHUNK = 0x800
"""QEMU 7.2 answers E22 to an ``m`` of more than MAX_PACKET_LENGTH / 2 bytes (4096 / 2)."""
_CORE = struct.Struct("<33QI")
"""``g``: x0 to x30, sp, pc, cpsr (org.gnu.gdb.aarch64.core; QEMU 7.2 to 11.1 send no more)."""


class Registers(NamedTuple):
    """Of one CPU."""

    x: tuple[int, ...]
    sp: int
    pc: int
    pstate: int


def sender() -> Send | None:
    """How to send; nothing where gdb is attached to no stub, or is older than 12."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    send: Send | None = getattr(connection, "send_packet", None)
    return send


def core(send: Send) -> tuple[int, ...]:
    """x0 to x30, sp, pc, cpsr of the stub's current CPU: after a stop, of the one that stopped."""
    return _CORE.unpack_from(bytes.fromhex((send(b"g") or b"").decode("ascii")))


def registers(send: Send) -> Registers:
    """The same by name."""
    values = core(send)
    return Registers(values[:31], values[31], values[32], values[33])


def read(send: Send, address: int, size: int) -> bytes | None:
    """``size`` bytes, in the mode that the stub is in; nothing where it refuses."""
    parts = []
    for at in range(address, address + size, CHUNK):
        part = min(CHUNK, address + size - at)
        answer = send(b"m%x,%x" % (at, part)) or b""
        # An error is E and two digits; data is an even number of lower-case hex digits.
        try:
            data = bytes.fromhex(answer.decode("ascii"))
        except ValueError:
            return None
        if len(data) != part:
            return None
        parts.append(data)
    return b"".join(parts)


def numbers(*names: str) -> dict[str, int]:
    """What ``p`` takes for registers that ``g`` has not, of those that the stub offers.

    gdb's table (``maint print remote-registers``) has the name first, and seventh the number for the stub.
    """
    found = {}
    for line in gdb.execute("maint print remote-registers", to_string=True).splitlines():
        words = line.split()
        if len(words) > 6 and words[0] in names and words[6].isdigit():
            found[words[0]] = int(words[6])
    return found


def thread_of(reply: bytes) -> str:
    """``p01.02`` of ``T05thread:p01.02;``."""
    return reply.partition(b"thread:")[2].partition(b";")[0].decode("ascii")


def cpu_of(thread: str) -> int:
    """The CPU of ``p01.02``, from 0."""
    number = thread.rpartition(".")[2]
    return int(number, 16) - 1 if number else 0


def is_end(reply: bytes) -> bool:
    """Whether a stop reply says that the machine is gone."""
    return reply[:1] in (b"W", b"X", b"")


def wire() -> int:
    """The descriptor of gdb's connection to the stub: its only connected socket.  Raises ``gdb.GdbError``."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        number = int(name)
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket(fileno=os.dup(number)) as one:
                    if one.getpeername() is not None:
                        found.append(number)
    if len(found) != 1:
        raise gdb.GdbError("gdb's connection to the stub is no socket: attach by HOST:PORT or by a unix socket")
    return found[0]
