"""Physical memory through gdb: the stub's physical mode (``Qqemu.PhyMemMode``, QEMU 4.1, commit ab4752ec8d).

A single read is one ``-data-read-memory-bytes`` (0.6 ms for 4 KiB); many are one call of a script inside gdb.
The mode outlives the connection, so it is always put back.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from inspector.findings import TargetLost
from inspector.target.api import RamRange, UnreadableMemory, read_each
from inspector.target.mi import GdbError, MiSession
from inspector.target.ranges import RamMap

# About a second of reading (10 MiB/s measured): so an interrupted read is over soon.
_BATCH_BYTES = 4 << 20
_BATCH_REQUESTS = 1 << 16
_CONTENTS = re.compile(r'\{begin="0x([0-9a-f]+)",offset="0x[0-9a-f]+",end="0x[0-9a-f]+",contents="([0-9a-f]*)"\}')

SCRIPTS = Path(__file__).resolve().parents[2] / "gdb_scripts"


def lost(session: MiSession) -> TargetLost | None:
    """`TargetLost` when the stub is gone, which explains any error of gdb; else ``None``."""
    if session.target_gone:
        return TargetLost("QEMU went away; start it and attach again")
    return None


class PhysicalMode:
    """The stub's physical mode: what it was, and a way to set and verify it."""

    def __init__(self, session: MiSession) -> None:
        self._session = session

    def get(self) -> int:
        answer = self._packet("qqemu.PhyMemMode")
        if answer not in ("0", "1"):
            raise TargetLost(f"the stub does not tell its physical memory mode (it said {answer!r}): is it QEMU 4.1+?")
        return int(answer)

    def set(self, value: int) -> None:
        """Set and read back; raises `TargetLost` when it did not take."""
        self._packet(f"Qqemu.PhyMemMode:{value}")
        if self.get() != value:
            raise TargetLost(f"the stub does not switch its physical memory mode to {value}; is it QEMU 4.1 or newer?")

    def _packet(self, packet: str) -> str:
        """The answer, which ``maintenance packet`` prints as ``received: "OK"`` (gdb 13.1)."""
        try:
            text = self._session.console(f"maintenance packet {packet}").console
        except GdbError as error:
            raise lost(self._session) or TargetLost(f"gdb cannot talk to the stub: {error}") from error
        match = re.search(r'received: "(.*)"', text)
        return match[1] if match else ""


class MiMemory:
    """`PhysicalMemory` by MI commands only; the stub must be in physical mode."""

    name = "gdb"

    def __init__(self, session: MiSession, ram: Sequence[RamRange], why_not_faster: str | None = None) -> None:
        self._session = session
        self._map = RamMap(ram)
        self.why_not_faster = why_not_faster

    @property
    def ram(self) -> Sequence[RamRange]:
        return self._map.ranges

    def read(self, pa: int, size: int) -> bytes:
        if not self._map.holds(pa, size):
            raise UnreadableMemory(pa, size)
        if not size:
            return b""
        try:
            line = self._session.raw_result(f"-data-read-memory-bytes {pa:#x} {size}")
        except GdbError as error:
            raise lost(self._session) or UnreadableMemory(pa, size, str(error)) from error
        # gdb leaves out what it could not read: only one block of the full length is an answer.
        blocks = _CONTENTS.findall(line)
        if len(blocks) != 1 or int(blocks[0][0], 16) != pa or len(blocks[0][1]) != 2 * size:
            raise UnreadableMemory(pa, size, "the stub read only part of it")
        return bytes.fromhex(blocks[0][1])

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return read_each(self.read, requests)

    def close(self) -> None:
        """Nothing to give back: the physical mode belongs to the caller."""


class GdbMemory(MiMemory):
    """`MiMemory` whose `read_many` is one call of ``gdb_scripts/bulk_read.py`` for each few megabytes."""

    def __init__(
        self,
        session: MiSession,
        ram: Sequence[RamRange],
        fds: tuple[int, int],
        why_not_faster: str | None = None,
    ) -> None:
        """``fds`` are the request and reply files, inherited by gdb; the caller owns them."""
        super().__init__(session, ram, why_not_faster)
        self._request, self._reply = fds

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        results: list[bytes | None] = [None] * len(requests)
        batch: list[int] = []
        size_of_batch = 0
        for number, (pa, size) in enumerate(requests):
            if not self._map.holds(pa, size):
                continue
            if size > _BATCH_BYTES:
                results[number] = self._read_large(pa, size)
                continue
            if batch and (size_of_batch + size > _BATCH_BYTES or len(batch) == _BATCH_REQUESTS):
                self._fetch(requests, batch, results)
                batch, size_of_batch = [], 0
            batch.append(number)
            size_of_batch += size
        if batch:
            self._fetch(requests, batch, results)
        return results

    def _read_large(self, pa: int, size: int) -> bytes | None:
        pieces = [(pa + at, min(_BATCH_BYTES, size - at)) for at in range(0, size, _BATCH_BYTES)]
        data = [one for one in self.read_many(pieces) if one is not None]
        return b"".join(data) if len(data) == len(pieces) else None

    def _fetch(self, requests: Sequence[tuple[int, int]], numbers: Sequence[int], results: list[bytes | None]) -> None:
        words = array.array("Q", [word for number in numbers for word in requests[number]]).tobytes()
        os.ftruncate(self._request, 0)
        _write_all(self._request, words)
        # Ten times what this many bytes were measured to take, on top of a single command's time.
        timeout = self._session.timeout + sum(requests[number][1] for number in numbers) / (1 << 20)
        try:
            self._session.console(f"python stage2_read({self._request}, {self._reply})", timeout=timeout)
        except GdbError as error:
            raise lost(self._session) or TargetLost(f"reading through gdb failed: {error}") from error
        reply = _read_all(self._reply)
        position = len(numbers)
        for at, number in enumerate(numbers):
            size = requests[number][1]
            if reply[at]:
                results[number] = reply[position : position + size]
                position += size


def _write_all(fd: int, data: bytes) -> None:
    position = 0
    while position < len(data):
        position += os.pwrite(fd, data[position:], position)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    parts = []
    position = 0
    while position < size:
        part = os.pread(fd, size - position, position)
        if not part:
            break
        parts.append(part)
        position += len(part)
    return b"".join(parts)


class BulkFiles:
    """The two anonymous files through which the script in gdb is asked and answers (memfd_create(2))."""

    def __init__(self) -> None:
        self.request = os.memfd_create("stage2-request")
        self.reply = os.memfd_create("stage2-reply")

    @property
    def fds(self) -> tuple[int, int]:
        return self.request, self.reply

    def close(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def load_script(session: MiSession, name: str) -> bool:
    """Load ``gdb_scripts/<name>`` into gdb; false when gdb has no Python or the file is not there."""
    path, folder = SCRIPTS / name, str(SCRIPTS.parent)
    if not path.is_file():
        return False
    try:
        # Last, so that what this gdb's Python has of its own comes first; fails where there is no Python.
        session.console(f"python import sys; {folder!r} in sys.path or sys.path.append({folder!r})")
        session.console(f"source {path}")
    except GdbError:
        return False
    return True
