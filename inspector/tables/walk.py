"""Walking a whole tree: breadth first, one bulk read a level, surviving any data.

Any 64-bit value is data: whatever a table holds, the walk ends, and what it could not follow is a `Problem`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inspector.codec import Format, Geometry, Kind, Regime, bulk, decode, layouts
from inspector.tables.shapes import Entry, Problem, ReadMany, Table, Tree

CHUNK_BYTES = 1 << 18
"""Table bytes taken as one array: what fits a CPU's second-level cache."""

MAX_BYTES = 1 << 30
"""Default bound on the table memory one walk reads (4K pages: it maps 512 GiB page by page)."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """A table page to read: where it is and how it was reached."""

    pa: int
    level: int
    ia: int
    parent_pa: int | None
    parent_index: int | None
    parent_raw: int | None
    above: tuple[int, ...]


def reader_of(pages: Mapping[int, bytes]) -> ReadMany:
    """A ``read_many`` over pages already captured, by PA; a page that is not there is unreadable."""

    def read_many(requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for pa, size in requests:
            page = pages.get(pa)
            found.append(page[:size] if page is not None and len(page) >= size else None)
        return found

    return read_many


def chunks(tables: Sequence[Table], entries: int) -> Iterator[tuple[Sequence[Table], bulk.Words]]:
    """Runs of ``tables`` with their first ``entries`` entries each, as one array, in cache-sized pieces."""
    size = entries * 8
    step = max(1, CHUNK_BYTES // size)
    for first in range(0, len(tables), step):
        some = tables[first : first + step]
        raw = b"".join([table.raw if len(table.raw) == size else table.raw[:size] for table in some])
        yield some, bulk.words(raw)


def reachable(geometry: Geometry, level: int) -> int:
    """Entries of a table page at ``level`` that some input address reaches."""
    return geometry.root_entries if level == geometry.start_level else geometry.entries


class _Walk:
    """State of one walk; `run` is its only use."""

    def __init__(self, read_many: ReadMany, geometry: Geometry, fmt: Format, max_bytes: int) -> None:
        self.read_many = read_many
        self.geometry = geometry
        self.format = fmt
        self.left = max_bytes
        self.tables: list[Table] = []
        self.problems: list[Problem] = []
        self.seen: dict[tuple[int, int], tuple[int | None, int | None]] = {}

    def run(self, root_pa: int, ia_base: int) -> Tree:
        geometry = self.geometry
        span = geometry.block_size(geometry.start_level - 1)
        pending = [
            _Pending(root_pa + n * geometry.granule, geometry.start_level, ia_base + n * span, None, None, None, ())
            for n in range(geometry.root_pages)
        ]
        roots = {visit.pa for visit in pending}
        for visit in pending:
            self.seen[visit.pa, visit.level] = (None, None)
        for level in geometry.levels:
            if not pending:
                break
            tables, above = self._fetch(pending, level)
            self.tables += tables
            pending = self._scan(tables, above, level, roots)
        self.tables.sort(key=lambda table: (table.ia, table.level))
        self.problems.sort(key=lambda problem: (problem.ia, problem.level, problem.index or 0))
        return Tree(geometry, self.format, root_pa, tuple(self.tables), tuple(self.problems))

    def _size(self, level: int) -> int:
        """Bytes of a table: one granule, but a stage-1 root may be smaller (and share its page with other data)."""
        if level == self.geometry.start_level and self.format.regime is not Regime.STAGE2:
            return self.geometry.root_entries * 8
        return self.geometry.granule

    def _fetch(self, pending: list[_Pending], level: int) -> tuple[list[Table], list[tuple[int, ...]]]:
        size = self._size(level)
        affordable = pending[: self.left // size]
        for visit in pending[len(affordable) :]:
            self._lost(visit, "limit", "not read: the walk's limit on table memory is reached")
        self.left -= size * len(affordable)
        data = self.read_many([(visit.pa, size) for visit in affordable]) if affordable else []
        tables, above = [], []
        for visit, raw in zip(affordable, data, strict=True):
            if raw is None or len(raw) != size:
                self._lost(visit, "unreadable", f"the level-{level} table at PA {visit.pa:#x} cannot be read")
                continue
            tables.append(Table(visit.pa, level, visit.ia, visit.parent_pa, visit.parent_index, raw))
            above.append((*visit.above, visit.pa))
        return tables, above

    def _lost(self, visit: _Pending, kind: str, detail: str) -> None:
        if visit.parent_pa is None:
            self.problems.append(Problem(kind, visit.pa, None, visit.level, visit.ia, None, detail))
        else:
            self.problems.append(
                Problem(kind, visit.parent_pa, visit.parent_index, visit.level - 1, visit.ia, visit.parent_raw, detail)
            )

    def _scan(
        self, tables: list[Table], above: list[tuple[int, ...]], level: int, roots: set[int]
    ) -> list[_Pending]:
        """Report what is wrong in the tables of one level, and collect the tables below."""
        per_table = reachable(self.geometry, level)
        children: list[_Pending] = []
        if per_table < self.geometry.entries and tables and len(tables[0].raw) > per_table * 8:
            self._beyond_ia(tables, per_table, level)
        done = 0
        for some, raw in chunks(tables, per_table):
            for n, kind, detail in self._wrong(raw, level):
                table = some[n // per_table]
                self.problems.append(self._problem(kind, table, n % per_table, int(raw[n]), detail))
            if level < 3:
                children += self._children(some, above[done : done + len(some)], raw, per_table, level, roots)
            done += len(some)
        return children

    def _problem(self, kind: str, table: Table, index: int, raw: int, detail: str) -> Problem:
        ia = table.ia + index * self.geometry.block_size(table.level)
        return Problem(kind, table.pa, index, table.level, ia, raw, detail)

    def _beyond_ia(self, tables: Iterable[Table], per_table: int, level: int) -> None:
        for table in tables:
            raw = bulk.words(table.raw)
            for index in (per_table + np.flatnonzero(raw[per_table:])).tolist():
                detail = f"not zero, but no {self.geometry.ia_bits}-bit input address reaches it"
                self.problems.append(self._problem("beyond-ia", table, index, int(raw[index]), detail))

    def _wrong(self, raw: bulk.Words, level: int) -> Iterator[tuple[int, str, str]]:
        """Entries that are wrong by themselves: (position, kind of problem, detail)."""
        geometry, fmt = self.geometry, self.format
        reserved = bulk.are(raw, frozenset({Kind.RESERVED}), level, geometry, fmt)
        if reserved.any():
            detail = "type bit 0 at level 3" if level == 3 else f"a block at level {level}, which has none"
            for n in np.flatnonzero(reserved).tolist():
                yield n, "reserved", f"reserved encoding: {detail}"
        used = int(np.bitwise_or.reduce(raw)) if raw.size else 0
        for kind in (Kind.TABLE, bulk.leaf_kind(level)):
            if (level == 3) is (kind is Kind.TABLE):
                continue
            layout = layouts.layout(kind, level, geometry, fmt)
            address = layout.by_name["output_address"]
            too_high = address.put(address.value_mask >> geometry.pa_bits << geometry.pa_bits)
            if used & too_high:
                which = bulk.are(raw, frozenset({kind}), level, geometry, fmt) & ((raw & np.uint64(too_high)) != 0)
                for n in np.flatnonzero(which).tolist():
                    yield n, "beyond-pa", f"address {address.get(int(raw[n])):#x} has more than {geometry.pa_bits} bits"
            low = layout.by_name["oa_res0"].mask if kind is Kind.BLOCK else 0
            if used & low:
                which = bulk.are(raw, frozenset({kind}), level, geometry, fmt) & ((raw & np.uint64(low)) != 0)
                for n in np.flatnonzero(which).tolist():
                    yield n, "misaligned", f"block address has bits {int(raw[n]) & low:#x} below its size"

    def _children(
        self,
        some: Sequence[Table],
        above: Sequence[tuple[int, ...]],
        raw: bulk.Words,
        per_table: int,
        level: int,
        roots: set[int],
    ) -> list[_Pending]:
        geometry = self.geometry
        at = np.flatnonzero(bulk.are(raw, frozenset({Kind.TABLE}), level, geometry, self.format))
        if not at.size:
            return []
        values = raw[at]
        field = bulk.address_field(Kind.TABLE, level, geometry, self.format)
        found: list[_Pending] = []
        shift = geometry.level_shift(level)
        for n, value, pa in zip(at.tolist(), values.tolist(), bulk.field(values, field).tolist(), strict=True):
            which, index = divmod(n, per_table)
            table = some[which]
            if pa >> geometry.pa_bits:
                continue
            key = (pa, level + 1)
            if pa in above[which] or pa in roots:
                what = f"points at the table at PA {pa:#x} above it" if pa in above[which] else f"points at the root {pa:#x}"
                self.problems.append(self._problem("loop", table, index, value, what))
            elif key in self.seen:
                first_pa, first_index = self.seen[key]
                detail = f"the table at PA {pa:#x} is already reached from entry {first_index} of {first_pa or 0:#x}"
                self.problems.append(self._problem("shared", table, index, value, detail))
            else:
                self.seen[key] = (table.pa, index)
                ia = table.ia + (index << shift)
                found.append(_Pending(pa, level + 1, ia, table.pa, index, value, above[which]))
        return found


def walk_tree(
    read_many: ReadMany,
    root_pa: int,
    geometry: Geometry,
    fmt: Format,
    *,
    ia_base: int = 0,
    max_bytes: int = MAX_BYTES,
) -> Tree:
    """Read every table that the root(s) at ``root_pa`` lead to.

    One ``read_many`` a level.  Each page is visited at most once at each level, and at most ``max_bytes`` of tables are
    read, so any data ends.  ``ia_base`` is added to every input address (TTBR1: ``2**64 - 2**ia_bits``).  What
    ``read_many`` raises goes through; what it cannot read is a `Problem`.
    """
    return _Walk(read_many, geometry, fmt, max_bytes).run(root_pa, ia_base)


def entries(tree: Tree, *, nonzero: bool = True) -> Iterator[Entry]:
    """The entries in the order of the kernel's walk: a table entry, then everything below it, then the next one.

    With ``nonzero`` false the zero entries too.  Entries that no input address reaches are left out.
    """
    geometry, fmt = tree.geometry, tree.format
    below: dict[tuple[int | None, int | None, int], Table] = {}
    roots: list[Table] = []
    for table in tree.tables:
        if table.parent_pa is None:
            roots.append(table)
        else:
            below[table.parent_pa, table.parent_index, table.level] = table

    def visit(table: Table) -> Iterator[Entry]:
        size = geometry.block_size(table.level)
        words = bulk.words(table.raw)[: reachable(geometry, table.level)]
        where = np.flatnonzero(words) if nonzero else np.arange(len(words))
        for index, raw in zip(where.tolist(), words[where].tolist(), strict=True):
            descriptor = decode(raw, table.level, geometry, fmt)
            yield Entry(table.pa, index, table.level, table.ia + index * size, descriptor)
            child = below.get((table.pa, index, table.level + 1))
            if child is not None:
                yield from visit(child)

    for root in roots:
        yield from visit(root)
