"""The generic page-table walker: which entries are visited, in which order, and when they are read again.

Facts: kernel.md 3.1-3.4; ``kvm_pgtable_walk``, ``__kvm_pgtable_walk`` and ``__kvm_pgtable_visit`` of 6.1.192,
6.12.117 and 7.3.4.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from errno import EAGAIN, EINVAL, EPERM, ERANGE
from typing import Final, TypeAlias

from inspector.generations import Eagain
from inspector.model.state import (
    HANDLE_FAULT,
    IGNORE_EAGAIN,
    LAST_LEVEL,
    LEAF,
    SHARED,
    TABLE_POST,
    TABLE_PRE,
    Pgtable,
    Visit,
)

_STRIDE: Final = 64
_STRIDE_MASK: Final = _STRIDE - 1
_EMPTY: Final = array("Q", bytes(8 * _STRIDE))
# How far one comparison passes over empty entries; tables have a multiple of it.

Visitor: TypeAlias = Callable[[Visit, int], int]
"""``kvm_pgtable_visitor_fn_t``: the entry, and which visit of it (``LEAF``, ``TABLE_PRE``, ``TABLE_POST``).

It returns 0 or a negative errno.
"""


class Walk:
    """One walk: its visitor, its flags, and where it stands (``addr``; ``start`` and ``end`` are constant).

    ``kvm_pgtable_walk``'s range: ``size`` is counted from the page that ``addr`` lies in (kernel.md 3.1).
    ``ignores_empty``: the visitor does nothing with an entry that is 0, so the walker may pass over it.
    """

    __slots__ = ("addr", "end", "flags", "ignores_empty", "start", "visitor")

    def __init__(
        self, pgt: Pgtable, visitor: Visitor, flags: int, addr: int, size: int, ignores_empty: bool = False
    ) -> None:
        self.visitor = visitor
        self.flags = flags
        self.start = self.addr = addr & pgt.page_mask
        self.end = (self.start + size + pgt.page_size - 1) & pgt.page_mask
        self.ignores_empty = ignores_empty


def _tolerates_eagain(pgt: Pgtable, flags: int) -> bool:
    """-EAGAIN from the visitor does not end the walk (kernel.md 3.4)."""
    eagain = pgt.behaviours.eagain
    if eagain is Eagain.STOPS_IN_FAULT:
        return not flags & HANDLE_FAULT
    return eagain is Eagain.STOPS_UNLESS_IGNORED and bool(flags & IGNORE_EAGAIN)


def walk_range(pgt: Pgtable, visitor: Visitor, flags: int, addr: int, size: int, ignores_empty: bool = False) -> int:
    """``kvm_pgtable_walk``: the range through the root pages; 0 or a negative errno."""
    walk = Walk(pgt, visitor, flags, addr, size, ignores_empty)
    if flags & SHARED and pgt.machine.hyp_build:
        return -EPERM
    limit = 1 << pgt.ia_bits
    if walk.addr > limit or walk.end > limit:
        return -ERANGE
    if not pgt.root:
        return -EINVAL
    page = (walk.addr & (limit - 1)) >> pgt.root_shift
    while walk.addr < walk.end:
        ret = walk_table(pgt, walk, pgt.root + page * pgt.page_size, pgt.start_level)
        if ret:
            return ret
        page += 1
    return 0


def walk_unlinked(
    pgt: Pgtable, visitor: Visitor, flags: int, page: int, level: int, ignores_empty: bool = False
) -> int:
    """The walk of a detached table whose entries are of ``level``; addresses count from 0."""
    walk = Walk(pgt, visitor, flags, 0, 1 << pgt.shifts[level - 1], ignores_empty)
    return walk_table(pgt, walk, page, level)


def walk_table(pgt: Pgtable, walk: Walk, table: int, level: int) -> int:
    """``__kvm_pgtable_walk``: one table page from where the walk stands, descending as it goes."""
    if level > LAST_LEVEL or level < pgt.behaviours.first_level:
        pgt.warn()
        return -EINVAL
    entries = pgt.store.entries(table)
    shift = pgt.shifts[level]
    end, flags, visitor = walk.end, walk.flags, walk.visitor
    ctx = Visit()
    ctx.table, ctx.entries, ctx.level = table, entries, level
    ctx.start, ctx.end, ctx.flags = walk.start, end, flags
    reloads = LEAF | TABLE_PRE if pgt.behaviours.reload_after_pre else LEAF
    ignores_empty = walk.ignores_empty and not pgt.each_read
    visitor_reads = pgt.each_read and pgt.behaviours.visitors_read
    last_idx = pgt.index_mask
    idx = walk.addr >> shift & last_idx
    above_last = level != LAST_LEVEL
    while idx <= last_idx:
        addr = walk.addr
        if addr >= end:
            break
        old = entries[idx]
        if not old and ignores_empty:
            following = idx + 1
            if not following & _STRIDE_MASK:
                while following <= last_idx and entries[following : following + _STRIDE] == _EMPTY:
                    following += _STRIDE
            walk.addr = ((addr >> shift) + following - idx) << shift
            idx = following
            continue
        descend = above_last and old & 3 == 3
        visit = TABLE_PRE if descend else LEAF
        if flags & visit:
            ctx.idx, ctx.old, ctx.addr = idx, entries[idx] if visitor_reads else old, addr
            ret = visitor(ctx, visit)
            if visit & reloads:
                old = entries[idx]
                descend = above_last and old & 3 == 3
            if ret and not (ret == -EAGAIN and _tolerates_eagain(pgt, flags)):
                return ret
        if descend:
            ret = walk_table(pgt, walk, pgt.pa_of(old), level + 1)
            if ret:
                return ret
            if flags & TABLE_POST:
                ctx.idx, ctx.old, ctx.addr = idx, entries[idx] if visitor_reads else old, addr
                ret = visitor(ctx, TABLE_POST)
                if ret and not (ret == -EAGAIN and _tolerates_eagain(pgt, flags)):
                    return ret
        else:
            walk.addr = ((addr >> shift) + 1) << shift
        idx += 1
    return 0
