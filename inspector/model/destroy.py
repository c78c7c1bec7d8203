"""Taking a table apart: destroy, destroy_range, free_unlinked, and the end of a grace period.

Facts: kernel.md 8, 9; ``stage2_free_walker``, ``kvm_pgtable_stage2_destroy``,
``kvm_pgtable_stage2_free_unlinked`` of 6.1.192, 6.12.117, 7.3.4.  No TLB invalidation: nothing walks these tables.
"""

from __future__ import annotations

from functools import partial

from inspector.model.state import LEAF, TABLE_POST, Stage2Table, Visit
from inspector.model.walker import walk_range, walk_unlinked


def free_walker(pgt: Stage2Table, ctx: Visit, visit: int) -> int:
    """``stage2_free_walker``: let go of every counted entry; of tables after their entries."""
    old = ctx.old
    if not pgt.is_counted(old):
        return 0
    if not pgt.is_table(old, ctx.level):
        pgt.store.put(ctx.table)
        return 0
    child = pgt.pa_of(old)
    in_ranges = pgt.behaviours.destroy_in_ranges
    if not in_ranges or pgt.store.page_count(child) == 1:
        pgt.store.put(ctx.table)
        pgt.store.put(child)
        if in_ranges:
            pgt.write(ctx, 0)
    return 0


def stage2_destroy_range(pgt: Stage2Table, addr: int, size: int) -> None:
    """The walk of destroy; by itself ``kvm_pgtable_stage2_destroy_range`` (7.3)."""
    if walk_range(pgt, partial(free_walker, pgt), LEAF | TABLE_POST, addr, size, ignores_empty=True):
        pgt.warn()


def stage2_destroy_pgd(pgt: Stage2Table) -> None:
    """``kvm_pgtable_stage2_destroy_pgd`` (7.3): the root pages back, whatever they still hold."""
    pgt.store.free_exact(pgt.root, pgt.root_pages)
    pgt.root = 0


def stage2_destroy(pgt: Stage2Table) -> None:
    """``kvm_pgtable_stage2_destroy``."""
    stage2_destroy_range(pgt, 0, 1 << pgt.ia_bits)
    stage2_destroy_pgd(pgt)


def free_unlinked(pgt: Stage2Table, page: int, level: int) -> None:
    """``kvm_pgtable_stage2_free_unlinked`` (6.6+): the detached ``page`` that an entry of ``level`` pointed to."""
    if walk_unlinked(pgt, partial(free_walker, pgt), LEAF | TABLE_POST, page, level + 1, ignores_empty=True):
        pgt.warn()
    if pgt.store.count_or_none(page) != 1:
        pgt.warn()
    pgt.store.put(page)


def grace_period(pgt: Stage2Table) -> None:
    """The RCU callbacks run: every deferred table is freed, in order."""
    waiting = pgt.store.deferred[:]
    pgt.store.deferred.clear()
    for page, level in waiting:
        free_unlinked(pgt, page, level)
