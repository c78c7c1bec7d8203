"""ELF dumps: QEMU's ``dump-guest-memory``, kdump's /proc/vmcore and what ``makedumpfile -E`` makes of it, /proc/kcore.

drgn reads the memory.  Which physical addresses are there is told by the ELF program headers: what the machine had
(``p_memsz``), and how much of it is in the file (``p_filesz``; less where makedumpfile left pages out).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import drgn
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from inspector.findings import BadInput
from inspector.target.api import Cpu, RamRange, UnreadableMemory
from inspector.target.dump import LEFT_OUT, Dump
from inspector.target.ranges import RamMap

_MACHINE: Final = "EM_AARCH64"
_KCORE: Final = "/proc/kcore"
_NO_ADDRESS: Final = (1 << 64) - 1
"""``p_paddr`` of what /proc/kcore has no physical address for: vmalloc, modules, vmemmap."""
_STATUS: Final = struct.Struct("<112x34Q")
"""``struct elf_prstatus``: 112 bytes, then x0 to x30, sp, pc, pstate (include/linux/elfcore.h, asm/ptrace.h, 6.12)."""


@contextmanager
def opened(path: str) -> Iterator[Dump]:
    """What is in the ELF dump at ``path``.  Raises `BadInput` with one sentence for what is none."""
    headers = _headers(path)
    program = drgn.Program()
    try:
        program.set_core_dump(path)
    except Exception as error:  # drgn raises ValueError, OSError and its own
        raise BadInput(f"{path} cannot be read as a dump: {error}") from None
    present = RamMap(headers.present)

    def read(pa: int, size: int) -> bytes:
        if not present.holds(pa, size):
            raise UnreadableMemory(pa, size, LEFT_OUT)
        try:
            data: bytes = program.read(pa, size, True)
        except Exception as error:  # drgn's FaultError, and what its readers raise at the end of a file
            raise UnreadableMemory(pa, size, f"{LEFT_OUT}: {error}") from None
        return data

    notes: tuple[str, ...] = ()
    if headers.missing:
        notes = (f"the dump ends early: {headers.missing >> 10} KiB of memory that it names are not in the file",)
    had, there = (sum(one.end - one.start for one in ranges) for ranges in (headers.ram, headers.present))
    yield Dump(read=read, ram=headers.ram, cpus=headers.cpus, left_out=had - there, notes=notes, live=_is_live(path))


def _is_live(path: str) -> bool:
    return Path(path).resolve() == Path(_KCORE)


@dataclass(frozen=True)
class _Headers:
    """What the program headers and notes tell.  ``missing``: bytes that they promise beyond the file's end."""

    ram: tuple[RamRange, ...]
    present: tuple[RamRange, ...]
    cpus: tuple[Cpu, ...]
    missing: int


def _headers(path: str) -> _Headers:
    try:
        with Path(path).open("rb") as file:
            elf = ELFFile(file)
            if elf["e_type"] != "ET_CORE":
                raise BadInput(f"{path} is an ELF file, but no core dump")
            if elf["e_machine"] != _MACHINE or elf.elfclass != 64 or not elf.little_endian:
                raise BadInput(f"{path} is a dump of {elf.get_machine_arch()}, not of a little-endian AArch64 machine")
            end = None if _is_live(path) else file.seek(0, 2)
            ram: list[tuple[int, int]] = []
            present: list[tuple[int, int]] = []
            cpus: list[Cpu] = []
            missing = 0
            for segment in elf.iter_segments():
                header = segment.header
                if header.p_type == "PT_LOAD" and header.p_paddr != _NO_ADDRESS:
                    ram.append((header.p_paddr, header.p_paddr + max(header.p_memsz, header.p_filesz)))
                    present.append((header.p_paddr, header.p_paddr + header.p_filesz))
                    if end is not None:
                        missing += max(0, min(header.p_filesz, header.p_offset + header.p_filesz - end))
                elif header.p_type == "PT_NOTE":
                    cpus += _cpus(segment)
    except PermissionError:
        raise BadInput(f"{path} may not be read: be root (and /proc/kcore is closed under kernel lockdown)") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except (ELFError, ValueError, KeyError, struct.error, UnicodeDecodeError):
        raise BadInput(f"{path} is no ELF core dump, or a damaged one") from None
    if not any(end > start for start, end in present):
        raise BadInput(f"{path} holds no physical memory: dump the whole machine (dump-guest-memory, kdump)")
    numbered = tuple(Cpu(number, cpu.registers) for number, cpu in enumerate(cpus))
    return _Headers(_joined(ram), _joined(present), numbered, missing)


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[RamRange, ...]:
    """Ascending, neighbours as one, nothing twice: /proc/kcore names some memory twice."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return tuple(RamRange(start, end, f"core {number}") for number, (start, end) in enumerate(found))


def _cpus(segment: Any) -> list[Cpu]:
    """The general registers of each NT_PRSTATUS note."""
    found: list[Cpu] = []
    for note in segment.iter_notes():
        if note["n_type"] != "NT_PRSTATUS" or note["n_name"] != "CORE":
            continue
        data = note["n_desc"] if isinstance(note["n_desc"], bytes) else note["n_descdata"]
        if len(data) < _STATUS.size:
            continue
        *x, sp, pc, pstate = _STATUS.unpack_from(data)
        found.append(
            Cpu(len(found), {**{f"x{at}": value for at, value in enumerate(x)}, "sp": sp, "pc": pc, "cpsr": pstate})
        )
    return found
