"""Writers of small ELF files and kernel Images, after the kernel's own (scripts/kallsyms.c, link scripts).

They share no code with the readers: every layout is written down a second time, from the kernel's source.
"""

from __future__ import annotations

import gzip
import string
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

LINK = 0xFFFF_8000_8000_0000
USED = frozenset(string.ascii_letters + string.digits + "_.$")
BUILD_ID = bytes(range(0x10, 0x24))
VDSO_ID = bytes(range(0x80, 0x94))
BANNER = b"Linux version 6.6.0-synth (nobody@nowhere) (gcc) #1 SMP PREEMPT\n"


@dataclass(frozen=True)
class Entry:
    """A kernel symbol: offset from _text, nm's letter, name."""

    offset: int
    kind: str
    name: str


def tokens() -> list[str]:
    """A token table as scripts/kallsyms makes one: used characters stand for themselves, other codes for
    strings.
    """
    table = [chr(code) if chr(code) in USED else "" for code in range(256)]
    for code, text in {0x80: "kvm_", 0x81: "pgtable_", 0x82: "Tkvm_", 0x83: "init", 0x07: "sys_", 0xFF: "__"}.items():
        table[code] = text
    return table


def compress(text: str, table: Sequence[str]) -> bytes:
    """``text`` as token codes, the longest match first."""
    order = sorted((code for code in range(256) if table[code]), key=lambda code: -len(table[code]))
    out = bytearray()
    at = 0
    while at < len(text):
        code = next(code for code in order if text.startswith(table[code], at))
        out.append(code)
        at += len(table[code])
    return bytes(out)


class Data:
    """Bytes being laid out, with labels and references by label."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.labels: dict[str, int] = {}

    def label(self, name: str, align: int = 1) -> int:
        self.bytes += bytes(-len(self.bytes) % align)
        self.labels[name] = len(self.bytes)
        return len(self.bytes)

    def add(self, content: bytes) -> None:
        self.bytes += content


def kallsyms(data: Data, entries: Sequence[Entry], layout: str, base: int, *, stored_base: bool = True) -> None:
    """kallsyms in the ``layout`` of "6.1", "6.12" or "7.3", ``base`` the relative base (link-time address)."""
    align = 4 if layout == "7.3" else 8
    table = tokens()
    ordered = sorted(entries, key=lambda entry: entry.offset)

    def offsets() -> None:
        start = data.label("kallsyms_offsets", align)
        for index, entry in enumerate(ordered):
            if layout == "7.3":
                data.add(struct.pack("<i", entry.offset - (start + 4 * index)))
            else:
                data.add(struct.pack("<I", LINK + entry.offset - base))

    def relative_base() -> None:
        data.label("kallsyms_relative_base", 8)
        data.add(struct.pack("<Q", base if stored_base else 0))

    def names() -> None:
        data.label("kallsyms_num_syms", align)
        data.add(struct.pack("<I", len(ordered)))
        start = data.label("kallsyms_names", align)
        markers = []
        for index, entry in enumerate(ordered):
            if index % 256 == 0:
                markers.append(len(data.bytes) - start)
            code = compress(entry.kind + entry.name, table)
            length = len(code)
            data.add(bytes((length,)) if length <= 0x7F else bytes((length & 0x7F | 0x80, length >> 7)))
            data.add(code)
        data.label("kallsyms_markers", align)
        data.add(struct.pack(f"<{len(markers)}I", *markers))

    def seqs() -> None:
        data.label("kallsyms_seqs_of_names", align)
        by_name = sorted(range(len(ordered)), key=lambda index: ordered[index].name)
        data.add(b"".join(index.to_bytes(3, "big") for index in by_name))

    def token_tables() -> None:
        data.label("kallsyms_token_table", align)
        index = []
        at = 0
        for text in table:
            index.append(at)
            data.add(text.encode() + b"\0")
            at += len(text) + 1
        data.label("kallsyms_token_index", align)
        data.add(struct.pack("<256H", *index))

    orders = {
        "6.1": (offsets, relative_base, names, seqs, token_tables),
        "6.12": (names, token_tables, offsets, relative_base, seqs),
        "7.3": (names, token_tables, offsets, seqs),
    }
    for part in orders[layout]:
        part()


def ksymtab(data: Data, exports: Sequence[Entry], namespaces: dict[str, str] | None = None) -> None:
    """__ksymtab and its strings: PREL32 value, name and namespace (include/linux/export-internal.h)."""
    spaces = namespaces or {}
    data.label("strings")
    data.add(b"\0")
    places = {"": len(data.bytes) - 1}
    for text in [*spaces.values(), *(entry.name for entry in exports)]:
        places.setdefault(text, len(data.bytes))
        data.add(text.encode() + b"\0")
    data.label("__start___ksymtab", 4)
    for entry in sorted(exports, key=lambda entry: entry.name):
        at = len(data.bytes)
        space = places[spaces.get(entry.name, "")]
        data.add(struct.pack("<iii", entry.offset - at, places[entry.name] - at - 4, space - at - 8))


def note(build_id: bytes) -> bytes:
    """NT_GNU_BUILD_ID."""
    return struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id


@dataclass(frozen=True)
class Section:
    """A section to write; ``size`` for one without bytes (.bss)."""

    name: str
    content: bytes = field(default=b"", repr=False)
    type: int = 1
    flags: int = 0
    address: int = 0
    link: int = 0
    size: int | None = None


def elf(sections: Sequence[Section], *, machine: int = 183, bits: int = 2) -> bytes:
    """An ELF-64 file: header, sections, their names, section headers."""
    names = b"\0"
    headers = [struct.pack("<IIQQQQIIQQ", *(0,) * 10)]
    body = bytearray(64)
    every = [*sections, Section(".shstrtab", type=3)]
    for section in every:
        name_at = len(names)
        names += section.name.encode() + b"\0"
        content = names if section.name == ".shstrtab" else section.content
        body += bytes(-len(body) % 8)
        size = len(content) if section.size is None else section.size
        place = (section.address, len(body), size)
        headers.append(struct.pack("<IIQQQQIIQQ", name_at, section.type, section.flags, *place, section.link, 0, 8, 0))
        body += content
    body += bytes(-len(body) % 8)
    struct.pack_into(
        "<16sHHIQQQIHHHHHH",
        body,
        0,
        b"\x7fELF" + bytes((bits, 1, 1)),
        3,
        machine,
        1,
        0,
        0,
        len(body),
        0,
        64,
        0,
        0,
        64,
        len(headers),
        len(headers) - 1,
    )
    return bytes(body) + b"".join(headers)


def symtab(symbols: Sequence[tuple[str, int, int, int]]) -> tuple[bytes, bytes]:
    """(.symtab, .strtab) of (name, value, st_info, section index)."""
    strings = b"\0"
    table = bytes(24)
    for name, value, info, index in symbols:
        table += struct.pack("<IBBHQQ", len(strings), info, 0, index, value, 0)
        strings += name.encode() + b"\0"
    return table, strings


def image(
    entries: Sequence[Entry],
    exports: Sequence[Entry],
    btf: bytes | None,
    layout: str,
    *,
    link: str = "stored",
    with_kallsyms: bool = True,
) -> Data:
    """An Image linked at `LINK`.

    ``link`` says what tells its link address: "stored" (relative_base in place), "rela" (.rela.dyn, words
    left 0) or "pointers" (absolute words in the data).
    """
    data = Data()
    base = LINK + (0x10000 if link == "rela" else 0)
    data.add(bytes(0x1000))
    data.label("vdso", 0x1000)
    vdso = elf([Section(".note", note(VDSO_ID), type=7, flags=2)])
    data.add(vdso)
    data.label("banner", 8)
    data.add(BANNER + b"\0")
    if with_kallsyms:
        kallsyms(data, entries, layout, base, stored_base=link == "stored")
    ksymtab(data, exports, {exports[-1].name: "SYNTH"} if exports else None)
    data.label("notes", 4)
    data.add(note(BUILD_ID) + struct.pack("<III", 6, 4, 0x100) + b"Linux\0\0\0" + bytes(4))
    if btf is not None:
        data.label("btf", 4)
        data.add(btf)
    places = {data.label("pointers", 8) + 8 * index: entry for index, entry in enumerate(entries)}
    data.add(bytes(8 * len(entries)))
    for at, entry in places.items():
        struct.pack_into("<Q", data.bytes, at, 0 if link == "rela" else LINK + entry.offset)
    if link == "rela":
        data.label("rela", 8)
        if layout != "7.3":
            data.add(struct.pack("<QQQ", LINK + data.labels["kallsyms_relative_base"], 0x403, base))
        for at, entry in places.items():
            data.add(struct.pack("<QQQ", LINK + at, 0x403, LINK + entry.offset))
    data.bytes += bytes(-len(data.bytes) % 0x1000)
    header = struct.pack("<IIQQQQQQ4sI", 0x91005A4D, 0, 0, len(data.bytes) + 0x400000, 0xA, 0, 0, 0, b"ARM\x64", 0)
    data.bytes[: len(header)] = header
    return data


def zboot(payload: bytes, compression: bytes) -> bytes:
    """An EFI zboot file around an already compressed payload (drivers/firmware/efi/libstub/zboot-header.S)."""
    header = struct.pack("<2sH4sIIII", b"MZ", 0, b"zimg", 0x200, len(payload), 0, 0) + compression
    return header.ljust(0x200, b"\0") + payload


def packed_gzip(data: bytes) -> bytes:
    """``data`` gzipped, the same bytes each time."""
    return gzip.compress(data, 1, mtime=0)
