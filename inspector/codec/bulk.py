"""The numpy side of the codec: the same rules and field tables, applied to whole arrays of entries.

Not imported by the package itself: the interpreter inside gdb has no numpy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inspector.codec.bits import WORD, Field
from inspector.codec.formats import Format, Kind
from inspector.codec.geometry import Geometry
from inspector.codec.layouts import Rule, rules

Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]
Flat = NDArray[np.intp]


KINDS: tuple[Kind, ...] = tuple(Kind)
"""Kind by the code that `kinds` gives."""

_CODE = {kind: code for code, kind in enumerate(KINDS)}


def words(raw: bytes | bytearray | memoryview) -> Words:
    """Little-endian table memory as an array of entries, without a copy."""
    return np.frombuffer(raw, dtype="<u8")


_spare: list[Words] = []


@contextmanager
def scratch(size: int) -> Iterator[Words]:
    """Memory for so many entries, with anything in it, for use in the ``with`` only.

    It is kept for the next use: a page fault for every 4 KiB of fresh memory takes longer than the work done in it.
    """
    try:
        memory = _spare.pop()
    except IndexError:
        memory = np.empty(0, dtype=np.uint64)
    if memory.size < size:
        memory = np.empty(size, dtype=np.uint64)
    try:
        yield memory[:size]
    finally:
        _spare.append(memory)


def gather(tables: Sequence[bytes], size: int, memory: Words) -> Words:
    """The first ``size`` bytes of each table end to end in ``memory``; what is returned is a part of it."""
    struct.pack_into(f"{size}s" * len(tables), memory.data, 0, *tables)
    return memory[: len(tables) * size // 8]


@dataclass(frozen=True)
class Summary:
    """What is known of a whole array from two passes: the bits ``every`` entry has, and those ``some`` entry has."""

    every: int
    some: int

    def excludes(self, rule: Rule) -> bool:
        """No entry can satisfy the rule."""
        if rule.negate:
            return not (self.every ^ rule.value) & rule.mask and not (self.some ^ rule.value) & rule.mask
        return bool(self.every & rule.mask & ~rule.value or rule.value & ~self.some)

    def implies(self, rule: Rule) -> bool:
        """Every entry satisfies the rule."""
        return not rule.negate and not ((self.every ^ rule.value) | (self.some ^ rule.value)) & rule.mask


def summary(raw: Words) -> Summary:
    """The summary of an array; of an empty one, as if it held a zero."""
    if not raw.size:
        return Summary(0, 0)
    return Summary(int(np.bitwise_and.reduce(raw)), int(np.bitwise_or.reduce(raw)))


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Entries in order as runs, the entries of which differ in output address only.

    In a run each entry is the one before plus the size of a leaf, without a carry out of the address field (or all
    are zero).  So what a `Rule` says of the first is true of all, and of their addresses the last one's is the highest.
    Runs need not be the longest possible.  Columns: ``start`` (a position), ``count``, ``first`` and ``last`` entry.
    """

    start: Flat
    count: Flat
    first: Words
    last: Words

    def where(self, chosen: Flags) -> Runs:
        """Only the runs that a mask chooses."""
        return Runs(self.start[chosen], self.count[chosen], self.first[chosen], self.last[chosen])

    @classmethod
    def joined(cls, parts: Sequence[tuple[int, Runs]]) -> Runs:
        """The runs of consecutive pieces, each with the position at which the piece starts."""
        return cls(
            np.concatenate([runs.start + before for before, runs in parts]),
            np.concatenate([runs.count for _, runs in parts]),
            np.concatenate([runs.first for _, runs in parts]),
            np.concatenate([runs.last for _, runs in parts]),
        )


def find_runs(raw: Words, shift: int, address: Field) -> Runs:
    """The runs of at least one and at most ``2**(64 - shift)`` entries.

    ``1 << shift`` is the size of a leaf, ``address`` its output address field.
    """
    between = raw.size - 1
    with scratch(raw.size + between // 8 + 1) as memory:
        difference, apart = memory[:between], memory[raw.size :].view(np.bool_)[:between]
        np.subtract(raw[1:], raw[:-1], out=difference)
        np.not_equal(difference, np.uint64(1 << shift), out=apart)
        (edge,) = apart.nonzero()
        if edge.size > raw.size >> 3:
            # Mostly not mapped: another pass spares making a run of every zero.
            np.bitwise_or(raw[1:], raw[:-1], out=difference)
            edge = edge[difference[edge] != 0]
    bounds = np.empty(edge.size + 2, dtype=np.intp)
    bounds[0], bounds[-1] = 0, raw.size
    np.add(edge, 1, out=bounds[1:-1])
    start = bounds[:-1]
    first, last = raw[start], raw[bounds[1:] - 1]
    if ((first ^ last) & np.uint64(WORD & ~address.parts[0].mask)).any():
        return Runs(np.arange(raw.size), np.ones(raw.size, dtype=np.intp), raw.copy(), raw.copy())
    return Runs(start, bounds[1:] - start, first, last)


def _holds(raw: Words, rule: Rule) -> Flags:
    masked: Words = raw & np.uint64(rule.mask)
    value = np.uint64(rule.value)
    holds: Flags = (masked != value) if rule.negate else (masked == value)
    return holds


def kinds(raw: Words, level: int, geometry: Geometry, fmt: Format) -> NDArray[np.uint8]:
    """The kind of every entry, as an index into `KINDS`: `layouts.classify` for an array."""
    result = np.zeros(raw.shape, dtype=np.uint8)
    for rule in reversed(rules(level, geometry, fmt)):
        result[_holds(raw, rule)] = _CODE[rule.kind]
    return result


@lru_cache(maxsize=256)
def exact_rules(kind: Kind, level: int, geometry: Geometry, fmt: Format) -> tuple[Rule, ...]:
    """The rules that make an entry of ``kind``, each sufficient by itself.

    Only for TABLE, BLOCK, PAGE and RESERVED, whose rules are exact (see `layouts.rules`): it saves the passes over
    the other kinds.
    """
    if kind not in (Kind.TABLE, Kind.BLOCK, Kind.PAGE, Kind.RESERVED):
        raise ValueError(f"the rules for {kind.value} entries are not exact by themselves")
    return tuple(rule for rule in rules(level, geometry, fmt) if rule.kind is kind)


def are(raw: Words, known: Summary, which: tuple[Rule, ...]) -> Flags | bool:
    """Which entries satisfy one of the rules (from `exact_rules`); a plain bool where all or none do."""
    found: Flags | bool = False
    for rule in which:
        if known.implies(rule):
            return True
        if not known.excludes(rule):
            holds = _holds(raw, rule)
            found = holds if found is False else found | holds
    return found


def some_are(raw: Words, known: Summary, which: tuple[Rule, ...]) -> bool:
    """Whether any entry satisfies one of the rules."""
    found = are(raw, known, which)
    return found if isinstance(found, bool) else bool(found.any())


def leaf_kind(level: int) -> Kind:
    """The kind of a leaf at ``level``."""
    return Kind.PAGE if level == 3 else Kind.BLOCK


def field(raw: Words, which: Field) -> Words:
    """One field of every entry: `Field.get` for an array."""
    value = np.zeros(raw.shape, dtype=np.uint64)
    for part in which.parts:
        value |= (raw & np.uint64(part.mask)) >> np.uint64(part.lo) << np.uint64(part.at)
    return value
