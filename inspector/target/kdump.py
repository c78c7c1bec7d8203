"""Compressed dumps: makedumpfile's format (kdump-compressed), which QEMU's ``dump-guest-memory -z|-l|-s`` writes too.

libkdumpfile reads them, flattened ones (``makedumpfile -F``, and all of QEMU's) included.  drgn is linked with it, and
is not used itself: it refuses a dump that names no architecture (QEMU writes "Unknown") or has no VMCOREINFO.  Looking
a symbol up in drgn's module finds it in the libraries that the module needs, wherever they are.  The few calls are
those of kdumpfile.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from inspector.findings import BadInput
from inspector.target.api import Cpu, RamRange, UnreadableMemory
from inspector.target.dump import LEFT_OUT, Dump

SIGNATURE: Final = b"KDUMP   "
FLATTENED: Final = b"makedumpfile\0"

_OK, _NO_DATA, _NO_KEY = 0, 3, 5
_NUMBER, _STRING, _BITMAP = 2, 4, 5
_MACHINE_PHYSICAL: Final = 1
"""``ADDRXLAT_MACHPHYSADDR``: addresses that need no translation."""
_MMAP_NEVER: Final = 0
"""``KDUMP_MMAP_NEVER``."""
_ARCHITECTURE: Final = "aarch64"
_UNNAMED: Final = ("", "Unknown")
_HEADER: Final = struct.Struct("<8s264x65s87xIiiI")
"""``struct disk_dump_header``: signature, utsname.machine, status, block_size, sub_hdr_size, bitmap_blocks
(diskdump_mod.h of makedumpfile)."""
_INCOMPLETE: Final = 8
"""``DUMP_DH_COMPRESSED_INCOMPLETE`` of ``status``: makedumpfile ran out of space."""
_SPLIT: Final = struct.Struct("<12xi")
"""``split`` of ``struct kdump_sub_header``."""
_DESCRIPTOR: Final = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
"""``struct page_desc``."""
_PART: Final = 1 << 20
"""Bytes of a bitmap that are looked at in one go."""
_FLAT_START: Final = 4096
_FLAT_PART: Final = struct.Struct(">2q")
"""A flattened dump's data begins there; before each part of it is its offset and size."""
_FLAT_END: Final = b"\xff" * 16
"""What ends a flattened dump: ``struct makedumpfile_data_header`` with offset and size -1."""


class _Value(ctypes.Union):
    _fields_ = (("number", ctypes.c_uint64), ("string", ctypes.c_char_p), ("pointer", ctypes.c_void_p))


class _Attribute(ctypes.Structure):
    """``kdump_attr_t``."""

    _fields_ = (("type", ctypes.c_int), ("value", _Value))


Bitmap = NDArray[np.uint8]
"""Bit ``n % 8`` of byte ``n // 8`` is page ``n``."""


class _Refused(Exception):
    """What the library says; ``status`` is its ``kdump_status``."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _File:
    """A dump that is open in libkdumpfile."""

    def __init__(self, library: ctypes.CDLL, fd: int) -> None:
        self._library = library
        self._context = ctypes.c_void_p(library.kdump_new())
        try:
            # First: with an unknown architecture the registers are not read.
            self._set("arch.name", _STRING, string=_ARCHITECTURE.encode())
            # A page of a mapping that lies beyond the file's end would be SIGBUS.
            self._set("file.mmap_policy", _NUMBER, number=_MMAP_NEVER)
            self._set("file.fd", _NUMBER, number=fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._library.kdump_free(self._context)

    def _demand(self, status: int) -> None:
        if status != _OK:
            text = self._library.kdump_get_err(self._context)
            raise _Refused(status, text.decode(errors="replace") if text else f"error {status}")

    def _set(self, key: str, kind: int, **value: object) -> None:
        attribute = _Attribute(kind, _Value(**value))
        self._demand(self._library.kdump_set_attr(self._context, key.encode(), ctypes.byref(attribute)))

    def _get(self, key: str, kind: int) -> Any:
        attribute = _Attribute()
        status = self._library.kdump_get_attr(self._context, key.encode(), ctypes.byref(attribute))
        return attribute.value if status == _OK and attribute.type == kind else None

    def number(self, key: str) -> int | None:
        value = self._get(key, _NUMBER)
        return None if value is None else int(value.number)

    def pages(self, key: str, count: int) -> Bitmap:
        """A bitmap of ``count`` pages, packed; empty where there is none."""
        value = self._get(key, _BITMAP)
        if value is None or not count:
            return np.zeros(0, np.uint8)
        bits = ctypes.create_string_buffer(-(-count // 8))
        status = self._library.kdump_bmp_get_bits(ctypes.c_void_p(value.pointer), 0, count - 1, bits)
        if status != _OK:
            raise _Refused(status, f"{key} cannot be read")
        found = np.frombuffer(bits.raw, np.uint8).copy()
        found[-1] &= 0xFF >> -count % 8
        return found

    def read(self, pa: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        got = ctypes.c_size_t(size)
        self._demand(self._library.kdump_read(self._context, _MACHINE_PHYSICAL, pa, data, ctypes.byref(got)))
        return data.raw


def _library() -> ctypes.CDLL:
    """libkdumpfile as drgn is linked with it.  Raises `BadInput`."""
    try:
        import _drgn

        library = ctypes.CDLL(_drgn.__file__)
        context, key = ctypes.c_void_p, ctypes.c_char_p
        library.kdump_new.restype = ctypes.c_void_p
        library.kdump_free.argtypes = [context]
        library.kdump_get_err.argtypes, library.kdump_get_err.restype = [context], ctypes.c_char_p
        library.kdump_set_attr.argtypes = [context, key, ctypes.POINTER(_Attribute)]
        library.kdump_get_attr.argtypes = [context, key, ctypes.POINTER(_Attribute)]
        library.kdump_bmp_get_bits.argtypes = [context, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p]
        size = ctypes.POINTER(ctypes.c_size_t)
        library.kdump_read.argtypes = [context, ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p, size]
    except (ImportError, OSError, AttributeError):
        raise BadInput(
            "a compressed dump is read by libkdumpfile, with which this drgn was not built: install drgn from PyPI, "
            "or make an ELF dump of it (makedumpfile -E)"
        ) from None
    return library


@contextmanager
def opened(path: str) -> Iterator[Dump]:
    """What is in the compressed dump at ``path``.  Raises `BadInput` with one sentence for what is none."""
    library = _library()
    try:
        notes, most = _look_at(path)
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        try:
            file = _File(library, fd)
        except _Refused as error:
            why = "; ".join([str(error), *notes])
            raise BadInput(f"{path} cannot be read as a compressed dump: {why}") from None
        try:
            yield _dump(path, file, notes, most)
        finally:
            file.close()
    finally:
        os.close(fd)


def _dump(path: str, file: _File, notes: list[str], most: int) -> Dump:
    """``most``: how many pages the bitmaps in the file can name, whatever the header says."""
    page = file.number("arch.page_size") or 0
    count = min(file.number("max_pfn") or 0, most)
    try:
        present, there = (file.pages(key, count) for key in ("file.pagemap", "memory.pagemap"))
    except _Refused as error:
        raise BadInput(f"{path} is a damaged dump: {error}") from None
    if not page or not present.any():
        raise BadInput(f"{path} holds no physical memory: dump the whole machine (dump-guest-memory, kdump)")
    there = present | there if len(there) == len(present) else present

    def read(pa: int, size: int) -> bytes:
        try:
            return file.read(pa, size)
        except _Refused as error:
            why = "" if error.status == _NO_DATA else f" ({error})"
            raise UnreadableMemory(pa, size, LEFT_OUT + why) from None

    return Dump(
        read=read,
        ram=tuple(RamRange(a * page, b * page, f"core {n}") for n, (a, b) in enumerate(_runs(there))),
        cpus=tuple(_cpus(file)),
        left_out=(_count(there) - _count(present)) * page,
        notes=tuple(notes),
    )


def _parts(bits: Bitmap) -> Iterator[tuple[int, Bitmap]]:
    """A bitmap's parts that are not empty, with the first page of each: unpacked, a whole one is 8 times as large."""
    for at in range(0, len(bits), _PART):
        part = bits[at : at + _PART]
        if part.any():
            yield at * 8, part


def _count(bits: Bitmap) -> int:
    return sum(int(np.unpackbits(part).sum()) for _, part in _parts(bits))


def _runs(bits: Bitmap) -> Iterator[tuple[int, int]]:
    """``[start, end)`` of each run of set bits."""
    open_run: tuple[int, int] | None = None
    for first, part in _parts(bits):
        flags = np.unpackbits(part, bitorder="little")
        edges = first + np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if open_run is not None and open_run[1] == start:
                open_run = open_run[0], end
                continue
            if open_run is not None:
                yield open_run
            open_run = start, end
    if open_run is not None:
        yield open_run


def _cpus(file: _File) -> Iterator[Cpu]:
    """The general registers of each CPU that has them, as `inspector.target.core` names them."""
    names = {**{f"x{at}": f"x{at}" for at in range(30)}, "x30": "lr", "sp": "sp", "pc": "pc", "cpsr": "pstate"}
    number = 0
    while file.number(f"cpu.{number}.reg.pc") is not None:
        found = {name: file.number(f"cpu.{number}.reg.{key}") for name, key in names.items()}
        yield Cpu(number, {name: value for name, value in found.items() if value is not None})
        number += 1


def _look_at(path: str) -> tuple[list[str], int]:
    """What is missing at its end, in sentences; how many pages its bitmaps can name.

    Raises `OSError`, and `BadInput` for what the library need not be shown.

    The library crashes on a flattened file without data (drgn 0.3.0's does), and takes the architecture that it is told
    for that of the dump.
    """
    notes: list[str] = []
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        flattened = file.read(len(FLATTENED)) == FLATTENED
        file.seek(_FLAT_START + _FLAT_PART.size if flattened else 0)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise BadInput(f"{path} is a compressed dump that ends within its header")
        signature, machine, status, block, sub, bitmaps = _HEADER.unpack(header)
        if signature != SIGNATURE:
            raise BadInput(f"{path} is a flattened dump of another format: make a plain one of it (makedumpfile -R)")
        machine = machine.partition(b"\0")[0].decode(errors="replace")
        if machine not in (_ARCHITECTURE, *_UNNAMED):
            raise BadInput(f"{path} is a dump of {machine}, not of a little-endian AArch64 machine")
        if not 0 < block <= 1 << 16 or sub <= 0 or bitmaps * block // 2 > size:
            raise BadInput(f"{path} is a damaged dump: its header says blocks of {block} bytes")
        if status & _INCOMPLETE:
            notes.append("makedumpfile says that it could not write the whole dump")
        most = bitmaps * block // 2 * 8
        if flattened:
            file.seek(max(size - len(_FLAT_END), 0))
            cut = file.read() != _FLAT_END
            return [*notes, *(["the dump ends early: its end mark is not in the file"] if cut else [])], most
        file.seek(block)
        parts = file.read(_SPLIT.size)
        if len(parts) == _SPLIT.size and _SPLIT.unpack(parts)[0]:
            raise BadInput(f"{path} is one part of a split dump: join them (makedumpfile --reassemble)")
        start = (1 + sub + bitmaps) * block
        file.seek((1 + sub) * block + bitmaps * block // 2)
        pages = _count(np.frombuffer(file.read(most // 8), np.uint8))
    whole = max(0, min(pages, (size - start) // _DESCRIPTOR.itemsize))
    missing = pages - whole
    if whole:
        table = np.memmap(path, _DESCRIPTOR, "r", start, (whole,))
        missing += int((table["offset"] + table["size"] > size).sum())
    if missing or size < start:
        notes.append(f"the dump ends early: {missing} of its {pages} pages are not in the file")
    return notes, most
