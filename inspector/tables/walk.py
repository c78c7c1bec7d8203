"""Walking a whole tree: breadth first, one bulk read a level, surviving any data.

Any 64-bit value is data: whatever a table holds, the walk ends, and what it could not follow is a `Problem`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import repeat

import numpy as np

from inspector.codec import Format, Geometry, Regime, bulk, decoder, layouts
from inspector.codec.layouts import Rule
from inspector.tables.intervals import Intervals
from inspector.tables.rules import LevelRules, Pointing, level_rules
from inspector.tables.rules import reachable as reachable
from inspector.tables.shapes import Entry, Level, Problem, ProblemKind, ReadMany, Table, Tree

CHUNK_BYTES = 1 << 20
"""Table bytes taken as one array: so many that numpy's calls cost little beside the work, few enough for a cache."""

_MOST_ALIKE = 1024
"""So many problems of entries by themselves are told of a kind and level, one by one."""

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
        return [
            page if (page := pages.get(pa)) is not None and len(page) == size else within(pa, size)
            for pa, size in requests
        ]

    return read_many


def chunks(raw: Sequence[bytes], entries: int) -> Iterator[tuple[int, bulk.Words]]:
    """The first ``entries`` entries of each table, in cache-sized arrays; with each, the row of its first table.

    An array holds until the next one is asked for.
    """
    size = entries * 8
    step = max(1, CHUNK_BYTES // size)
    with bulk.scratch(step * entries) as memory:
        for first in range(0, len(raw), step):
            yield first, bulk.gather(raw[first : first + step], size, memory)


def _too_high(pointing: Pointing, pa_bits: int, raw: int) -> str:
    return f"address {pointing.address.get(raw):#x} has more than {pa_bits} bits"


def _below(pointing: Pointing, raw: int) -> str:
    return f"block address has bits {raw & pointing.below:#x} below its size"


def _no_leaves() -> None:
    return None


def _leaves(tables: Sequence[bytes], rules: LevelRules, leaf: Pointing) -> bulk.Runs:
    """The runs of leaves in the tables of a level in which not everything is a leaf."""
    found = []
    for row, raw in chunks(tables, rules.reachable):
        runs = bulk.find_runs(raw, rules.shift, leaf.address)
        found.append((row * rules.reachable, _chosen(runs, bulk.summary(runs.first), leaf)))
    return bulk.Runs.joined(found)


def _chosen(runs: bulk.Runs, known: bulk.Summary, leaf: Pointing) -> bulk.Runs:
    """The runs that are leaves."""
    chosen = bulk.are(runs.first, known, leaf.rules)
    return runs if chosen is True else runs.where(np.zeros(len(runs.first), dtype=bool) if chosen is False else chosen)


@dataclass(frozen=True)
class _Found:
    """Tables to read: columns as in `Level`, and the raw entry that leads to each."""

    pa: bulk.Words
    ia: bulk.Words
    parent_row: bulk.Flat
    parent_index: bulk.Flat
    parent_raw: bulk.Words

    def rows(self, chosen: Sequence[int] | slice | bulk.Flags) -> _Found:
        """Only these rows."""
        return _Found(*(getattr(self, column.name)[chosen] for column in fields(self)))


class _Walk:
    """State of one walk; `run` is its only use."""

    def __init__(
        self, read_many: ReadMany, geometry: Geometry, fmt: Format, max_bytes: int, within: Intervals | None
    ) -> None:
        self.read_many = read_many
        self.geometry = geometry
        self.format = fmt
        self.rules = level_rules(geometry, fmt)
        self.left = max_bytes
        self.within = within
        self.levels: list[Level] = []
        self.problems: list[Problem] = []

    def run(self, root_pa: int, ia_base: int) -> Tree:
        geometry = self.geometry
        span = geometry.block_size(geometry.start_level - 1)
        pages = range(geometry.root_pages)
        found = _Found(
            np.array([root_pa + n * geometry.granule for n in pages], dtype=np.uint64),
            np.array([ia_base + n * span for n in pages], dtype=np.uint64),
            np.full(len(pages), -1, dtype=np.intp),
            np.full(len(pages), -1, dtype=np.intp),
            np.zeros(len(pages), dtype=np.uint64),
        )
        for level in geometry.levels:
            tables = self._fetch(found, level)
            if tables is None:
                break
            self.levels.append(tables)
            below = self._scan(tables)
            if below is None:
                break
            found = below
        self.problems.sort(key=lambda problem: (problem.ia, problem.level, problem.index or 0))
        return Tree(geometry, self.format, root_pa, tuple(self.levels), tuple(self.problems))

    def _size(self, level: int) -> int:
        """Bytes of a table: one granule, but a stage-1 root may be smaller (and share its page with other data)."""
        if level == self.geometry.start_level and self.format.regime is not Regime.STAGE2:
            return self.geometry.root_entries * 8
        return self.geometry.granule

    def _fetch(self, found: _Found, level: int) -> Level | None:
        """Read the tables found and make them the next level, its leaves not yet looked for; ``None`` without any."""
        size = self._size(level)
        affordable = self.left // size
        if len(found.pa) > affordable:
            for n in range(affordable, len(found.pa)):
                self._lost(found, n, level, ProblemKind.LIMIT, "not read: the walk's limit on table memory is reached")
            found = found.rows(slice(affordable))
        if not len(found.pa):
            return None
        self.left -= size * len(found.pa)
        data = self.read_many(list(zip(found.pa.tolist(), repeat(size))))
        if len(data) != len(found.pa):
            raise ValueError(f"read_many answered {len(data)} of {len(found.pa)} requests")
        raw = [page for page in data if page is not None and len(page) == size]
        if len(raw) != len(data):
            good = []
            for n, page in enumerate(data):
                if page is not None and len(page) == size:
                    good.append(n)
                else:
                    detail = f"the level-{level} table at PA {int(found.pa[n]):#x} cannot be read"
                    self._lost(found, n, level, ProblemKind.UNREADABLE, detail)
            found = found.rows(good)
        if not raw:
            return None
        return Level(level, found.pa, found.ia, found.parent_row, found.parent_index, raw, _no_leaves)

    def _lost(self, found: _Found, n: int, level: int, kind: ProblemKind, detail: str) -> None:
        ia = int(found.ia[n])
        if not self.levels:
            problem = Problem(kind, int(found.pa[n]), None, level, ia, None, detail)
        else:
            parent_pa = int(self.levels[-1].pa[found.parent_row[n]])
            index, raw = int(found.parent_index[n]), int(found.parent_raw[n])
            problem = Problem(kind, parent_pa, index, level - 1, ia, raw, detail)
        self.problems.append(problem)

    def _problem(self, kind: ProblemKind, tables: Level, row: int, index: int, raw: int, detail: str) -> None:
        ia = int(tables.ia[row]) + index * self.geometry.block_size(tables.level)
        self.problems.append(Problem(kind, int(tables.pa[row]), index, tables.level, ia, raw, detail))

    def _scan(self, tables: Level) -> _Found | None:
        """Report what is wrong in the tables of the last level, note its leaves, and find the tables below."""
        rules = self.rules[tables.level]
        per_table = rules.reachable
        if len(tables.raw[0]) > per_table * 8:
            self._beyond_ia(tables, per_table)
        if rules.table is None and rules.leaf is not None and self._good_pages(tables, rules, rules.leaf):
            return None
        where: list[bulk.Flat] = []
        values: list[bulk.Words] = []
        told: Counter[ProblemKind] = Counter()
        leaves = False
        for row, raw in chunks(tables.raw, per_table):
            known = bulk.summary(raw)
            for kind, at, detail in self._wrong(raw, known, rules):
                for n in at[: max(0, _MOST_ALIKE - told[kind])].tolist():
                    self._problem(kind, tables, row + n // per_table, n % per_table, int(raw[n]), detail(int(raw[n])))
                told[kind] += len(at)
            leaves = leaves or (rules.leaf is not None and bulk.some_are(raw, known, rules.leaf.rules))
            chosen = rules.table is not None and bulk.are(raw, known, rules.table.rules)
            if chosen is not False:
                at = np.arange(raw.size) if chosen is True else np.flatnonzero(chosen)
                where.append(at + row * per_table)
                values.append(raw[at])
        for kind, count in told.items():
            if count > _MOST_ALIKE:
                text = f"{count - _MOST_ALIKE} more entries of level {tables.level} are like the {_MOST_ALIKE} shown"
                last = int(tables.pa[-1]), None, tables.level, int(tables.ia[-1]), None
                self.problems.append(Problem(kind, *last, text))
        if leaves and rules.leaf is not None:
            self.levels[-1] = replace(tables, find_leaves=partial(_leaves, tables.raw, rules, rules.leaf))
        if not where or rules.table is None:
            return None
        return self._children(tables, np.concatenate(where), np.concatenate(values), rules, rules.table)

    def _good_pages(self, tables: Level, rules: LevelRules, page: Pointing) -> bool:
        """Whether a level without table entries has nothing wrong: its runs tell.  If so, its leaves are noted."""
        per_table = rules.reachable
        found = []
        for row, raw in chunks(tables.raw, per_table):
            runs = bulk.find_runs(raw, rules.shift, page.address)
            # In a run, an address above the output size is above it at the end; bits below a block are all the same.
            if int(np.bitwise_or.reduce(runs.last)) & (page.too_high | page.below):
                return False
            known = bulk.summary(runs.first)
            if bulk.some_are(runs.first, known, rules.reserved):
                return False
            found.append((row * per_table, _chosen(runs, known, page)))
        self.levels[-1] = replace(tables, find_leaves=partial(bulk.Runs.joined, found))
        return True

    def _beyond_ia(self, tables: Level, per_table: int) -> None:
        for row, page in enumerate(tables.raw):
            raw = bulk.words(page)
            for index in (per_table + np.flatnonzero(raw[per_table:])).tolist():
                detail = f"not zero, but no {self.geometry.ia_bits}-bit input address reaches it"
                self._problem(ProblemKind.BEYOND_IA, tables, row, index, int(raw[index]), detail)

    def _wrong(
        self, raw: bulk.Words, known: bulk.Summary, rules: LevelRules
    ) -> Iterator[tuple[ProblemKind, bulk.Flat, Callable[[int], str]]]:
        """Entries that are wrong by themselves: kind of problem, positions, and the detail of an entry."""
        level, pa_bits = rules.level, self.geometry.pa_bits

        def those(which: tuple[Rule, ...], bits: int) -> bulk.Flat:
            """Positions of entries that satisfy one of the rules and have some of these bits."""
            chosen = bulk.are(raw, known, which)
            if chosen is False:
                return np.empty(0, dtype=np.intp)
            having = (raw & np.uint64(bits)) != 0
            return np.flatnonzero(having if chosen is True else having & chosen)

        what = "type bit 0 at level 3" if level == 3 else f"a block at level {level}, which has none"
        yield ProblemKind.RESERVED, those(rules.reserved, layouts.VALID), lambda _: f"reserved encoding: {what}"
        for pointing in (rules.table, rules.leaf):
            if pointing is None:
                continue
            if known.some & pointing.too_high:
                at = those(pointing.rules, pointing.too_high)
                yield ProblemKind.BEYOND_PA, at, partial(_too_high, pointing, pa_bits)
            if known.some & pointing.below:
                yield ProblemKind.MISALIGNED, those(pointing.rules, pointing.below), partial(_below, pointing)

    def _children(
        self, tables: Level, where: bulk.Flat, values: bulk.Words, rules: LevelRules, table: Pointing
    ) -> _Found:
        """The tables that the entries ``values`` at positions ``where`` of a level lead to, each only once."""
        if (inside := values & np.uint64(table.too_high) == 0).sum() != values.size:
            where, values = where[inside], values[inside]
        pa = bulk.field(values, table.address)
        row = where // rules.reachable
        index = where - row * rules.reachable
        ia = tables.ia[row] + (index.astype(np.uint64) << np.uint64(rules.shift))
        found = _Found(pa, ia, row, index, values)
        if self.within is not None:
            found = found.rows(self.within.touch(ia, np.full(len(ia), 1 << rules.shift, dtype=np.uint64)))
            pa = found.pa
        met = np.concatenate([pa, *(at.pa for at in self.levels)])
        met.sort()
        if (met[1:] != met[:-1]).all():
            return found
        return found.rows(self._tree_edges(tables, found))

    def _tree_edges(self, tables: Level, found: _Found) -> list[int]:
        """The rows to follow when some page is met more than once; the others are reported."""
        known = {pa: at.level for at in self.levels for pa in at.pa.tolist()}
        first: dict[int, int] = {}
        follow = []
        columns = (found.pa, found.parent_row, found.parent_index, found.parent_raw)
        for n, (pa, row, index, raw) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
            if (level := self._level_above(row, pa)) is not None:
                detail = f"points at the level-{level} table at PA {pa:#x} above it"
                self._problem(ProblemKind.LOOP, tables, row, index, raw, detail)
            elif pa in first:
                parent_pa = int(tables.pa[found.parent_row[first[pa]]])
                where = f"entry {found.parent_index[first[pa]]} of the table at PA {parent_pa:#x}"
                detail = f"the table at PA {pa:#x} is already reached from {where}: not walked again"
                self._problem(ProblemKind.SHARED, tables, row, index, raw, detail)
            else:
                first[pa] = n
                follow.append(n)
                if pa in known:
                    detail = f"the page at PA {pa:#x} is also a level-{known[pa]} table of this tree"
                    self._problem(ProblemKind.SHARED, tables, row, index, raw, detail)
        return follow

    def _level_above(self, row: int, pa: int) -> int | None:
        """The level at which ``pa`` is a table on the way to table ``row`` of the last level, or that table itself."""
        for at in reversed(self.levels):
            if at.pa[row] == pa:
                return at.level
            row = int(at.parent_row[row])
        return None


def walk_tree(
    read_many: ReadMany,
    root_pa: int,
    geometry: Geometry,
    fmt: Format,
    *,
    ia_base: int = 0,
    max_bytes: int = MAX_BYTES,
    within: Intervals | None = None,
) -> Tree:
    """Read every table that the root(s) at ``root_pa`` lead to.

    One ``read_many`` a level.  Each page is visited at most once at each level, and at most ``max_bytes`` of
    tables are read, so any data ends.  ``ia_base`` is added to every input address (TTBR1: ``2**64 -
    2**ia_bits``).  Tables that translate nothing ``within`` some input addresses are not followed.  What
    ``read_many`` raises goes through; what it cannot read is a `Problem`.
    """
    return _Walk(read_many, geometry, fmt, max_bytes, within).run(root_pa, ia_base)


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
