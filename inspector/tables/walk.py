"""Walking a whole tree: breadth first, one bulk read a level, surviving any data.

Any 64-bit value is data: whatever a table holds, the walk ends, and what it could not follow is a `Problem`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np

from inspector.codec import Format, Geometry, Kind, Regime, bulk, decoder, layouts
from inspector.tables.shapes import Entry, Level, Problem, ReadMany, Table, Tree

CHUNK_BYTES = 1 << 18
"""Table bytes taken as one array: what fits a CPU's second-level cache."""

MAX_BYTES = 1 << 30
"""Default bound on the table memory one walk reads (4K pages: it maps 512 GiB page by page)."""


def reader_of(pages: Mapping[int, bytes]) -> ReadMany:
    """A ``read_many`` over pages already captured, by PA; a page that is not there is unreadable.

    A read within a page, shorter than it or not at its start, is served too.
    """

    def within(pa: int, size: int) -> bytes | None:
        for shift in (12, 14, 16):
            start = pa >> shift << shift
            page = pages.get(start)
            if page is not None and pa + size <= start + len(page):
                return page[pa - start : pa - start + size]
        return None

    def read_many(requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        found = [pages.get(pa) for pa, _ in requests]
        for n, (page, (pa, size)) in enumerate(zip(found, requests, strict=True)):
            if page is None or len(page) != size:
                found[n] = within(pa, size)
        return found

    return read_many


def chunks(raw: Sequence[bytes], entries: int) -> Iterator[tuple[int, bulk.Words]]:
    """The first ``entries`` entries of each table, in cache-sized arrays; with each, the row of its first table."""
    size = entries * 8
    step = max(1, CHUNK_BYTES // size)
    for first in range(0, len(raw), step):
        some = raw[first : first + step]
        if len(some[0]) != size:
            some = [table[:size] for table in some]
        yield first, bulk.words(b"".join(some))


def reachable(geometry: Geometry, level: int) -> int:
    """Entries of a table page at ``level`` that some input address reaches; a power of two."""
    return geometry.root_entries if level == geometry.start_level else geometry.entries


@dataclass(frozen=True)
class _Found:
    """Tables to read: columns as in `Level`, and the raw entry and the row (one level up) each was found in."""

    pa: list[int]
    ia: list[int]
    parent_pa: list[int | None]
    parent_index: list[int | None]
    parent_raw: list[int | None]
    parent_row: list[int]

    def rows(self, chosen: Sequence[int]) -> _Found:
        """Only these rows."""
        return _Found(
            [self.pa[n] for n in chosen],
            [self.ia[n] for n in chosen],
            [self.parent_pa[n] for n in chosen],
            [self.parent_index[n] for n in chosen],
            [self.parent_raw[n] for n in chosen],
            [self.parent_row[n] for n in chosen],
        )


class _Walk:
    """State of one walk; `run` is its only use."""

    def __init__(self, read_many: ReadMany, geometry: Geometry, fmt: Format, max_bytes: int) -> None:
        self.read_many = read_many
        self.geometry = geometry
        self.format = fmt
        self.left = max_bytes
        self.levels: list[Level] = []
        self.rows_above: list[list[int]] = []
        """For each level in ``levels``, the row of every table's parent in the level before."""
        self.known: dict[int, int] = {}
        """Table pages met so far, with the last level they were met at."""
        self.problems: list[Problem] = []

    def run(self, root_pa: int, ia_base: int) -> Tree:
        geometry = self.geometry
        span = geometry.block_size(geometry.start_level - 1)
        pages = geometry.root_pages
        found = _Found(
            [root_pa + n * geometry.granule for n in range(pages)],
            [ia_base + n * span for n in range(pages)],
            [None] * pages,
            [None] * pages,
            [None] * pages,
            [0] * pages,
        )
        for level in geometry.levels:
            found = self._fetch(found, level)
            if not found.pa:
                break
            found = self._scan(self.levels[-1])
        self.problems.sort(key=lambda problem: (problem.ia, problem.level, problem.index or 0))
        return Tree(geometry, self.format, root_pa, tuple(self.levels), tuple(self.problems))

    def _size(self, level: int) -> int:
        """Bytes of a table: one granule, but a stage-1 root may be smaller (and share its page with other data)."""
        if level == self.geometry.start_level and self.format.regime is not Regime.STAGE2:
            return self.geometry.root_entries * 8
        return self.geometry.granule

    def _fetch(self, found: _Found, level: int) -> _Found:
        """Read the tables found and make them the next level; returns those that could be read."""
        size = self._size(level)
        affordable = self.left // size
        if len(found.pa) > affordable:
            for n in range(affordable, len(found.pa)):
                self._lost(found, n, level, "limit", "not read: the walk's limit on table memory is reached")
            found = found.rows(range(affordable))
        if not found.pa:
            return found
        self.left -= size * len(found.pa)
        data = list(self.read_many(list(zip(found.pa, repeat(size)))))
        if len(data) != len(found.pa):
            raise ValueError(f"read_many answered {len(data)} of {len(found.pa)} requests")
        raw = [page for page in data if page is not None and len(page) == size]
        if len(raw) != len(data):
            good = []
            for n, page in enumerate(data):
                if page is not None and len(page) == size:
                    good.append(n)
                else:
                    detail = f"the level-{level} table at PA {found.pa[n]:#x} cannot be read"
                    self._lost(found, n, level, "unreadable", detail)
            found = found.rows(good)
        if raw:
            self.levels.append(Level(level, found.pa, found.ia, found.parent_pa, found.parent_index, raw))
            self.rows_above.append(found.parent_row)
            self.known.update(zip(found.pa, repeat(level)))
        return found

    def _lost(self, found: _Found, n: int, level: int, kind: str, detail: str) -> None:
        parent_pa = found.parent_pa[n]
        if parent_pa is None:
            problem = Problem(kind, found.pa[n], None, level, found.ia[n], None, detail)
        else:
            index, raw = found.parent_index[n], found.parent_raw[n]
            problem = Problem(kind, parent_pa, index, level - 1, found.ia[n], raw, detail)
        self.problems.append(problem)

    def _problem(self, kind: str, tables: Level, row: int, index: int, raw: int, detail: str) -> None:
        ia = tables.ia[row] + index * self.geometry.block_size(tables.level)
        self.problems.append(Problem(kind, tables.pa[row], index, tables.level, ia, raw, detail))

    def _scan(self, tables: Level) -> _Found:
        """Report what is wrong in the tables of one level, and find the tables below."""
        level = tables.level
        per_table = reachable(self.geometry, level)
        if len(tables.raw[0]) > per_table * 8:
            self._beyond_ia(tables, per_table)
        table_rules = bulk.exact_rules(Kind.TABLE, level, self.geometry, self.format)
        where, values = [], []
        for first, raw in chunks(tables.raw, per_table):
            known = bulk.summary(raw)
            for n, kind, detail in self._wrong(raw, known, level):
                self._problem(kind, tables, first + n // per_table, n % per_table, int(raw[n]), detail)
            chosen = bulk.are(raw, known, table_rules)
            if chosen is not False:
                at = np.arange(raw.size) if chosen is True else np.flatnonzero(chosen)
                where.append(at + first * per_table)
                values.append(raw[at])
        if not where:
            return _Found([], [], [], [], [], [])
        return self._children(tables, np.concatenate(where), np.concatenate(values), per_table)

    def _beyond_ia(self, tables: Level, per_table: int) -> None:
        for row, page in enumerate(tables.raw):
            raw = bulk.words(page)
            for index in (per_table + np.flatnonzero(raw[per_table:])).tolist():
                detail = f"not zero, but no {self.geometry.ia_bits}-bit input address reaches it"
                self._problem("beyond-ia", tables, row, index, int(raw[index]), detail)

    def _wrong(self, raw: bulk.Words, known: bulk.Summary, level: int) -> Iterator[tuple[int, str, str]]:
        """Entries that are wrong by themselves: (position, kind of problem, detail)."""
        geometry, fmt = self.geometry, self.format

        def those(kind: Kind, bits: int) -> Iterator[int]:
            """Positions of entries of a kind that have some of these bits."""
            chosen = bulk.are(raw, known, bulk.exact_rules(kind, level, geometry, fmt))
            if chosen is not False:
                having = (raw & np.uint64(bits)) != 0
                yield from np.flatnonzero(having if chosen is True else having & chosen).tolist()

        for n in those(Kind.RESERVED, layouts.VALID):
            what = "type bit 0 at level 3" if level == 3 else f"a block at level {level}, which has none"
            yield n, "reserved", f"reserved encoding: {what}"
        kinds = (Kind.PAGE,) if level == 3 else (Kind.TABLE, Kind.BLOCK)
        for kind in kinds if level in geometry.arch_block_levels else (Kind.TABLE,):
            fields = layouts.layout(kind, level, geometry, fmt).by_name
            address = fields["output_address"]
            too_high = address.put(address.value_mask >> geometry.pa_bits << geometry.pa_bits)
            if known.some & too_high:
                for n in those(kind, too_high):
                    text = f"address {address.get(int(raw[n])):#x} has more than {geometry.pa_bits} bits"
                    yield n, "beyond-pa", text
            below = fields["oa_res0"].mask if kind is Kind.BLOCK else 0
            if known.some & below:
                for n in those(kind, below):
                    yield n, "misaligned", f"block address has bits {int(raw[n]) & below:#x} below its size"

    def _children(self, tables: Level, where: bulk.Flat, values: bulk.Words, per_table: int) -> _Found:
        """The tables that the entries ``values`` at positions ``where`` of a level lead to, each only once."""
        geometry, level = self.geometry, tables.level
        pa = bulk.field(values, bulk.address_field(Kind.TABLE, level, geometry, self.format))
        if geometry.pa_bits < 64 and (inside := pa >> np.uint64(geometry.pa_bits) == 0).sum() != pa.size:
            where, values, pa = where[inside], values[inside], pa[inside]
        row, index = where // per_table, where % per_table
        ia = np.array(tables.ia, dtype=np.uint64)[row]
        ia += index.astype(np.uint64) << np.uint64(geometry.level_shift(level))
        found = _Found(
            pa.tolist(),
            ia.tolist(),
            np.array(tables.pa, dtype=np.uint64)[row].tolist(),
            index.tolist(),
            values.tolist(),
            row.tolist(),
        )
        distinct = set(found.pa)
        if len(distinct) == len(found.pa) and distinct.isdisjoint(self.known):
            return found
        return found.rows(self._tree_edges(tables, found))

    def _tree_edges(self, tables: Level, found: _Found) -> list[int]:
        """The rows to follow when some page is met more than once; the others are reported."""
        first: dict[int, int] = {}
        follow = []
        for n, pa in enumerate(found.pa):
            row, index, raw = found.parent_row[n], found.parent_index[n] or 0, found.parent_raw[n] or 0
            if (level := self._level_above(row, pa)) is not None:
                detail = f"points at the level-{level} table at PA {pa:#x} above it"
                self._problem("loop", tables, row, index, raw, detail)
            elif pa in first:
                where = f"entry {found.parent_index[first[pa]]} of the table at PA {found.parent_pa[first[pa]]:#x}"
                detail = f"the table at PA {pa:#x} is already reached from {where}: not walked again"
                self._problem("shared", tables, row, index, raw, detail)
            else:
                first[pa] = n
                follow.append(n)
                if pa in self.known:
                    detail = f"the page at PA {pa:#x} is also a level-{self.known[pa]} table of this tree"
                    self._problem("shared", tables, row, index, raw, detail)
        return follow

    def _level_above(self, row: int, pa: int) -> int | None:
        """The level at which ``pa`` is a table on the way to table ``row`` of the last level, or that table itself."""
        for at, rows in zip(reversed(self.levels), reversed(self.rows_above), strict=True):
            if at.pa[row] == pa:
                return at.level
            row = rows[row]
        return None


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

    One ``read_many`` a level.  Each page is visited at most once at each level, and at most ``max_bytes`` of
    tables are read, so any data ends.  ``ia_base`` is added to every input address (TTBR1: ``2**64 -
    2**ia_bits``).  What ``read_many`` raises goes through; what it cannot read is a `Problem`.
    """
    return _Walk(read_many, geometry, fmt, max_bytes).run(root_pa, ia_base)


def entries(tree: Tree, *, nonzero: bool = True) -> Iterator[Entry]:
    """The entries in the order of the kernel's walk: a table entry, then everything below it, then the next one.

    With ``nonzero`` false the zero entries too.  Entries that no input address reaches are left out.
    """
    geometry = tree.geometry
    below: dict[tuple[int, int, int], Table] = {}
    roots: list[Table] = []
    for table in tree.tables:
        if table.parent_pa is None or table.parent_index is None:
            roots.append(table)
        else:
            below[table.parent_pa, table.parent_index, table.level] = table
    decoders = {level: decoder(level, geometry, tree.format) for level in geometry.levels}

    def visit(table: Table) -> Iterator[Entry]:
        level, size, decode = table.level, geometry.block_size(table.level), decoders[table.level]
        words = bulk.words(table.raw)[: reachable(geometry, level)]
        where = np.flatnonzero(words) if nonzero else np.arange(len(words))
        for index, raw in zip(where.tolist(), words[where].tolist(), strict=True):
            yield Entry(table.pa, index, level, table.ia + index * size, decode(raw))
            child = below.get((table.pa, index, level + 1))
            if child is not None:
                yield from visit(child)

    for root in roots:
        yield from visit(root)
