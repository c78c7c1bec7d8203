"""Linux 6.12: LPA2, non-cacheable mappings.  The base: the others say in what they differ."""

from __future__ import annotations

from typing import Final

from inspector.codec import InvalidForm
from inspector.events import TTL_UNKNOWN
from inspector.generations.forms import Annotation, Eagain, MapScheme, PgtFlags, ProtLayout, TableTlbi, WalkFlags
from inspector.generations.record import Generation

GENERATION: Final = Generation(
    label="6.12",
    source="6.12.117",
    cross_checked=True,
    has=("visit_ctx", "signed_level"),
    lacks=("pkvm_mappings",),
    invalid=InvalidForm.LOCKED_BIT10,
    pgt_flags=PgtFlags.NOFWB_IDMAP,
    reload_after_pre=True,
    shared_walks=True,
    eagain=Eagain.STOPS_IN_FAULT,
    first_level=-1,
    attr_hi_lsb=50,
    two_bit_xn=False,
    software_bits=True,
    lpa2=True,
    prot_layout=ProtLayout.SINGLE_X_NC,
    map_scheme=MapScheme.UNLINK,
    software_bits_store=True,
    span_flush_aligned=True,
    cmo_checks_valid=True,
    annotation=Annotation.OWNER_BY_INVALID_PA,
    unmap_table_tlbi=TableTlbi.UNKNOWN,
    unmap_deferred_range=True,
    unmap_defers_tables_too=False,
    attr_invalid_eagain=True,
    attr_icache=True,
    attr_walk_flags=WalkFlags.FAULT_SHARED,
    wrprotect_ignores_eagain=False,
    relax_local_tlbi=True,
    relax_flush_on_eagain=True,
    relax_eagain_level=TTL_UNKNOWN,
    mkyoung_barrier_always=False,
    mkyoung_returns_pte=True,
    test_clear_young=True,
    split=True,
    split_barrier_each=False,
    unlinked_double_put=False,
    destroy_in_ranges=False,
    hyp_unmap=True,
    init_all_vmids=True,
    get_leaf=True,
    hyp_get_before_store=True,
    hyp_conflict_goes_on=True,
    hyp_running_pa=False,
    hyp_hvhe=True,
    hyp_bti=True,
    hyp_two_bit_xn=False,
    hyp_device_index=4,
    permission_faults_share_lock=True,
    ha_always=False,
    cacheable_pfnmap=False,
    present_invalid_bit11=True,
)
