"""What kernels, and sections of ELF files, are packed with, unpacked within a bound.

By Python's library where it can, else by the program of that name.  Magic numbers: RFC 1952 (gzip), the .xz and .lz4
format descriptions (the kernel's ``lz4 -l`` writes the legacy frame), RFC 8878 (zstd), lzop's source.
"""

from __future__ import annotations

import bz2
import lzma
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from inspector.budget import Budget
from inspector.findings import BadInput

_MOST_RATIO = 256  # kernels and debug information pack to a third or a tenth of their size
_SLACK = 1 << 20
_CHUNK = 1 << 20
_MOST_DICTIONARY = 256 << 20
"""Bytes that liblzma may take: a file names its own dictionary, up to 4 GiB, whatever it holds.  ``xz -9`` and the
kernel's builds take at most 65 MiB (xz(1), scripts/xz_wrap.sh)."""

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x89LZO\0\r\n\x1a\n": "lzop",
}
"""First bytes of a packed file to the name of the program that makes and unpacks it."""


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


_LIBRARY: dict[str, Callable[[], _Stream]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zlib": zlib.decompressobj,
    "xz": lambda: lzma.LZMADecompressor(memlimit=_MOST_DICTIONARY),
    "lzma": lambda: lzma.LZMADecompressor(memlimit=_MOST_DICTIONARY),
    "bzip2": bz2.BZ2Decompressor,
}


def bound(packed: int) -> int:
    """The most bytes that ``packed`` bytes may unpack to, whatever the budget: 256 times as many and 1 MiB."""
    return _MOST_RATIO * packed + _SLACK


def unpack(what: object, data: bytes | memoryview, name: str, budget: Budget, size: int | None = None) -> bytes:
    """``data`` unpacked by the method ``name``, a value of `MAGIC` or ``zlib``; ``what`` is how a message calls it.

    Raises `BadInput` when it is damaged or cut short, unpacks to more than its ``size`` (where it states one, else
    `bound`) or than the ``budget`` has left, or needs a program that is not installed.
    """
    limit = bound(len(data)) if size is None else size
    most = min(limit, budget.left)
    plain = _by_library(what, data, name, most) if name in _LIBRARY else _by_program(what, data, name, most)
    if len(plain) > limit:
        raise BadInput(f"{what} unpacks to more than the {limit} bytes that it may")
    if len(plain) > most:
        raise BadInput(f"{what} unpacks to more than there is room for: {budget.rule}")
    budget.spend(len(plain), str(what))
    return plain


def _by_library(what: object, data: bytes | memoryview, name: str, limit: int) -> bytes:
    stream = _LIBRARY[name]()
    try:
        plain = stream.decompress(bytes(data), limit + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise BadInput(f"{what} is damaged: its {name} data: {error}") from error
    if not stream.eof and len(plain) <= limit:
        raise BadInput(f"{what} is cut short: its {name} data does not end")
    return plain


def _by_program(what: object, data: bytes | memoryview, name: str, limit: int) -> bytes:
    with tempfile.TemporaryFile() as packed, tempfile.TemporaryFile() as errors:
        packed.write(data)
        packed.seek(0)
        try:
            process = subprocess.Popen([name, "-dcq"], stdin=packed, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError as error:
            raise BadInput(f"{what} is packed with {name}: install that program, or unpack it") from error
        plain = bytearray()
        with process:
            for chunk in _chunks(process):
                plain += chunk
                if len(plain) > limit:
                    process.kill()
                    return bytes(plain)
        if process.returncode != 0:
            errors.seek(0)
            reason = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
            raise BadInput(f"{what} is damaged: {name} says {reason[-1] if reason else 'nothing'}")
    return bytes(plain)


def _chunks(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    while process.stdout is not None and (chunk := process.stdout.read(_CHUNK)):
        yield chunk


def packed_with(data: bytes) -> str | None:
    """The method that ``data`` is packed with, by its first bytes."""
    return next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)


def read_file(path: Path, budget: Budget) -> bytes:
    """The whole file; raises `BadInput` when it cannot be read or is larger than the ``budget`` allows."""
    pieces = []
    try:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                budget.spend(len(piece), f"the rest of {path}")
                pieces.append(piece)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    return b"".join(pieces)
