"""The map visitor of 6.6 and later: LOCKED marker, tables replaced on the way down and freed after a grace period.

Facts: kernel.md 4.2-4.5, 20; ``stage2_map_walker``, ``stage2_map_walker_try_leaf``, ``stage2_try_break_pte``,
``stage2_make_pte`` of 6.12.117 and 7.3.4.
"""

from __future__ import annotations

from errno import EAGAIN
from typing import Final

from inspector.model.destroy import grace_period
from inspector.model.map_data import MapData
from inspector.model.prot import SW_MASK
from inspector.model.state import LAST_LEVEL, SHARED, SKIP_BBM_TLBI, SKIP_CMO, TABLE_PRE, U64, Stage2Table, Visit

NOT_SW: Final = U64 & ~SW_MASK


def try_break_pte(pgt: Stage2Table, ctx: Visit) -> bool:
    """``stage2_try_break_pte``: LOCKED in, old translation out of the TLBs, reference dropped; ``False`` = lost.

    A LOCKED entry met by a walk that has the table for itself is a warning (kernel.md 20).
    """
    old = ctx.old
    locked = pgt.locked_value
    if not old & 1 and old & pgt.locked_mask == locked:
        if not ctx.flags & SHARED:
            pgt.warn()
        return False
    if not pgt.try_set(ctx, locked):
        return False
    if not old:
        return True
    if not ctx.flags & SKIP_BBM_TLBI:
        if ctx.level != LAST_LEVEL and old & 3 == 3:
            size = 1 << pgt.shifts[ctx.level]
            pgt.flush_range(ctx.addr & -size if pgt.behaviours.span_flush_aligned else ctx.addr, size)
        elif old & 1:
            pgt.flush_ipa(ctx.addr, ctx.level)
    pgt.store.put(ctx.table)
    return True


def make_pte(pgt: Stage2Table, ctx: Visit, new: int) -> None:
    """``stage2_make_pte``: reference taken (unless the entry is 0), then a release store."""
    locked = ctx.entries[ctx.idx]
    if locked & 1 or locked & pgt.locked_mask != pgt.locked_value:
        pgt.warn()
    if new:
        pgt.store.get(ctx.table)
    pgt.write(ctx, new, 1)


class MapUnlink(MapData):
    """One map or annotation walk."""

    __slots__ = ()

    def visit(self, ctx: Visit, visit: int) -> int:
        """``stage2_map_walker``."""
        phys = self.phys
        if not self.annotates(phys):  # stage2_map_walker_phys_addr
            phys = (phys + ctx.addr - ctx.start) & U64
        if not self.leaf_allowed(ctx, phys):
            return self.install_table(ctx) if visit != TABLE_PRE else 0
        ret = self.try_leaf(ctx, phys)
        if visit == TABLE_PRE and not ret:
            self.detach(ctx)
        return ret

    def detach(self, ctx: Visit) -> None:
        """The detached table is freed later under RCU, at once in the hypervisor."""
        pgt = self.pgt
        pgt.defer(pgt.pa_of(ctx.old), ctx.level)
        if not pgt.machine.rcu:
            grace_period(pgt)

    def try_leaf(self, ctx: Visit, phys: int) -> int:
        """``stage2_map_walker_try_leaf`` where a leaf is allowed (kernel.md 4.4)."""
        pgt = self.pgt
        old = ctx.old
        new = self.new_leaf(ctx.level, phys)
        if old & new & 1 and not (old ^ new) & ~pgt.attributes.perms:
            return -EAGAIN
        if pgt.behaviours.software_bits_store and not (old ^ new) & NOT_SW and not ctx.flags & SHARED:
            self._store_software_bits(ctx, new)
            return 0
        if not try_break_pte(pgt, ctx):
            return -EAGAIN
        if not ctx.flags & SKIP_CMO:
            pgt.cache_maintenance(new, 1 << pgt.shifts[ctx.level])
        make_pte(pgt, ctx, new)
        return 0

    def _store_software_bits(self, ctx: Visit, new: int) -> None:
        """The entry keeps its meaning: a plain store, no break-before-make (kernel.md 4.4 step 4)."""
        if ctx.old and not new:
            self.pgt.store.put(ctx.table)
        elif new and not ctx.old:
            self.pgt.store.get(ctx.table)
        self.pgt.write(ctx, new)

    def install_table(self, ctx: Visit) -> int:
        """No leaf fits here: an empty table in place of whatever was there (kernel.md 4.3)."""
        pgt = self.pgt
        child = self.new_table(ctx.level)
        if child < 0:
            return child
        if not try_break_pte(pgt, ctx):
            pgt.store.put(child)
            return -EAGAIN
        make_pte(pgt, ctx, pgt.pte_of(child) | 3)
        return 0
