"""The map visitor of 5.10 to 6.1: the anchor.

TABLE_PRE detaches a table that a block can replace and drops the anchor at its entry; the walk goes on below it,
LEAF lets go of every reference, TABLE_POST frees the tables on the way up and, back at the anchor, installs the block.
Facts: kernel_stage2 4.3-4.5, 16; ``stage2_map_walk_table_pre``, ``stage2_map_walk_leaf``,
``stage2_map_walk_table_post`` and ``stage2_map_walker_try_leaf`` of 6.1.192; 5.10 and 5.15 from facts.
"""

from __future__ import annotations

from array import array
from errno import E2BIG, EAGAIN, EINVAL, ENOMEM
from typing import TYPE_CHECKING

from inspector.events import CACHE
from inspector.generations import MapScheme
from inspector.model.pages import MemoryCache
from inspector.model.unmap import clear_pte, invalidate
from inspector.model.walker import LAST_LEVEL, TABLE_POST, TABLE_PRE, U64

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2


class MapAnchor:
    """One map or set_owner walk.

    ``phys`` runs on by the size of each leaf installed; ``anchor`` is the address of the entry under which the walk
    is tearing down (0: none), ``child`` the table detached there.
    """

    __slots__ = (
        "anchor",
        "annotation",
        "attr",
        "cache",
        "child",
        "end",
        "force_pte",
        "in_place",
        "pgt",
        "phys",
        "start",
    )

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
        self.annotation = annotation
        self.in_place = pgt.behaviours.map_scheme is MapScheme.ANCHOR_IN_PLACE
        self.anchor = 0
        self.child = 0
        self.start = 0
        self.end = 0

    def _leaf_allowed(self, level: int, addr: int) -> bool:
        if level == LAST_LEVEL:
            return True
        if self.force_pte or level < self.pgt.min_block_level:
            return False
        size = 1 << self.pgt.shifts[level]
        if size > self.end - addr or addr & (size - 1):
            return False
        return not self.phys & (size - 1) or (not self.in_place and self.phys >= self.pgt.phys_limit)

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        if which == TABLE_PRE:
            return self._pre(table, entries, index, level, addr)
        if which == TABLE_POST:
            return self._post(table, entries, index, level, addr)
        return self._leaf(table, entries, index, level, addr)

    def _pre(self, table: int, entries: array[int], index: int, level: int, addr: int) -> int:
        if self.anchor or not self._leaf_allowed(level, addr):
            return 0
        pgt = self.pgt
        self.child = pgt.pa_of(entries[index])
        invalidate(pgt, table, entries, index)
        pgt.flush_all()
        self.anchor = table + 8 * index
        return 0

    def _post(self, table: int, entries: array[int], index: int, level: int, addr: int) -> int:
        if not self.anchor:
            return 0
        pgt = self.pgt
        ret = 0
        if self.in_place:
            pgt.put(pgt.pa_of(entries[index]))
            pgt.put(table)
            if self.anchor == table + 8 * index:
                self.anchor = 0
                ret = self._leaf(table, entries, index, level, addr)
            return ret
        if self.anchor == table + 8 * index:
            child = self.child
            self.anchor = self.child = 0
            ret = self._leaf(table, entries, index, level, addr)
        else:
            child = pgt.pa_of(entries[index])
        pgt.put(child)
        pgt.put(table)
        return ret

    def _leaf(self, table: int, entries: array[int], index: int, level: int, addr: int) -> int:
        pgt = self.pgt
        old = entries[index]
        if self.anchor:
            if pgt.is_counted(old):
                pgt.put(table)
            return 0
        ret = self._try_leaf(table, entries, index, level, old, addr)
        if ret != -E2BIG:
            return ret
        if level == LAST_LEVEL:
            pgt.warn()
            return -EINVAL
        if self.cache is None:
            return -ENOMEM
        child = pgt.store.zalloc(self.cache)
        if not child:
            return -ENOMEM
        if self.in_place:
            if old & 1:
                invalidate(pgt, table, entries, index)
                pgt.flush_ipa(addr, level)
                pgt.put(table)
        elif old:
            clear_pte(pgt, table, entries, index, level, addr)
        pgt.write(table, entries, index, pgt.pte_of(child) | 3, release=1)
        pgt.get(table)
        return 0

    def _try_leaf(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int) -> int:
        pgt = self.pgt
        if not self._leaf_allowed(level, addr):
            return -E2BIG
        size = 1 << pgt.shifts[level]
        if self.in_place:
            self._replace_in_place(table, entries, index, level, old, addr)
            self.phys = (self.phys + size) & U64
            return 0
        valid_pa = self.phys < pgt.phys_limit
        new = self._leaf_pte(level) if valid_pa else self.annotation or 0
        if old:
            if old & new & 1 and not (old ^ new) & ~pgt.attributes.perms:
                return -EAGAIN
            clear_pte(pgt, table, entries, index, level, addr)
        if pgt.machine.dcache_op and pgt.attributes.cacheable(new):
            pgt.emit((CACHE, "dcache", pgt.pa_of(new), size))
        if pgt.machine.icache_op and pgt.attributes.executable(new):
            pgt.emit((CACHE, "icache", pgt.pa_of(new), size))
        pgt.write(table, entries, index, new, release=1)
        if new:
            pgt.get(table)
        if valid_pa:
            self.phys += size
        return 0

    def _leaf_pte(self, level: int) -> int:
        return self.pgt.pte_of(self.phys) | self.attr | (3 if level == LAST_LEVEL else 1)

    def _replace_in_place(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int) -> None:
        """5.10: put early, store; break-before-make only when a valid entry is in the way (kernel.md 4.4, 16)."""
        pgt = self.pgt
        new = self._leaf_pte(level)
        if old & 1:
            pgt.put(table)
            if old != new:
                invalidate(pgt, table, entries, index)
                pgt.flush_ipa(addr, level)
                pgt.write(table, entries, index, new, release=1)
        else:
            pgt.write(table, entries, index, new, release=1)
        pgt.get(table)
