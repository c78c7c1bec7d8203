"""Full tables of pages where one block would do: what dirty logging leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from inspector.capture.view import TableView
from inspector.codec.bulk import Flags
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
    full = (columns.per_page(mapped) == per_table) & (columns.page_level == BLOCK_LEVEL + 1)
    first = columns.page_bounds[:-1][full]
    first = first[columns.at(first).output % np.uint64(size) == 0]
    if not len(first):
        return
    words = columns.raw[first[:, None] + np.arange(per_table)]
    wanted = words[:, :1] + np.arange(per_table, dtype=np.uint64) * np.uint64(view.geometry.granule)
    first = first[((words ^ wanted) & ~np.uint64(AF) == 0).all(axis=1)]
    backed = list(_huge(view.vm, view.capture.host.page_size, size))
    pages = columns.at(first)
    ia = pages.ia
    places = zip(ia.tolist(), pages.output.tolist(), strict=True)
    fits = [
        any(start <= ia and ia + size <= end and pa - ia == apart for start, end, apart in backed) for ia, pa in places
    ]
    kept = np.array(fits, dtype=bool)
    first, ia = first[kept], ia[kept]
    for start, end in zip(*runs((ia, size)), strict=True):
        yield int(first[start]), int(end - start)


def _huge(vm: Vm, page: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(IPA, end, PA - IPA) of what the VMM maps with entries of at least ``size`` in slots that are not logged."""
    for slot in vm.memslots:
        start, hva, end = slot.base_gfn * page, slot.userspace_addr, slot.userspace_addr + slot.npages * page
        for run in slot.backing:
            if slot.dirty_bitmap or run.state is not BackingState.PRESENT or run.pa is None or run.entry_size < size:
                continue
            low, high = max(run.hva, hva), min(run.hva + run.size, end)
            if low < high:
                ipa = start + low - hva
                yield ipa, ipa + high - low, run.pa + (low - run.hva) - ipa
