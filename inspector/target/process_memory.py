"""Physical memory out of the QEMU process: ``process_vm_readv`` (Linux 3.2), else ``/proc/PID/mem``.

RAM of a machine emulated on this host is memory of the QEMU process: one host address for each RAM range
(``gpa2hva``) is all that is needed, and then no read involves gdb or QEMU any more.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from inspector.findings import InspectorError, TargetLost
from inspector.target.api import RamRange, UnreadableMemory
from inspector.target.ranges import RamMap

_IOV_MAX = 1024  # UIO_MAXIOV, include/uapi/linux/uio.h
_MAX_BYTES = 0x7FFFF000  # MAX_RW_COUNT, include/linux/fs.h, with 4 KiB pages
# Small reads are taken this many bytes at a time: each is copied out of the buffer while a CPU's second-level cache
# still holds it, and the buffer costs page faults once only.
_WINDOW_BYTES = 1 << 19


class ProcessDenied(InspectorError):
    """This process may not read that one's memory; the message says what the kernel answered and why."""


def _process_vm_readv() -> Callable[..., int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    except (OSError, AttributeError):
        return None
    # ssize_t process_vm_readv(pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long,
    # unsigned long): process_vm_readv(2).
    function.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]
    function.restype = ctypes.c_ssize_t
    return function


def _total(parts: Sequence[tuple[int, int]]) -> int:
    return sum([size for _, size in parts])


def _iovecs(parts: Sequence[tuple[int, int]]) -> array.array[int]:
    """``struct iovec[]``: an address and a size each, both as wide as a pointer (readv(2))."""
    return array.array("L", chain.from_iterable(parts))


class ProcessReader:
    """Reads of another process's virtual memory.

    ``read(parts)`` returns the bytes of all ``(address, size)`` parts end to end, or ``None`` when any of
    them is not mapped; what it returns holds until the next read.  Raises `TargetLost` when the process is gone
    and `ProcessDenied` when it may not be read.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._readv = _process_vm_readv()
        self._mem: int | None = None
        self._buffer = bytearray()

    def close(self) -> None:
        if self._mem is not None:
            os.close(self._mem)
            self._mem = None

    def read(self, parts: Sequence[tuple[int, int]]) -> memoryview | None:
        buffer = self._room_for(_total(parts))
        if not buffer:
            return buffer
        if self._readv is not None:
            try:
                return buffer if self._by_readv(parts, buffer) else None
            except _NoSyscall:
                self._readv = None
        return buffer if self._by_proc_mem(parts, buffer) else None

    def _room_for(self, total: int) -> memoryview:
        if total > _WINDOW_BYTES:
            return memoryview(bytearray(total))
        if not self._buffer:
            self._buffer = bytearray(_WINDOW_BYTES)
        return memoryview(self._buffer)[:total]

    def _by_readv(self, parts: Sequence[tuple[int, int]], buffer: memoryview) -> bool:
        assert self._readv is not None
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        done = 0
        for batch in _batches(parts):
            wanted = _total(batch)
            remote, local = _iovecs(batch), _iovecs([(base + done, wanted)])
            got = self._readv(self.pid, local.buffer_info()[0], 1, remote.buffer_info()[0], len(batch), 0)
            if got < 0:
                code = ctypes.get_errno()
                if code == errno.EFAULT:
                    return False
                self._refused(code)
            if got != wanted:
                # A partial read ends at the first part that is not mapped (process_vm_readv(2)).
                return False
            done += wanted
        return True

    def _by_proc_mem(self, parts: Sequence[tuple[int, int]], buffer: memoryview) -> bool:
        try:
            if self._mem is None:
                self._mem = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            done = 0
            for address, size in parts:
                while size:
                    got = os.preadv(self._mem, [buffer[done : done + size]], address)
                    if got == 0:
                        raise TargetLost(f"QEMU (process {self.pid}) is gone; start it and attach again")
                    done, address, size = done + got, address + got, size - got
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            self._refused(error.errno or 0)
        return True

    def _refused(self, code: int) -> None:
        if code == errno.ENOSYS:
            raise _NoSyscall
        if code in (errno.ESRCH, errno.ENOENT):
            raise TargetLost(f"QEMU (process {self.pid}) is gone; start it and attach again")
        if code in (errno.EPERM, errno.EACCES):
            raise ProcessDenied(_why_denied(self.pid))
        raise ProcessDenied(f"the kernel refuses to read process {self.pid}: {os.strerror(code)}")


class _NoSyscall(Exception):
    """A seccomp filter or an old kernel: no process_vm_readv."""


def _batches(parts: Sequence[tuple[int, int]]) -> Sequence[Sequence[tuple[int, int]]]:
    """Parts in groups that one call takes: at most IOV_MAX parts and MAX_RW_COUNT bytes each."""
    if len(parts) <= _IOV_MAX and _total(parts) <= _MAX_BYTES:
        return [parts]
    batches: list[list[tuple[int, int]]] = []
    current: list[tuple[int, int]] = []
    bytes_left = _MAX_BYTES
    for address, size in parts:
        while size:
            if len(current) == _IOV_MAX or not bytes_left:
                batches.append(current)
                current, bytes_left = [], _MAX_BYTES
            take = min(size, bytes_left)
            current.append((address, take))
            address, size, bytes_left = address + take, size - take, bytes_left - take
    if current:
        batches.append(current)
    return batches


def _why_denied(pid: int) -> str:
    """Why ptrace(2)'s PTRACE_MODE_ATTACH_REALCREDS check failed, as far as it can be told from outside."""
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():  # noqa: PTH116
            return f"QEMU (process {pid}) belongs to another user: run as that user or as root"
    with contextlib.suppress(OSError):
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
        if scope != "0":
            return f"kernel.yama.ptrace_scope is {scope}: reading process {pid} needs CAP_SYS_PTRACE or scope 0"
    return f"the kernel denies reading process {pid} (a container without CAP_SYS_PTRACE, or a security module)"


def _pieces(data: memoryview, sizes: Sequence[int]) -> tuple[bytes, ...]:
    """``data`` cut into consecutive pieces of these sizes: one copy each, in one call."""
    if sizes and sizes.count(sizes[0]) == len(sizes):
        form = f"{sizes[0]}s" * len(sizes)
    else:
        form = "".join([f"{size}s" for size in sizes])
    return struct.unpack("=" + form, data)


class ProcessMemory:
    """`PhysicalMemory` out of the QEMU process; ``bases`` are the RAM ranges' host addresses, in order."""

    name = "process"
    why_not_faster: str | None = None

    def __init__(self, reader: ProcessReader, ram: Sequence[RamRange], bases: Sequence[int]) -> None:
        self._map = RamMap(ram)
        pairs = sorted(zip(ram, bases, strict=True), key=lambda pair: pair[0].start)
        self._offset = [base - one.start for one, base in pairs]
        self._reader = reader

    @property
    def ram(self) -> Sequence[RamRange]:
        return self._map.ranges

    def read(self, pa: int, size: int) -> bytes:
        parts = self._parts(pa, size)
        if parts is None:
            raise UnreadableMemory(pa, size)
        data = self._fetch(parts)
        if data is None:
            raise UnreadableMemory(pa, size, "QEMU has not mapped it")
        return bytes(data)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        results: list[bytes | None] = [None] * len(requests)
        window: list[int] = []
        parts: list[tuple[int, int]] = []
        left = _WINDOW_BYTES
        low = high = offset = 0  # of the RAM range that held the request before: likely it holds this one too
        for number, (pa, size) in enumerate(requests):
            if low <= pa < pa + size <= high:
                these = [(pa + offset, size)]
            else:
                found = self._parts(pa, size)
                if found is None:
                    continue
                these = found
                if (at := self._map.index(pa)) is not None:
                    low, high, offset = self.ram[at].start, self.ram[at].end, self._offset[at]
            if size > left or len(parts) >= _IOV_MAX:
                self._fill(requests, window, parts, results)
                window, parts, left = [], [], _WINDOW_BYTES
            window.append(number)
            parts += these
            left -= size
        self._fill(requests, window, parts, results)
        return results

    def _fill(
        self,
        requests: Sequence[tuple[int, int]],
        window: Sequence[int],
        parts: Sequence[tuple[int, int]],
        results: list[bytes | None],
    ) -> None:
        """Read the requests numbered in ``window``, whose ``parts`` lie end to end, into ``results``."""
        data = self._fetch(parts)
        if data is None:
            # One bad part spoils a joint read: find it by reading each alone.
            for number in window:
                results[number] = self._alone(*requests[number])
            return
        for number, one in zip(window, _pieces(data, [requests[number][1] for number in window]), strict=True):
            results[number] = one

    def close(self) -> None:
        self._reader.close()

    def _alone(self, pa: int, size: int) -> bytes | None:
        parts = self._parts(pa, size)
        data = None if parts is None else self._fetch(parts)
        return None if data is None else bytes(data)

    def _fetch(self, parts: Sequence[tuple[int, int]]) -> memoryview | None:
        try:
            return self._reader.read(parts)
        except ProcessDenied as error:
            raise TargetLost(f"QEMU's memory can no longer be read: {error}") from error

    def _parts(self, pa: int, size: int) -> list[tuple[int, int]] | None:
        parts = self._map.split(pa, size)
        if parts is None:
            return None
        return [(part_pa + self._offset[at], part_size) for at, part_pa, part_size in parts]
