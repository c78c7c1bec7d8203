"""What is needed of an arm64 ELF file, without reading the rest: sections, symbols, notes, bytes at an
address.

A debug vmlinux is hundreds of megabytes, so the file is mapped and only the parts asked for are touched.
Layouts are those of the ELF-64 Object File Format, little-endian; compressed sections are ``SHF_COMPRESSED``
with ``Elf64_Chdr`` and the older ``.zdebug_*`` with a "ZLIB" header.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inspector.budget import DEFAULT, Budget
from inspector.findings import BadInput
from inspector.symbols.packing import bound, unpack
from inspector.symbols.table import Symbol, is_noise

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NOTE = struct.Struct("<III")
_CHDR = struct.Struct("<IIQQ")

_EM_AARCH64 = 183
_SHT_NULL, _SHT_SYMTAB, _SHT_NOTE, _SHT_NOBITS = 0, 2, 7, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 1, 2, 4, 0x800
_SHN_UNDEF, _SHN_LORESERVE, _SHN_ABS = 0, 0xFF00, 0xFFF1
_STT_SECTION, _STT_FILE, _STT_TLS = 3, 4, 6
_STB_LOCAL, _STB_WEAK = 0, 2
_STT_OBJECT = 1
_METHODS = {1: "zlib", 2: "zstd"}  # ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD
_NT_GNU_BUILD_ID = 3
_LONGEST_NAME = 1 << 12  # of a symbol or section: the kernel's own names have 512 characters at most (KSYM_NAME_LEN)


@dataclass(frozen=True)
class Section:
    """One section header."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int

    @property
    def stored(self) -> bool:
        """Whether its bytes are in the file and in memory at run time (not .bss)."""
        return bool(self.flags & _SHF_ALLOC) and self.in_file

    @property
    def in_file(self) -> bool:
        """Whether the file holds its bytes (.bss has none; after ``--only-keep-debug`` nor has the rest)."""
        return self.type != _SHT_NOBITS


class Elf:
    """A mapped arm64 ELF file.  Close it, or use it as a context manager."""

    def __init__(self, path: Path, most: int = DEFAULT) -> None:
        """What it holds may take ``most`` bytes of memory once unpacked.

        Raises `BadInput` when the file is unreadable, no arm64 ELF, or cut short.
        """
        self.path = path
        self._budget = Budget(most)
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise BadInput(f"{path} is empty") from error
        try:
            self.sections = self._read_sections()
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> Elf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        with contextlib.suppress(BufferError):  # a view of it is still in use: unmapped with that
            self._map.close()

    @property
    def file_size(self) -> int:
        return len(self._map)

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def raw(self, section: Section) -> memoryview:
        """The section's bytes as stored, without copying them."""
        return memoryview(self._map)[section.offset : section.offset + section.size]

    def debug(self, name: str) -> memoryview | None:
        """A ``.debug_*`` section (``name`` without the dot), decompressed; ``None`` when absent."""
        section = self.section(f".{name}")
        if section is None:
            old = self.section(f".z{name}")
            if old is None:
                return None
            data = self.raw(old)
            if bytes(data[:4]) != b"ZLIB" or len(data) < 12:
                raise BadInput(f"{self.path} is damaged: its section {old.name} has no ZLIB header")
            return self._unpack(old, data[12:], "zlib", int.from_bytes(data[4:12], "big"))
        data = self.raw(section)
        if section.type == _SHT_NOBITS:
            return None
        if not section.flags & _SHF_COMPRESSED:
            return data
        if len(data) < _CHDR.size:
            raise BadInput(f"{self.path} is damaged: its section {name} is shorter than its compression header")
        kind, _, size, _ = _CHDR.unpack_from(data)
        if kind in _METHODS:
            return self._unpack(section, data[_CHDR.size :], _METHODS[kind], size)
        raise BadInput(f"{self.path}: section {name} is compressed in an unknown way ({kind})")

    def build_id(self) -> str | None:
        """The GNU build id in lower-case hex."""
        for section in self.sections:
            if section.type == _SHT_NOTE:
                for name, kind, description in _notes(bytes(self.raw(section))):
                    if name == b"GNU\0" and kind == _NT_GNU_BUILD_ID:
                        return description.hex()
        return None

    def symbols(self) -> list[Symbol]:
        """Defined symbols of .symtab with nm's letters; empty when the file is stripped."""
        section = next((each for each in self.sections if each.type == _SHT_SYMTAB), None)
        if section is None or section.link >= len(self.sections):
            return []
        names = bytes(self.raw(self.sections[section.link]))
        letters = [_letter(each) for each in self.sections]
        data = self.raw(section)[: section.size // _SYMBOL.size * _SYMBOL.size]
        found = []
        for name_at, info, _, index, value, _ in _SYMBOL.iter_unpack(data):
            kind, binding = info & 0xF, info >> 4
            if index == _SHN_UNDEF or kind in (_STT_SECTION, _STT_FILE, _STT_TLS):
                continue
            end = names.find(b"\0", name_at, name_at + _LONGEST_NAME)
            if end <= name_at or is_noise(name := names[name_at:end].decode("utf-8", "surrogateescape")):
                continue
            if index == _SHN_ABS:
                letter = "a"
            elif index >= _SHN_LORESERVE or index >= len(letters):
                continue
            else:
                letter = letters[index]
            if binding == _STB_WEAK:
                letter = "V" if kind == _STT_OBJECT else "W"
            elif binding != _STB_LOCAL:
                letter = letter.upper()
            found.append(Symbol(value, letter, name))
        return found

    def read(self, address: int, size: int) -> bytes | None:
        """``size`` bytes at a link-time address, or ``None`` when no one section stores them all."""
        for section in self.sections:
            if section.stored and section.address <= address < section.address + section.size:
                if address + size > section.address + section.size:
                    return None
                start = section.offset + address - section.address
                return self._map[start : start + size]
        return None

    def flatten(self, base: int) -> bytes:
        """The Image that ``objcopy -O binary`` makes of this file: byte 0 is what is linked at ``base``."""
        stored = [each for each in self.sections if each.stored and each.size and each.address >= base]
        if not stored:
            return b""
        size = max(each.address + each.size for each in stored) - base
        self._budget.spend(2 * size, f"the image of {self.path}, whose sections span {size:#x} bytes,")
        flat = bytearray(size)
        for each in stored:
            flat[each.address - base : each.address - base + each.size] = self.raw(each)
        return bytes(flat)

    def _read_sections(self) -> list[Section]:
        data, size = self._map, len(self._map)
        if data[:4] != b"\x7fELF":
            raise BadInput(f"{self.path} is not an ELF file: a kernel Image is given as --image")
        if size < _HEADER.size:
            raise BadInput(f"{self.path} is cut short: it ends inside its ELF header")
        ident, _, machine, _, _, _, table, _, _, _, _, entry, count, names = _HEADER.unpack_from(data)
        if ident[4:6] != b"\x02\x01" or machine != _EM_AARCH64:
            raise BadInput(f"{self.path} is not a little-endian 64-bit arm64 ELF file (machine {machine})")
        if table == 0:
            raise BadInput(f"{self.path} has no section headers; give the vmlinux from the kernel's build")
        if entry != _SECTION.size or table + entry * max(count, 1) > size:
            raise BadInput(f"{self.path} is cut short or damaged: its section headers lie beyond its end")
        headers = [_SECTION.unpack_from(data, table + index * entry) for index in range(max(count, 1))]
        if count == 0:  # more than 0xff00 sections: the number is in the first header
            count = headers[0][5]
            if table + entry * count > size:
                raise BadInput(f"{self.path} is cut short or damaged: its section headers lie beyond its end")
            headers = [_SECTION.unpack_from(data, table + index * entry) for index in range(count)]
        if names == 0xFFFF and headers:
            names = headers[0][6]
        if names >= len(headers):
            raise BadInput(f"{self.path} is damaged: it has no section names")
        for header in headers:
            if header[1] != _SHT_NOBITS and header[4] + header[5] > size:
                raise BadInput(f"{self.path} is cut short: a section ends at byte {header[4] + header[5]} of {size}")
        if sum(header[5] for header in headers if header[1] not in (_SHT_NULL, _SHT_NOBITS)) > size:
            raise BadInput(f"{self.path} is damaged: its sections overlap")
        strings = data[headers[names][4] : headers[names][4] + headers[names][5]]
        sections = []
        for name_at, kind, flags, address, offset, length, link, _, _, _ in headers:
            end = strings.find(b"\0", name_at, name_at + _LONGEST_NAME)
            name = strings[name_at : max(end, 0)].decode("latin-1")
            sections.append(Section(name, kind, flags, address, offset, length, link))
        return sections

    def _unpack(self, section: Section, data: memoryview, method: str, size: int) -> memoryview:
        what = f"section {section.name} of {self.path}"
        if size > bound(len(data)):
            raise BadInput(f"{what} is damaged: {len(data)} bytes do not unpack to the {size} that it states")
        plain = unpack(what, data, method, self._budget, size)
        if len(plain) != size:
            raise BadInput(f"{what} is damaged: it does not unpack to the {size} bytes that it states")
        return memoryview(plain)


def _letter(section: Section) -> str:
    """nm's letter for a local symbol of the section."""
    if section.flags & _SHF_EXECINSTR:
        return "t"
    if section.type == _SHT_NOBITS:
        return "b"
    return "d" if section.flags & _SHF_WRITE else "r"


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, type, description) of each Elf64_Nhdr, names and descriptions padded to 4 bytes."""
    at = 0
    while at + _NOTE.size <= len(data):
        name_size, size, kind = _NOTE.unpack_from(data, at)
        name_at = at + _NOTE.size
        start = name_at + (name_size + 3 & ~3)
        if start + size > len(data):
            return
        yield data[name_at : name_at + name_size], kind, data[start : start + size]
        at = start + (size + 3 & ~3)
