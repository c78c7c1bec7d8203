"""unmap: entries out, translations out of the TLBs, tables that became empty freed on the way up.

Facts: kernel.md 6; ``stage2_unmap_walker`` of 6.1.192, 6.12.117, 7.3.4; ``stage2_put_pte`` (6.1),
``stage2_unmap_put_pte`` (6.12, 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.events import CACHE, TTL_UNKNOWN
from inspector.generations import TableTlbi
from inspector.model.state import LAST_LEVEL, LEAF, TABLE_POST, Stage2Table, Visit
from inspector.model.walker import walk_range


def invalidate(pgt: Stage2Table, ctx: Visit) -> None:
    """``kvm_clear_pte``, or ``kvm_set_invalid_pte`` of 5.10, which leaves all but bit 0 in place."""
    pgt.write(ctx, ctx.entries[ctx.idx] & ~1 if pgt.stale_invalid else 0)


def table_hint(pgt: Stage2Table, level: int) -> int:
    """The level hint of the invalidation when a table entry at ``level`` goes."""
    kind = pgt.behaviours.unmap_table_tlbi
    if kind is TableTlbi.OWN_LEVEL:
        return level
    return 0 if kind is TableTlbi.ZERO else TTL_UNKNOWN


def clear_pte(pgt: Stage2Table, ctx: Visit) -> None:
    """``stage2_put_pte`` (5.15, 6.1): zero a counted entry, flush it if it was valid, drop its reference."""
    old, level = ctx.entries[ctx.idx], ctx.level
    if old & 1:
        pgt.write(ctx, 0)
        pgt.flush_ipa(ctx.addr, table_hint(pgt, level) if pgt.is_table(old, level) else level)
    pgt.store.put(ctx.table)


@dataclass(slots=True)
class Unmap:
    """One unmap walk; ``deferred``: leaves are flushed by range when the walk is over.

    ``cleans``: the memory of cacheable leaves is cleaned.
    """

    pgt: Stage2Table
    deferred: bool
    cleans: bool

    def visit(self, ctx: Visit, visit: int) -> int:
        """``stage2_unmap_walker``."""
        pgt = self.pgt
        old, level = ctx.old, ctx.level
        if not old & 1:
            if old and pgt.counts_nonzero:
                pgt.write(ctx, 0)
                pgt.store.put(ctx.table)
            return 0
        child = 0
        cleans = False
        silent = self.deferred
        hint = level
        if level != LAST_LEVEL and old & 3 == 3:
            child = pgt.pa_of(old)
            if pgt.store.page_count(child) != 1:
                return 0
            silent = silent and pgt.behaviours.unmap_defers_tables_too
            hint = table_hint(pgt, level)
        elif self.cleans:
            cleans = pgt.attributes.cacheable(old)
        pgt.write(ctx, old & ~1 if pgt.stale_invalid else 0)
        if not silent:
            pgt.flush_ipa(ctx.addr, hint)
        pgt.store.put(ctx.table)
        if cleans:
            pgt.emit((CACHE, "dcache", pgt.pa_of(old), 1 << pgt.shifts[level]))
        if child:
            pgt.store.put(child)
        return 0


def stage2_unmap(pgt: Stage2Table, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_unmap``; the deferred range flush happens whatever the walk returned."""
    fwb = pgt.attributes.fwb
    deferred = pgt.behaviours.unmap_deferred_range and pgt.machine.tlb_range and fwb
    walker = Unmap(pgt, deferred, pgt.machine.dcache_op and not fwb)
    ret = walk_range(pgt, walker.visit, LEAF | TABLE_POST, addr, size, ignores_empty=True)
    if deferred:
        pgt.flush_range(addr, size)
    return ret
