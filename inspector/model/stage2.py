"""A guest's (or the pKVM host's) stage-2 table: the operations of ``kvm_pgtable_stage2_*`` under one name.

Each operation returns what the kernel function returns (0 or a negative errno, or as its docstring says) and appends
the events it performs to ``store.events``.  Addresses and sizes are bytes, and may be unaligned where the kernel
accepts that.  ``cache`` is the memory cache, ``None`` for the NULL some callers pass.
"""

from __future__ import annotations

from inspector.model import destroy as of_destroy
from inspector.model import in_place
from inspector.model import map as of_map
from inspector.model import split as of_split
from inspector.model import unmap as of_unmap
from inspector.model.state import Stage2Table


class Stage2(Stage2Table):
    """``struct kvm_pgtable`` of a stage-2 table with its operations as methods."""

    __slots__ = ()

    map = of_map.stage2_map
    set_owner = of_map.stage2_set_owner
    annotate = of_map.stage2_annotate
    unmap = of_unmap.stage2_unmap
    wrprotect = in_place.stage2_wrprotect
    relax_perms = in_place.stage2_relax_perms
    mkyoung = in_place.stage2_mkyoung
    mkold = in_place.stage2_mkold
    is_young = in_place.stage2_is_young
    test_clear_young = in_place.stage2_test_clear_young
    flush = in_place.stage2_flush
    get_leaf = in_place.get_leaf
    split = of_split.stage2_split
    create_unlinked = of_split.create_unlinked
    free_unlinked = of_destroy.free_unlinked
    destroy = of_destroy.stage2_destroy
    destroy_range = of_destroy.stage2_destroy_range
    destroy_pgd = of_destroy.stage2_destroy_pgd
    grace_period = of_destroy.grace_period
