"""What the other rooms see of a machine: physical memory, CPU registers, and a stop/resume switch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from inspector.findings import InspectorError


@dataclass(frozen=True)
class RamRange:
    """One range of RAM in the physical address space: ``[start, end)`` in bytes."""

    start: int
    end: int
    name: str


class UnreadableMemory(InspectorError):
    """Physical memory at ``pa`` (``size`` bytes) is not RAM or cannot be read.

    Callers that walk data they do not trust catch this and turn it into a row with a reason.
    """

    def __init__(self, pa: int, size: int, reason: str = "not RAM") -> None:
        super().__init__(f"physical memory {pa:#x}..{pa + size:#x} cannot be read: {reason}")
        self.pa = pa
        self.size = size
        self.reason = reason


def read_each(read: Callable[[int, int], bytes], requests: Iterable[tuple[int, int]]) -> list[bytes | None]:
    """`PhysicalMemory.read_many`, one read after the other."""

    def one(pa: int, size: int) -> bytes | None:
        try:
            return read(pa, size)
        except UnreadableMemory:
            return None

    return [one(pa, size) for pa, size in requests]


class PhysicalMemory(Protocol):
    """Reads of physical memory, the only kind of read there is."""

    @property
    def name(self) -> str:
        """``process`` (the QEMU process's own memory) or ``gdb`` (the stub's physical mode)."""

    @property
    def why_not_faster(self) -> str | None:
        """Why a faster backend is not in use; ``None`` when this is the fastest or was asked for."""

    @property
    def ram(self) -> Sequence[RamRange]:
        """The RAM ranges, ascending, not overlapping."""

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``.  Raises `UnreadableMemory`, or `TargetLost` when the machine is gone."""

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Many reads ``(pa, size)`` in as few round trips as possible; ``None`` where unreadable."""


@dataclass(frozen=True)
class Cpu:
    """One CPU as the stub shows it: ``index`` counts from 0; registers by their architectural name.

    A register that this QEMU does not have is absent from the mapping, never 0.
    """

    index: int
    registers: Mapping[str, int]


class Target(Protocol):
    """A stopped machine."""

    @property
    def memory(self) -> PhysicalMemory: ...

    @property
    def description(self) -> str:
        """One line: how it is attached, which QEMU (version when known), which memory backend."""

    @property
    def kernel_file(self) -> str | None:
        """The path QEMU was given as ``-kernel``, when QEMU runs on this host and it can be told."""

    @property
    def runs_when_left(self) -> bool:
        """Whether `close` will let the machine run: it was found running, or that was asked for."""

    def cpus(self) -> Sequence[Cpu]:
        """Every CPU with its registers, read while stopped."""

    def stop(self) -> None:
        """Stop all CPUs; no effect when stopped."""

    def resume(self) -> None:
        """Let the machine run on; no effect when running."""

    def close(self) -> None:
        """Leave the machine as it was found (running or stopped, physical mode as before), and end gdb."""
