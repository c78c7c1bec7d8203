"""The model's tree for the mappings of a captured one.

Every leaf is mapped at the level it was found at (what size a leaf has is history: dirty logging splits, the next
fault merges), so the model's structure is that of the live tree unless nobody could have made that.

A table with many leaves costs one call of the model's ``map``: it makes the tables on the way and the first leaf.
Its neighbours differ in address and attributes only; what ``map`` writes for an attribute is asked of it once (a
*template*), and their entries and references are added in one step.  ``tests/compare`` holds that against mapping
leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inspector.capture.view import TableView
from inspector.codec import bulk
from inspector.compare.columns import LevelColumn, Mask
from inspector.compare.machine import machine_of
from inspector.compare.mappings import Reading, reading_of
from inspector.generations import KernelCode, software_bits_used
from inspector.model import MemoryCache, Stage2

_CACHE = 8
"""Pages for one map: more than there are levels."""


@dataclass(frozen=True)
class Rebuilt:
    """The model's tree: for each level of the live one its entries at the same places, and its pages.

    ``raw[n]`` is parallel to column n (all zero where the model has no such table); ``page[n]`` holds the model's
    page for each table, 0 where there is none; ``mapped[n]`` says which live leaves it was asked for.
    """

    pgt: Stage2
    raw: tuple[bulk.Words, ...]
    page: tuple[tuple[int, ...], ...]
    mapped: tuple[Mask, ...]

    def count(self, level: int, row: int) -> int:
        """The model's reference count of a table; 1, an empty table's, where it has none."""
        return self.pgt.store.counts.get(self.page[level][row], 1)

    def child_page(self, raw: int) -> int:
        """The model's page that one of its table entries leads to."""
        return self.pgt.pa_of(raw)


def kernel_ram(view: TableView) -> list[tuple[int, int]]:
    """The RAM that the host kernel manages for certain: the ranges that hold its image or a table.

    What else QEMU calls RAM may be a device's to the kernel (an ivshmem BAR, video memory), and so may memory inside
    these ranges that was left out of the kernel's map ("no-map"): the VMM has it by frame number alone.
    """
    capture = view.capture
    known = [capture.host.image_pa[0], *capture.pages]
    ram = [(start, end) for start, end in capture.host.ram if any(start <= pa < end for pa in known)]
    runs = (run for slot in view.vm.memslots for run in slot.backing if run.special and run.pa is not None)
    for low, size in sorted({(run.pa or 0, run.size) for run in runs}):
        ram = [part for start, end in ram for part in ((start, min(end, low)), (max(start, low + size), end))]
        ram = [(start, end) for start, end in ram if start < end]
    return ram


def _in_ranges(pa: bulk.Words, ranges: Sequence[tuple[int, int]]) -> Mask:
    found = np.zeros(pa.shape, dtype=bool)
    for start, end in ranges:
        found |= (pa >= np.uint64(start)) & (pa < np.uint64(end))
    return found


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


def rebuild(view: TableView, kernel: KernelCode, columns: Sequence[LevelColumn]) -> Rebuilt:
    """The model's tree for the leaves of ``columns``, the levels of ``view``'s tree."""
    pgt = Stage2(kernel.behaviours, machine_of(kernel, view), view.geometry)
    pgt.init()
    reading = reading_of(view, kernel, pgt.attributes, software_bits_used(view.capture.host, view.mmu))
    templates = _Templates(view, kernel)
    ram = kernel_ram(view)
    mapped = tuple(_map_level(pgt, column, reading, templates, ram) for column in columns)
    pgt.store.take_events()
    pages = tuple(_pages(pgt, column) for column in columns)
    empty = np.zeros(view.geometry.entries, dtype=np.uint64)
    raw = tuple(np.concatenate([_words(pgt, page) if page else empty for page in of_level]) for of_level in pages)
    return Rebuilt(pgt, raw, pages, mapped)


def _words(pgt: Stage2, page: int) -> bulk.Words:
    """A page of the model as an array that shares its memory."""
    return np.frombuffer(pgt.store.pages[page], dtype=np.uint64)


def _pages(pgt: Stage2, column: LevelColumn) -> tuple[int, ...]:
    found = (pgt.entry_at(ia, column.level) for ia in column.ia.tolist())
    return tuple(place[0] if place is not None else 0 for place in found)


def _map_level(
    pgt: Stage2, column: LevelColumn, reading: Reading, templates: _Templates, ram: list[tuple[int, int]]
) -> Mask:
    """Map the leaves of one level; returns which could be asked for."""
    mapped = np.zeros(column.raw.shape, dtype=bool)
    at = np.flatnonzero(column.leaf)
    if not len(at) or column.level not in column.geometry.block_levels:
        return mapped
    pa = column.output(at)
    inside = pa >> np.uint64(column.geometry.pa_bits) == 0
    at, pa = at[inside], pa[inside]
    if not len(at):
        return mapped
    mapped[at] = True
    # Bit 0 is set in every leaf, so its place can say whether the leaf maps the kernel's RAM.
    key = (column.raw[at] & np.uint64(reading.mask)) | _in_ranges(pa, ram).astype(np.uint64)
    values, which = np.unique(key, return_inverse=True)
    which = which.reshape(-1)
    prots = [reading.prot(value & ~1, bool(value & 1)) for value in values.tolist()]
    wanted = np.array([templates(prot, column.level) for prot in prots], dtype=np.uint64)[which]
    wanted |= column.raw[at] & np.uint64(column.address_mask)
    _, first = np.unique(at // column.per_table, return_index=True)
    size = 1 << column.shift
    ends = [*first[1:].tolist(), len(at)]
    ia = column.entry_ia(at[first]).tolist()
    for n, (start, end) in enumerate(zip(first.tolist(), ends, strict=True)):
        ret = pgt.map(ia[n], size, int(pa[start]), prots[which[start]], MemoryCache(_CACHE))
        place = pgt.entry_at(ia[n], column.level)
        if ret or place is None:
            # Its address lies under another leaf, through a table that two entries lead to: reported there.
            mapped[at[start:end]] = False
            continue
        if end - start > 1:
            words = _words(pgt, place[0])
            words[at[start + 1 : end] % column.per_table] = wanted[start + 1 : end]
            pgt.store.counts[place[0]] += end - start - 1
    return mapped
