"""The map visitor of 5.10 to 6.1: the anchor.

TABLE_PRE detaches a table that a block can replace and drops the anchor at its entry; the walk goes on below it,
LEAF lets go of every reference, TABLE_POST frees the tables on the way up and, back at the anchor, installs the block.
Facts: kernel.md 4.3-4.5, 16; ``stage2_map_walk_table_pre``, ``stage2_map_walk_leaf``,
``stage2_map_walk_table_post`` and ``stage2_map_walker_try_leaf`` of 6.1.192; 5.10 and 5.15 from facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import E2BIG, EAGAIN

from inspector.generations import MapScheme
from inspector.model.map_data import MapData
from inspector.model.state import TABLE_POST, TABLE_PRE, U64, Visit
from inspector.model.unmap import clear_pte, invalidate


@dataclass(slots=True)
class MapAnchor(MapData):
    """One map or set_owner walk.

    ``phys`` runs on by the size of each leaf installed; ``anchor`` is the address of the entry under which the walk
    is tearing down (0: none), ``child`` the table detached there.
    """

    anchor: int = 0
    child: int = 0

    def _in_place(self) -> bool:
        return self.pgt.behaviours.map_scheme is MapScheme.ANCHOR_IN_PLACE

    def visit(self, ctx: Visit, visit: int) -> int:
        """``stage2_map_walker``."""
        if visit == TABLE_PRE:
            return self.table_pre(ctx)
        return self.table_post(ctx) if visit == TABLE_POST else self.leaf(ctx)

    def table_pre(self, ctx: Visit) -> int:
        """``stage2_map_walk_table_pre``."""
        if self.anchor or not self.leaf_allowed(ctx, self.phys):
            return 0
        pgt = self.pgt
        self.child = pgt.pa_of(ctx.entries[ctx.idx])
        invalidate(pgt, ctx)
        pgt.flush_all()
        self.anchor = ctx.ptep
        return 0

    def table_post(self, ctx: Visit) -> int:
        """``stage2_map_walk_table_post``."""
        if not self.anchor:
            return 0
        pgt = self.pgt
        at_anchor = self.anchor == ctx.ptep
        if self._in_place():
            pgt.store.put(pgt.pa_of(ctx.entries[ctx.idx]))
            pgt.store.put(ctx.table)
            if not at_anchor:
                return 0
            self.anchor = 0
            return self.leaf(ctx)
        ret, child = 0, self.child
        if at_anchor:
            self.anchor = self.child = 0
            ret = self.leaf(ctx)
        else:
            child = pgt.pa_of(ctx.entries[ctx.idx])
        pgt.store.put(child)
        pgt.store.put(ctx.table)
        return ret

    def leaf(self, ctx: Visit) -> int:
        """``stage2_map_walk_leaf``."""
        pgt = self.pgt
        old = ctx.entries[ctx.idx]
        if self.anchor:
            if pgt.is_counted(old):
                pgt.store.put(ctx.table)
            return 0
        ret = self.try_leaf(ctx, old)
        if ret != -E2BIG:
            return ret
        child = self.new_table(ctx.level)
        if child < 0:
            return child
        if self._in_place():
            if old & 1:
                invalidate(pgt, ctx)
                pgt.flush_ipa(ctx.addr, ctx.level)
                pgt.store.put(ctx.table)
        elif old:
            clear_pte(pgt, ctx)
        pgt.write(ctx, pgt.pte_of(child) | 3, 1)
        pgt.store.get(ctx.table)
        return 0

    def try_leaf(self, ctx: Visit, old: int) -> int:
        """``stage2_map_walker_try_leaf``."""
        pgt = self.pgt
        phys = self.phys
        if not self.leaf_allowed(ctx, phys):
            return -E2BIG
        size = 1 << pgt.shifts[ctx.level]
        new = self.new_leaf(ctx.level, phys)
        if self._in_place():
            self._replace_in_place(ctx, old, new)
        else:
            if old:
                if old & new & 1 and not (old ^ new) & ~pgt.attributes.perms:
                    return -EAGAIN
                clear_pte(pgt, ctx)
            pgt.cache_maintenance(new, size)
            pgt.write(ctx, new, 1)
            if new:
                pgt.store.get(ctx.table)
        if not self.annotates(phys):
            self.phys = (phys + size) & U64
        return 0

    def _replace_in_place(self, ctx: Visit, old: int, new: int) -> None:
        """5.10: put early, store; break-before-make only when a valid entry is in the way (kernel.md 4.4, 16)."""
        pgt = self.pgt
        if old & 1:
            pgt.store.put(ctx.table)
            if old != new:
                invalidate(pgt, ctx)
                pgt.flush_ipa(ctx.addr, ctx.level)
        if not old & 1 or old != new:
            pgt.write(ctx, new, 1)
        pgt.store.get(ctx.table)
