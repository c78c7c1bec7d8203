"""Two trees against each other, and what explains each difference.

What legal history explains is a note: a 2M range held as pages, an empty table, a reference count too high, an entry
caught in the middle of a walk, an access flag cleared by ageing.  What nothing explains is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inspector.capture.view import TableView, possible_walkers, table_views, walk_in_progress
from inspector.codec import Descriptor, Format, bulk, decode
from inspector.compare.columns import LevelColumn, Mask, columns_of
from inspector.compare.difference import Difference, Side, leaf_difference
from inspector.compare.machine import format_of
from inspector.compare.rebuild import Rebuilt, rebuild
from inspector.findings import Severity, Where
from inspector.generations import KernelCode, functions
from inspector.snapshot import Backing, BackingState, MmuKind, Mode, PageState
from inspector.tables import Problem, Tree

LIMIT = 64
"""At most this many differences of one table are shown."""

_AF = 1 << 10
_HA = 1 << 21
"""VTCR_EL2.HA (DDI 0487 D24.2): the CPU sets the access flag, if it has FEAT_HAFDBS."""
_POISONED = 3
"""``KVM_GUEST_INVALID_PTE_TYPE_POISONED`` (7.3): a guest's table under pKVM."""

_Flat = NDArray[np.intp]


@dataclass(frozen=True)
class Comparison:
    """A table held against the model's: ``differences`` with errors first, then notes, each in order of address.

    ``leaves`` and ``tables`` count what was compared.  Reports show the first `LIMIT` differences and count the rest.
    """

    view: TableView
    kernel: KernelCode
    leaves: int
    tables: int
    differences: tuple[Difference, ...]

    @property
    def errors(self) -> int:
        """How many differences nothing explains."""
        return sum(one.severity is Severity.ERROR for one in self.differences)

    @property
    def notes(self) -> int:
        """How many legal history explains."""
        return len(self.differences) - self.errors

    @property
    def identical(self) -> bool:
        return not self.differences

    @property
    def shown(self) -> tuple[Difference, ...]:
        return self.differences[:LIMIT]

    @property
    def omitted(self) -> int:
        return len(self.differences) - len(self.shown)


def compare_views(views: Sequence[TableView], kernel: KernelCode) -> Iterator[Comparison]:
    """Each table against what the model makes of its mappings.

    Raises `BadInput` when the generation asked for cannot have made such a table.
    """
    shared = shared_pages(views)
    for view in views:
        yield _Judge(view, kernel, shared).compare()


class _Judge:
    """The comparison of one table; `compare` is its only use."""

    def __init__(self, view: TableView, kernel: KernelCode, shared: Mapping[int, Sequence[str]]) -> None:
        self.view = view
        self.shared = {pa: [title for title in titles if title != view.title] for pa, titles in shared.items()}
        self.contested = contested(view.tree, shared)
        self.kernel = kernel
        self.format: Format = format_of(kernel, view)
        self.columns = columns_of(view.tree, self.format)
        self.model: Rebuilt = rebuild(view, kernel, self.columns)
        self.functions = functions(kernel.behaviours)
        self.walkers = possible_walkers(view.capture.host)
        self.problems = {(p.table_pa, p.index): p for p in view.tree.problems}
        hafdbs = bool(view.capture.host.features.get("hafdbs"))
        self.hardware_af = bool(view.mmu.vtcr & _HA) and hafdbs

    def compare(self) -> Comparison:
        found: list[Difference] = []
        extras: list[_Extras] = []
        for number in range(len(self.columns)):
            difference, extra = self._level(number)
            found += difference
            extras.append(extra)
        expected = self._expected_counts(extras)
        found = [_with_count(one, expected) for one in found if one.where.table_pa not in self.contested]
        found += self._counts(extras)
        found += self._shared()
        found += self._unread(found)
        found += self._splits()
        found.sort(key=_order)
        leaves = sum(int(column.leaf.sum()) for column in self.columns)
        return Comparison(self.view, self.kernel, leaves, sum(len(c.pa) for c in self.columns), tuple(found))

    # --- entries ---

    def _level(self, number: int) -> tuple[list[Difference], _Extras]:
        """The entries of one level that differ, and how they bear on reference counts."""
        column, model = self.columns[number], self.model.raw[number]
        differ = column.raw ^ model
        both_tables = column.table & (model & np.uint64(3) == np.uint64(3))
        differ[both_tables] &= np.uint64(~column.table_mask & (1 << 64) - 1)
        if self.hardware_af:
            differ[self.model.mapped[number]] &= np.uint64(~_AF & (1 << 64) - 1)
        at = np.flatnonzero(differ)
        live_tables = column.table & (model == 0)
        extras = _Extras(len(column.pa), column.per_table)
        found: list[Difference] = []
        for run in _runs(column, model, differ, at):
            live = int(column.raw[run.first])
            if model[run.first] != 0:
                found.append(self._both(number, run, bool(both_tables[run.first])))
            elif live_tables[run.first]:
                found += self._table_without_leaves(number, run, extras)
            elif live & 1:
                extras.doubtful(run)
                found.append(self._extra(number, run, "extra", self._problem_text(column, run)))
            else:
                found += self._invalid(number, run, extras)
        return found, extras

    def _both(self, number: int, run: _Run, tables: bool) -> Difference:
        """An entry that the model has too, with other bits."""
        column = self.columns[number]
        live, model = self._decoded(column, run.first), int(self.model.raw[number][run.first])
        if tables:
            kept = (live.raw & column.table_mask) | (model & ~column.table_mask)
            bits = ", ".join(str(b) for b in range(64) if (live.raw ^ kept) >> b & 1)
            return self._entry(
                number,
                run,
                "table",
                Severity.ERROR,
                self._decode(kept, column.level),
                f"bits set: {bits}",
                "KVM writes the address and the two type bits only: something else wrote the entry",
                self.functions["table-entry"],
            )
        made = self._decode(model, column.level)
        if live.raw ^ model == _AF:
            return self._entry(
                number,
                run,
                "aged",
                Severity.NOTE,
                made,
                "the access flag is clear",
                "ageing clears the flag, and the guest's next access takes a fault that sets it",
                self.functions["age"],
            )
        what, why, function = leaf_difference(live, made)
        return self._entry(number, run, "leaf", Severity.ERROR, made, what, why, self.functions[function])

    def _table_without_leaves(self, number: int, run: _Run, extras: _Extras) -> Iterator[Difference]:
        """Table entries under which the model has nothing: a table that is empty, or that was not walked."""
        column = self.columns[number]
        for place in range(run.first, run.first + run.count):
            one = replace(run, first=place, count=1)
            problem = self._problem(column, place)
            if problem is not None:
                extras.doubtful(one)
                note = problem.kind == "limit"
                yield self._entry(
                    number,
                    one,
                    "unread" if note else "extra",
                    Severity.NOTE if note else Severity.ERROR,
                    self._decode(0, column.level),
                    f"{problem.kind}: {problem.detail}",
                    "the subtree below it is not compared",
                    self.functions["table"],
                )
                continue
            extras.counted(one)
            child = int(column.child(np.array([place]))[0])
            stray = int(column.raw[place]) & ~column.table_mask & ~3
            if stray:
                bits = ", ".join(str(b) for b in range(64) if stray >> b & 1)
                clean = int(column.raw[place]) & (column.table_mask | 3)
                yield self._entry(
                    number,
                    one,
                    "table",
                    Severity.ERROR,
                    self._decode(clean, column.level),
                    f"bits set: {bits}",
                    "KVM writes the address and the two type bits only: something else wrote the entry",
                    self.functions["table-entry"],
                )
            if self._is_empty(number + 1, child):
                where = replace(self._where(column, place), table_pa=child, index=None, raw=None)
                known = self.view.capture.page_info.get(child)
                yield Difference(
                    "empty",
                    Severity.NOTE,
                    replace(where, level=column.level + 1),
                    1,
                    Side(None, known.refcount if known else None),
                    Side(None, None),
                    "a table without entries",
                    "a map that failed half-way leaves one, and so does an unmap in progress; the unmap of its range "
                    "frees it",
                    self.functions["table"],
                )

    def _is_empty(self, number: int, pa: int) -> bool:
        """A table (of level column ``number``) that holds nothing that this generation counts."""
        column = self.columns[number]
        row = int(np.flatnonzero(column.pa == np.uint64(pa))[0])
        words = column.raw[row * column.per_table : (row + 1) * column.per_table]
        return not self._counted_mask(words).any()

    def _invalid(self, number: int, run: _Run, extras: _Extras) -> Iterator[Difference]:
        """Invalid entries that are not zero."""
        column, behaviours = self.columns[number], self.kernel.behaviours
        found = self._decoded(column, run.first)
        if behaviours.stale_invalid:
            return
        nothing = self._decode(0, column.level)
        locked = behaviours.locked_mask and found.raw == behaviours.locked_value
        if locked:
            walkers = walk_in_progress(self.walkers, self.view.vm)
            why = "no CPU is inside a walk: every fault on it returns -EAGAIN for ever"
            severity = Severity.ERROR
            if walkers is not None:
                severity, why = Severity.NOTE, f"a walk may have been in progress ({walkers}): it replaces the mark"
            yield self._entry(number, run, "invalid", severity, nothing, "LOCKED", why, self.functions["locked"])
            return
        extras.doubtful(run)
        protected = self.view.capture.host.mode is Mode.PROTECTED
        if protected and behaviours.two_bit_xn and found.raw >> 60 == _POISONED:
            return
        yield self._entry(
            number,
            run,
            "invalid",
            Severity.ERROR,
            nothing,
            "not zero",
            "this kernel clears the whole entry when it unmaps, so something else wrote it",
            self.functions["invalid"],
        )

    def _extra(self, number: int, run: _Run, kind: str, what: str) -> Difference:
        """A valid entry that ``map`` cannot write at all."""
        return self._entry(
            number,
            run,
            kind,
            Severity.ERROR,
            self._decode(0, self.columns[number].level),
            what,
            "no mapping that can be asked for leaves this entry: the CPU faults on it, or KVM takes it for another",
            self.functions["leaf"],
        )

    def _problem(self, column: LevelColumn, at: int) -> Problem | None:
        """What the walk said of an entry."""
        return self.problems.get((int(column.pa[at // column.per_table]), at % column.per_table))

    def _problem_text(self, column: LevelColumn, run: _Run) -> str:
        problem = self._problem(column, run.first)
        if problem is not None:
            return f"{problem.kind}: {problem.detail}"
        return f"KVM makes no block at level {column.level}"

    # --- shapes ---

    def _decode(self, raw: int, level: int) -> Descriptor:
        return decode(raw, level, self.view.geometry, self.format)

    def _decoded(self, column: LevelColumn, at: int) -> Descriptor:
        return self._decode(int(column.raw[at]), column.level)

    def _where(self, column: LevelColumn, at: int, count: int = 1) -> Where:
        return Where(
            vm=self.view.vm.name,
            regime=self.view.regime,
            ipa=int(column.entry_ia(np.array([at]))[0]),
            size=count << column.shift,
            level=column.level,
            table_pa=int(column.pa[at // column.per_table]),
            index=at % column.per_table,
            raw=int(column.raw[at]),
        )

    def _entry(
        self,
        number: int,
        run: _Run,
        kind: str,
        severity: Severity,
        model: Descriptor,
        what: str,
        why: str,
        function: str | None,
    ) -> Difference:
        column = self.columns[number]
        row = run.first // column.per_table
        known = self.view.capture.page_info.get(int(column.pa[row]))
        return Difference(
            kind,
            severity,
            self._where(column, run.first, run.count),
            run.count,
            Side(self._decoded(column, run.first), known.refcount if known else None),
            Side(model, self.model.count(number, row)),
            what,
            why,
            function,
        )

    # --- reference counts ---

    def _counted_mask(self, words: bulk.Words) -> Mask:
        """Which entries hold a reference on their table (kernel.md 10.1)."""
        behaviours = self.kernel.behaviours
        counted: Mask = (words if behaviours.counts_nonzero else words & np.uint64(1)) != 0
        if behaviours.locked_mask:
            counted &= words != np.uint64(behaviours.locked_value)
        return counted

    def _expected_counts(self, extras: Sequence[_Extras]) -> dict[int, int]:
        """What each table's reference count must be: the model's, and what KVM took for entries explained otherwise."""
        found: dict[int, int] = {}
        for number, (column, extra) in enumerate(zip(self.columns, extras, strict=True)):
            for row, pa in enumerate(column.pa.tolist()):
                found.setdefault(pa, self.model.count(number, row) + extra.sure[row])
        return found

    def _counts(self, extras: Sequence[_Extras]) -> Iterator[Difference]:
        missing, total, seen = 0, 0, set()
        for number, (column, extra) in enumerate(zip(self.columns, extras, strict=True)):
            for row, pa in enumerate(column.pa.tolist()):
                if pa in seen or pa in self.contested:
                    continue  # said of the entry that leads to it
                seen.add(pa)
                total += 1
                info = self.view.capture.page_info.get(pa)
                if info is None:
                    missing += 1
                    continue
                low = self.model.count(number, row) + extra.sure[row]
                where = replace(self._where(column, row * column.per_table), index=None, raw=None)
                where = replace(where, ipa=int(column.ia[row]), size=None)
                if info.state is not PageState.USED:
                    yield Difference(
                        "page",
                        Severity.ERROR,
                        where,
                        1,
                        Side(None, info.refcount),
                        Side(None, low),
                        f"the page is {info.state}",
                        "the page may be given to somebody else while the CPU walks it",
                        self.functions["put"],
                    )
                elif not low <= info.refcount <= low + extra.maybe[row]:
                    yield self._count(where, info.refcount, low, low + extra.maybe[row])
        if missing and self.view.capture.host.mode is not Mode.PROTECTED:
            yield Difference(
                "unread",
                Severity.NOTE,
                Where(self.view.vm.name, self.view.regime),
                missing,
                Side(None, None),
                Side(None, None),
                f"no struct page for {missing} of {total} tables",
                "their reference counts are not compared",
                None,
            )

    def _count(self, where: Where, live: int, low: int, high: int) -> Difference:
        severity, function = Severity.NOTE, "put"
        if live > high:
            why = (
                "a foreign, passing reference (compaction, a scanner) or a walk in progress explains a count too high; "
                "if it stays, a put was forgotten and the page leaks"
            )
        else:
            walkers = walk_in_progress(self.walkers, self.view.vm)
            if walkers is not None and low - live <= len(self.walkers):
                why = f"a walk may have been in progress ({walkers}): it sets an entry and its reference one by one"
                function = "get"
            else:
                severity = Severity.ERROR
                why = "a put too many, or a get that was forgotten: the table is freed while entries still use it"
        return Difference(
            "count",
            severity,
            where,
            1,
            Side(None, live),
            Side(None, low if live < low else high),
            f"page_count {live}, the model's is {low if live < low else high}",
            why,
            self.functions[function],
        )

    # --- what belongs to no entry ---

    def _shared(self) -> Iterator[Difference]:
        """The entries (or the root) that lead to a page of another table: nobody can say which of them is wrong."""
        for number, column in enumerate(self.columns):
            at = np.flatnonzero(column.table)
            if not self.shared or not len(at):
                continue
            for place, child in zip(at.tolist(), column.child(at).tolist(), strict=True):
                others = self.shared.get(child)
                if others and int(column.pa[place // column.per_table]) not in self.contested:
                    run = _Run(place, 1)
                    entry = self._entry(
                        number,
                        run,
                        "shared",
                        Severity.ERROR,
                        self._decode(0, column.level),
                        f"the table at PA {child:#x} is also one of {' and '.join(others)}",
                        _SHARED,
                        self.functions["table"],
                    )
                    yield replace(entry, model=Side(None, None))
        for pa in self.view.root_pages():
            if others := self.shared.get(pa):
                where = Where(self.view.vm.name, self.view.regime, None, None, self.view.geometry.start_level, pa)
                yield Difference(
                    "shared",
                    Severity.ERROR,
                    where,
                    1,
                    Side(None, None),
                    Side(None, None),
                    f"this root is also a table of {' and '.join(others)}",
                    _SHARED,
                    None,
                )

    def _unread(self, said: Sequence[Difference]) -> Iterator[Difference]:
        """What the walk found wrong and no entry above told: an unreadable root, a page that is a table twice."""
        places = {(one.where.table_pa, one.where.index) for one in said}
        by_level = {column.level: number for number, column in enumerate(self.columns)}
        for problem in self.view.tree.problems:
            if problem.index is None:
                where = Where(
                    self.view.vm.name, self.view.regime, problem.ia, None, problem.level, problem.table_pa, None, None
                )
                yield Difference(
                    "unread",
                    Severity.ERROR,
                    where,
                    1,
                    Side(None, None),
                    Side(None, None),
                    problem.detail,
                    "nothing below it is compared",
                    None,
                )
            elif (
                problem.kind in ("shared", "loop")
                and (problem.table_pa, problem.index) not in places
                and problem.table_pa not in self.contested
            ):
                column = self.columns[by_level[problem.level]]
                row = int(np.flatnonzero(column.pa == np.uint64(problem.table_pa))[0])
                run = _Run(row * column.per_table + problem.index, 1)
                yield self._extra(by_level[problem.level], run, "extra", f"{problem.kind}: {problem.detail}")

    def _splits(self) -> Iterator[Difference]:
        """Full tables of pages where one block would do: what dirty logging leaves behind."""
        number = len(self.columns) - 1
        column = self.columns[number] if self.columns else None
        block_level = 2
        if column is None or column.level != 3 or self.view.mmu.kind is not MmuKind.VM:
            return
        if block_level not in self.view.geometry.block_levels:
            return
        words = column.raw.reshape(-1, column.per_table)
        full = (self.model.mapped[number].reshape(-1, column.per_table)).all(axis=1)
        size = column.per_table << column.shift
        rows = np.flatnonzero(full)
        if not len(rows):
            return
        wanted = words[rows, :1] + (np.arange(column.per_table, dtype=np.uint64) << np.uint64(column.shift))
        same = ((words[rows] ^ wanted) & np.uint64(~_AF & (1 << 64) - 1) == 0).all(axis=1)
        rows = rows[same]
        pa = column.output(rows * column.per_table)
        rows, pa = rows[pa % np.uint64(size) == 0], pa[pa % np.uint64(size) == 0]
        blocks = self._block_backing(size)
        chosen = [
            (row, ia)
            for row, ia, pa in zip(rows.tolist(), column.ia[rows].tolist(), pa.tolist(), strict=True)
            if any(start <= ia and ia + size <= end and pa - ia == shift for start, end, shift in blocks)
        ]
        start = 0
        while start < len(chosen):
            end = start + 1
            while end < len(chosen) and chosen[end][1] == chosen[end - 1][1] + size:
                end += 1
            row, ia = chosen[start]
            live = self._decoded(column, row * column.per_table)
            model = self._decode(live.raw & ~2, block_level)
            count = end - start
            where = replace(self._where(column, row * column.per_table), size=count * size, ipa=ia)
            yield Difference(
                "split",
                Severity.NOTE,
                where,
                count * column.per_table,
                Side(live, None),
                Side(model, None),
                f"{count} x {column.per_table} pages where {'a block' if count == 1 else 'blocks'} would do",
                "dirty logging splits blocks, and pages that were touched before their neighbours stay pages until "
                "somebody faults on the whole; KVM merges them lazily",
                self.functions["split"],
            )
            start = end

    def _block_backing(self, size: int) -> list[tuple[int, int, int]]:
        """(IPA, end, PA - IPA) of what the VMM maps with entries of at least ``size`` in slots that are not logged."""
        page = self.view.capture.host.page_size
        found = []
        for slot in self.view.vm.memslots:
            if slot.dirty_bitmap:
                continue
            start = slot.base_gfn * page
            for run in slot.backing:
                if run.state is BackingState.PRESENT and run.pa is not None and run.entry_size >= size:
                    low, high = _clip(run, slot.userspace_addr, slot.npages * page)
                    ipa = start + low - slot.userspace_addr
                    if low < high:
                        found.append((ipa, ipa + high - low, run.pa + (low - run.hva) - ipa))
        return found


def _with_count(one: Difference, expected: Mapping[int, int]) -> Difference:
    """The difference of an entry with the reference count that its table must have."""
    if one.where.table_pa is None or one.model.page_count is None:
        return one
    return replace(one, model=Side(one.model.entry, expected[one.where.table_pa]))


def _clip(run: Backing, hva: int, size: int) -> tuple[int, int]:
    return max(run.hva, hva), min(run.hva + run.size, hva + size)


def _order(one: Difference) -> tuple[bool, int, int, int]:
    where = one.where
    return one.severity is not Severity.ERROR, where.ipa or 0, where.level or 0, 0 if where.index is None else 1


# --- table pages with two owners ---

_SHARED = "an edit of one guest's memory changes the other's; what is below is not compared"


def shared_pages(views: Sequence[TableView]) -> dict[int, list[str]]:
    """Table pages that more than one table of the capture holds, with the titles of these tables.

    All tables of the capture count, not only ``views``.
    """
    chosen = {(view.vm.name, view.number) for view in views}
    others = [v for v in (table_views(views[0].capture) if views else ()) if (v.vm.name, v.number) not in chosen]
    holders = [*views, *others]
    pages = [
        np.unique(np.concatenate([np.array(level.pa, dtype=np.uint64) for level in v.tree.levels] or [_NO_PAGES]))
        for v in holders
    ]
    if not pages:
        return {}
    values, counts = np.unique(np.concatenate(pages), return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return {}
    found: dict[int, list[str]] = {pa: [] for pa in twice.tolist()}
    for view, held in zip(holders, pages, strict=True):
        for pa in np.intersect1d(held, twice).tolist():
            found[pa].append(view.title)
    return found


_NO_PAGES = np.empty(0, dtype=np.uint64)


def contested(tree: Tree, shared: Mapping[int, Sequence[str]]) -> frozenset[int]:
    """The pages of ``tree`` that another table, or this one at another level, holds too, and all below them."""
    pages = [np.array(level.pa, dtype=np.uint64) for level in tree.levels]
    values, counts = np.unique(np.concatenate([*pages, _NO_PAGES]), return_counts=True)
    tops = set(values[counts > 1].tolist()) | shared.keys()
    if not tops:
        return frozenset()
    found: set[int] = set()
    for table in tree.tables:
        if table.pa in tops or table.parent_pa in found:
            found.add(table.pa)
    return frozenset(found)


# --- runs of entries that differ in the same way ---


@dataclass(frozen=True)
class _Run:
    """``count`` entries of a column from ``first`` on."""

    first: int
    count: int


class _Extras:
    """Live entries that the model has not, by table: those that hold a reference, and those that may hold one."""

    def __init__(self, tables: int, per_table: int) -> None:
        self._per_table = per_table
        self.sure = [0] * tables
        self.maybe = [0] * tables

    def counted(self, run: _Run) -> None:
        """KVM wrote them, so it took references."""
        self._add(self.sure, run)

    def doubtful(self, run: _Run) -> None:
        """Who wrote them took a reference, or not."""
        self._add(self.maybe, run)

    def _add(self, counts: list[int], run: _Run) -> None:
        for place in range(run.first, run.first + run.count):
            counts[place // self._per_table] += 1


def _runs(column: LevelColumn, model: bulk.Words, differ: bulk.Words, at: _Flat) -> Iterator[_Run]:
    """The differing entries, joined where neighbours in input address differ in the same way.

    For leaves that the model has too "the same way" is the same bits; otherwise equal entries but for the address.
    """
    if not len(at):
        return
    address = np.uint64(column.table_mask if column.level < 3 else column.address_mask)
    has = model[at] != 0
    bits = np.where(has, differ[at], column.raw[at] & ~address)
    pattern = np.where(has, model[at] & ~address, np.uint64(0))
    ia = column.entry_ia(at)
    apart = np.diff(ia) != np.uint64(1 << column.shift)
    apart |= (np.diff(at) != 1) | (has[1:] != has[:-1]) | (bits[1:] != bits[:-1]) | (pattern[1:] != pattern[:-1])
    starts = np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(apart) + 1))
    ends = np.append(starts[1:], len(at))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield _Run(int(at[start]), end - start)
