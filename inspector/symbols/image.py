"""An arm64 kernel Image, however it is packed: plain, gzipped, or inside an EFI zboot executable.

Sources: the 64-byte header is `Documentation/arch/arm64/booting.rst` ("ARM\\x64" at 0x38); the zboot header
is `drivers/firmware/efi/libstub/zboot-header.S` (6.1): "zimg" at 4, payload offset and size at 8 and 12, the
name of the compression at 0x18.
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from inspector.findings import BadInput

HEADER_SIZE = 64
_MAGIC = b"ARM\x64"
_MAGIC_OFFSET = 0x38
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LIMIT = 1 << 30  # an unpacked Image larger than this is not a kernel but a decompression bomb


@dataclass(frozen=True)
class Image:
    """An unpacked Image: its bytes, the ``text_offset`` and ``image_size`` (bytes, .bss included) of its
    header.
    """

    path: Path
    data: bytes = field(repr=False)
    text_offset: int
    image_size: int


def read_file(path: Path) -> bytes:
    """The whole file; raises `BadInput` when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error


def is_plain_image(data: bytes) -> bool:
    """Whether ``data`` starts with the header of an arm64 Image."""
    return data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _MAGIC


def open_image(path: Path, data: bytes | None = None) -> Image:
    """Unpack the Image in ``path`` (``data``: its content, when already read).

    Raises `BadInput` when the file is unreadable, is no arm64 Image, is cut short, or is packed with a
    compression that needs a program which is not installed.
    """
    packed = read_file(path) if data is None else data
    plain = unsigned(unpack(path, packed))
    if not is_plain_image(plain):
        raise BadInput(f"{path} is not an arm64 kernel Image (no 'ARM\\x64' magic at byte 0x38 once unpacked)")
    text_offset, size, flags = struct.unpack_from("<QQQ", plain, 8)
    if flags & 1:
        raise BadInput(f"{path} is a big-endian kernel Image; only little-endian kernels are supported")
    if size < HEADER_SIZE or size > _LIMIT:
        raise BadInput(f"{path} has a damaged Image header: it gives the image a size of {size:#x} bytes")
    return Image(path, plain, text_offset, size)


def unsigned(data: bytes) -> bytes:
    """``data`` without the Secure Boot signature that distributions append to an Image (and that is never
    loaded).

    Entry 4 of the PE32+ data directories, the certificate table, is the one that counts from the file's start
    (Microsoft PE/COFF specification, "Optional Header Data Directories"; arch/arm64/kernel/efi-header.S).
    """
    if not is_plain_image(data) or len(data) < HEADER_SIZE:
        return data
    (pe,) = struct.unpack_from("<I", data, 0x3C)
    if pe + 24 + 112 + 40 > len(data) or data[pe : pe + 4] != b"PE\0\0":
        return data
    magic, (count,) = data[pe + 24 : pe + 26], struct.unpack_from("<I", data, pe + 24 + 108)
    start, size = struct.unpack_from("<II", data, pe + 24 + 112 + 4 * 8)
    signed = magic == b"\x0b\x02" and count > 4 and size and start >= HEADER_SIZE and start + size == len(data)
    return data[:start] if signed else data


def unpack(path: Path, data: bytes) -> bytes:
    """``data`` with its outer packing (gzip, zstd, EFI zboot) removed; plain data comes back as it is."""
    if is_plain_image(data):
        return data
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        return _unpack_zboot(path, data)
    if data[:2] == _GZIP:
        return _gunzip(path, data)
    if data[:4] == _ZSTD:
        return _by_program(path, data, "zstd")
    if data[:4] == b"\x7fELF":
        raise BadInput(f"{path} is an ELF file, not an Image: give it as --vmlinux")
    return data


def _unpack_zboot(path: Path, data: bytes) -> bytes:
    if len(data) < HEADER_SIZE:
        raise BadInput(f"{path} is cut short: it ends inside its EFI zboot header")
    start, size = struct.unpack_from("<II", data, 8)
    if start < HEADER_SIZE or start + size > len(data):
        raise BadInput(f"{path} is cut short: its EFI zboot payload ends at byte {start + size} of {len(data)}")
    payload = data[start : start + size]
    name = data[0x18:0x38].split(b"\0")[0].decode("latin-1")
    if name == "gzip":
        return _gunzip(path, payload)
    if name.startswith("zstd"):  # "zstd22" up to 6.x's Makefile.zboot
        return _by_program(path, payload, "zstd")
    if name in ("xz", "xzkern", "lzma"):
        return _unxz(path, payload)
    if name == "lz4":
        return _by_program(path, payload, "lz4")
    raise BadInput(f"{path} is an EFI zboot image packed with '{name}'; unpack it, or give --vmlinux instead")


def _gunzip(path: Path, data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        plain = stream.decompress(data, _LIMIT)
    except zlib.error as error:
        raise BadInput(f"{path} is a damaged gzip file: {error}") from error
    if not stream.eof:
        raise BadInput(f"{path} is cut short: its gzip data does not end")
    return plain


def _unxz(path: Path, data: bytes) -> bytes:
    stream = lzma.LZMADecompressor()
    try:
        plain = stream.decompress(data, _LIMIT)
    except lzma.LZMAError as error:
        raise BadInput(f"{path} is a damaged xz or lzma file: {error}") from error
    if not stream.eof:
        raise BadInput(f"{path} is cut short: its xz or lzma data does not end")
    return plain


def _by_program(path: Path, data: bytes, program: str) -> bytes:
    try:
        done = subprocess.run([program, "-dcq"], input=data, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise BadInput(f"{path} is packed with {program}: install that program, or give --vmlinux") from error
    if done.returncode != 0:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BadInput(f"{path} is damaged: {program} says {reason[-1] if reason else 'nothing'}")
    return done.stdout
