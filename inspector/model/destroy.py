"""Taking a table apart: destroy, destroy_range, free_unlinked.

Facts: kernel_stage2 8, 9; ``stage2_free_walker``, ``kvm_pgtable_stage2_destroy``,
``kvm_pgtable_stage2_free_unlinked`` of 6.1.192, 6.12.117, 7.3.4.  No TLB invalidation: nothing walks these tables.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from inspector.model.walker import LAST_LEVEL, LEAF, TABLE_POST, Walk

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2


class FreeWalk:
    """``stage2_free_walker``: let go of every counted entry; of tables after their entries."""

    __slots__ = ("pgt",)

    def __init__(self, pgt: Stage2) -> None:
        self.pgt = pgt

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        pgt = self.pgt
        if not pgt.is_counted(old):
            return 0
        if level == LAST_LEVEL or old & 3 != 3:
            pgt.put(table)
            return 0
        child = pgt.pa_of(old)
        if not pgt.behaviours.destroy_in_ranges:
            pgt.put(table)
            pgt.put(child)
            return 0
        if pgt.store.counts[child] == 1:
            pgt.put(table)
            pgt.put(child)
            pgt.write(table, entries, index, 0)
        return 0


def stage2_destroy_range(pgt: Stage2, addr: int, size: int) -> None:
    """The walk of destroy; by itself ``kvm_pgtable_stage2_destroy_range`` (7.3)."""
    if pgt.walk(FreeWalk(pgt).visit, LEAF | TABLE_POST, addr, size, ignores_empty=True):
        pgt.warn()


def stage2_destroy_pgd(pgt: Stage2) -> None:
    """``kvm_pgtable_stage2_destroy_pgd``: the root pages back, whatever they still hold."""
    pgt.store.free_exact(pgt.root, pgt.root_pages)
    pgt.root = 0


def stage2_destroy(pgt: Stage2) -> None:
    """``kvm_pgtable_stage2_destroy``."""
    stage2_destroy_range(pgt, 0, 1 << pgt.ia_bits)
    stage2_destroy_pgd(pgt)


def free_unlinked(pgt: Stage2, page: int, level: int) -> None:
    """``kvm_pgtable_stage2_free_unlinked``: the detached table ``page`` that an entry of ``level`` pointed to."""
    walk = Walk(FreeWalk(pgt).visit, LEAF | TABLE_POST, 0, 1 << pgt.shifts[level], True, ignores_empty=True)
    if pgt.walk_table(walk, page, level + 1):
        pgt.warn()
    if pgt.store.counts.get(page, 0) != 1:
        pgt.warn()
    pgt.put(page)
