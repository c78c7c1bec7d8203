"""What a walk hands on: tables, entries, problems, ranges, the steps of one translation.

Addresses and sizes are bytes.  Standard library only (columns are numpy arrays, but only a walk makes them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from inspector.codec import Descriptor, Format, Geometry, Kind

if TYPE_CHECKING:
    from inspector.codec.bulk import Flat, Runs, Words

Read = Callable[[int, int], bytes]
"""``read(pa, size)``; an exception that has a ``reason`` says the memory is unreadable."""

ReadMany = Callable[[Sequence[tuple[int, int]]], Sequence[bytes | None]]
"""``read_many([(pa, size), ...])``: the bytes of each, ``None`` where unreadable."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: ``index`` in the table page at ``table_pa``; ``ia`` is the first input address it covers."""

    table_pa: int
    index: int
    level: int
    ia: int
    descriptor: Descriptor

    @property
    def pa(self) -> int:
        """Where the entry itself is."""
        return self.table_pa + 8 * self.index


class ProblemKind(StrEnum):
    """What is wrong, and what became of the entry."""

    UNREADABLE = "unreadable"
    """The table page cannot be read: its subtree is missing."""
    LOOP = "loop"
    """A table entry points at a table above it: not followed."""
    SHARED = "shared"
    """A table entry points at a table that another entry already leads to: not walked again, or, where the other entry
    makes it a table of another level, walked as both."""
    RESERVED = "reserved"
    """A reserved encoding (type bit 0 at level 3, a block at a level that has none)."""
    MISALIGNED = "misaligned"
    """A block with address bits below its size: shown without them."""
    BEYOND_PA = "beyond-pa"
    """An address with more bits than the output address size: shown, a table is not followed."""
    BEYOND_IA = "beyond-ia"
    """A non-zero root entry that no input address reaches."""
    LIMIT = "limit"
    """The walk had read ``max_bytes``: the rest is missing."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a tree that the architecture gives no good meaning to; the walk went on around it.

    Of reserved and misaligned entries, and of addresses beyond the output size, a level tells the first 1,024 of each
    kind, and one more problem, of the level's last table and with neither index nor value, says how many there are.
    The place is the entry (``table_pa``, ``index``, ``level``, ``raw``); for a root page that cannot be read
    ``table_pa`` is that page and ``index`` and ``raw`` are ``None``.
    """

    kind: ProblemKind
    table_pa: int
    index: int | None
    level: int
    ia: int
    raw: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table page: its bytes, the first input address it covers, and the entry that leads to it (roots: ``None``).

    ``raw`` is one granule, or less for the small root of a stage 1.
    """

    pa: int
    level: int
    ia: int
    parent_pa: int | None
    parent_index: int | None
    raw: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class Level:
    """The tables of one level as columns, in order of input address: row by row what `Table` holds.

    A big guest has thousands of tables: whoever works on all of them uses these.  ``parent_row`` is the parent's
    row in the level above, -1 for roots.  ``find_leaves`` is what `leaves` asks, once.
    """

    level: int
    pa: Words
    ia: Words
    parent_row: Flat
    parent_index: Flat
    raw: Sequence[bytes] = field(repr=False)
    find_leaves: Callable[[], Runs | None] = field(repr=False)

    @cached_property
    def leaves(self) -> Runs | None:
        """Runs of leaves, their positions counted in the entries that input addresses reach, from the level's first;
        they may go on from one table to the next.
        """
        return self.find_leaves()


@dataclass(frozen=True)
class Tree:
    """Every table that a root leads to, and what was wrong (in order of input address).

    ``levels`` holds the tables by level, from the start level down; a level without tables is absent.
    """

    geometry: Geometry
    format: Format
    root_pa: int
    levels: tuple[Level, ...] = field(repr=False)
    problems: tuple[Problem, ...]

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """The tables in walk order: depth first, as the kernel visits them."""
        found: list[Table] = []
        above: Level | None = None
        for at in self.levels:
            parent_pa: list[int | None] = [None] * len(at.raw)
            parent_index: list[int | None] = [None] * len(at.raw)
            if above is not None:
                parent_pa, parent_index = above.pa[at.parent_row].tolist(), at.parent_index.tolist()
            rows = zip(at.pa.tolist(), at.ia.tolist(), parent_pa, parent_index, at.raw, strict=True)
            found += [Table(pa, at.level, ia, parent, index, raw) for pa, ia, parent, index, raw in rows]
            above = at
        found.sort(key=lambda table: (table.ia, table.level))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Range:
    """Leaves of one level, contiguous in input and output address, equal in every other bit (AF included).

    ``attrs`` is the first leaf; ``leaves`` how many there are; ``size`` their bytes together.
    """

    ia: int
    size: int
    pa: int
    level: int
    attrs: Descriptor
    leaves: int


@dataclass(frozen=True, slots=True)
class Step:
    """One level of a translation: the entry that was used and where it is."""

    level: int
    root_page: int | None
    table_pa: int
    index: int
    entry_pa: int
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class Translation:
    """How one input address translates: ``pa`` is ``None`` unless a leaf was reached.

    ``failed`` is why no entry ended it, in words.
    """

    ia: int
    steps: tuple[Step, ...]
    pa: int | None
    failed: str = ""

    @property
    def verdict(self) -> str:
        """What became of it, in words."""
        if self.failed:
            return self.failed
        last = self.steps[-1].descriptor
        level, address = last.level, last.output_address
        if self.pa is None:
            if last.kind is Kind.RESERVED:
                return f"reserved encoding at level {level}: translation fault"
            if address is not None:
                bits = last.geometry.pa_bits
                return f"address size fault at level {level}: PA {address:#x} has more than {bits} bits"
            return f"not mapped: {last.describe() if last.raw else 'invalid entry'} at level {level}"
        place = f"{last.kind.value} at PA {self.pa:#x} (level {level}"
        if not last.valid:
            return f"present but not valid: {place}; PROT_NONE or being changed)"
        flag = "" if last.af else ", access flag clear"
        return f"mapped: {place}, {last.permissions}, {last.memory_type}){flag}"
