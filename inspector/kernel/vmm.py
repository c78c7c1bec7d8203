"""What backs guest memory: the VMM's own stage-1 tables, read for the address ranges of its memory slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Descriptor, Field, Format, Geometry, Kind, Regime, bulk, decode
from inspector.generations import TRAITS
from inspector.kernel.objects import Kernel
from inspector.kernel.traits import has_trait
from inspector.snapshot import Backing, BackingState
from inspector.tables.intervals import runs

U64 = NDArray[np.uint64]

#: PTE_SPECIAL and PTE_DEVMAP (arch/arm64/include/asm/pgtable-prot.h, up to 6.15): mapped by frame number alone.
_NO_PAGE = 1 << 56 | 1 << 57


@dataclass(frozen=True)
class _Leaves:
    """Entries that end a walk at one level: parallel arrays, ascending by address; ``attrs`` has no address bits."""

    level: int
    va: U64
    pa: U64
    attrs: U64


def _address_field(geometry: Geometry, fmt: Format, level: int) -> Field:
    """Where an entry's address is; blocks that Linux makes have zero below their size, as a table's has."""
    return bulk.address_field(Kind.PAGE if level == 3 else Kind.TABLE, level, geometry, fmt)


def _inside(va: U64, size: int, ranges: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which entries, ``size`` bytes each at ``va``, touch any of ``ranges`` (start, bytes)."""
    result = np.zeros(len(va), np.bool_)
    for start, length in ranges:
        if length:
            result |= (va < np.uint64(start + length)) & (va + np.uint64(size - 1) >= np.uint64(start))
    return result


def _level(
    kernel: Kernel,
    geometry: Geometry,
    fmt: Format,
    level: int,
    tables: U64,
    bases: U64,
    ranges: Sequence[tuple[int, int]],
) -> tuple[_Leaves, list[Backing], U64, U64]:
    """One level of the walk: what ends there (leaves, swap entries), unreadable tables' spans, the next tables."""
    size = geometry.granule
    got = kernel.space.memory.read_many([(int(pa), size) for pa in tables])
    raw = bulk.words(b"".join(g if g is not None else bytes(size) for g in got))
    step = geometry.block_size(level)
    span = step * geometry.entries
    lost = [
        Backing(int(base), span, None, BackingState.UNREADABLE, entry_size=span)
        for base, g in zip(bases, got, strict=True)
        if g is None
    ]
    offsets = np.arange(geometry.entries, dtype=np.uint64) * np.uint64(step)
    va = (bases[:, None] + offsets[None, :]).ravel()
    keep = (raw != 0) & _inside(va, step, ranges)
    raw, va = raw[keep], va[keep]
    is_table = bulk.kinds(raw, level, geometry, fmt) == bulk.KINDS.index(Kind.TABLE)
    ends = ~is_table
    address = _address_field(geometry, fmt, level)
    pa = bulk.field(raw, address)
    attrs = raw & ~np.uint64(address.mask)
    return _Leaves(level, va[ends], pa[ends], attrs[ends]), lost, pa[is_table], va[is_table]


def _walk(kernel: Kernel, root: int, ranges: Sequence[tuple[int, int]], fmt: Format) -> Iterator[Backing]:
    geometry = kernel.space.geometry
    tables, bases = np.array([root], np.uint64), np.zeros(1, np.uint64)
    for level in range(geometry.start_level, 4):
        if not len(tables):
            return
        leaves, lost, tables, bases = _level(kernel, geometry, fmt, level, tables, bases, ranges)
        yield from lost
        if len(leaves.va):
            yield from _runs(leaves, geometry, fmt)


def _entry(descriptor: Descriptor) -> tuple[BackingState, bool, bool, bool]:
    """``(state, readable, writable, special)`` of an entry that is not zero and not a table."""
    if descriptor.kind.is_leaf:
        # AP[1] (EL0 access) of a valid entry; PROT_NONE is present but nothing may touch it.
        return BackingState.PRESENT, descriptor.valid, descriptor.writable, bool(descriptor.raw & _NO_PAGE)
    return BackingState.SWAP, False, False, False


def _runs(leaves: _Leaves, geometry: Geometry, fmt: Format) -> list[Backing]:
    """Runs of entries that continue each other in both address spaces with the same state."""
    size = geometry.block_size(leaves.level)
    kinds, which = np.unique(leaves.attrs, return_inverse=True)
    states = [_entry(decode(int(a), leaves.level, geometry, fmt)) for a in kinds]
    distinct = sorted(set(states))
    label = np.array([distinct.index(s) for s in states])[which]
    present = np.array([s[0] is BackingState.PRESENT for s in distinct])[label]
    result = []
    joined = runs((leaves.va, size), (label, 0), (np.where(present, leaves.pa, leaves.va), size))
    for first, end in zip(*(edge.tolist() for edge in joined), strict=True):
        state, readable, writable, special = distinct[label[first]]
        pa = int(leaves.pa[first]) if state is BackingState.PRESENT else None
        result.append(
            Backing(int(leaves.va[first]), (end - first) * size, pa, state, readable, writable, size, special)
        )
    return result


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


def backing(kernel: Kernel, mm: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[Backing, ...]]:
    """For each of ``ranges`` (host virtual address, bytes) of the process ``mm``: runs that cover it, ascending.

    Entries as in kernel.md 14.3a; the root is ``mm_struct.pgd``, whose level follows from the kernel's actual VA size
    (-1 with 52 bits and 4K pages).  Raises `BadPointer` when the root is not mapped.
    """
    pgd = kernel.space.pa(kernel.space.u64(mm + kernel.member("mm_struct", "pgd").offset))
    fmt = Format(regime=Regime.LINUX_STAGE1, linux_612=has_trait(kernel.symbols, TRAITS["present_invalid_bit11"]))
    runs = sorted(_walk(kernel, pgd, ranges, fmt), key=lambda run: run.hva)
    return [tuple(_covered(runs, at, at + size)) for at, size in ranges]
