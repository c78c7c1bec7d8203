"""The page of the host that a guest's fault is about: obtained once, let go once (R3 of docs/invariants.md).

`user_mem_abort` (arch/arm64/kvm/mmu.c) obtains it, maps it and lets its own reference go.  Up to 6.12 that is by frame,
on every way out; where a huge page of the host is mapped by a block, that is the block's first, for which
`transparent_hugepage_adjust` of 6.1 first lets the other go.  From 6.13 on it is by page where the mapping was made,
and else by an inlined `put_page`, of which nothing is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from inspector.events import RawEvent
from inspector.protocol.rules import Violation

_BLOCK_SHIFT: Final = 3
"""A table has 2^(shift - 3) entries."""


@dataclass(frozen=True)
class Done:
    """What a fault did to its guest's table: ``frame`` is that which was mapped (``None``: permissions were relaxed),
    ``pages`` how many of the host's size, ``counted``: it is memory, and not a device's; ``ret`` what it returned.
    """

    frame: int | None
    pages: int
    counted: bool
    ret: int


@dataclass
class Fault:
    """One fault on its way: what it obtained and let go, and what it did."""

    cpu: int
    obtained: list[int] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)


def unbalanced(fault: Fault, page_shift: int, *, by_frame: bool) -> str | None:
    """What is wrong with what a fault let go; ``None``: nothing, or it is not known."""
    if len(fault.obtained) != 1 or len(fault.done) > 1:
        return None
    (frame,), done = fault.obtained, next(iter(fault.done), None)
    return _by_frame(fault, frame, done, page_shift) if by_frame else _by_page(fault, frame, done)


def _by_page(fault: Fault, frame: int, done: Done | None) -> str | None:
    if done is None or done.ret or not done.counted or len(fault.released) == 1:
        return None
    return f"the fault mapped frame {frame:#x}, and let it go {len(fault.released)} times"


def _by_frame(fault: Fault, frame: int, done: Done | None, page_shift: int) -> str | None:
    first = frame & -(1 << page_shift - _BLOCK_SHIFT)
    if done is None:
        # Of a device's memory, of which nothing is counted, it lets nothing go on some ways out.
        legal: Sequence[list[int]] = ([frame], [first], [frame, first], [])
    elif done.frame is None or done.frame == frame:
        legal = ([frame], [frame, frame]) if done.pages > 1 else ([frame],)
    else:
        legal = ([done.frame], [frame, done.frame])
    if fault.released in legal or (done is not None and not done.counted and not fault.released):
        return None
    told = ", ".join(f"{each:#x}" for each in fault.released) or "nothing"
    mapped = f", mapped {done.frame:#x}" if done is not None and done.frame is not None else ""
    return f"the fault obtained frame {frame:#x}{mapped}, and let go of {told}"


def not_let_go(fault: Fault, what: str, event: RawEvent) -> Violation:
    """The fault's end, with what it did not let go, or too often."""
    frame = fault.obtained[0]
    return Violation("R3", what, f"frame {frame:#x} of the host", "the fault ends", fault.cpu, "user_mem_abort", event)
