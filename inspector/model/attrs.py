"""Attribute changes in place: wrprotect, relax_perms, mkyoung, mkold, is_young, test_clear_young, flush, get_leaf.

None of them breaks before making, none changes a reference count, and all of them change whole leaves even when the
range covers a part.  Facts: kernel_stage2 3.6, 7; ``stage2_attr_walker``, ``stage2_age_walker``,
``stage2_flush_walker``, ``leaf_walker`` of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

from array import array
from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING, Final

from inspector.events import CACHE, TLBI
from inspector.generations import WalkFlags
from inspector.model.attributes import AF, S2AP_R, S2AP_W, XN_FIELD
from inspector.model.prot import SW_MASK, Prot
from inspector.model.walker import HANDLE_FAULT, IGNORE_EAGAIN, LEAF, SHARED, U64, Pgtable

if TYPE_CHECKING:
    from inspector.model.stage2 import Stage2


_R: Final = int(Prot.R)
_W: Final = int(Prot.W)
_X: Final = int(Prot.X)


class AttrWalk:
    """``stage2_update_leaf_attrs``: ``pte`` and ``level`` are of the last valid leaf met, 0 if there was none."""

    __slots__ = ("clear", "level", "pgt", "pte", "set", "shared")

    def __init__(self, pgt: Stage2, set_bits: int, clear_bits: int, shared: bool) -> None:
        self.pgt = pgt
        self.set = set_bits & pgt.attributes.keep
        self.clear = U64 & ~(clear_bits & pgt.attributes.keep)
        self.shared = shared
        self.pte = 0
        self.level = 0

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        pgt = self.pgt
        if not old & 1:
            return -EAGAIN if pgt.behaviours.attr_invalid_eagain else 0
        self.level = level
        self.pte = old
        new = (old & self.clear) | self.set
        if new == old:
            return 0
        if pgt.behaviours.attr_icache and pgt.machine.icache_op:
            attributes = pgt.attributes
            if attributes.executable(new) and not attributes.executable(old):
                pgt.emit((CACHE, "icache", pgt.pa_of(new), 1 << pgt.shifts[level]))
        return 0 if pgt.try_set(table, entries, index, old, new, self.shared) else -EAGAIN


def _update(pgt: Stage2, addr: int, size: int, set_bits: int, clear_bits: int, flags: int) -> tuple[int, AttrWalk]:
    change = AttrWalk(pgt, set_bits, clear_bits, bool(flags & SHARED))
    return pgt.walk(change.visit, flags | LEAF, addr, size), change


def _fault_flags(pgt: Stage2, flags: int) -> int:
    """The walk flags of relax_perms and mkyoung: fixed, the caller's, or none."""
    kind = pgt.behaviours.attr_walk_flags
    if kind is WalkFlags.FAULT_SHARED:
        return HANDLE_FAULT | SHARED
    return flags if kind is WalkFlags.CALLER else 0


def stage2_wrprotect(pgt: Stage2, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_wrprotect``; the caller flushes."""
    flags = IGNORE_EAGAIN if pgt.behaviours.wrprotect_ignores_eagain else 0
    return _update(pgt, addr, size, 0, S2AP_W, flags)[0]


def stage2_relax_perms(pgt: Stage2, addr: int, prot: int, flags: int) -> int:
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
        field = XN_FIELD if behaviours.two_bit_xn else 1 << 54
        set_bits |= xn
        clear_bits |= field & ~xn
    ret, change = _update(pgt, addr, 1, set_bits, clear_bits, _fault_flags(pgt, flags))
    kind = "ipa_nsh" if behaviours.relax_local_tlbi else "ipa"
    if ret == 0:
        pgt.emit((TLBI, kind, addr, change.level, None))
    elif ret == -EAGAIN and behaviours.relax_flush_on_eagain:
        pgt.emit((TLBI, kind, addr, behaviours.relax_eagain_level, None))
    return ret


def stage2_mkyoung(pgt: Stage2, addr: int, flags: int) -> int:
    """``kvm_pgtable_stage2_mkyoung``: the old entry, 0 if there was none or the function returns nothing."""
    ret, change = _update(pgt, addr, 1, AF, 0, _fault_flags(pgt, flags))
    if ret == 0 or pgt.behaviours.mkyoung_barrier_always:
        pgt.barrier()
    return change.pte if ret == 0 and pgt.behaviours.mkyoung_returns_pte else 0


def stage2_mkold(pgt: Stage2, addr: int) -> int:
    """``kvm_pgtable_stage2_mkold`` (5.10 to 6.1): the old entry."""
    if pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no mkold: use test_clear_young")
    ret, change = _update(pgt, addr, 1, 0, AF, 0)
    return 0 if ret else change.pte


def stage2_is_young(pgt: Stage2, addr: int) -> int:
    """``kvm_pgtable_stage2_is_young`` (5.10 to 6.1): 1 or 0."""
    if pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no is_young: use test_clear_young")
    ret, change = _update(pgt, addr, 1, 0, 0, 0)
    return 0 if ret or not change.pte & AF else 1


class AgeWalk:
    """``stage2_age_walker``: was any leaf young; ``mkold`` also clears AF."""

    __slots__ = ("mkold", "pgt", "young")

    def __init__(self, pgt: Stage2, mkold: bool) -> None:
        self.pgt = pgt
        self.mkold = mkold
        self.young = 0

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        if not old & 1 or not old & AF:
            return 0
        self.young = 1
        if self.mkold:
            self.pgt.try_set(table, entries, index, old, old & ~AF, False)
        return 0


def stage2_test_clear_young(pgt: Stage2, addr: int, size: int, mkold: bool) -> int:
    """``kvm_pgtable_stage2_test_clear_young`` (6.6+): 1 if any leaf was young, else 0."""
    if not pgt.behaviours.test_clear_young:
        raise ValueError(f"{pgt.behaviours.label} has no test_clear_young: use mkold and is_young")
    age = AgeWalk(pgt, mkold)
    if pgt.walk(age.visit, LEAF, addr, size, ignores_empty=True):
        pgt.warn()
    return age.young


class FlushWalk:
    """``stage2_flush_walker``: data cache maintenance of every valid cacheable leaf."""

    __slots__ = ("pgt",)

    def __init__(self, pgt: Stage2) -> None:
        self.pgt = pgt

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        pgt = self.pgt
        if old & 1 and pgt.machine.dcache_op and pgt.attributes.cacheable(old):
            pgt.emit((CACHE, "dcache", pgt.pa_of(old), 1 << pgt.shifts[level]))
        return 0


def stage2_flush(pgt: Stage2, addr: int, size: int) -> int:
    """``kvm_pgtable_stage2_flush``; nothing to do, and no range check, where FWB is relied on."""
    if pgt.attributes.fwb:
        return 0
    return pgt.walk(FlushWalk(pgt).visit, LEAF, addr, size, ignores_empty=True)


class LeafWalk:
    """``leaf_walker``: the entry that ends the descent."""

    __slots__ = ("level", "pte")

    def __init__(self) -> None:
        self.pte = 0
        self.level = 0

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        self.pte = old
        self.level = level
        return 0


def get_leaf(pgt: Pgtable, addr: int) -> tuple[int, int, int]:
    """``kvm_pgtable_get_leaf``: ``(errno or 0, entry, level)``; entry and level are 0 on error."""
    leaf = LeafWalk()
    ret = pgt.walk(leaf.visit, LEAF, addr & pgt.page_mask, pgt.page_size)
    return (ret, leaf.pte, leaf.level)
