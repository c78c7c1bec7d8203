"""Runs inside gdb: many physical reads for one command over gdb/MI.

Loaded by ``inspector.target`` with ``source``; standard library, ``packets`` and ``gdb`` only.  Requests and
answers go through two anonymous files (memfd) that gdb inherits, so nothing is left on disk and no hex passes
through MI.

The stub must be in physical mode (``Qqemu.PhyMemMode:1``) for the reads; the caller sets it.  The caller also
keeps requests inside RAM: the stub answers zeros where nothing is (QEMU 7.2.22).
"""

from __future__ import annotations

import array
import os
from collections.abc import Callable
from functools import partial

import gdb

from gdb_scripts import packets

WRITE_SIZE = 1 << 20

Reader = Callable[[int, int], "bytes | None"]


def stage2_read(request_fd: int, reply_fd: int) -> None:
    """Answer the requests in ``request_fd``: pairs of native u64 (address, size), to the end of the file.

    The reply holds one byte a request, 1 for readable, then the bytes of the readable ones end to end.
    """
    words = array.array("Q")
    words.frombytes(os.pread(request_fd, os.fstat(request_fd).st_size, 0))
    read = _packet_reader() or _inferior_reader()
    flags = bytearray(len(words) // 2)
    chunks = []
    for number in range(len(flags)):
        data = read(words[2 * number], words[2 * number + 1])
        if data is not None:
            flags[number] = 1
            chunks.append(data)
    os.ftruncate(reply_fd, 0)
    _write(reply_fd, bytes(flags) + b"".join(chunks))


def _packet_reader() -> Reader | None:
    """Reads by ``m`` packets of our own over gdb's connection (gdb 12 on): no caches, no value objects."""
    send = packets.sender()
    return None if send is None else partial(packets.read, send)


def _inferior_reader() -> Reader:
    """Reads by gdb itself (before gdb 12)."""
    inferior = gdb.selected_inferior()

    def read(address: int, size: int) -> bytes | None:
        try:
            return bytes(inferior.read_memory(address, size))
        except gdb.MemoryError:
            return None

    return read


def _write(fd: int, data: bytes) -> None:
    position = 0
    while position < len(data):
        position += os.pwrite(fd, data[position : position + WRITE_SIZE], position)
