"""map, set_owner and annotate: the entry checks, then one walk.

Facts: kernel_stage2 4.1, 5; ``kvm_pgtable_stage2_map``, ``kvm_pgtable_stage2_set_owner`` (6.1.192, 6.12.117),
``kvm_pgtable_stage2_annotate`` (7.3.4).
"""

from __future__ import annotations

from errno import EINVAL
from typing import Final

from inspector.generations import Annotation, MapScheme
from inspector.model.map_anchor import MapAnchor
from inspector.model.map_unlink import MapUnlink
from inspector.model.pages import MemoryCache
from inspector.model.state import LEAF, TABLE_POST, TABLE_PRE, U64, Stage2Table
from inspector.model.walker import walk_range

MAX_OWNER: Final = 1
"""``KVM_MAX_OWNER_ID``."""
ANNOTATION_PAYLOAD: Final = ((1 << 60) - 1) & ~1
"""``KVM_INVALID_PTE_ANNOT_MASK`` (7.3)."""
LOCKED_TYPE: Final = 1
"""``KVM_INVALID_PTE_TYPE_LOCKED`` (7.3)."""


def _walk(
    pgt: Stage2Table,
    addr: int,
    size: int,
    phys: int,
    attr: int,
    cache: MemoryCache | None,
    force_pte: bool,
    annotation: int | None,
    flags: int = 0,
) -> int:
    attr &= pgt.attributes.keep
    if pgt.behaviours.map_scheme is MapScheme.UNLINK:
        unlink = MapUnlink(pgt, phys, attr, cache, force_pte, annotation)
        return walk_range(pgt, unlink.visit, flags | TABLE_PRE | LEAF, addr, size)
    anchor = MapAnchor(pgt, phys, attr, cache, force_pte, annotation)
    return walk_range(pgt, anchor.visit, TABLE_PRE | LEAF | TABLE_POST, addr, size)


def stage2_map(
    pgt: Stage2Table, addr: int, size: int, phys: int, prot: int, cache: MemoryCache | None = None, flags: int = 0
) -> int:
    """``kvm_pgtable_stage2_map``; 0 or a negative errno (kernel.md 4.6)."""
    machine = pgt.machine
    if flags and not pgt.behaviours.shared_walks:
        raise ValueError(f"{pgt.behaviours.label}: map takes no walk flags")
    force_pte = False
    if pgt.behaviours.idmap_and_force_pte:
        force_pte = bool(machine.force_pte)
        if machine.idmap and addr != phys:
            pgt.warn()
            return -EINVAL
    attr = pgt.attributes.of_prot(prot)
    if attr < 0:
        return attr
    ret = _walk(pgt, addr, size, phys & pgt.page_mask, attr, cache, force_pte, None, flags)
    pgt.barrier()
    return ret


def stage2_set_owner(pgt: Stage2Table, addr: int, size: int, cache: MemoryCache | None, owner: int) -> int:
    """``kvm_pgtable_stage2_set_owner`` (5.15 to 6.18)."""
    kind = pgt.behaviours.annotation
    if kind not in (Annotation.OWNER_BY_INVALID_PA, Annotation.OWNER_BY_FLAG):
        raise ValueError(f"{pgt.behaviours.label} has no set_owner")
    if owner > MAX_OWNER:
        return -EINVAL
    phys = U64 if kind is Annotation.OWNER_BY_INVALID_PA else 0
    return _walk(pgt, addr, size, phys, 0, cache, True, owner << 2)


def stage2_annotate(pgt: Stage2Table, addr: int, size: int, cache: MemoryCache | None, kind: int, payload: int) -> int:
    """``kvm_pgtable_stage2_annotate`` (7.3); ``kind`` is an ``enum kvm_invalid_pte_type``."""
    if pgt.behaviours.annotation is not Annotation.TYPED:
        raise ValueError(f"{pgt.behaviours.label} has no annotate")
    if payload & ~ANNOTATION_PAYLOAD or kind in (0, LOCKED_TYPE):
        return -EINVAL
    return _walk(pgt, addr, size, 0, 0, cache, True, payload | (kind & 0xF) << 60)
