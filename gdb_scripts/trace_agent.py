"""Runs inside gdb: the gdb event source of a trace.

Stops at chosen instructions, writes down registers, moves the CPU on, lets the machine run: by packets of our own over
gdb's connection (gdb 12 on), because gdb's own breakpoints reach a sixth of that (docs/qemu.md).  What is stopped at
and why is the business of ``inspector.trace.gdb``; standard library, ``packets`` and the ``gdb`` module only.

The driver listens at an abstract unix socket (unix(7)).  It sends one line of JSON, `Stop`'s fields for each stop, and
gets a full stop back once every breakpoint is in its place, then the records of ``inspector/trace/c/probe.c``.  When it
has closed its side, breakpoints are taken away and the machine stays stopped, for the driver to let it go as it was
found.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import gdb

from gdb_scripts import packets

PROBE, STORE, INSTRUCTION = 1, 2, 3
_NO_CAS = (1 << 64) - 1
"""``RECORD_…`` of probe.c."""

_HEAD = struct.Struct("<BBHI")
_LINK, _SP, _PC, _PSTATE = 30, 31, 32, 33
_HCR_VM = 1
_EL2 = 2
_MASK = (1 << 64) - 1
_WAKE_SECONDS = 0.05
_READY = b"."
_INTERRUPT = b"\x03"


class Stop(NamedTuple):
    """One place.

    ``kind``: ``enter`` and ``leave`` write a probe's record, with ``words`` registers and x30 and sp (``frame`` bytes
    above the stack pointer's value there); ``tell`` those of instructions.  ``first`` are the instructions that ran
    since the function was entered when this is the first stop in it, ``again`` when it is not, ``told`` those that
    this stop is for; ``closes``: none follows before the function is left.  ``reads`` are (offset, size, offset in a
    record's store) of what x0's structure holds at the return.  ``move`` is how the instruction here is done:
    ``["next"]``, ``["return", register]``, ``["add", register, register, number]``, ``["step"]``.  ``level`` is the
    exception level that runs it: elsewhere the same address is another's.
    """

    address: int
    kind: str
    number: int
    words: int
    frame: int
    first: list[int]
    again: list[int]
    told: list[int]
    closes: bool
    reads: list[list[int]]
    move: list[Any]
    level: int


class _Ended(Exception):
    """The machine, or the driver, is gone."""


def stage2_trace(name: str) -> None:
    """Follow the machine until the driver at the abstract socket ``name`` closes its side, or QEMU is gone."""
    send = packets.sender()
    if send is None:
        raise gdb.GdbError("this gdb cannot send packets of ours: take gdb 12 or newer")
    wire = packets.wire()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as driver:
        driver.connect("\0" + name)
        stops = {stop.address: stop for stop in (Stop(*each) for each in json.loads(_line(driver)))}
        agent = _Agent(send, driver, stops, packets.numbers("HCR_EL2", "SP_EL1"))
        # From here on somebody must be able to stop the machine, whatever this process waits for.
        with contextlib.suppress(_Ended), _waker(wire, driver):
            agent.follow()


def _line(driver: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = driver.recv(1 << 16)
        if not piece:
            raise gdb.GdbError("the driver went away")
        data += piece
    return data


@contextlib.contextmanager
def _waker(wire: int, driver: socket.socket) -> Any:
    """While inside, another process interrupts the machine as soon as the driver has closed its side.

    gdb waits for a stop with no way out: a packet's answer is waited for in C code that holds Python's lock.  A single
    0x03 is what gdb itself would send; while the machine stands QEMU drops it (gdbstub.c, ``RS_IDLE``).  The child
    ends with this process: the pipe closes then.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(theirs)
            _wake(wire, driver.fileno(), ours)
        finally:
            os._exit(0)
    os.close(ours)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(theirs)


def _wake(wire: int, driver: int, parent: int) -> None:
    keep = sorted((wire, driver, parent))
    for low, high in zip([-1, *keep], [*keep, 1 << 16], strict=True):
        os.closerange(low + 1, high)
    select.select([driver, parent], [], [])
    while not select.select([parent], [], [], _WAKE_SECONDS)[0]:
        os.write(wire, _INTERRUPT)


class _Agent:
    """``open`` are the stacks on which a function is run that was stopped in already; ``structures`` what x0 was when
    a function was entered whose structure is read at its return.  Where the kernel is at EL1, EL2 runs its own code on
    a stack of its own: whose it is says ``SP_EL1``, which a hypercall leaves alone."""

    def __init__(
        self,
        send: Callable[[bytes], bytes | None],
        driver: socket.socket,
        stops: dict[int, Stop],
        numbers: dict[str, int],
    ) -> None:
        self._send = send
        self._numbers = numbers
        self._below = any(stop.level < _EL2 for stop in stops.values())
        if self._below and len(numbers) < 2:
            raise gdb.GdbError("the stub does not offer HCR_EL2 and SP_EL1, without which nVHE is not followed")
        self._driver = driver
        self._stops = stops
        self._open: set[int] = set()
        self._structures: dict[int, int] = {}
        self._out = bytearray()
        self._handlers = {"enter": self._enter, "leave": self._leave, "tell": self._tell}

    def follow(self) -> None:
        """Until the driver closes its side.  Raises `_Ended` when the machine is gone."""
        placed = []
        try:
            for address in self._stops:
                self._must(b"Z0,%x,4" % address)
                placed.append(address)
            self._out += _READY
            while not self._told_to_end():
                self._reply(self._ask(b"vCont;c"))
        finally:
            for address in placed:
                self._ask(b"z0,%x,4" % address)

    def _told_to_end(self) -> bool:
        """The records so far are with the driver; whether it wants no more."""
        try:
            if self._out:
                self._driver.sendall(self._out)
                self._out.clear()
            return bool(select.select([self._driver], [], [], 0)[0])
        except OSError:
            return True

    def _ask(self, packet: bytes) -> bytes:
        try:
            return self._send(packet) or b""
        except (gdb.error, KeyboardInterrupt) as error:
            raise _Ended from error

    def _must(self, packet: bytes) -> None:
        answer = self._ask(packet)
        if answer != b"OK":
            raise gdb.GdbError(f"the stub refuses {packet.decode()}: {answer.decode(errors='replace')!r}")

    def _reply(self, answer: bytes) -> None:
        """A stop reply: at one of our places, or for another reason, which is nobody's business."""
        if packets.is_end(answer):
            raise _Ended
        if not answer.startswith(b"T05"):
            return
        registers = self._registers()
        stop = self._stops.get(registers[_PC])
        if stop is None:
            return
        if not self._is_hosts(stop, registers):
            self._step(stop.address, answer)
            return
        self._handlers[stop.kind](stop, registers, packets.cpu_of(packets.thread_of(answer)))
        self._move(stop, registers, answer)

    def _is_hosts(self, stop: Stop, registers: tuple[int, ...]) -> bool:
        """Not a guest's, or a process's, that has something else at the same address.

        A guest runs with HCR_EL2.VM, the host without (not in protected mode; DDI 0487 D24.2).
        """
        if registers[_PSTATE] >> 2 & 3 != stop.level:
            return False
        return stop.level == _EL2 or not self._read("HCR_EL2") & _HCR_VM

    def _read(self, register: str) -> int:
        answer = self._ask(b"p%x" % self._numbers[register])
        return int.from_bytes(bytes.fromhex(answer.decode("ascii")), "little")

    def _registers(self) -> tuple[int, ...]:
        """Of the CPU that stopped, which the stub takes for the current one."""
        return packets.core(self._ask)

    # ---- records

    def _record(self, kind: int, cpu: int, number: int, words: tuple[int, ...]) -> None:
        self._out += _HEAD.pack(kind, cpu, len(words), number) + struct.pack(f"<{len(words)}Q", *words)

    def _enter(self, stop: Stop, registers: tuple[int, ...], cpu: int) -> None:
        stack = registers[_SP] + stop.frame & _MASK
        if stop.reads:
            self._structures[stack] = registers[0]
        self._record(PROBE, cpu, stop.number, (*registers[: stop.words], registers[_LINK], stack))

    def _leave(self, stop: Stop, registers: tuple[int, ...], cpu: int) -> None:
        stack = registers[_SP] + stop.frame & _MASK
        for offset, size, form in stop.reads if stack in self._structures else ():
            structure = self._structures[stack]
            value = int.from_bytes(bytes.fromhex(self._ask(b"m%x,%x" % (structure + offset, size)).decode()), "little")
            self._record(STORE, cpu, form, (structure + offset, 0, value, 0, value, 0, _NO_CAS, stack))
        self._structures.pop(stack, None)
        self._record(PROBE, cpu, stop.number, (*registers[: stop.words], registers[_LINK], stack))

    def _tell(self, stop: Stop, registers: tuple[int, ...], cpu: int) -> None:
        stack = self._read("SP_EL1") if self._below else registers[_SP]
        known = stop.again if stack in self._open else stop.first
        if stop.closes:
            self._open.discard(stack)
        else:
            self._open.add(stack)
        for code in (*known, *stop.told):
            operand = registers[code & 31] if code & 31 != 31 else 0
            self._record(INSTRUCTION, cpu, 0, (code, operand, stack))

    # ---- moving on

    def _move(self, stop: Stop, registers: tuple[int, ...], answer: bytes) -> None:
        """Do the instruction under the breakpoint."""
        how = stop.move[0]
        if how == "step":
            self._step(stop.address, answer)
            return
        then = stop.address + 4
        if how == "return":
            then = registers[stop.move[1]]
        elif how == "add":
            _, target, source, number = stop.move
            self._write(target, registers[source] + number & _MASK)
        self._write(_PC, then)

    def _write(self, register: int, value: int) -> None:
        self._must(b"P%x=%s" % (register, value.to_bytes(8, "little").hex().encode()))

    def _step(self, address: int, answer: bytes) -> None:
        """By the CPU itself, the others held still, with the breakpoint out of the way."""
        self._must(b"z0,%x,4" % address)
        try:
            self._ask(b"vCont;s:" + packets.thread_of(answer).encode())
        finally:
            self._must(b"Z0,%x,4" % address)
