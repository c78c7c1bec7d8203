"""A stopped machine that a person's own gdb holds: the tool runs beside that gdb and is lent what it reads.

QEMU's stub has one connection, and the gdb has it.  ``gdb_scripts/lend.py`` is the other side: one line of JSON asks,
one line answers, and what it says in ``bytes`` follows as it is.  Nothing can be asked but physical memory, registers,
and what QEMU's monitor shows.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final

from inspector.findings import BadInput, TargetLost
from inspector.target import host_process, qemu, register_names
from inspector.target.address import parse_address
from inspector.target.api import Cpu, RamRange, UnreadableMemory
from inspector.target.connect import require_el2
from inspector.target.ranges import RamMap
from inspector.target.rsp import put_back
from inspector.target.signals import signals_raise

PREFIX: Final = "lent:"
"""What ``--connect`` begins with; the number of the inherited socket follows."""

_BATCH_BYTES = 1 << 20
_MOST_ANSWER = 1 << 22
_PUT_BACK_TIMEOUT = 5.0


def is_lent(connection: str) -> bool:
    """Whether ``connection`` names a socket to a gdb, not a stub."""
    return connection.startswith(PREFIX)


class Lender:
    """Questions to the gdb, one at a time."""

    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._in = wire.makefile("rb")
        self.gone = False
        """Whether the gdb went away in the middle of an answer."""

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """The answer; its ``bytes``, if any, under that name.  Raises `TargetLost` when the gdb cannot, or is gone."""
        try:
            self._wire.sendall(json.dumps({"ask": what, **more}).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._in.readline(_MOST_ANSWER))
            if size := answer.get("bytes"):
                answer["bytes"] = self._in.read(size)
                if len(answer["bytes"]) != size:
                    raise EOFError
        except (OSError, EOFError, ValueError, AttributeError) as error:
            self.gone = True
            raise TargetLost("the gdb that lends its machine went away") from error
        if "error" in answer:
            raise TargetLost(f"gdb cannot read the machine: {answer['error']}")
        return answer

    def close(self) -> None:
        self._in.close()
        self._wire.close()


class LentMemory:
    """`PhysicalMemory` by the gdb's connection."""

    name = "gdb"
    why_not_faster = None

    def __init__(self, lender: Lender, ram: Sequence[RamRange]) -> None:
        self._lender = lender
        self._map = RamMap(ram)

    @property
    def ram(self) -> Sequence[RamRange]:
        return self._map.ranges

    def read(self, pa: int, size: int) -> bytes:
        (data,) = self.read_many([(pa, size)])
        if data is None:
            raise UnreadableMemory(pa, size)
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        results: list[bytes | None] = [b"" if self._map.holds(pa, size) else None for pa, size in requests]
        batch: list[tuple[int, int, int]] = []
        room = _BATCH_BYTES
        for number, (pa, size) in enumerate(requests):
            if results[number] is None:
                continue
            for at in range(0, size, _BATCH_BYTES):
                part = min(_BATCH_BYTES, size - at)
                if part > room:
                    self._fetch(batch, results)
                    batch, room = [], _BATCH_BYTES
                batch.append((number, pa + at, part))
                room -= part
        self._fetch(batch, results)
        return results

    def _fetch(self, batch: Sequence[tuple[int, int, int]], results: list[bytes | None]) -> None:
        if not batch:
            return
        answer = self._lender.ask("read", pieces=[[pa, size] for _, pa, size in batch])
        data, position = answer.get("bytes", b""), 0
        for (number, _, size), good in zip(batch, answer["good"], strict=True):
            so_far = results[number]
            if not good or so_far is None:
                results[number] = None
                continue
            results[number] = so_far + data[position : position + size]
            position += size


class LentMachine:
    """`Target` of a gdb's machine, which stands still for as long as the gdb waits."""

    runs_when_left = False

    def __init__(self, lender: Lender) -> None:
        """Raises `TargetLost` as attaching does: not QEMU's stub, not AArch64, no EL2."""
        self._lender = lender
        ram = qemu.system_ram(qemu.parse_flat_views(self._monitor("info mtree -f")))
        if not ram:
            raise TargetLost("QEMU's monitor names no RAM (info mtree -f): is it system emulation, QEMU 4.1 or newer?")
        self._memory = LentMemory(lender, ram)
        place = lender.ask("where")
        self._where = str(place["address"])
        self._physical_mode = int(place["physical_mode"])
        require_el2(self.cpus(), self._where or "gdb's target")

    def __enter__(self) -> LentMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _monitor(self, line: str) -> str:
        return str(self._lender.ask("monitor", line=line)["text"])

    @property
    def memory(self) -> LentMemory:
        return self._memory

    @property
    def description(self) -> str:
        version = qemu.parse_version(self._monitor("info version"))
        return f"gdbstub at {self._where}, QEMU {version or 'of unknown version'}, memory by gdb"

    @property
    def kernel_file(self) -> str | None:
        """As `Machine.kernel_file`; nothing when it cannot be told who listens there."""
        try:
            there = host_process.listener(parse_address(self._where))
        except BadInput:
            return None
        if there is None or not host_process.is_qemu(there.pid):
            return None
        return host_process.kernel_argument(there.pid)

    def cpus(self) -> Sequence[Cpu]:
        names = [str(name) for name in self._lender.ask("names")["names"]]
        chosen = register_names.choose(names)
        wanted = list(chosen.values())
        cpus = []
        for number, cpu in enumerate(self._lender.ask("cpus", names=wanted)["cpus"]):
            match = re.match(r"CPU#([0-9]{1,4})\b", cpu["details"])
            values = {name: value for name, value in zip(chosen, cpu["values"], strict=True) if value is not None}
            cpus.append(Cpu(int(match[1]) if match else number, values))
        return sorted(cpus, key=lambda cpu: cpu.index)

    def put_back(self) -> None:
        """The gdb was killed, perhaps while it read physically: the stub is as it was found; the machine stands."""
        with suppress(BadInput):
            put_back(
                parse_address(self._where), physical_mode=self._physical_mode, run=False, timeout=_PUT_BACK_TIMEOUT
            )

    def stop(self) -> None:
        """It stands."""

    def resume(self) -> None:
        """Whether it runs is the gdb's business."""

    def close(self) -> None:
        self._lender.close()


@contextmanager
def lent(connection: str) -> Iterator[LentMachine]:
    """The machine behind ``lent:FD``.  Raises `BadInput` when there is no such socket, `TargetLost` as attaching."""
    with signals_raise():
        try:
            wire = socket.socket(fileno=int(connection.removeprefix(PREFIX)))
        except (ValueError, OSError) as error:
            raise BadInput(f"{connection} is no socket of a gdb: it is what gdb_scripts/stage2.py gives") from error
        lender = Lender(wire)
        try:
            machine = LentMachine(lender)
            try:
                yield machine
            finally:
                if lender.gone:
                    machine.put_back()
        finally:
            lender.close()
