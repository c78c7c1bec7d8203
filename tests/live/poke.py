"""Writing into a machine's memory behind everybody's back, for the faults that live tests plant.

Uses QMP (to stop the machine and to ask where its RAM is) and the QEMU process's memory file; shares no code with
the inspector's readers.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.live.machine import Machine

RAM = 0x4000_0000  # where RAM starts on QEMU's virt machine (hw/arm/virt.c, VIRT_MEM)


class Qmp:
    """A QMP client of a few lines (docs/interop/qmp-spec)."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]
        raise EOFError("QEMU is gone")

    def running(self) -> bool:
        return bool(self("query-status")["running"])

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def qmp(machine: Machine) -> Iterator[Qmp]:
    client = Qmp(machine.qmp_socket)
    try:
        yield client
    finally:
        client.close()


class Ram:
    """The machine's RAM, byte by byte, by physical address."""

    def __init__(self, machine: Machine, client: Qmp) -> None:
        answer = client("human-monitor-command", **{"command-line": f"gpa2hva {RAM:#x}"})
        found = re.search(r"is (0x[0-9a-f]+)", answer)
        assert found, answer
        self._base = int(found[1], 16) - RAM
        self._file = os.open(f"/proc/{machine.qemu_pid}/mem", os.O_RDWR)

    def read(self, pa: int, size: int) -> bytes:
        return os.pread(self._file, size, self._base + pa)

    def write(self, pa: int, data: bytes) -> None:
        assert os.pwrite(self._file, data, self._base + pa) == len(data)

    def u64(self, pa: int) -> int:
        return int.from_bytes(self.read(pa, 8), "little")

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def written(machine: Machine, changes: Mapping[int, bytes]) -> Iterator[None]:
    """The machine stopped, with each of ``changes`` (PA to bytes) in place; afterwards everything as it was."""
    with qmp(machine) as client:
        client("stop")
        ram = Ram(machine, client)
        before = {pa: ram.read(pa, len(data)) for pa, data in changes.items()}
        try:
            for pa, data in changes.items():
                ram.write(pa, data)
            yield
        finally:
            for pa, data in before.items():
                ram.write(pa, data)
            ram.close()
            client("cont")
