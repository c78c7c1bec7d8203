"""Dumps made by hand, as the ELF format and the kernel's structures have them; and what is none."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.target.api import RamRange, UnreadableMemory
from inspector.target.core import CoreTarget, opened

EM_AARCH64, EM_X86_64, ET_CORE, ET_EXEC, PT_LOAD, PT_NOTE = 183, 62, 4, 2, 1, 4
EHDR, PHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


def prstatus(x: Sequence[int], sp: int, pc: int, pstate: int) -> bytes:
    """An NT_PRSTATUS note of ``struct elf_prstatus``, 392 bytes on arm64."""
    registers = struct.pack("<34Q", *x, sp, pc, pstate)
    description = bytes(112) + registers + bytes(8)
    return struct.pack("<3I", 5, len(description), 1) + b"CORE\0\0\0\0" + description


def core(
    segments: Sequence[tuple[int, bytes]], notes: bytes = b"", machine: int = EM_AARCH64, kind: int = ET_CORE
) -> bytes:
    """An ELF core of (physical address, contents)."""
    offset = EHDR.size + PHDR.size * (len(segments) + 1)
    headers = [PHDR.pack(PT_NOTE, 0, offset, 0, 0, len(notes), len(notes), 4)]
    body = notes
    for pa, data in segments:
        headers.append(PHDR.pack(PT_LOAD, 7, offset + len(body), pa, pa, len(data), len(data), 0))
        body += data
    identity = b"\x7fELF\2\1\1" + bytes(9)
    count = len(headers)
    head = EHDR.pack(identity, kind, machine, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count, 0, 0, 0)
    return head + b"".join(headers) + body


def open_core(path: Path, content: bytes) -> CoreTarget:
    path.write_bytes(content)
    with opened(str(path), lambda _: None) as target:
        return target


NOTES = b"".join(prstatus(range(100 * cpu, 100 * cpu + 31), 7, 8 + cpu, 0x3C9) for cpu in range(2))
FIRST, SECOND = b"first".ljust(0x1000, b"\1"), b"second".ljust(0x2000, b"\2")
GOOD = core([(0x8000_0000, SECOND), (0x4000_0000, FIRST)], NOTES)


def test_memory_and_registers(tmp_path: Path) -> None:
    target = open_core(tmp_path / "good.core", GOOD)
    assert [(one.start, one.end) for one in target.memory.ram] == [
        (0x4000_0000, 0x4000_1000),
        (0x8000_0000, 0x8000_2000),
    ]
    assert isinstance(target.memory.ram[0], RamRange)
    assert target.memory.read(0x4000_0000, 5) == b"first"
    assert target.memory.read_many([(0x8000_0000, 6), (0x4000_0FFF, 2), (0, 8), (0x8000_1FFF, 1)]) == [
        b"second",
        None,
        None,
        b"\2",
    ]
    with pytest.raises(UnreadableMemory):
        target.memory.read(0x5000_0000, 8)
    assert [cpu.index for cpu in target.cpus()] == [0, 1]
    assert target.cpus()[1].registers["x30"] == 130
    assert (target.cpus()[1].registers["pc"], target.cpus()[1].registers["sp"]) == (9, 7)
    assert target.cpus()[0].registers["cpsr"] == 0x3C9
    assert len(target.notes) == 1


def test_a_dump_that_ends_early(tmp_path: Path) -> None:
    target = open_core(tmp_path / "cut.core", GOOD[:-0x1800])
    assert any("ends early: 6 KiB" in note for note in target.notes)
    # 0x800 bytes of the first segment of the file are there no more, and nothing of the other.
    assert target.memory.read(0x8000_0000, 6) == b"second"
    with pytest.raises(UnreadableMemory, match="left out of the dump"):
        target.memory.read(0x4000_0000, 5)


def test_memory_that_is_named_twice(tmp_path: Path) -> None:
    """As /proc/kcore does."""
    target = open_core(tmp_path / "twice.core", core([(0x4000_0000, FIRST), (0x4000_0800, FIRST)]))
    assert [(one.start, one.end) for one in target.memory.ram] == [
        (0x4000_0000, 0x4000_1800),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no ELF core dump"),
        (b"nonsense" * 100, "no ELF core dump"),
        (core([(0x4000_0000, FIRST)], machine=EM_X86_64), "not of a little-endian AArch64 machine"),
        (core([(0x4000_0000, FIRST)], kind=ET_EXEC), "no core dump"),
        (core([], NOTES), "holds no physical memory"),
        (GOOD[:70], "damaged"),
    ],
    ids=["empty", "nonsense", "x86", "program", "no memory", "cut header"],
)
def test_what_is_no_dump(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        open_core(tmp_path / "bad.core", content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"), opened(str(tmp_path / "none"), lambda _: None):
        pass
