"""A guest's (or the pKVM host's) stage-2 table: the operations of ``kvm_pgtable_stage2_*`` under one name.

Each operation returns what the kernel function returns (0 or a negative errno, or as its docstring says) and appends
the events it performs to ``store.events``.  Addresses and sizes are bytes, and may be unaligned where the kernel
accepts that.  ``cache`` is the memory cache, ``None`` for the NULL some callers pass.
"""

from __future__ import annotations

from inspector.model.destroy import (
    free_unlinked,
    grace_period,
    stage2_destroy,
    stage2_destroy_pgd,
    stage2_destroy_range,
)
from inspector.model.in_place import (
    get_leaf,
    stage2_flush,
    stage2_is_young,
    stage2_mkold,
    stage2_mkyoung,
    stage2_relax_perms,
    stage2_test_clear_young,
    stage2_wrprotect,
)
from inspector.model.map import stage2_annotate, stage2_map, stage2_set_owner
from inspector.model.split import create_unlinked, stage2_split
from inspector.model.state import Stage2Table
from inspector.model.unmap import stage2_unmap


class Stage2(Stage2Table):
    """``struct kvm_pgtable`` of a stage-2 table with its operations as methods."""

    __slots__ = ()

    map = stage2_map
    set_owner = stage2_set_owner
    annotate = stage2_annotate
    unmap = stage2_unmap
    wrprotect = stage2_wrprotect
    relax_perms = stage2_relax_perms
    mkyoung = stage2_mkyoung
    mkold = stage2_mkold
    is_young = stage2_is_young
    test_clear_young = stage2_test_clear_young
    flush = stage2_flush
    get_leaf = get_leaf
    split = stage2_split
    create_unlinked = create_unlinked
    free_unlinked = free_unlinked
    destroy = stage2_destroy
    destroy_range = stage2_destroy_range
    destroy_pgd = stage2_destroy_pgd
    grace_period = grace_period
