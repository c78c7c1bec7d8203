"""unmap: entries out, translations out of the TLBs, tables that became empty freed on the way up.

Facts: kernel_stage2 6; ``stage2_unmap_walker`` of 6.1.192, 6.12.117, 7.3.4; ``stage2_put_pte`` (6.1),
``stage2_unmap_put_pte`` (6.12, 7.3).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from inspector.events import CACHE, STORE, TLBI, TTL_UNKNOWN
from inspector.generations import TableTlbi
from inspector.model.walker import LAST_LEVEL, LEAF, TABLE_POST

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2


def invalidate(pgt: Stage2, table: int, entries: array[int], index: int) -> None:
    """``kvm_clear_pte``, or ``kvm_set_invalid_pte`` of 5.10, which leaves all but bit 0 in place."""
    pgt.write(table, entries, index, entries[index] & ~1 if pgt.behaviours.stale_invalid else 0)


def _table_level(pgt: Stage2, level: int) -> int:
    kind = pgt.behaviours.unmap_table_tlbi
    if kind is TableTlbi.OWN_LEVEL:
        return level
    return 0 if kind is TableTlbi.ZERO else TTL_UNKNOWN


def clear_pte(pgt: Stage2, table: int, entries: array[int], index: int, level: int, addr: int) -> None:
    """``stage2_put_pte`` (5.15, 6.1): zero a counted entry, flush it if it was valid, drop its reference."""
    old = entries[index]
    if old & 1:
        pgt.write(table, entries, index, 0)
        pgt.flush_ipa(addr, _table_level(pgt, level) if pgt.is_table(old, level) else level)
    pgt.put(table)


class Unmap:
    """One unmap walk; ``deferred`` = leaves are flushed by range when the walk is over."""

    __slots__ = ("deferred", "need_flush", "pgt")

    def __init__(self, pgt: Stage2, deferred: bool) -> None:
        self.pgt = pgt
        self.deferred = deferred
        self.need_flush = not pgt.attributes.fwb and pgt.machine.dcache_op

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback, for LEAF and TABLE_POST."""
        pgt = self.pgt
        if not old & 1:
            if old and pgt.behaviours.counts_nonzero:
                pgt.write(table, entries, index, 0)
                pgt.put(table)
            return 0
        child = 0
        flush = False
        silent = self.deferred
        hint = level
        if level != LAST_LEVEL and old & 3 == 3:
            child = pgt.pa_of(old)
            if pgt.store.counts[child] != 1:
                return 0
            silent = silent and pgt.behaviours.unmap_defers_tables_too
            hint = _table_level(pgt, level)
        elif self.need_flush:
            flush = pgt.attributes.cacheable(old)
        new = old & ~1 if pgt.behaviours.stale_invalid else 0
        pgt.emit((STORE, table + 8 * index, old, new, 0, 0))
        entries[index] = new
        if not silent:
            pgt.emit((TLBI, "ipa", addr, hint, None))
        pgt.put(table)
        if flush:
            pgt.emit((CACHE, "dcache", pgt.pa_of(old), 1 << pgt.shifts[level]))
        if child:
            pgt.put(child)
        return 0


def stage2_unmap(pgt: Stage2, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_unmap``; the deferred range flush happens whatever the walk returned."""
    deferred = pgt.behaviours.unmap_deferred_range and pgt.machine.tlb_range and pgt.attributes.fwb
    ret = pgt.walk(Unmap(pgt, deferred).visit, LEAF | TABLE_POST, addr, size, ignores_empty=True)
    if deferred:
        pgt.flush_range(addr, size)
    return ret
