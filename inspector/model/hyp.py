"""Hyp stage-1: init, map, unmap, destroy of the EL2 tables of an nVHE host.

Facts: kernel.md 1.5, 10.1; ``hyp_map_walker``, ``hyp_unmap_walker``, ``hyp_free_walker``, ``hyp_set_prot_attr``
of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL, ENOMEM
from typing import Final

from inspector.events import TTL_UNKNOWN
from inspector.generations import TableTlbi
from inspector.model.in_place import get_leaf
from inspector.model.prot import SW_MASK, Prot
from inspector.model.state import LAST_LEVEL, LEAF, TABLE_POST, U64, Pgtable, Visit
from inspector.model.walker import walk_range

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
        self.root = self.store.zalloc()
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
        ret = walk_range(self, HypMap(self, phys & self.page_mask, attr).visit, LEAF, addr, size)
        self.barrier()
        self.barrier("isb")
        return ret

    def unmap(self, addr: int, size: int) -> int:
        """``kvm_pgtable_hyp_unmap`` (6.1+): bytes unmapped; a hole ends it."""
        if not self.behaviours.hyp_unmap:
            raise ValueError(f"{self.behaviours.label} has no hyp unmap")
        data = HypUnmap(self)
        walk_range(self, data.visit, LEAF | TABLE_POST, addr, size)
        return data.unmapped

    get_leaf = get_leaf

    def destroy(self) -> None:
        """``kvm_pgtable_hyp_destroy``."""
        if walk_range(self, self._free, LEAF | TABLE_POST, 0, 1 << self.ia_bits, ignores_empty=True):
            self.warn()
        self.store.put(self.root)
        self.root = 0

    def _free(self, ctx: Visit, visit: int) -> int:
        """``hyp_free_walker``."""
        if not ctx.old & 1:
            return 0
        if self.behaviours.hyp_unmap:
            self.store.put(ctx.table)
        if self.is_table(ctx.old, ctx.level):
            self.store.put(self.pa_of(ctx.old))
        return 0


@dataclass(slots=True)
class HypMap:
    """``struct hyp_map_data``; entries are referenced only where hyp unmap exists.

    ``skipped`` is what a running PA counter (up to 6.1) is ahead of the walk: it moves on even when the leaf is then
    refused because something else is mapped there, so that whatever follows is mapped to the wrong memory.
    """

    pgt: HypStage1
    phys: int
    attr: int
    skipped: int = 0

    def visit(self, ctx: Visit, visit: int) -> int:
        """``hyp_map_walker``."""
        pgt = self.pgt
        if self.try_leaf(ctx):
            return 0
        if ctx.level == LAST_LEVEL:
            pgt.warn()
            return -EINVAL
        child = pgt.store.zalloc()
        if not child:
            return -ENOMEM
        counted, get_first = pgt.behaviours.hyp_unmap, pgt.behaviours.hyp_get_before_store
        if counted and get_first:
            pgt.store.get(ctx.table)
        if ctx.old & 1 and not get_first:
            pgt.warn()
        pgt.write(ctx, pgt.pte_of(child) | 3, 1)
        if counted and not get_first:
            pgt.store.get(ctx.table)
        return 0

    def try_leaf(self, ctx: Visit) -> bool:
        """``hyp_map_walker_try_leaf``."""
        pgt = self.pgt
        old, level, addr = ctx.old, ctx.level, ctx.addr
        phys = (self.phys + self.skipped + addr - ctx.start) & U64
        size = 1 << pgt.shifts[level]
        if not pgt.may_be_block(ctx, phys):
            return False
        new = pgt.pte_of(phys) | self.attr | (3 if level == LAST_LEVEL else 1)
        if old == new:
            return True
        if not old & 1:
            if pgt.behaviours.hyp_unmap:
                pgt.store.get(ctx.table)
        # kvm_set_valid_leaf_pte of 5.10 tolerates the very same entry only; software bits came with 5.15.
        elif (old ^ new) & ~(SW_MASK if pgt.behaviours.software_bits else 0):
            pgt.warn()
            if not pgt.behaviours.hyp_conflict_goes_on:
                return True
            if pgt.behaviours.hyp_running_pa:
                self.skipped += size
            return False
        pgt.write(ctx, new, 1)
        return True


@dataclass(slots=True)
class HypUnmap:
    """The data of ``hyp_unmap_walker``; ``unmapped`` counts bytes."""

    pgt: HypStage1
    unmapped: int = 0

    def visit(self, ctx: Visit, visit: int) -> int:
        """``hyp_unmap_walker``: a block that is only partly in the range is an error, unlike in stage-2."""
        pgt = self.pgt
        old, level = ctx.old, ctx.level
        if not old & 1:
            return -EINVAL
        child = 0
        if pgt.is_table(old, level):
            child = pgt.pa_of(old)
            if pgt.store.page_count(child) != 1:
                return 0
            hint = 0 if pgt.behaviours.unmap_table_tlbi is TableTlbi.ZERO else TTL_UNKNOWN
            instruction = "vae2is"
        else:
            size = 1 << pgt.shifts[level]
            if ctx.end - ctx.addr < size:
                return -EINVAL
            hint = level
            instruction = "vale2is"
            self.unmapped += size
        pgt.write(ctx, 0)
        pgt.barrier()
        pgt.flush_va(instruction, ctx.addr, hint)
        pgt.barrier("ish")
        pgt.barrier("isb")
        pgt.store.put(ctx.table)
        if child:
            pgt.store.put(child)
        return 0
