"""An arm64 kernel Image, however it is packed: plain, compressed, as a uImage, or inside an EFI zboot executable.

Sources: the 64-byte header is `Documentation/arch/arm64/booting.rst` ("ARM\\x64" at 0x38); the zboot header
is `drivers/firmware/efi/libstub/zboot-header.S` (6.1): "zimg" at 4, payload offset and size at 8 and 12, the
name of the compression at 0x18; the uImage header is U-Boot's `include/image.h` (big-endian, payload size at 12).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from inspector.budget import DEFAULT, Budget
from inspector.findings import BadInput
from inspector.symbols import packing
from inspector.symbols.packing import packed_with, read_file

_HEADER_SIZE = 64  # of an Image, of EFI zboot and of a uImage
_MAGIC = b"ARM\x64"
_MAGIC_OFFSET = 0x38
_UIMAGE = b"\x27\x05\x19\x56"
_LARGEST = 1 << 30  # what gives itself a larger size is not a kernel
_MOST_LAYERS = 4
# Names of compressions in scripts/Makefile.zboot: "zstd22" up to 6.x, "xzkern" since.
_ZBOOT = {
    "gzip": "gzip",
    "zstd": "zstd",
    "zstd22": "zstd",
    "xz": "xz",
    "xzkern": "xz",
    "lzma": "lzma",
    "lz4": "lz4",
    "lzo": "lzop",
}
_FOREIGN = {
    b"\x7fELF": "an ELF file, not an Image: give it as --vmlinux",
    b"\xd0\x0d\xfe\xed": "a FIT image: take the kernel out of it with dumpimage",
    b"ANDROID!": "an Android boot image: take the kernel out of it with unpack_bootimg",
    b"MZ": "an EFI executable but not an arm64 kernel Image: a unified kernel image has the kernel in section .linux",
}


@dataclass(frozen=True)
class Image:
    """An unpacked Image: its bytes, the ``text_offset`` and ``image_size`` (bytes, .bss included) of its
    header.
    """

    path: Path
    data: bytes = field(repr=False)
    text_offset: int
    image_size: int


def is_plain_image(data: bytes) -> bool:
    """Whether ``data`` starts with the header of an arm64 Image."""
    return data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _MAGIC


def open_image(path: Path, data: bytes | None = None, most: int = DEFAULT) -> Image:
    """Unpack the Image in ``path`` (``data``: its content, when already read), which may take ``most`` bytes of memory.

    Raises `BadInput` when the file is unreadable, is not an arm64 Image, is cut short, or is packed with a
    compression that needs a program which is not installed.
    """
    budget = Budget(most)
    packed = read_file(path, budget) if data is None else data
    plain = unsigned(unpack(path, packed, budget))
    if not is_plain_image(plain):
        raise BadInput(f"{path} is not an arm64 kernel Image (no 'ARM\\x64' magic at byte 0x38 once unpacked)")
    text_offset, size, flags = struct.unpack_from("<QQQ", plain, 8)
    if flags & 1:
        raise BadInput(f"{path} is a big-endian kernel Image; only little-endian kernels are supported")
    if size < _HEADER_SIZE or size > _LARGEST:
        raise BadInput(f"{path} has a damaged Image header: it gives the image a size of {size:#x} bytes")
    return Image(path, plain, text_offset, size)


def unsigned(data: bytes) -> bytes:
    """``data`` without the Secure Boot signature that distributions append to an Image (and that is never
    loaded).

    Entry 4 of the PE32+ data directories, the certificate table, is the one that counts from the file's start
    (Microsoft PE/COFF specification, "Optional Header Data Directories"; arch/arm64/kernel/efi-header.S).
    """
    if not is_plain_image(data) or len(data) < _HEADER_SIZE:
        return data
    (pe,) = struct.unpack_from("<I", data, 0x3C)
    if pe + 24 + 112 + 40 > len(data) or data[pe : pe + 4] != b"PE\0\0":
        return data
    magic, (count,) = data[pe + 24 : pe + 26], struct.unpack_from("<I", data, pe + 24 + 108)
    start, size = struct.unpack_from("<II", data, pe + 24 + 112 + 4 * 8)
    signed = magic == b"\x0b\x02" and count > 4 and size and start >= _HEADER_SIZE and start + size == len(data)
    return data[:start] if signed else data


def unpack(path: Path, data: bytes, budget: Budget) -> bytes:
    """``data`` with its packing (a compression, EFI zboot, uImage) removed; plain data comes back as it is."""
    for _ in range(_MOST_LAYERS):
        if is_plain_image(data):
            break
        name = packed_with(data)
        if name is not None:
            data = packing.unpack(path, data, name, budget)
        elif data[:2] == b"MZ" and data[4:8] == b"zimg":
            data = _unpack_zboot(path, data, budget)
        elif data[:4] == _UIMAGE:
            data = _payload(path, data, "uImage", _HEADER_SIZE, int.from_bytes(data[12:16], "big"))
        else:
            for magic, what in _FOREIGN.items():
                if data.startswith(magic):
                    raise BadInput(f"{path} is {what}")
            break
    return data


def _unpack_zboot(path: Path, data: bytes, budget: Budget) -> bytes:
    if len(data) < _HEADER_SIZE:
        raise BadInput(f"{path} is cut short: it ends inside its EFI zboot header")
    payload = _payload(path, data, "EFI zboot", *struct.unpack_from("<II", data, 8))
    name = data[0x18:0x38].split(b"\0")[0].decode("latin-1")
    method = _ZBOOT.get(name)
    if method is None:
        raise BadInput(f"{path} is an EFI zboot image packed with '{name}'; unpack it, or give --vmlinux instead")
    return packing.unpack(path, payload, method, budget)


def _payload(path: Path, data: bytes, kind: str, start: int, size: int) -> bytes:
    if start < _HEADER_SIZE or start + size > len(data):
        raise BadInput(f"{path} is cut short: its {kind} payload ends at byte {start + size} of {len(data)}")
    return data[start : start + size]
