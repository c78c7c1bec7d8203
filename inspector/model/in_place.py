"""Attribute changes in place: wrprotect, relax_perms, mkyoung, mkold, is_young, test_clear_young, flush, get_leaf.

None of them breaks before making, none changes a reference count, and all of them change whole leaves even when the
range covers a part.  Facts: kernel.md 3.6, 7; ``stage2_attr_walker``, ``stage2_age_walker``,
``stage2_flush_walker``, ``leaf_walker`` of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EAGAIN, EINVAL
from functools import partial
from typing import Final

from inspector.events import CACHE, TLBI
from inspector.generations import WalkFlags
from inspector.model.attributes import AF, S2AP_R, S2AP_W, XN, XN_FIELD
from inspector.model.prot import SW_MASK, Prot
from inspector.model.state import HANDLE_FAULT, IGNORE_EAGAIN, LEAF, SHARED, Pgtable, Stage2Table, Visit
from inspector.model.walker import walk_range

_R: Final = int(Prot.R)
_W: Final = int(Prot.W)
_X: Final = int(Prot.X)


@dataclass(slots=True)
class AttrWalk:
    """``struct stage2_attr_data``: bits to set and to clear; ``pte`` and ``level`` are of the last valid leaf met.

    Both are 0 if there was none.
    """

    pgt: Stage2Table
    attr_set: int
    attr_clr: int
    pte: int = 0
    level: int = 0

    def visit(self, ctx: Visit, visit: int) -> int:
        """``stage2_attr_walker``."""
        pgt = self.pgt
        old = ctx.old
        if not old & 1:
            return -EAGAIN if pgt.behaviours.attr_invalid_eagain else 0
        self.level = ctx.level
        self.pte = old
        new = (old & ~self.attr_clr) | self.attr_set
        if new == old:
            return 0
        if pgt.behaviours.attr_icache and pgt.machine.icache_op:
            attributes = pgt.attributes
            if attributes.executable(new) and not attributes.executable(self._again(ctx)):
                pgt.emit((CACHE, "icache", pgt.pa_of(new), 1 << pgt.shifts[ctx.level]))
        return 0 if pgt.try_set(ctx, new) else -EAGAIN

    def _again(self, ctx: Visit) -> int:
        """Until 6.1 the entry is read once more here, which only a race can tell."""
        return ctx.entries[ctx.idx] if self.pgt.each_read and self.pgt.behaviours.visitors_read else ctx.old


def update_leaf_attrs(
    pgt: Stage2Table, addr: int, size: int, attr_set: int, attr_clr: int, flags: int = 0
) -> tuple[int, AttrWalk]:
    """``stage2_update_leaf_attrs``."""
    keep = pgt.attributes.keep
    data = AttrWalk(pgt, attr_set & keep, attr_clr & keep)
    return walk_range(pgt, data.visit, flags | LEAF, addr, size), data


def _fault_flags(pgt: Stage2Table, flags: int) -> int:
    """The walk flags of relax_perms and mkyoung: fixed, the caller's, or none."""
    kind = pgt.behaviours.attr_walk_flags
    if kind is WalkFlags.FAULT_SHARED:
        return HANDLE_FAULT | SHARED
    return flags if kind is WalkFlags.CALLER else 0


def stage2_wrprotect(pgt: Stage2Table, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_wrprotect``; the caller flushes."""
    flags = IGNORE_EAGAIN if pgt.behaviours.wrprotect_ignores_eagain else 0
    return update_leaf_attrs(pgt, addr, size, 0, S2AP_W, flags)[0]


def stage2_relax_perms(pgt: Stage2Table, addr: int, prot: int, flags: int = 0) -> int:
    """``kvm_pgtable_stage2_relax_perms``: permissions added to one leaf, then one TLB invalidation (kernel.md 7.3)."""
    behaviours = pgt.behaviours
    prot = int(prot)
    if behaviours.software_bits and prot & SW_MASK:
        return -EINVAL
    set_bits = (S2AP_R if prot & _R else 0) | (S2AP_W if prot & _W else 0)
    clear_bits = 0
    if prot & _X:
        xn = pgt.attributes.xn_of_prot(prot)
        if xn < 0:
            return xn
        field = XN_FIELD if behaviours.two_bit_xn else XN
        set_bits |= xn
        clear_bits |= field & ~xn
    ret, change = update_leaf_attrs(pgt, addr, 1, set_bits, clear_bits, _fault_flags(pgt, flags))
    if ret == 0:
        flush_relaxed(pgt, addr, change.level)
    elif ret == -EAGAIN and behaviours.relax_flush_on_eagain:
        flush_relaxed(pgt, addr, behaviours.relax_eagain_level)
    return ret


def flush_relaxed(pgt: Stage2Table, addr: int, level: int) -> None:
    """``__kvm_tlb_flush_vmid_ipa_nsh`` where only the CPU that faulted need see the new permissions."""
    pgt.emit((TLBI, "ipa_nsh" if pgt.behaviours.relax_local_tlbi else "ipa", addr, level, None))


def stage2_mkyoung(pgt: Stage2Table, addr: int, flags: int = 0) -> int:
    """``kvm_pgtable_stage2_mkyoung``: the old entry, 0 if there was none or the function returns nothing."""
    ret, change = update_leaf_attrs(pgt, addr, 1, AF, 0, _fault_flags(pgt, flags))
    if ret == 0 or pgt.behaviours.mkyoung_barrier_always:
        pgt.barrier()
    return change.pte if ret == 0 and pgt.behaviours.mkyoung_returns_pte else 0


def stage2_mkold(pgt: Stage2Table, addr: int) -> int:
    """``kvm_pgtable_stage2_mkold`` (5.10 to 6.1): the old entry."""
    if pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no mkold: use test_clear_young")
    ret, change = update_leaf_attrs(pgt, addr, 1, 0, AF)
    return 0 if ret else change.pte


def stage2_is_young(pgt: Stage2Table, addr: int) -> int:
    """``kvm_pgtable_stage2_is_young`` (5.10 to 6.1): 1 or 0."""
    if pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no is_young: use test_clear_young")
    ret, change = update_leaf_attrs(pgt, addr, 1, 0, 0)
    return 0 if ret or not change.pte & AF else 1


@dataclass(slots=True)
class AgeWalk:
    """``struct stage2_age_data``: was any leaf young; ``mkold`` also clears AF."""

    pgt: Stage2Table
    mkold: bool
    young: int = 0

    def visit(self, ctx: Visit, visit: int) -> int:
        """``stage2_age_walker``."""
        if ctx.old & 1 and ctx.old & AF:
            self.young = 1
            if self.mkold:
                self.pgt.try_set(ctx, ctx.old & ~AF)
        return 0


def stage2_test_clear_young(pgt: Stage2Table, addr: int, size: int, mkold: bool) -> int:
    """``kvm_pgtable_stage2_test_clear_young`` (6.6+): 1 if any leaf was young, else 0."""
    if not pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no test_clear_young: use mkold and is_young")
    data = AgeWalk(pgt, mkold)
    if walk_range(pgt, data.visit, LEAF, addr, size, ignores_empty=True):
        pgt.warn()
    return data.young


def flush_walker(pgt: Stage2Table, ctx: Visit, visit: int) -> int:
    """``stage2_flush_walker``: data cache maintenance of every valid cacheable leaf."""
    if ctx.old & 1 and pgt.machine.dcache_op and pgt.attributes.cacheable(ctx.old):
        pgt.emit((CACHE, "dcache", pgt.pa_of(ctx.old), 1 << pgt.shifts[ctx.level]))
    return 0


def stage2_flush(pgt: Stage2Table, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_flush``; nothing to do, and no range check, where FWB is relied on."""
    if pgt.attributes.fwb:
        return 0
    return walk_range(pgt, partial(flush_walker, pgt), LEAF, addr, size, ignores_empty=True)


def get_leaf(pgt: Pgtable, addr: int) -> tuple[int, int, int]:
    """``kvm_pgtable_get_leaf``: ``(errno or 0, entry, level)``; entry and level are 0 on error."""
    found = (0, 0)

    def leaf_walker(ctx: Visit, visit: int) -> int:
        nonlocal found
        found = ctx.old, ctx.level
        return 0

    ret = walk_range(pgt, leaf_walker, LEAF, addr & pgt.page_mask, pgt.page_size)
    return (ret, *found)
