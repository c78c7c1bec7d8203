"""The map visitor of 6.6 and later: LOCKED marker, tables replaced on the way down and freed after a grace period.

Facts: kernel_stage2 4.2-4.5, 20; ``stage2_map_walker``, ``stage2_map_walker_try_leaf``, ``stage2_try_break_pte``,
``stage2_make_pte`` of 6.12.117 and 7.3.4.
"""

from __future__ import annotations

from array import array
from errno import E2BIG, EAGAIN, EINVAL, ENOMEM
from typing import TYPE_CHECKING, Final

from inspector.events import CACHE, GET, STORE, TLBI
from inspector.generations import Annotation
from inspector.model.pages import MemoryCache
from inspector.model.prot import SW_MASK
from inspector.model.walker import LAST_LEVEL, SHARED, SKIP_BBM_TLBI, SKIP_CMO, TABLE_PRE, U64

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2

NOT_SW: Final = U64 & ~SW_MASK


def break_pte(
    pgt: Stage2, table: int, entries: array[int], index: int, level: int, old: int, addr: int, flags: int
) -> bool:
    """``stage2_try_break_pte``: LOCKED in, old translation out of the TLBs, reference dropped; ``False`` = lost.

    A LOCKED entry met by a walk that has the table for itself is a warning (kernel.md 20).
    """
    behaviours = pgt.behaviours
    if not old & 1 and old & behaviours.locked_mask == behaviours.locked_value:
        if not flags & SHARED:
            pgt.warn()
        return False
    if flags & SHARED:
        if not pgt.try_set(table, entries, index, old, behaviours.locked_value, True):
            return False
    else:
        pgt.emit((STORE, table + 8 * index, old, behaviours.locked_value, 0, 0))
        entries[index] = behaviours.locked_value
    if old and not flags & SKIP_BBM_TLBI:
        if level != LAST_LEVEL and old & 3 == 3:
            size = 1 << pgt.shifts[level]
            start = addr & -size if behaviours.span_flush_aligned else addr
            pgt.flush_range(start, size)
        elif old & 1:
            pgt.emit((TLBI, "ipa", addr, level, None))
    if old:
        pgt.put(table)
    return True


def make_pte(pgt: Stage2, table: int, entries: array[int], index: int, new: int) -> None:
    """``stage2_make_pte``: reference taken (unless the entry is 0), then a release store."""
    locked = entries[index]
    behaviours = pgt.behaviours
    if locked & 1 or locked & behaviours.locked_mask != behaviours.locked_value:
        pgt.warn()
    if new:
        pgt.store.counts[table] += 1
        pgt.emit((GET, table))
    pgt.emit((STORE, table + 8 * index, locked, new, 1, 0))
    entries[index] = new


class MapUnlink:
    """One map or annotation walk.

    ``phys`` is the PA of the walk's start (or what stands for it), ``attr`` the attribute bits, ``annotation`` the
    invalid entry to write when the walk is an annotation.
    """

    __slots__ = ("annotation", "attr", "by_flag", "cache", "end", "flags", "force_pte", "pgt", "phys", "start")

    def __init__(
        self,
        pgt: Stage2,
        phys: int,
        attr: int,
        cache: MemoryCache | None,
        force_pte: bool,
        annotation: int | None,
        flags: int,
    ) -> None:
        self.pgt = pgt
        self.phys = phys
        self.attr = attr & pgt.attributes.keep
        self.cache = cache
        self.force_pte = force_pte
        self.flags = flags
        self.by_flag = pgt.behaviours.annotation is not Annotation.OWNER_BY_INVALID_PA
        self.annotation = annotation
        self.start = 0
        self.end = 0

    def _leaf_allowed(self, level: int, addr: int, phys: int) -> bool:
        """``stage2_leaf_mapping_allowed`` (kernel.md 4.2)."""
        if level == LAST_LEVEL:
            return True
        if self.force_pte:
            return False
        if self.by_flag and self.annotation is not None:
            return True
        pgt = self.pgt
        if level < pgt.min_block_level:
            return False
        size = 1 << pgt.shifts[level]
        if size > self.end - addr or addr & (size - 1):
            return False
        return not phys & (size - 1) or (not self.by_flag and phys >= pgt.phys_limit)

    def _phys(self, addr: int) -> int:
        """``stage2_map_walker_phys_addr``."""
        phys = self.phys
        if not self.by_flag and phys >= self.pgt.phys_limit:
            return phys
        return (phys + addr - self.start) & U64

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        phys = self._phys(addr)
        allowed = self._leaf_allowed(level, addr, phys)
        if which == TABLE_PRE:
            if not allowed:
                return 0
            ret = self._try_leaf(table, entries, index, level, old, addr, phys)
            if ret:
                return ret
            self.pgt.defer(self.pgt.pa_of(old), level)
            return 0
        ret = self._try_leaf(table, entries, index, level, old, addr, phys) if allowed else -E2BIG
        if ret != -E2BIG:
            return ret
        return self._install_table(table, entries, index, level, old, addr)

    def _try_leaf(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, phys: int) -> int:
        pgt = self.pgt
        flags = self.flags
        if (self.annotation is not None) if self.by_flag else phys >= pgt.phys_limit:
            new = self.annotation or 0
        else:
            new = pgt.pte_of(phys) | self.attr | (3 if level == LAST_LEVEL else 1)
        if old & new & 1 and not (old ^ new) & ~pgt.attributes.perms:
            return -EAGAIN
        if pgt.behaviours.software_bits_store and not (old ^ new) & NOT_SW and not flags & SHARED:
            self._store_software_bits(table, entries, index, old, new)
            return 0
        if not break_pte(pgt, table, entries, index, level, old, addr, flags):
            return -EAGAIN
        if not flags & SKIP_CMO:
            machine = pgt.machine
            if machine.dcache_op and pgt.attributes.cacheable(new):
                pgt.emit((CACHE, "dcache", pgt.pa_of(new), 1 << pgt.shifts[level]))
            if machine.icache_op and pgt.attributes.executable(new):
                pgt.emit((CACHE, "icache", pgt.pa_of(new), 1 << pgt.shifts[level]))
        make_pte(pgt, table, entries, index, new)
        return 0

    def _store_software_bits(self, table: int, entries: array[int], index: int, old: int, new: int) -> None:
        """The entry keeps its meaning: a plain store, no break-before-make (kernel.md 4.4 step 4)."""
        pgt = self.pgt
        if bool(old) != bool(new):
            if old:
                pgt.put(table)
            else:
                pgt.get(table)
        pgt.write(table, entries, index, new)

    def _install_table(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int) -> int:
        """No leaf fits here: an empty table in place of whatever was there (kernel.md 4.3)."""
        pgt = self.pgt
        if level == LAST_LEVEL:
            pgt.warn()
            return -EINVAL
        if self.cache is None:
            return -ENOMEM
        child = pgt.store.zalloc(self.cache)
        if not child:
            return -ENOMEM
        if not break_pte(pgt, table, entries, index, level, old, addr, self.flags):
            pgt.put(child)
            return -EAGAIN
        make_pte(pgt, table, entries, index, pgt.pte_of(child) | 3)
        return 0
