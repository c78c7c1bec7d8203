"""What backs guest memory: the VMM's own stage-1 tables, read for the address ranges of its memory slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from inspector.codec import Descriptor, Format, Regime
from inspector.generations import TRAITS
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import KernelSpace
from inspector.kernel.traits import has_trait
from inspector.snapshot import Backing, BackingState
from inspector.tables import ProblemKind, Tree, walk_tree
from inspector.tables.columns import columns_of
from inspector.tables.intervals import Intervals, runs

#: PTE_SPECIAL and PTE_DEVMAP (arch/arm64/include/asm/pgtable-prot.h, up to 6.15): mapped by frame number alone.
_NO_PAGE = 1 << 56 | 1 << 57

_State = tuple[BackingState, bool, bool, bool]


def _state(entry: Descriptor) -> _State:
    """``(state, readable, writable, special)`` of an entry that is not zero and not a table."""
    if entry.kind.is_leaf:
        # AP[1] (EL0 access) of a valid entry; PROT_NONE is present but nothing may touch it.
        return BackingState.PRESENT, entry.valid, entry.writable, bool(entry.raw & _NO_PAGE)
    return BackingState.SWAP, False, False, False


def _lost(tree: Tree) -> Iterator[Backing]:
    """What lies behind tables that cannot be read."""
    for problem in tree.problems:
        if problem.kind is ProblemKind.UNREADABLE:
            level = tree.geometry.start_level - 1 if problem.index is None else problem.level
            span = tree.geometry.block_size(level)
            yield Backing(problem.ia, span, None, BackingState.UNREADABLE, entry_size=span)


def _runs(tree: Tree) -> Iterator[Backing]:
    """Runs of entries that continue each other in both address spaces with the same size and state."""
    columns = columns_of(tree)
    states: list[tuple[int, _State]] = [(pattern.level, _state(pattern)) for pattern in columns.patterns]
    distinct = sorted(set(states))
    at = np.flatnonzero(~columns.table)
    at = at[np.argsort(columns.ia[at], kind="stable")]
    label = np.array([distinct.index(state) for state in states], dtype=np.intp)[columns.pattern[at]]
    present = np.array([state[0] is BackingState.PRESENT for _, state in distinct], dtype=bool)[label]
    ia, size, pa = columns.ia[at], columns.size[at], columns.output[at]
    starts, ends = runs((ia, size), (label, 0), (np.where(present, pa, ia), size))
    for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
        state, readable, writable, special = distinct[label[first]][1]
        start = int(pa[first]) if state is BackingState.PRESENT else None
        one = int(size[first])
        yield Backing(int(ia[first]), (end - first) * one, start, state, readable, writable, one, special)


def _clip(run: Backing, start: int, end: int) -> Backing | None:
    low, high = max(run.hva, start), min(run.hva + run.size, end)
    if low >= high:
        return None
    pa = None if run.pa is None else run.pa + low - run.hva
    return Backing(low, high - low, pa, run.state, run.readable, run.writable, run.entry_size, run.special)


def _covered(runs: Sequence[Backing], start: int, end: int) -> Iterator[Backing]:
    """The parts of ``runs`` inside ``[start, end)``, with the holes between them as runs of their own."""
    at = start
    for run in runs:
        part = _clip(run, start, end)
        if part is None:
            continue
        if at < part.hva:
            yield Backing(at, part.hva - at, None, BackingState.NONE)
        yield part
        at = part.hva + part.size
    if at < end:
        yield Backing(at, end - at, None, BackingState.NONE)


def backing(kernel: HostKernel, mm: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[Backing, ...]]:
    """For each of ``ranges`` (host virtual address, bytes) of the process ``mm``: runs that cover it, ascending.

    Entries as in kernel.md 14.3a; the root is ``mm_struct.pgd``, whose level follows from the kernel's actual VA size
    (-1 with 52 bits and 4K pages).  Raises `BadPointer` when the root is not mapped.
    """
    pgd = kernel.space.pa(kernel.space.pointer(mm + kernel.member("mm_struct", "pgd").offset))
    fmt = Format(regime=Regime.LINUX_STAGE1, linux_612=has_trait(kernel.symbols, TRAITS["present_invalid_bit11"]))
    return read_runs(kernel.space, pgd, fmt, [(start, start + size) for start, size in ranges])


def read_runs(
    space: KernelSpace, root: int, fmt: Format, wanted: Sequence[tuple[int, int]]
) -> list[tuple[Backing, ...]]:
    """For each of ``wanted`` (start, end): runs that cover it, ascending, of the stage-1 table at PA ``root``."""
    found = _behind(space, root, fmt, wanted)
    return [tuple(_covered(runs, start, end)) for runs, (start, end) in zip(found, wanted, strict=True)]


def _behind(space: KernelSpace, root: int, fmt: Format, wanted: Sequence[tuple[int, int]]) -> list[Sequence[Backing]]:
    """Runs that are behind each of ``wanted`` (start, end), and more, ascending.

    Two mappings of one hugetlb file may share a table (``huge_pmd_share``), and a walk takes a table that is met again
    for damage: then each range has its own walk.
    """
    tree = walk_tree(space.memory.read_many, root, space.geometry, fmt, within=Intervals.of(wanted))
    if len(wanted) > 1 and any(problem.kind is ProblemKind.SHARED for problem in tree.problems):
        return [runs for one in wanted for runs in _behind(space, root, fmt, [one])]
    return [sorted([*_runs(tree), *_lost(tree)], key=lambda run: run.hva)] * len(wanted)
