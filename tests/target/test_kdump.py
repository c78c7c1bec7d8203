"""Compressed dumps made by hand, as makedumpfile's diskdump_mod.h has the format; and what is none."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.target.api import UnreadableMemory
from inspector.target.core import CoreTarget, opened
from tests.target.test_core import NOTES

PAGE = 4096
COMPRESSED_ZLIB = 1


def whole_pages(data: bytes) -> bytes:
    return data + bytes(-len(data) % PAGE)


def bits(numbers: Set[int], blocks: int) -> bytes:
    found = bytearray(blocks * PAGE)
    for number in numbers:
        found[number // 8] |= 1 << number % 8
    return bytes(found)


def kdump(
    pages: Mapping[int, bytes],
    left_out: Set[int] = frozenset(),
    *,
    machine: bytes = b"aarch64",
    split: int = 0,
    status: int = 1,
) -> bytes:
    """A dump of ``pages`` (by frame number) of a machine that had those and ``left_out``."""
    top = max(*pages, *left_out) + 1
    blocks = -(-top // (8 * PAGE))
    utsname = b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"", b"6.1", b"", machine, b""))
    notes = whole_pages(NOTES)
    # disk_dump_header: signature, version, utsname, timestamp, status, block_size, sub_hdr_size, bitmap_blocks …
    header = b"KDUMP   " + struct.pack("<i390s6x16xIiiI", 6, utsname, status, PAGE, 1 + len(notes) // PAGE, 2 * blocks)
    header += struct.pack("<7I", top, 0, 1, 0, 0, 0, 2)
    # kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn, vmcoreinfo, notes, eraseinfo, 64-bit numbers
    sub = struct.pack("<QiiQQQQQQQQQQQ", 0, 31, split, 0, 0, 0, 0, 2 * PAGE, len(NOTES), 0, 0, 0, 0, top)
    head = whole_pages(header) + whole_pages(sub) + notes
    head += bits({*pages, *left_out}, blocks) + bits({*pages}, blocks)
    at, table, body = len(head) + 24 * len(pages), b"", b""
    for number in sorted(pages):
        packed = zlib.compress(pages[number])
        table += struct.pack("<qIIQ", at + len(body), len(packed), COMPRESSED_ZLIB, 0)
        body += packed
    return head + table + body


def flattened(data: bytes) -> bytes:
    """As ``makedumpfile -F`` writes it: big-endian (offset, size) before each part."""
    parts = [(at, data[at : at + 10000]) for at in range(0, len(data), 10000)]
    head = struct.pack(">16s2q", b"makedumpfile", 1, 1).ljust(PAGE, b"\0")
    return head + b"".join(struct.pack(">2q", at, len(part)) + part for at, part in parts) + b"\xff" * 16


@contextmanager
def open_dump(path: Path, content: bytes) -> Iterator[CoreTarget]:
    path.write_bytes(content)
    with opened(str(path), lambda _: None) as target:
        yield target


PAGES = {0x40000 + number: bytes([number]) * PAGE for number in range(8)} | {0x80000: b"last".ljust(PAGE, b"\7")}
GOOD = kdump(PAGES, {0x40008, 0x40009})


@pytest.mark.parametrize("content", [GOOD, flattened(GOOD)], ids=["plain", "flattened"])
def test_memory_and_registers(tmp_path: Path, content: bytes) -> None:
    with open_dump(tmp_path / "good.kdump", content) as target:
        assert [(one.start, one.end) for one in target.memory.ram] == [
            (0x4000_0000, 0x4000_A000),
            (0x8000_0000, 0x8000_1000),
        ]
        assert target.memory.read(0x4000_1FFF, 2) == b"\1\2"
        assert target.memory.read_many([(0x8000_0000, 5), (0, 8), (0x8000_0FFF, 2)]) == [b"last\7", None, None]
        assert [cpu.index for cpu in target.cpus()] == [0, 1]
        assert target.cpus()[1].registers["x30"] == 130
        assert (target.cpus()[1].registers["pc"], target.cpus()[1].registers["sp"]) == (9, 7)
        assert target.cpus()[0].registers["cpsr"] == 0x3C9


def test_what_was_left_out(tmp_path: Path) -> None:
    with open_dump(tmp_path / "filtered.kdump", GOOD) as target:
        assert list(target.incomplete) == ["8 KiB of 44 KiB of memory were left out of the dump"]
        for pa in (0x4000_8000, 0x4000_9FF8):
            with pytest.raises(UnreadableMemory, match="left out of the dump"):
                target.memory.read(pa, 8)
            assert target.memory.had(pa)
        assert not target.memory.had(0x4000_A000)


def test_of_qemu_which_names_no_machine(tmp_path: Path) -> None:
    with open_dump(tmp_path / "qemu.kdump", kdump(PAGES, machine=b"Unknown")) as target:
        assert target.memory.read(0x8000_0000, 4) == b"last"
        assert not target.incomplete


@pytest.mark.parametrize("size", range(PAGE * 2, len(GOOD), 4999))
def test_a_dump_that_ends_early(tmp_path: Path, size: int) -> None:
    """Cut wherever: refused, or said, and what is gone is not taken for zeros.  (A mapped file would be SIGBUS.)"""
    try:
        with open_dump(tmp_path / "cut.kdump", GOOD[:size]) as target:
            assert "ends early" in target.incomplete[-1]
            assert target.memory.read_many([(0x8000_0000, 4)]) == [None]
            assert set(target.memory.read_many([(0x4000_1000, 8)])) <= {None, bytes([1]) * 8}
    except BadInput as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"KDUMP   " + bytes(100), "ends within its header"),
        (b"KDUMP   " + bytes(8000), "damaged"),
        (kdump(PAGES, machine=b"x86_64"), "of x86_64, not of a little-endian AArch64 machine"),
        (kdump(PAGES, split=1), "makedumpfile --reassemble"),
        (flattened(GOOD)[:-900], "ends early"),
        (flattened(b""), "ends within its header"),
        (flattened(b"\x7fELF" + bytes(9000)), "makedumpfile -R"),
    ],
    ids=["cut header", "zeros", "x86", "split", "flattened cut", "flattened empty", "flattened ELF"],
)
def test_what_is_no_dump(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words), open_dump(tmp_path / "bad.kdump", content):
        pass


def test_what_makedumpfile_could_not_write(tmp_path: Path) -> None:
    """DUMP_DH_COMPRESSED_INCOMPLETE."""
    with open_dump(tmp_path / "full.kdump", kdump(PAGES, status=1 | 8)) as target:
        assert list(target.incomplete) == ["makedumpfile says that it could not write the whole dump"]
