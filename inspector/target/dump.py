"""What a dump holds, in whatever format it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from inspector.target.api import Cpu, RamRange

CORE: Final = "core"
"""The name of the memory backend."""
LEFT_OUT: Final = "left out of the dump"
"""The reason that `UnreadableMemory` gives for RAM that the machine had and the dump has not."""


@dataclass(frozen=True)
class Dump:
    """``read(pa, size)`` raises `UnreadableMemory`; ``ram`` is what the machine had, ``left_out`` how many bytes of it
    whoever wrote the dump chose to leave out (free pages, say); ``notes`` are sentences on the dump as a whole;
    ``live``: the kernel runs on while it is read.
    """

    read: Callable[[int, int], bytes]
    ram: tuple[RamRange, ...]
    cpus: tuple[Cpu, ...]
    left_out: int
    notes: tuple[str, ...]
    live: bool = False
