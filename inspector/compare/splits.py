"""Full tables of pages where one block would do: what dirty logging leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from inspector.backing import KNOWN, BackingRuns
from inspector.capture.view import TableView
from inspector.codec.bulk import Flags, Words
from inspector.compare.fields import AF
from inspector.snapshot import BackingState, MmuKind, Vm
from inspector.tables.columns import Columns
from inspector.tables.intervals import runs

BLOCK_LEVEL: Final = 2
"""The level of the block that stands for a table of pages."""


def blocks(view: TableView, columns: Columns, mapped: Flags) -> Iterator[tuple[int, int]]:
    """Tables of (``mapped``) pages that differ in address and access flag alone and are backed by huge pages.

    Neighbours are joined: position of the first page, number of tables.
    """
    if view.mmu.kind is not MmuKind.VM or BLOCK_LEVEL not in view.geometry.block_levels:
        return
    size, per_table = view.geometry.block_size(BLOCK_LEVEL), view.geometry.entries
    backed = sorted(_huge(view.vm, view.capture.host.page_size, size))
    full = (columns.per_page(mapped) == per_table) & (columns.page_level == BLOCK_LEVEL + 1)
    first = columns.page_bounds[:-1][full]
    if not len(first) or not backed:
        return
    pages = columns.at(first)
    first = first[(pages.output % np.uint64(size) == 0) & _backed(pages.ia, pages.output, size, backed)]
    words = columns.raw[first[:, None] + np.arange(per_table)]
    wanted = words[:, :1] + np.arange(per_table, dtype=np.uint64) * np.uint64(view.geometry.granule)
    first = first[((words ^ wanted) & ~np.uint64(AF) == 0).all(axis=1)]
    ia = columns.at(first).ia
    for start, end in zip(*runs((ia, size)), strict=True):
        yield int(first[start]), int(end - start)


def _backed(ia: Words, pa: Words, size: int, huge: list[tuple[int, int, int]]) -> Flags:
    """Where ``size`` bytes at ``ia`` lie in a range of `_huge` (ascending, disjoint), and map what it does."""
    start, end = (np.array([one[n] for one in huge], dtype=np.uint64) for n in (0, 1))
    apart = np.array([one[2] & (1 << 64) - 1 for one in huge], dtype=np.uint64)
    at = np.searchsorted(start, ia, side="right") - 1
    found: Flags = (at >= 0) & (ia + np.uint64(size) <= end[at]) & (pa - ia == apart[at])
    return found


def _huge(vm: Vm, page: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(IPA, end, PA - IPA) of what the VMM maps with entries of at least ``size`` in slots that are not logged."""
    for slot in vm.memslots:
        start, hva, end = slot.base_gfn * page, slot.userspace_addr, slot.userspace_addr + slot.npages * page
        if slot.dirty_bitmap:
            continue
        for run in BackingRuns.of(slot.backing).of_entries(size).having(KNOWN, BackingState.PRESENT):
            low, high = max(run.hva, hva), min(run.hva + run.size, end)
            if low < high:
                ipa = start + low - hva
                yield ipa, ipa + high - low, (run.pa or 0) + (low - run.hva) - ipa
