"""A machine that is a file: physical memory and general registers of a core dump, or of a running kernel's /proc/kcore.

drgn reads it (PyPI; an extra of ours, ``core``): ELF dumps of QEMU's ``dump-guest-memory`` and of kdump, /proc/kcore.
Which physical addresses are there is told by the ELF program headers.  System registers are in no dump: what is needed
of them the kernel's own memory tells (`inspector.kernel.idregs`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from inspector.findings import BadInput
from inspector.target.api import Cpu, RamRange, UnreadableMemory, read_each
from inspector.target.ranges import RamMap

_MACHINE: Final = "EM_AARCH64"
_KCORE: Final = "/proc/kcore"
_COMPRESSED: Final = (b"KDUMP   ", b"makedumpfile")
_STATUS: Final = struct.Struct("<112x34Q")
"""``struct elf_prstatus``: 112 bytes, then x0 to x30, sp, pc, pstate (include/linux/elfcore.h, asm/ptrace.h, 6.12)."""


class CoreMemory:
    """`PhysicalMemory` of a dump."""

    name = "core"
    why_not_faster = None

    def __init__(self, program: Any, ram: Sequence[RamRange]) -> None:
        self._program = program
        self._map = RamMap(ram)

    @property
    def ram(self) -> Sequence[RamRange]:
        return self._map.ranges

    def read(self, pa: int, size: int) -> bytes:
        if not self._map.holds(pa, size):
            raise UnreadableMemory(pa, size, "not in the dump")
        try:
            data: bytes = self._program.read(pa, size, True)
        except Exception as error:  # drgn's FaultError, and what its readers raise at the end of a file
            raise UnreadableMemory(pa, size, f"left out of the dump: {error}") from error
        return data

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return read_each(self.read, requests)


class CoreTarget:
    """`Target` of a dump, which stands still for ever."""

    kernel_file = None
    runs_when_left = False

    def __init__(self, path: str, memory: CoreMemory, cpus: Sequence[Cpu], missing: int) -> None:
        self._path = path
        self._memory = memory
        self._cpus = tuple(cpus)
        self._missing = missing

    def __enter__(self) -> CoreTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def memory(self) -> CoreMemory:
        return self._memory

    @property
    def description(self) -> str:
        return f"the dump {Path(self._path).name}"

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of the dump itself."""
        found = ["the dump has no system registers: features are those that the kernel found"]
        if self._missing:
            found.append(f"the dump ends early: {self._missing >> 10} KiB of memory that it names are not in the file")
        return found

    def cpus(self) -> Sequence[Cpu]:
        return self._cpus

    def stop(self) -> None:
        """It stands."""

    def resume(self) -> None:
        """It cannot."""

    def close(self) -> None:
        """drgn closes the file when nobody has the program."""


@contextmanager
def opened(path: str, progress: Callable[[str], None]) -> Iterator[CoreTarget]:
    """The machine in the dump at ``path``.  Raises `BadInput` with one sentence for what is none."""
    try:
        import drgn
    except ImportError:
        raise BadInput(
            "a dump is read by drgn, which is not installed: pip install 'kvm-stage2-inspector[core]'"
        ) from None
    progress(f"opening {path}")
    ram, cpus, missing = _elf(path)
    program = drgn.Program()
    try:
        program.set_core_dump(path)
    except Exception as error:  # drgn raises ValueError, OSError and its own
        raise BadInput(f"{path} cannot be read as a dump: {error}") from None
    yield CoreTarget(path, CoreMemory(program, ram), cpus, missing)


def _elf(path: str) -> tuple[list[RamRange], list[Cpu], int]:
    """RAM, CPUs, and bytes that the headers promise beyond the file's end."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(12)
            if head.startswith(_COMPRESSED):
                raise BadInput(
                    f"{path} is a compressed dump: make an ELF one of it (makedumpfile -E, or makedumpfile -R)"
                )
            file.seek(0)
            elf = ELFFile(file)
            if elf["e_type"] != "ET_CORE":
                raise BadInput(f"{path} is an ELF file, but no core dump")
            if elf["e_machine"] != _MACHINE or elf.elfclass != 64 or not elf.little_endian:
                raise BadInput(f"{path} is a dump of {elf.get_machine_arch()}, not of a little-endian AArch64 machine")
            end = file.seek(0, 2) if path != _KCORE else None
            ram: list[RamRange] = []
            cpus: list[Cpu] = []
            missing = 0
            for segment in elf.iter_segments():
                header = segment.header
                if header.p_type == "PT_LOAD" and header.p_filesz and header.p_paddr != (1 << 64) - 1:
                    ram.append(RamRange(header.p_paddr, header.p_paddr + header.p_filesz, f"core {len(ram)}"))
                    if end is not None:
                        missing += max(0, min(header.p_filesz, header.p_offset + header.p_filesz - end))
                elif header.p_type == "PT_NOTE":
                    cpus += _cpus(segment)
    except PermissionError:
        raise BadInput(f"{path} may not be read: be root") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except (ELFError, ValueError, KeyError, struct.error, UnicodeDecodeError):
        raise BadInput(f"{path} is no ELF core dump, or a damaged one") from None
    if not any(one.end > one.start for one in ram):
        raise BadInput(f"{path} holds no physical memory: dump the whole machine (dump-guest-memory, kdump)")
    return _apart(ram), [Cpu(number, cpu.registers) for number, cpu in enumerate(cpus)], missing


def _apart(ram: Sequence[RamRange]) -> list[RamRange]:
    """Ascending, without what an earlier one has already: /proc/kcore names some memory twice."""
    found: list[RamRange] = []
    for one in sorted(ram, key=lambda one: (one.start, -one.end)):
        start = max(one.start, found[-1].end) if found else one.start
        if start < one.end:
            found.append(RamRange(start, one.end, one.name))
    return found


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
