"""The model's tree for the mappings of a captured one.

Every leaf is mapped at the level it was found at (what size a leaf has is history: dirty logging splits, the next
fault merges), so the model's structure is that of the live tree unless nobody could have made that.

A table with many leaves costs one call of the model's ``map``: it makes the tables on the way and the first leaf.
Its neighbours differ in address and attributes only; what ``map`` writes for an attribute is asked of it once (a
*template*), and their entries and references are added in one step.  ``tests/compare`` holds that against mapping
leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from inspector.backing import KNOWN, SPECIAL, BackingRuns
from inspector.capture.view import TableView
from inspector.codec import Descriptor, decode, decode_register
from inspector.codec.bulk import Flags, Flat, Words
from inspector.compare.fields import AF
from inspector.compare.machine import machine_of
from inspector.compare.mappings import Reading, reading_of
from inspector.generations import KernelCode, software_bits_used
from inspector.model import MemoryCache, Stage2
from inspector.tables.columns import Columns, packed
from inspector.tables.intervals import Intervals, runs
from inspector.tables.rules import LevelRules, Pointing, level_rules

_CACHE: Final = 8
"""Pages for one map: more than there are levels."""

_TABLES: Final = 512
"""Tables taken at a time, which saves memory where there are many."""


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """The model's tree beside the live one's `Columns`.

    ``mapped`` are the live leaves that the model was asked for, ``page`` is its page for each live one (0: none).
    ``hardware_af``: the CPU sets the access flag.
    """

    pgt: Stage2
    columns: Columns
    mapped: Flags
    page: Flat
    hardware_af: bool

    def pieces(self) -> Iterator[tuple[slice, Words]]:
        """The model's entry at the place of each live one, some at a time; 0 where it has none.

        A table entry has the live one's address (that the live tables form a tree is for others to say), also where
        the model maps nothing below.  Where the CPU sets the access flag, a leaf has the live one's.
        """
        for first in range(0, len(self.page), _TABLES):
            yield self._beside(first, min(first + _TABLES, len(self.page)))

    def raw(self, at: Flat) -> Words:
        """The model's entries at positions, as `pieces` gives them."""
        found = np.empty(len(at), dtype=np.uint64)
        rows = self.columns.row[at]
        for row in np.unique(rows).tolist():
            here, made = self._beside(row, row + 1)
            found[rows == row] = made[at[rows == row] - here.start]
        return found

    def apart(self, at: Flat) -> Words:
        """The bits in which the entries at positions differ from the model's."""
        found: Words = self.columns.raw[at] ^ self.raw(at)
        return found

    def decoded(self, at: int) -> Descriptor:
        """The model's entry beside the live one at a position."""
        level = int(self.columns.page_level[self.columns.row[at]])
        return decode(int(self.raw(np.array([at]))[0]), level, self.columns.geometry, self.columns.format)

    def _beside(self, first: int, last: int) -> tuple[slice, Words]:
        """The entries beside those of some pages."""
        columns = self.columns
        bounds = columns.page_bounds[first : last + 1].tolist()
        here = slice(bounds[0], bounds[-1])
        raw, live = np.zeros(here.stop - here.start, dtype=np.uint64), columns.raw[here]
        for row, one in enumerate(self.page[first:last].tolist()):
            if one:
                start, end = bounds[row], bounds[row + 1]
                raw[start - here.start : end - here.start] = _words(self.pgt, one)[columns.index[start:end]]
        if self.hardware_af:
            raw ^= (raw ^ live) & np.where(self.mapped[here], np.uint64(AF), np.uint64(0))
        address = np.uint64(_table_address(columns))
        tables = np.flatnonzero(columns.table[here])
        tables = tables[columns.followed[here][tables] | (raw[tables] & np.uint64(3) == 3)]
        raw[tables] = np.where(raw[tables] == 0, np.uint64(3), raw[tables] & ~address) | live[tables] & address
        return here, raw


def kernel_ram(view: TableView) -> Intervals:
    """The RAM that the host kernel manages for certain: the ranges that hold its image or a table.

    What else QEMU calls RAM may be a device's to the kernel (an ivshmem BAR, video memory), and so may memory inside
    these ranges that was left out of the kernel's map ("no-map"): the VMM has it by frame number alone.
    """
    capture = view.capture
    known = [capture.host.image_pa[0], *capture.pages]
    ram = Intervals.of((start, end) for start, end in capture.host.ram if any(start <= pa < end for pa in known))
    special = [run for slot in view.vm.memslots for run in BackingRuns.of(slot.backing).having(SPECIAL | KNOWN)]
    return ram.without(Intervals.of((run.pa or 0, (run.pa or 0) + run.size) for run in special))


class _Templates:
    """What the model's ``map`` writes for a permission and memory type at a level, with address 0."""

    def __init__(self, view: TableView, kernel: KernelCode) -> None:
        self._behaviours = kernel.behaviours
        self._machine = machine_of(kernel, view)
        self._geometry = view.geometry
        self._known: dict[tuple[int, int], int] = {}

    def __call__(self, prot: int, level: int) -> int:
        known = self._known.get((prot, level))
        if known is None:
            pgt = Stage2(self._behaviours, self._machine, self._geometry)
            pgt.init()
            ret = pgt.map(0, 1 << pgt.shifts[level], 0, prot, MemoryCache(_CACHE))
            error, known, at = pgt.get_leaf(0)
            if ret or error or at != level:
                raise AssertionError(f"the model cannot map {prot:#x} at level {level}: {ret}, {error}, level {at}")
            self._known[prot, level] = known
        return known


def rebuild(view: TableView, kernel: KernelCode, columns: Columns) -> Rebuilt:
    """The model's tree for the leaves of ``columns``, which are those of ``view``'s tree."""
    pgt = Stage2(kernel.behaviours, machine_of(kernel, view), view.geometry)
    pgt.init()
    reading = reading_of(view, kernel, pgt.attributes, software_bits_used(view.capture.host, view.mmu))
    templates = _Templates(view, kernel)
    ram = kernel_ram(view)
    mapped = np.zeros(len(columns.raw), dtype=bool)
    for level in sorted(view.geometry.block_levels):
        _map_level(pgt, columns, level, reading, templates, ram, mapped)
    pgt.store.take_events()
    places = zip(columns.page_ia.tolist(), columns.page_level.tolist(), strict=True)
    page = np.array([found[0] if (found := pgt.entry_at(*place)) else 0 for place in places], dtype=np.intp)
    hafdbs = bool(view.capture.host.features.get("hafdbs"))
    hardware_af = hafdbs and bool(decode_register("vtcr_el2", view.mmu.vtcr)["HA"])
    return Rebuilt(pgt, columns, mapped, page, hardware_af)


def _words(pgt: Stage2, page: int) -> Words:
    """A page of the model as an array that shares its memory."""
    return np.frombuffer(pgt.store.pages[page], dtype=np.uint64)


def _table_address(columns: Columns) -> int:
    """The address bits of a table entry."""
    rules = level_rules(columns.geometry, columns.format)[columns.geometry.start_level]
    return 0 if rules.table is None else rules.table.address.mask


def _map_level(
    pgt: Stage2,
    columns: Columns,
    level: int,
    reading: Reading,
    templates: _Templates,
    ram: Intervals,
    mapped: Flags,
) -> None:
    """Map the leaves of one level, and say in ``mapped`` which could be asked for."""
    rules = level_rules(columns.geometry, columns.format).get(level)
    if rules is None or rules.leaf is None:
        return
    first, last = (int(at) for at in np.searchsorted(columns.page_level, (level, level + 1)))
    for start in range(first, last, _TABLES):
        bounds = columns.page_bounds[[start, min(start + _TABLES, last)]]
        _map_tables(pgt, columns, slice(*bounds.tolist()), rules, rules.leaf, reading, templates, ram, mapped)


def _map_tables(
    pgt: Stage2,
    columns: Columns,
    here: slice,
    rules: LevelRules,
    leaf: Pointing,
    reading: Reading,
    templates: _Templates,
    ram: Intervals,
    mapped: Flags,
) -> None:
    """Map the leaves among the entries ``here``, which are those of whole tables of one level."""
    beyond = np.uint64(1 << columns.geometry.pa_bits)
    mapped[here] = columns.at(here).among(columns.leaf[here], lambda some: some.output < beyond)
    at = np.flatnonzero(mapped[here]) + here.start
    if not len(at):
        return
    chosen = columns.at(here if len(at) == here.stop - here.start else at)
    pa, row, index = chosen.output, chosen.row, chosen.index
    key = packed(chosen.raw, reading.mask) * 2 + (ram.holding(pa) >= 0)
    # What was asked for, and what map writes for it, once for each combination that there is.
    size = 2 << reading.mask.bit_count()
    having, prots, wanted = np.zeros(size, dtype=np.uint64), [0] * size, np.zeros(size, dtype=np.uint64)
    having[key] = chosen.raw
    for one in np.flatnonzero(having).tolist():
        prots[one] = reading.prot(int(having[one]) & reading.mask, bool(one & 1))
        wanted[one] = templates(prots[one], rules.level)
    raw = wanted[key] | chosen.raw & np.uint64(leaf.address.mask)
    for start, end in zip(*(edge.tolist() for edge in runs((row, 0))), strict=True):
        ia = int(columns.page_ia[row[start]]) + (int(index[start]) << rules.shift)
        ret = pgt.map(ia, 1 << rules.shift, int(pa[start]), prots[key[start]], MemoryCache(_CACHE))
        place = pgt.entry_at(ia, rules.level)
        if ret or place is None:
            # Its address lies under another leaf, through a table that two entries lead to: reported there.
            mapped[at[start:end]] = False
            continue
        words = _words(pgt, place[0])
        words[index[start + 1 : end]] = raw[start + 1 : end]
        pgt.store.counts[place[0]] += end - start - 1
