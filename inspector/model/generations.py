"""Kernel generations as sets of named behaviours, and the machine they run on.

The model never asks for a version.  It asks, for example, ``behaviours.software_bits_store``; the table
``GENERATIONS`` says which of the releases we have read behaves so.  A kernel at hand that differs (a stable fix
that came or did not come) is described by ``dataclasses.replace(generation("6.12"), relax_flush_on_eagain=False)``.

``proven`` is true only for generations that were compared, operation by operation, with the compiled C of that
kernel (``tests/model/campaign.py``); the others are written from facts alone and say so.

Each field says what differs, since when, and where the facts are (sections of ``docs/kernel.md``;
sources read: 5.10.262, 5.15.100, 6.1.192, 6.6.9, 6.12.117, 6.18.2, 7.3.4).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from inspector.events import LEVEL_UNDEFINED, TTL_UNKNOWN
from inspector.model.prot import ProtLayout


class MapScheme(enum.Enum):
    """How map replaces entries, and how a table gives way to a block (kernel.md 4.3-4.5).

    One choice, because the forms do not mix: the marker, the order of put, store and get, who counts the PA on, and
    whether an identical or permission-only map is refused, all come with it.
    """

    ANCHOR_IN_PLACE = (
        "5.10: page put early, break-before-make only over a different valid entry, any difference is one; no"
        " cache maintenance (the fault handler's business); the anchor's child is found again in the entry's stale bits"
    )
    ANCHOR = (
        "5.15, 6.1: stage2_put_pte then store then get; anchor and childp; identical or permission-only gives -EAGAIN;"
        " the PA is a running counter"
    )
    UNLINK = (
        "6.6+: LOCKED between break and make; tables replaced in TABLE_PRE and handed to free_unlinked_table; identical"
        " or permission-only gives -EAGAIN; the PA follows from the distance walked"
    )


class Eagain(enum.Enum):
    """What the walker does with -EAGAIN from a visitor (kernel.md 3.4)."""

    STOPS = "like any error"
    STOPS_IN_FAULT = "stops only with KVM_PGTABLE_WALK_HANDLE_FAULT, else forgotten"
    STOPS_UNLESS_IGNORED = "forgotten only with KVM_PGTABLE_WALK_IGNORE_EAGAIN"


class Annotation(enum.Enum):
    """How a page without mapping is annotated (kernel.md 1.6, 5)."""

    NONE = "not possible"
    OWNER_BY_INVALID_PA = "owner id in [9:2], the walk told apart by an impossible PA"
    OWNER_BY_FLAG = "owner id in [9:2], the walk told apart by a flag"
    TYPED = "type in [63:60], payload in [59:1]"


class TableTlbi(enum.Enum):
    """The level hint when unmap clears a table entry (kernel.md 6)."""

    OWN_LEVEL = "the level of the entry"
    ZERO = "0, which those releases take as no hint"
    UNKNOWN = "TLBI_TTL_UNKNOWN"


class FwbSource(enum.Enum):
    """What decides whether the table relies on FEAT_S2FWB (kernel.md 1.3)."""

    CPU = "the CPU capability"
    CPU_AND_FLAG = "the CPU capability, unless KVM_PGTABLE_S2_NOFWB"


class WalkFlags(enum.Enum):
    """Who chooses the walk flags of relax_perms and mkyoung (kernel.md 7.3, 7.4)."""

    NONE = "there are none"
    FAULT_SHARED = "always HANDLE_FAULT and SHARED"
    CALLER = "an argument"


@dataclass(frozen=True)
class ModelBehaviours:
    """One kernel generation as the model sees it."""

    label: str
    """The release series read, for messages only."""
    proven: bool
    """Compared with the compiled kernel code; ``False``: from facts only."""

    # --- the walker
    reload_after_pre: bool
    """The entry is read again after TABLE_PRE, not only after LEAF.  6.6+.  kernel.md 3.2."""
    shared_walks: bool
    """map takes walk flags; walks may be SHARED: stores are cmpxchg.  6.6+ (since parallel faults).  kernel.md 3.3."""
    eagain: Eagain
    """kernel.md 3.4."""
    first_level: int
    """Lowest level number the walker accepts: 0, or -1 since levels are signed (6.12+).  kernel.md 1.1."""

    # --- descriptors
    stale_invalid: bool
    """Invalidating clears bit 0 only and leaves the rest.  5.10.  kernel.md 1.6."""
    counts_nonzero: bool
    """An entry holds a reference when it is not 0 (5.15+), not when it is valid (5.10).  kernel.md 10.1."""
    locked_mask: int
    """Bits that tell a LOCKED entry; 0 where there is no such marker (before 6.6).  kernel.md 1.6."""
    locked_value: int
    """Their value, also what is stored."""
    attr_hi_lsb: int
    """Lowest bit of ``KVM_PTE_LEAF_ATTR_HI``: 51, from 6.6 on 50.  kernel.md 1.2."""
    two_bit_xn: bool
    """XN is [54:53] (7.3); one bit 54 before.  kernel.md 1.3."""
    fwb_source: FwbSource
    """kernel.md 1.3.  5.10 and 7.3 the CPU; between them the flag too."""
    as_s1: bool
    """``KVM_PGTABLE_S2_AS_S1`` forces the "as stage 1" memory type (7.3).  kernel.md 1.3."""
    software_bits: bool
    """``KVM_PGTABLE_PROT_SW*`` exist (5.15+).  kernel.md 1.4."""
    lpa2: bool
    """52-bit addresses with 4K and 16K pages are known (6.12+).  kernel.md 1.2."""
    prot_layout: ProtLayout
    """kernel.md 1.4."""

    # --- map
    idmap_and_force_pte: bool
    """IDMAP flag and ``force_pte_cb`` exist (5.15+).  kernel.md 4.1."""
    map_scheme: MapScheme
    """kernel.md 4.2-4.5."""
    software_bits_store: bool
    """A non-shared map that changes software bits only is one plain store (6.12+).  kernel.md 4.4."""
    span_flush_aligned: bool
    """The flush for an evicted table starts at the entry's own start (6.12+; 6.6.9: at the walk's).  kernel.md 4.4."""
    cmo_checks_valid: bool
    """"cacheable" and "executable" are asked of valid entries only (6.12+).  kernel.md 4.4."""
    annotation: Annotation
    """kernel.md 5."""

    # --- unmap
    unmap_table_tlbi: TableTlbi
    """kernel.md 6."""
    unmap_deferred_range: bool
    """With TLB range support and FWB, leaves are flushed once, by range, after the walk (6.6+).  kernel.md 6."""
    unmap_defers_tables_too: bool
    """... and tables' own invalidation is left out as well (6.6.9; fixed later in 6.6.y).  kernel.md 6."""

    # --- attributes
    attr_invalid_eagain: bool
    """An attribute walk that meets an invalid entry says -EAGAIN (6.6+).  kernel.md 7.1."""
    attr_icache: bool
    """An attribute walk that adds execute permission invalidates the instruction cache (5.15+).  kernel.md 7.1."""
    attr_walk_flags: WalkFlags
    """kernel.md 7.3, 7.4: 6.6 and 6.12 fixed, 6.18+ an argument."""
    wrprotect_ignores_eagain: bool
    """wrprotect passes IGNORE_EAGAIN (7.3).  kernel.md 7.2."""
    relax_local_tlbi: bool
    """relax_perms invalidates on the local CPU only (6.6+).  kernel.md 7.3."""
    relax_flush_on_eagain: bool
    """... also when the walk says -EAGAIN (6.12.117, 6.18, 7.3).  kernel.md 7.3."""
    relax_eagain_level: int
    """The level hint then: TLBI_TTL_UNKNOWN, or what happened to be on the stack (6.18.2).  kernel.md 7.3."""
    mkyoung_barrier_always: bool
    """mkyoung ends in ``dsb(ishst)`` whatever the walk said (5.10-6.1).  kernel.md 7.4."""
    mkyoung_returns_pte: bool
    """mkyoung returns the old entry (until 6.12).  kernel.md 7.4."""
    test_clear_young: bool
    """test_clear_young over a range (6.6+) in place of mkold and is_young.  kernel.md 7.5."""

    # --- split
    split: bool
    """kvm_pgtable_stage2_split and create_unlinked exist (6.6+).  kernel.md 8."""
    split_barrier_each: bool
    """``dsb(ishst)`` after each split block instead of once at the end (6.6.9).  kernel.md 8."""
    unlinked_double_put: bool
    """create_unlinked's error path puts the page that free_unlinked has freed already (6.6.9).  kernel.md 8."""

    # --- destroy
    destroy_in_ranges: bool
    """destroy_range and destroy_pgd; a table is freed only when its own count is 1, and its entry cleared (7.3).
    kernel.md 9."""

    # --- hyp stage-1
    hyp_unmap: bool
    """kvm_pgtable_hyp_unmap exists and entries are counted (6.1+).  kernel.md 10.1."""
    hyp_get_before_store: bool
    """A table entry's reference is taken before it is stored (6.6+).  6.12.117 hyp_map_walker."""
    hyp_conflict_goes_on: bool
    """A map over a different valid entry warns and goes on to a table or -EINVAL (6.1+); before, it warns and leaves
    the old entry.  6.1.192 hyp_map_walker_try_leaf; older from memory of 5.15, not read."""
    hyp_running_pa: bool
    """The PA is a running counter that moves on even past a refused leaf (until 6.1).  6.1.192
    hyp_map_walker_try_leaf."""
    hyp_hvhe: bool
    """hVHE, with its own AP encoding, exists (6.6+).  kernel.md 1.5."""
    hyp_bti: bool
    """GP is set on executable mappings if the kernel uses BTI (6.6+).  kernel.md 1.5."""
    hyp_two_bit_xn: bool
    """PXN and UXN under hVHE; UX dropped without (7.3).  kernel.md 1.5."""
    hyp_device_index: int
    """MAIR index of Device-nGnRE.  kernel.md 1.5."""


_6_12: Final = ModelBehaviours(
    label="6.12",
    proven=True,
    reload_after_pre=True,
    shared_walks=True,
    eagain=Eagain.STOPS_IN_FAULT,
    first_level=-1,
    stale_invalid=False,
    counts_nonzero=True,
    locked_mask=1 << 10,
    locked_value=1 << 10,
    attr_hi_lsb=50,
    two_bit_xn=False,
    fwb_source=FwbSource.CPU_AND_FLAG,
    as_s1=False,
    software_bits=True,
    lpa2=True,
    prot_layout=ProtLayout.SINGLE_X_NC,
    idmap_and_force_pte=True,
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
    hyp_get_before_store=True,
    hyp_conflict_goes_on=True,
    hyp_running_pa=False,
    hyp_hvhe=True,
    hyp_bti=True,
    hyp_two_bit_xn=False,
    hyp_device_index=4,
)

_6_6: Final = replace(
    _6_12,
    label="6.6",
    proven=False,
    first_level=0,
    lpa2=False,
    prot_layout=ProtLayout.SINGLE_X,
    software_bits_store=False,
    span_flush_aligned=False,
    cmo_checks_valid=False,
    unmap_table_tlbi=TableTlbi.OWN_LEVEL,
    unmap_defers_tables_too=True,
    relax_flush_on_eagain=False,
    split_barrier_each=True,
    unlinked_double_put=True,
)

_6_1: Final = replace(
    _6_6,
    label="6.1",
    proven=True,
    reload_after_pre=False,
    shared_walks=False,
    eagain=Eagain.STOPS,
    locked_mask=0,
    locked_value=0,
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

_5_15: Final = replace(
    _6_1,
    label="5.15",
    proven=False,
    unmap_table_tlbi=TableTlbi.OWN_LEVEL,
    hyp_unmap=False,
    hyp_conflict_goes_on=False,
)

_5_10: Final = replace(
    _5_15,
    label="5.10",
    proven=False,
    stale_invalid=True,
    counts_nonzero=False,
    fwb_source=FwbSource.CPU,
    software_bits=False,
    idmap_and_force_pte=False,
    map_scheme=MapScheme.ANCHOR_IN_PLACE,
    annotation=Annotation.NONE,
    attr_icache=False,
    hyp_device_index=5,
)

_6_18: Final = replace(
    _6_12,
    label="6.18",
    proven=False,
    annotation=Annotation.OWNER_BY_FLAG,
    attr_walk_flags=WalkFlags.CALLER,
    relax_eagain_level=LEVEL_UNDEFINED,
    mkyoung_returns_pte=False,
)

_7_3: Final = replace(
    _6_18,
    label="7.3",
    proven=True,
    eagain=Eagain.STOPS_UNLESS_IGNORED,
    locked_mask=0xF << 60,
    locked_value=1 << 60,
    two_bit_xn=True,
    fwb_source=FwbSource.CPU,
    as_s1=True,
    prot_layout=ProtLayout.SPLIT_X,
    annotation=Annotation.TYPED,
    wrprotect_ignores_eagain=True,
    relax_eagain_level=TTL_UNKNOWN,
    destroy_in_ranges=True,
    hyp_two_bit_xn=True,
)

GENERATIONS: Final = {each.label: each for each in (_5_10, _5_15, _6_1, _6_6, _6_12, _6_18, _7_3)}
"""Every generation the model knows, oldest first."""


def generation(label: str) -> ModelBehaviours:
    """The generation called ``label``.  Raises ``KeyError`` with the known labels in its message."""
    if label not in GENERATIONS:
        raise KeyError(f"no generation {label!r}; known are {', '.join(GENERATIONS)}")
    return GENERATIONS[label]


@dataclass(frozen=True)
class Machine:
    """What the model must know of the CPU and of the way pgtable.c was built and called.

    ``fwb``, ``tlb_range``, ``xnx``, ``hvhe``, ``bti``: the capabilities ``ARM64_HAS_STAGE2_FWB``,
    ``system_supports_tlb_range()``, ``ARM64_HAS_XNX``, ``ARM64_KVM_HVHE``, ``system_supports_bti_kernel()``.
    ``dcache_op``, ``icache_op``: the ``kvm_pgtable_mm_ops`` callbacks exist (a kernel's guests have both; the hyp
    host's have none).  The kernel's callbacks then do nothing on a CPU with FWB or CTR_EL0.DIC: a ``cache`` event is
    the call, not its effect.
    ``no_fwb``, ``idmap``, ``as_s1``: ``pgt->flags``.  ``force_pte``: what ``force_pte_cb`` answers, ``None`` = there
    is no callback.  ``hyp_build``: pgtable.c compiled for the hypervisor, which refuses SHARED walks.
    ``rcu``: ``free_unlinked_table`` waits for a grace period (the kernel's); the hypervisor's frees at once.
    """

    fwb: bool = False
    tlb_range: bool = False
    xnx: bool = False
    hvhe: bool = False
    bti: bool = False
    dcache_op: bool = True
    icache_op: bool = True
    no_fwb: bool = False
    idmap: bool = False
    as_s1: bool = False
    force_pte: bool | None = None
    hyp_build: bool = False
    rcu: bool = True
