"""Splitting blocks ahead of need: split and create_unlinked (6.6 and later).

Facts: kernel.md 8; ``stage2_split_walker``, ``kvm_pgtable_stage2_create_unlinked`` of 6.12.117 and 7.3.4.
"""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOMEM
from functools import partial

from inspector.model.destroy import free_unlinked
from inspector.model.map_unlink import MapUnlink, make_pte, try_break_pte
from inspector.model.pages import MemoryCache
from inspector.model.state import LAST_LEVEL, LEAF, SKIP_BBM_TLBI, SKIP_CMO, Stage2Table, Visit
from inspector.model.walker import walk_range, walk_unlinked

UNLINKED_FLAGS = SKIP_BBM_TLBI | SKIP_CMO
"""The walk that builds a detached table: nothing translates through it yet."""


def create_unlinked(
    pgt: Stage2Table, phys: int, level: int, prot: int, cache: MemoryCache, force_pte: bool = False
) -> int:
    """``kvm_pgtable_stage2_create_unlinked`` (6.6+): a table page that maps what an entry of ``level`` would.

    Returns the page's address, or a negative errno.
    """
    if phys & ((1 << pgt.shifts[level]) - 1):
        return -EINVAL
    attr = pgt.attributes.of_prot(prot)
    if attr < 0:
        return attr
    page = pgt.store.zalloc(cache)
    if not page:
        return -ENOMEM
    data = MapUnlink(pgt, phys, attr, cache, force_pte, None)
    ret = walk_unlinked(pgt, data.visit, LEAF | UNLINKED_FLAGS, page, level + 1)
    if ret:
        drop_unlinked(pgt, page, level)
        return ret
    return page


def drop_unlinked(pgt: Stage2Table, page: int, level: int) -> None:
    """The error path: an unlinked table that is not used after all (6.6.9 puts it once more)."""
    free_unlinked(pgt, page, level)
    if pgt.behaviours.unlinked_double_put:
        pgt.store.put(page)


def tables_for(pgt: Stage2Table, level: int) -> int:
    """``stage2_block_get_nr_page_tables``: tables for a whole tree under a block, or ``-EINVAL``."""
    if level in (1, 2):
        return pgt.index_mask + 2 if level == 1 else 1
    pgt.warn()
    return -EINVAL


def split_walker(pgt: Stage2Table, cache: MemoryCache, ctx: Visit, visit: int) -> int:
    """``stage2_split_walker``: the walk descends into what this installs, and splits on."""
    old, level = ctx.old, ctx.level
    if level == LAST_LEVEL or not old & 1:
        return 0
    needed = tables_for(pgt, level)
    if needed < 0:
        return needed
    whole_tree = cache.nobjs >= needed
    if not whole_tree and cache.nobjs < 1:
        return -ENOMEM
    child = create_unlinked(pgt, pgt.pa_of(old), level, pgt.attributes.prot_of(old), cache, whole_tree)
    if child < 0:
        return child
    if not try_break_pte(pgt, ctx):
        drop_unlinked(pgt, child, level)
        return -EAGAIN
    make_pte(pgt, ctx, pgt.pte_of(child) | 3)
    if pgt.behaviours.split_barrier_each:
        pgt.barrier()
    return 0


def stage2_split(pgt: Stage2Table, addr: int, size: int, cache: MemoryCache) -> int:
    """``kvm_pgtable_stage2_split`` (6.6+)."""
    if not pgt.behaviours.split:
        raise ValueError(f"{pgt.behaviours.label} has no split")
    ret = walk_range(pgt, partial(split_walker, pgt, cache), LEAF, addr, size, ignores_empty=True)
    if not pgt.behaviours.split_barrier_each:
        pgt.barrier()
    return ret
