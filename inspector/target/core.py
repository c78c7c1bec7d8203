"""A machine that is a file: physical memory and general registers of a dump, or of a running kernel's /proc/kcore.

drgn and the libkdumpfile that it brings read it (PyPI; an extra of ours, ``core``): ELF dumps (`elf_dump`) and
compressed ones (`kdump`).  System registers are in no dump: what is needed of them the kernel's own memory tells
(`inspector.kernel.idregs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from inspector.findings import BadInput
from inspector.target.api import Cpu, RamRange, UnreadableMemory, read_each
from inspector.target.dump import CORE, Dump
from inspector.target.ranges import RamMap


class CoreMemory:
    """`PhysicalMemory` of a dump."""

    name = CORE
    why_not_faster = None

    def __init__(self, dump: Dump) -> None:
        self._read = dump.read
        self._map = RamMap(dump.ram)

    @property
    def ram(self) -> Sequence[RamRange]:
        return self._map.ranges

    def had(self, pa: int) -> bool:
        """Whether the machine had RAM at ``pa``, be it in the dump or not."""
        return self._map.holds(pa, 1)

    def read(self, pa: int, size: int) -> bytes:
        if not self._map.holds(pa, size):
            raise UnreadableMemory(pa, size, "not in the dump")
        return self._read(pa, size)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return read_each(self.read, requests)


class CoreTarget:
    """`Target` of a dump, which stands still for ever."""

    kernel_file = None
    runs_when_left = False

    def __init__(self, path: str, dump: Dump) -> None:
        self._path = path
        self._dump = dump
        self._memory = CoreMemory(dump)

    def __enter__(self) -> CoreTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def dump(self) -> Dump:
        """What is read."""
        return self._dump

    @property
    def memory(self) -> CoreMemory:
        return self._memory

    @property
    def description(self) -> str:
        return f"the dump {Path(self._path).name}"

    @property
    def notes(self) -> Sequence[str]:
        """What a reader must know of the dump itself."""
        return ["the dump has no system registers: features are those that the kernel found", *self.incomplete]

    @property
    def incomplete(self) -> Sequence[str]:
        """In what way the dump has not all of the machine's memory, in sentences."""
        if not self._dump.left_out:
            return self._dump.notes
        had = sum(one.end - one.start for one in self._dump.ram)
        left_out = f"{self._dump.left_out >> 10} KiB of {had >> 10} KiB of memory were left out of the dump"
        return [left_out, *self._dump.notes]

    def cpus(self) -> Sequence[Cpu]:
        return self._dump.cpus

    def stop(self) -> None:
        """It stands."""

    def resume(self) -> None:
        """It cannot."""

    def close(self) -> None:
        """`opened` closes the file."""


@contextmanager
def opened(path: str, progress: Callable[[str], None]) -> Iterator[CoreTarget]:
    """The machine in the dump at ``path``.  Raises `BadInput` with one sentence for what is none."""
    try:
        import drgn  # noqa: F401 - both readers need it
    except ImportError:
        raise BadInput(
            "a dump is read by drgn, which is not installed: pip install 'kvm-stage2-inspector[core]'"
        ) from None
    from inspector.target import elf_dump, kdump

    progress(f"opening {path}")
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
    except PermissionError:
        raise BadInput(f"{path} may not be read: be root (and /proc/kcore is closed under kernel lockdown)") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    reader = kdump if head.startswith((kdump.SIGNATURE, kdump.FLATTENED)) else elf_dump
    with reader.opened(path) as dump:
        yield CoreTarget(path, dump)
