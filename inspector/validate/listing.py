"""The kernel's own listing of a stage-2 table (debugfs, ``stage2_page_tables``) held against a walk of ours.

CONFIG_PTDUMP_STAGE2_DEBUGFS, from 6.11: arch/arm64/kvm/ptdump.c and note_page() of arch/arm64/mm/ptdump.c, as they
are in 6.12.117, 7.2.12 and 7.3.4.  A row is a run of entries of one level with the same attributes, invalid ones
included; output addresses are not told.  What a release prints otherwise than it means is recognised in the listing:

- 6.12's column ``X`` is the wrong way round: it stands where XN is set.  7.2 has ``px ux``, ``PXNUXN`` … in its place.
- 6.12 and 7.2 do not print the last run.
- 6.12 goes on from where it was when a listing is longer than the buffer of its file, and begins again: no heading
  then, and a first row that begins where the last run did.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from inspector.codec import Descriptor, Execute, Kind, decoder
from inspector.tables import Tree

_ROW: Final = re.compile(r"0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16}) +\d+[KMGTPE] (\d)(.*)")
_HEADING: Final = "---["
_X: Final = {
    frozenset({"px", "ux"}): Execute.ALL,
    frozenset({"PXNux"}): Execute.UNPRIVILEGED,
    frozenset({"PXNUXN"}): Execute.NEVER,
    frozenset({"px", "UXN"}): Execute.PRIVILEGED,
}
_COLUMNS: Final = frozenset({"F", "R", "W", "X", "AF", "BLK"}).union(*_X)


@dataclass(frozen=True)
class Leaf:
    """What a row tells of its entries; `None` in its place is an invalid entry."""

    readable: bool
    writable: bool
    executable: str
    accessed: bool
    block: bool

    def __str__(self) -> str:
        flags = ("R" if self.readable else "-") + ("W" if self.writable else "-") + self.executable
        return f"{flags}{' AF' if self.accessed else ''} {'block' if self.block else 'page'}"


@dataclass(frozen=True)
class Run:
    """Bytes from ``start`` to ``end``, of entries of one level."""

    start: int
    end: int
    level: int
    leaf: Leaf | None

    def __str__(self) -> str:
        return f"level {self.level} {'invalid' if self.leaf is None else self.leaf}"


@dataclass(frozen=True)
class Listing:
    """The rows of one table; ``split_x`` where execution is told for EL1 and EL0 each (7.2 and 7.3)."""

    runs: tuple[Run, ...]
    split_x: bool


@dataclass(frozen=True)
class Mismatch:
    """Where the two do not agree."""

    start: int
    end: int
    ours: Run | None
    kernels: Run | None

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"IPA {self.start:#x}-{self.end:#x}"
        yield f"  the kernel's listing: {self.kernels or 'nothing'}"
        yield f"  its tables, as read:  {self.ours or 'nothing'}"


@dataclass(frozen=True)
class Compared:
    """``ranges`` were compared; ``inverted``: the kernel prints ``X`` the wrong way round."""

    ranges: int
    mismatches: Mapping[str, Sequence[Mismatch]]
    inverted: bool


class Unreadable(Exception):
    """A listing with a row that no known kernel prints; the text is that row."""


def parse(lines: Iterable[str]) -> Listing:
    """Raises `Unreadable`."""
    runs: list[Run] = []
    split_x = heading = False
    for line in lines:
        if line.startswith(_HEADING):
            heading = True
            continue
        row = _ROW.fullmatch(line)
        if row is None:
            raise Unreadable(line)
        tokens = row[4].split()
        if not _COLUMNS.issuperset(tokens):
            raise Unreadable(line)
        start, end = int(row[1], 16), int(row[2], 16)
        leaf = None
        # Nothing is printed of an entry that has none of the attributes; "F" is one that has some, and is invalid.
        if row[4] and "F" not in tokens:
            told = frozenset(tokens) - {"R", "W", "X", "AF", "BLK"}
            split_x = split_x or bool(told)
            executable: str = _X.get(told, "?") if told else Execute.ALL if "X" in tokens else Execute.NEVER
            leaf = Leaf("R" in tokens, "W" in tokens, executable, "AF" in tokens, "BLK" in tokens)
        if not runs and not heading:
            start = 0  # where the pass before this one ended
            if not end:
                heading = True
                continue
        if end <= start or (runs and start != runs[-1].end) or (not runs and start):
            raise Unreadable(line)
        runs.append(Run(start, end, int(row[3]), leaf))
    return Listing(tuple(_joined(runs)), split_x)


def walked(tree: Tree) -> tuple[Run, ...]:
    """What a right listing of these tables has."""
    return tuple(_joined(_entries(tree)))


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    last: Run | None = None
    for run in runs:
        if last is not None and (last.end, last.level, last.leaf) == (run.start, run.level, run.leaf):
            last = Run(last.start, run.end, run.level, run.leaf)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _entries(tree: Tree) -> Iterator[Run]:
    geometry = tree.geometry
    below = {(table.parent_pa, table.parent_index): table for table in tree.tables if table.parent_pa is not None}
    decoders = [cache(decoder(level, geometry, tree.format)) for level in range(4)]

    def visit(raw: bytes, level: int, ia: int, pa: int) -> Iterator[Run]:
        size = geometry.block_size(level)
        for index, word in enumerate(struct.unpack(f"<{len(raw) // 8}Q", raw)):
            start = ia + index * size
            if start >> geometry.ia_bits:
                return
            child = below.get((pa, index))
            if child is not None:
                yield from visit(child.raw, child.level, child.ia, child.pa)
            else:
                yield Run(start, start + size, level, _leaf(decoders[level](word)))

    for table in tree.tables:
        if table.parent_pa is None:
            yield from visit(table.raw, table.level, table.ia, table.pa)


def _leaf(entry: Descriptor) -> Leaf | None:
    if not entry.valid:
        return None
    return Leaf(entry.readable, entry.writable, entry.executable, entry.af, entry.kind is Kind.BLOCK)


def _beside(ours: Sequence[Run], kernels: Sequence[Run]) -> Iterator[tuple[int, int, Run | None, Run | None]]:
    """Both at once, cut where either ends."""
    mine, theirs, at = 0, 0, 0
    while mine < len(ours) or theirs < len(kernels):
        one = ours[mine] if mine < len(ours) else None
        other = kernels[theirs] if theirs < len(kernels) else None
        end = min(run.end for run in (one, other) if run is not None)
        yield at, end, one, other
        mine += one is not None and one.end == end
        theirs += other is not None and other.end == end
        at = end


def _turned(run: Run) -> Run:
    """With the column that is the wrong way round put right."""
    if run.leaf is None:
        return run
    executable = Execute.NEVER if run.leaf.executable == Execute.ALL else Execute.ALL
    return replace(run, leaf=replace(run.leaf, executable=executable))


def compare(tables: Mapping[str, tuple[Sequence[Run], Listing]]) -> Compared:
    """Ours and the kernel's by name of the table.

    ``X`` is the wrong way round in all rows of all tables of a kernel, or in none: what agrees with most rows is taken,
    and a row that is otherwise is a mismatch.
    """
    plain = _compare(tables, False)
    if not plain.mismatches or any(listing.split_x for _, listing in tables.values()):
        return plain
    return min(plain, _compare(tables, True), key=_count)


def _count(compared: Compared) -> int:
    return sum(map(len, compared.mismatches.values()))


def _compare(tables: Mapping[str, tuple[Sequence[Run], Listing]], inverted: bool) -> Compared:
    ranges, found = 0, {}
    for name, (ours, listing) in tables.items():
        theirs = [_turned(run) for run in listing.runs] if inverted else listing.runs
        wrong = []
        for start, end, one, other in _beside(ours, theirs):
            ranges += 1
            # The last run may not have been printed, and no other.
            if other is None and one is not None and one is ours[-1] and (not theirs or theirs[-1].end <= one.start):
                continue
            if one is None or other is None or (one.level, one.leaf) != (other.level, other.leaf):
                wrong.append(Mismatch(start, end, one, other))
        if wrong:
            found[name] = wrong
    return Compared(ranges, found, inverted)
