"""Splitting blocks ahead of need: split and create_unlinked (6.6 and later).

Facts: kernel_stage2 8; ``stage2_split_walker``, ``kvm_pgtable_stage2_create_unlinked`` of 6.12.117 and 7.3.4.
"""

from __future__ import annotations

from array import array
from errno import EAGAIN, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from inspector.model.destroy import free_unlinked
from inspector.model.map_unlink import MapUnlink, break_pte, make_pte
from inspector.model.pages import MemoryCache
from inspector.model.walker import LAST_LEVEL, LEAF, SKIP_BBM_TLBI, SKIP_CMO

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2


def create_unlinked(pgt: Stage2, phys: int, level: int, prot: int, cache: MemoryCache, force_pte: bool) -> int:
    """``kvm_pgtable_stage2_create_unlinked``: a table page that maps what an entry of ``level`` would.

    Returns the page's address, or a negative errno.
    """
    size = 1 << pgt.shifts[level]
    if phys & (size - 1):
        return -EINVAL
    attr = pgt.attributes.of_prot(prot)
    if attr < 0:
        return attr
    page = pgt.store.zalloc(cache)
    if not page:
        return -ENOMEM
    flags = SKIP_BBM_TLBI | SKIP_CMO
    visitor = MapUnlink(pgt, phys, attr, cache, force_pte, None, flags)
    visitor.end = size
    walk = pgt.begin(visitor.visit, LEAF | flags, 0, size)
    ret = pgt.walk_table(walk, page, level + 1)
    if ret:
        free_unlinked(pgt, page, level)
        if pgt.behaviours.unlinked_double_put:
            pgt.put(page)
        return ret
    return page


class SplitWalk:
    """``stage2_split_walker``; ``cache`` is the MMU's split cache."""

    __slots__ = ("cache", "pgt")

    def __init__(self, pgt: Stage2, cache: MemoryCache) -> None:
        self.pgt = pgt
        self.cache = cache

    def _tables_for(self, level: int) -> int:
        """``stage2_block_get_nr_page_tables``: tables for a whole tree under a block, or ``-EINVAL``."""
        if level == 1:
            return self.pgt.index_mask + 2
        if level == 2:
            return 1
        self.pgt.warn()
        return -EINVAL

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback: the walk descends into what this installs, and splits on."""
        pgt = self.pgt
        if level == LAST_LEVEL or not old & 1:
            return 0
        needed = self._tables_for(level)
        if needed < 0:
            return needed
        whole_tree = self.cache.nobjs >= needed
        if self.cache.nobjs < (needed if whole_tree else 1):
            return -ENOMEM
        prot = pgt.attributes.prot_of(old)
        child = create_unlinked(pgt, pgt.pa_of(old), level, prot, self.cache, whole_tree)
        if child < 0:
            return child
        if not break_pte(pgt, table, entries, index, level, old, addr, 0):
            free_unlinked(pgt, child, level)
            if pgt.behaviours.unlinked_double_put:
                pgt.put(child)
            return -EAGAIN
        make_pte(pgt, table, entries, index, pgt.pte_of(child) | 3)
        if pgt.behaviours.split_barrier_each:
            pgt.barrier()
        return 0


def stage2_split(pgt: Stage2, addr: int, size: int, cache: MemoryCache) -> int:
    """``kvm_pgtable_stage2_split``."""
    if not pgt.behaviours.split:
        raise ValueError(f"{pgt.behaviours.label} has no split")
    ret = pgt.walk(SplitWalk(pgt, cache).visit, LEAF, addr, size, ignores_empty=True)
    if not pgt.behaviours.split_barrier_each:
        pgt.barrier()
    return ret
