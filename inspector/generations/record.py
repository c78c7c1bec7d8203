"""One kernel generation: what its page-table code does, and by what it is recognised.

Nobody asks for a version.  The model asks, for example, ``behaviours.software_bits_store``, a check asks
``behaviours.normal_nc``.  A generation is a file of this room (``v6_12.py``) that says in what it differs from a
neighbour; a kernel at hand that differs (a stable fix that came or did not come) is
``dataclasses.replace(generation("6.12"), relax_flush_on_eagain=False)``.

Which commit of the kernel brought each, in which release, and where the facts are: `inspector.generations.facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from inspector.codec import Format, InvalidForm, Regime
from inspector.generations.forms import (
    Annotation,
    Eagain,
    MapScheme,
    PgtFlags,
    ProtLayout,
    TableTlbi,
    WalkFlags,
)
from inspector.generations.traits import TRAITS

_LOCKED = {InvalidForm.LOCKED_BIT10: (1 << 10, 1 << 10), InvalidForm.TYPED: (0xF << 60, 1 << 60)}
"""Mask and value of a LOCKED entry (kernel.md 1.6)."""


@dataclass(frozen=True)
class Generation:
    """What the page-table code of one kernel generation does."""

    label: str
    """The release series that was read."""
    source: str | None
    """The release whose source was read; ``None``: no source was at hand, only an Image (types and symbols)."""
    cross_checked: bool
    """The model was compared, operation by operation, with the compiled code of ``source``
    (`inspector.crosscheck`)."""
    has: tuple[str, ...]
    """Traits (`inspector.generations.traits`) by which a kernel is recognised; one of another generation lacks some."""
    lacks: tuple[str, ...]
    """Traits that no kernel of this generation has."""

    # --- the walker
    reload_after_pre: bool
    """The entry is read again after TABLE_PRE, not only after LEAF."""
    shared_walks: bool
    """map takes walk flags; walks may be SHARED: stores are cmpxchg."""
    eagain: Eagain
    first_level: int
    """Lowest level number the walker accepts: 0, or -1 since levels are signed."""

    # --- descriptors
    invalid: InvalidForm
    """What an invalid entry may hold, and with it which entries are counted and what marks a LOCKED one."""
    attr_hi_lsb: int
    """Lowest bit of ``KVM_PTE_LEAF_ATTR_HI``."""
    two_bit_xn: bool
    """XN is [54:53] where the CPU has FEAT_XNX; one bit 54 before."""
    pgt_flags: PgtFlags
    software_bits: bool
    """``KVM_PGTABLE_PROT_SW*`` exist."""
    lpa2: bool
    """52-bit addresses with 4K and 16K pages are known."""
    prot_layout: ProtLayout

    # --- map
    map_scheme: MapScheme
    software_bits_store: bool
    """A non-shared map that changes software bits only is one plain store."""
    span_flush_aligned: bool
    """The flush for an evicted table starts at the entry's own start, not at the walk's."""
    cmo_checks_valid: bool
    """"cacheable" and "executable" are asked of valid entries only."""
    annotation: Annotation

    # --- unmap
    unmap_table_tlbi: TableTlbi
    unmap_deferred_range: bool
    """With TLB range support and FWB, leaves are flushed once, by range, after the walk."""
    unmap_defers_tables_too: bool
    """... and tables' own invalidation is left out as well."""

    # --- attributes
    attr_invalid_eagain: bool
    """An attribute walk that meets an invalid entry says -EAGAIN."""
    attr_icache: bool
    """An attribute walk that adds execute permission invalidates the instruction cache."""
    attr_walk_flags: WalkFlags
    wrprotect_ignores_eagain: bool
    """wrprotect passes IGNORE_EAGAIN."""
    relax_local_tlbi: bool
    """relax_perms invalidates on the local CPU only."""
    relax_flush_on_eagain: bool
    """... also when the walk says -EAGAIN."""
    relax_eagain_level: int
    """The level hint then: TLBI_TTL_UNKNOWN, or what happened to be on the stack."""
    mkyoung_barrier_always: bool
    """mkyoung ends in ``dsb(ishst)`` whatever the walk said."""
    mkyoung_returns_pte: bool
    """mkyoung returns the old entry."""
    test_clear_young: bool
    """test_clear_young over a range in place of mkold and is_young."""

    # --- split
    split: bool
    """kvm_pgtable_stage2_split and create_unlinked exist."""
    split_barrier_each: bool
    """``dsb(ishst)`` after each split block instead of once at the end."""
    unlinked_double_put: bool
    """create_unlinked's error path puts the page that free_unlinked has freed already."""

    # --- reading
    get_leaf: bool
    """kvm_pgtable_get_leaf exists."""

    # --- destroy
    destroy_in_ranges: bool
    """destroy_range and destroy_pgd; a table is freed only when its own count is 1, and its entry cleared."""

    # --- hyp stage-1
    hyp_unmap: bool
    """kvm_pgtable_hyp_unmap exists and entries are counted."""
    init_all_vmids: bool
    """A CPU that KVM is initialised on in nVHE invalidates for all VMIDs (ALLE1), not for the one in force."""
    hyp_get_before_store: bool
    """A table entry's reference is taken before it is stored."""
    hyp_conflict_goes_on: bool
    """A map over a different valid entry warns and goes on to a table or -EINVAL; before, it warns and leaves the old
    entry."""
    hyp_running_pa: bool
    """The PA is a running counter that moves on even past a refused leaf."""
    hyp_hvhe: bool
    """hVHE, with its own AP encoding, exists."""
    hyp_bti: bool
    """GP is set on executable mappings if the kernel uses BTI."""
    hyp_two_bit_xn: bool
    """PXN and UXN under hVHE; UX dropped without."""
    hyp_device_index: int
    """MAIR index of Device-nGnRE."""

    # --- outside pgtable.c
    permission_faults_share_lock: bool
    """A write fault on a mapped page while dirty logging is on holds the mmu lock for reading, so that relax_perms runs
    on several CPUs at once.  (Where ``shared_walks``, every fault does.)"""
    ha_always: bool
    """VTCR_EL2.HA is set whatever the configuration and the CPU's errata."""
    cacheable_pfnmap: bool
    """With FWB, memory that is not RAM of the kernel's is mapped write-back where the VMM's own mapping is."""
    present_invalid_bit11: bool
    """A Linux stage-1 entry that is present but not valid has bit 11 set; before, bit 58 (a page) or 59 (a block)."""

    @property
    def standing(self) -> str:
        """How far the model of it may be trusted, in words."""
        if self.cross_checked:
            return "cross-checked against the kernel's own code"
        return "not cross-checked" if self.source else "not cross-checked, and no source read"

    @property
    def how(self) -> str:
        """What it is recognised by, in words."""
        signs = [(name, True) for name in self.has] + [(name, False) for name in self.lacks]
        return ", ".join(TRAITS[name].text(present) for name, present in signs)

    def matches(self, traits: Mapping[str, bool]) -> bool:
        """True when a kernel with ``traits`` is of this generation, as far as traits tell."""
        return all(traits.get(name) for name in self.has) and not any(traits.get(name) for name in self.lacks)

    def format(self, regime: Regime, *, fwb: bool = False, xnx: bool = False, **others: bool) -> Format:
        """How the codec reads this generation's entries; ``xnx``: the CPU has FEAT_XNX."""
        return Format(
            regime,
            fwb=fwb,
            xnx=xnx and self.two_bit_xn,
            invalid=self.invalid,
            linux_612=self.present_invalid_bit11,
            **others,
        )

    # What follows from the fields.  Cached: the model's inner loops ask.

    @cached_property
    def mm_ops(self) -> bool:
        """Pages, addresses and caches go through ``struct kvm_pgtable_mm_ops``, whose cache callbacks may be
        absent; before, the file calls the kernel's own functions."""
        return "mm_ops" not in self.lacks

    @cached_property
    def stale_invalid(self) -> bool:
        """Invalidating clears bit 0 only and leaves the rest."""
        return self.invalid is InvalidForm.STALE

    @cached_property
    def counts_nonzero(self) -> bool:
        """An entry holds a reference when it is not 0 (and not LOCKED), not when it is valid (kernel.md 10.1)."""
        return not self.stale_invalid

    @cached_property
    def visitors_read(self) -> bool:
        """A visitor reads the entry itself, beside the walker (until ``struct kvm_pgtable_visit_ctx``, which came with
        shared walks)."""
        return not self.shared_walks

    @cached_property
    def locked_mask(self) -> int:
        """Bits that tell a LOCKED entry; 0 where there is no such marker."""
        return _LOCKED.get(self.invalid, (0, 0))[0]

    @cached_property
    def locked_value(self) -> int:
        """Their value, also what is stored."""
        return _LOCKED.get(self.invalid, (0, 0))[1]

    @cached_property
    def as_s1(self) -> bool:
        """A flag of ``pgt->flags`` forces the "as stage 1" memory type."""
        return bool(self.pgt_flags.bit("AS_S1"))

    @cached_property
    def idmap_and_force_pte(self) -> bool:
        """The IDMAP flag and ``force_pte_cb`` exist."""
        return bool(self.pgt_flags.bit("IDMAP"))

    @cached_property
    def normal_nc(self) -> bool:
        """``KVM_PGTABLE_PROT_NORMAL_NC`` exists: devices may be mapped normal non-cacheable."""
        return self.prot_layout is not ProtLayout.SINGLE_X
