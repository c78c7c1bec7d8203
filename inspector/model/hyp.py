"""Hyp stage-1: init, map, unmap, destroy of the EL2 tables of an nVHE host.

Facts: kernel_stage2 1.5, 10.1; ``hyp_map_walker``, ``hyp_unmap_walker``, ``hyp_free_walker``, ``hyp_set_prot_attr``
of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

from array import array
from errno import EINVAL, ENOMEM
from typing import Final

from inspector.events import TLBI, TTL_UNKNOWN
from inspector.generations import TableTlbi
from inspector.model import attrs
from inspector.model.prot import SW_MASK, Prot
from inspector.model.walker import LAST_LEVEL, LEAF, TABLE_POST, U64, Pgtable

ATTRIDX_SHIFT: Final = 2
AP_SHIFT: Final = 6
SH_INNER: Final = 3 << 8
AF: Final = 1 << 10
GP: Final = 1 << 50
PXN: Final = 1 << 53
XN: Final = 1 << 54


class HypStage1(Pgtable):
    """``struct kvm_pgtable`` of the hypervisor's own mappings; one root page."""

    __slots__ = ()

    def init(self) -> int:
        """``kvm_pgtable_hyp_init``."""
        self.root = self.store.zalloc(None)
        return 0 if self.root else -ENOMEM

    def attr_of(self, prot: int) -> int:
        """``hyp_set_prot_attr``: attribute bits, or ``-EINVAL``."""
        behaviours, machine = self.behaviours, self.machine
        prot = int(prot)
        hvhe = behaviours.hyp_hvhe and machine.hvhe
        if not prot & Prot.R:
            return -EINVAL
        if behaviours.hyp_two_bit_xn and not hvhe:
            prot &= ~int(Prot.UX)
        attr = (behaviours.hyp_device_index if prot & Prot.DEVICE else 0) << ATTRIDX_SHIFT
        if prot & Prot.X:
            if prot & (Prot.W | Prot.DEVICE):
                return -EINVAL
            if behaviours.hyp_bti and machine.bti:
                attr |= GP
        if behaviours.hyp_two_bit_xn and hvhe:
            attr |= (0 if prot & Prot.PX else PXN) | (0 if prot & Prot.UX else XN)
        elif not prot & Prot.X:
            attr |= XN
        writable = (0 if hvhe else 1) if prot & Prot.W else (2 if hvhe else 3)
        attr |= writable << AP_SHIFT | AF
        if not self.lpa2:
            attr |= SH_INNER
        if behaviours.software_bits:
            attr |= prot & SW_MASK
        return int(attr)

    def map(self, addr: int, size: int, phys: int, prot: int) -> int:
        """``kvm_pgtable_hyp_map``: 0 or a negative errno."""
        attr = self.attr_of(prot)
        if attr < 0:
            return attr
        visitor = _HypMap(self, phys & self.page_mask, attr)
        walk = self.begin(visitor.visit, LEAF, addr, size)
        visitor.start, visitor.end = walk.start, walk.end
        ret = self.run(walk)
        self.barrier()
        self.barrier("isb")
        return ret

    def unmap(self, addr: int, size: int) -> int:
        """``kvm_pgtable_hyp_unmap`` (6.1+): bytes unmapped; a hole ends it."""
        if not self.behaviours.hyp_unmap:
            raise ValueError(f"{self.behaviours.label} has no hyp unmap")
        visitor = _HypUnmap(self)
        walk = self.begin(visitor.visit, LEAF | TABLE_POST, addr, size)
        visitor.end = walk.end
        self.run(walk)
        return visitor.unmapped

    def get_leaf(self, addr: int) -> tuple[int, int, int]:
        """``kvm_pgtable_get_leaf``: ``(errno, entry, level)``."""
        return attrs.get_leaf(self, addr)

    def destroy(self) -> None:
        """``kvm_pgtable_hyp_destroy``."""
        if self.walk(self._free, LEAF | TABLE_POST, 0, 1 << self.ia_bits, ignores_empty=True):
            self.warn()
        self.put(self.root)
        self.root = 0

    def _free(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        if not old & 1:
            return 0
        if self.behaviours.hyp_unmap:
            self.put(table)
        if self.is_table(old, level):
            self.put(self.pa_of(old))
        return 0


class _HypMap:
    """``hyp_map_walker``; entries are referenced only where hyp unmap exists.

    ``skipped`` is what a running PA counter (up to 6.1) is ahead of the walk: it moves on even when the leaf is then
    refused because something else is mapped there, so that whatever follows is mapped to the wrong memory.
    """

    __slots__ = ("attr", "counted", "end", "pgt", "phys", "skipped", "start")

    def __init__(self, pgt: HypStage1, phys: int, attr: int) -> None:
        self.pgt = pgt
        self.phys = phys
        self.attr = attr
        self.counted = pgt.behaviours.hyp_unmap
        self.skipped = 0
        self.start = 0
        self.end = 0

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback."""
        pgt = self.pgt
        if self._try_leaf(table, entries, index, level, old, addr):
            return 0
        if level == LAST_LEVEL:
            pgt.warn()
            return -EINVAL
        child = pgt.zalloc(None)
        if not child:
            return -ENOMEM
        get_first = pgt.behaviours.hyp_get_before_store
        if self.counted and get_first:
            pgt.get(table)
        if old & 1 and not get_first:
            pgt.warn()
        pgt.write(table, entries, index, pgt.pte_of(child) | 3, release=1)
        if self.counted and not get_first:
            pgt.get(table)
        return 0

    def _try_leaf(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int) -> bool:
        pgt = self.pgt
        phys = (self.phys + self.skipped + addr - self.start) & U64
        size = 1 << pgt.shifts[level]
        if level < pgt.min_block_level or size > self.end - addr or (phys | addr) & (size - 1):
            return False
        new = pgt.pte_of(phys) | self.attr | (3 if level == LAST_LEVEL else 1)
        if old == new:
            return True
        if not old & 1:
            if self.counted:
                pgt.get(table)
        elif (old ^ new) & ~SW_MASK:
            pgt.warn()
            if not pgt.behaviours.hyp_conflict_goes_on:
                return True
            if pgt.behaviours.hyp_running_pa:
                self.skipped += size
            return False
        pgt.write(table, entries, index, new, release=1)
        return True


class _HypUnmap:
    """``hyp_unmap_walker``; ``unmapped`` counts bytes."""

    __slots__ = ("end", "pgt", "unmapped")

    def __init__(self, pgt: HypStage1) -> None:
        self.pgt = pgt
        self.end = 0
        self.unmapped = 0

    def visit(self, table: int, entries: array[int], index: int, level: int, old: int, addr: int, which: int) -> int:
        """The walker's callback: a block that is only partly in the range is an error, unlike in stage-2."""
        pgt = self.pgt
        if not old & 1:
            return -EINVAL
        child = 0
        if pgt.is_table(old, level):
            child = pgt.pa_of(old)
            if pgt.store.counts[child] != 1:
                return 0
            hint = 0 if pgt.behaviours.unmap_table_tlbi is TableTlbi.ZERO else TTL_UNKNOWN
            instruction = "vae2is"
        else:
            size = 1 << pgt.shifts[level]
            if self.end - addr < size:
                return -EINVAL
            hint = level
            instruction = "vale2is"
            self.unmapped += size
        pgt.write(table, entries, index, 0)
        pgt.barrier()
        pgt.emit((TLBI, instruction, addr, hint, None))
        pgt.barrier("ish")
        pgt.barrier("isb")
        pgt.put(table)
        if child:
            pgt.put(child)
        return 0
