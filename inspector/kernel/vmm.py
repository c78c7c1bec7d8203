"""What backs guest memory: the VMM's own stage-1 tables, read for the address ranges of its memory slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inspector.backing import KNOWN, READABLE, ROW, SPECIAL, STATES, WRITABLE, BackingRuns, Rows
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

#: Columns that tell a run from its neighbours, beside its addresses.
_ALIKE = ("state", "flags", "entry_size")


def _state(entry: Descriptor) -> tuple[int, int]:
    """State and flags (see `inspector.backing.ROW`) of an entry that is not zero and not a table."""
    if not entry.kind.is_leaf:
        return STATES.index(BackingState.SWAP), 0
    # AP[1] (EL0 access) of a valid entry; PROT_NONE is present but nothing may touch it.
    rights = entry.valid * READABLE | entry.writable * WRITABLE
    return STATES.index(BackingState.PRESENT), KNOWN | rights | bool(entry.raw & _NO_PAGE) * SPECIAL


def _lost(tree: Tree) -> list[Backing]:
    """What lies behind tables that cannot be read."""
    found = []
    for problem in tree.problems:
        if problem.kind is ProblemKind.UNREADABLE:
            level = tree.geometry.start_level - 1 if problem.index is None else problem.level
            span = tree.geometry.block_size(level)
            found.append(Backing(problem.ia, span, None, BackingState.UNREADABLE, entry_size=span))
    return found


def _merged(rows: Rows) -> Rows:
    """Neighbours that continue each other in both address spaces, alike in all else, as one."""
    known = rows["flags"] & KNOWN != 0
    goes_on = np.where(known, rows["pa"], rows["hva"])
    alike = [(rows[name], 0) for name in _ALIKE]
    first, _ = runs((rows["hva"], rows["size"]), (goes_on, rows["size"]), *alike)
    if len(first) == len(rows):
        return rows
    found = rows[first]
    found["size"] = np.add.reduceat(rows["size"], first)
    return found


def _runs(tree: Tree) -> Rows:
    """Runs of entries that continue each other in both address spaces with the same size and state, ascending.

    Looked for in some entries at a time: those of a big guest are not all laid out at once.
    """
    found = [np.zeros(0, dtype=ROW)]
    for part in columns_of(tree).pieces():
        entries = part.at(~part.table)
        states = np.array([_state(pattern) for pattern in entries.patterns], dtype=np.uint8).reshape(-1, 2)
        rows = np.zeros(len(entries.raw), dtype=ROW)
        rows["hva"], rows["size"], rows["entry_size"] = entries.ia, entries.size, entries.size
        rows["state"], rows["flags"] = states[entries.pattern].T
        rows["pa"] = np.where(rows["flags"] & KNOWN != 0, entries.output, np.uint64(0))
        found.append(_merged(rows) if len(rows) else rows)
    # Pieces come level by level; a level is in order by itself.
    rows = np.concatenate([*found, BackingRuns.of(_lost(tree)).rows])
    return rows[np.argsort(rows["hva"], kind="stable")]


def _covered(rows: Rows, start: int, end: int) -> BackingRuns:
    """The parts of ``rows`` inside ``[start, end)``, with the holes between them as runs of their own."""
    first, last = np.uint64(start), np.uint64(end)
    rows = rows[(rows["hva"] < last) & (rows["hva"] + rows["size"] > first)]
    low, high = np.maximum(rows["hva"], first), np.minimum(rows["hva"] + rows["size"], last)
    rows["pa"] += np.where(rows["flags"] & KNOWN != 0, low - rows["hva"], np.uint64(0))
    rows["hva"], rows["size"] = low, high - low
    before, after = np.concatenate(([first], high)), np.concatenate((low, [last]))
    at = np.flatnonzero(before < after)
    holes = np.zeros(len(at), dtype=ROW)
    holes["hva"], holes["size"], holes["state"] = before[at], after[at] - before[at], STATES.index(BackingState.NONE)
    return BackingRuns(np.insert(rows, at, holes) if len(at) else rows)


def backing(kernel: HostKernel, mm: int, ranges: Sequence[tuple[int, int]]) -> list[BackingRuns]:
    """For each of ``ranges`` (host virtual address, bytes) of the process ``mm``: runs that cover it, ascending.

    Entries as in kernel.md 14.3a; the root is ``mm_struct.pgd``, whose level follows from the kernel's actual VA size
    (-1 with 52 bits and 4K pages).  Raises `BadPointer` when the root is not mapped.
    """
    pgd = kernel.space.pa(kernel.space.pointer(mm + kernel.member("mm_struct", "pgd").offset))
    fmt = Format(regime=Regime.LINUX_STAGE1, linux_612=has_trait(kernel.symbols, TRAITS["present_invalid_bit11"]))
    return read_runs(kernel.space, pgd, fmt, [(start, start + size) for start, size in ranges])


def read_runs(space: KernelSpace, root: int, fmt: Format, wanted: Sequence[tuple[int, int]]) -> list[BackingRuns]:
    """For each of ``wanted`` (start, end): runs that cover it, ascending, of the stage-1 table at PA ``root``."""
    found = _behind(space, root, fmt, wanted)
    return [_covered(runs, start, end) for runs, (start, end) in zip(found, wanted, strict=True)]


def _behind(space: KernelSpace, root: int, fmt: Format, wanted: Sequence[tuple[int, int]]) -> list[Rows]:
    """Runs that are behind each of ``wanted`` (start, end), and more, ascending.

    Two mappings of one hugetlb file may share a table (``huge_pmd_share``), and a walk takes a table that is met again
    for damage: then each range has its own walk.
    """
    tree = walk_tree(space.memory.read_many, root, space.geometry, fmt, within=Intervals.of(wanted))
    if len(wanted) > 1 and any(problem.kind is ProblemKind.SHARED for problem in tree.problems):
        return [runs for one in wanted for runs in _behind(space, root, fmt, [one])]
    return [_merged(_runs(tree))] * len(wanted)
