"""Linux 6.1: the last that works with the anchor."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.codec import InvalidForm
from inspector.generations.forms import Eagain, MapScheme, TableTlbi, WalkFlags
from inspector.generations.v6_6 import GENERATION as V6_6

GENERATION: Final = replace(
    V6_6,
    label="6.1",
    source="6.1.192",
    cross_checked=True,
    has=("mm_ops",),
    lacks=("visit_ctx", "vmid_struct"),
    invalid=InvalidForm.OWNER,
    reload_after_pre=False,
    shared_walks=False,
    eagain=Eagain.STOPS,
    attr_hi_lsb=51,
    map_scheme=MapScheme.ANCHOR,
    unmap_table_tlbi=TableTlbi.ZERO,
    unmap_deferred_range=False,
    unmap_defers_tables_too=False,
    attr_invalid_eagain=False,
    attr_walk_flags=WalkFlags.NONE,
    relax_local_tlbi=False,
    mkyoung_barrier_always=True,
    test_clear_young=False,
    split=False,
    split_barrier_each=False,
    unlinked_double_put=False,
    hyp_get_before_store=False,
    hyp_running_pa=True,
    hyp_hvhe=False,
    hyp_bti=False,
)
