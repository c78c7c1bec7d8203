"""Where each field of a generation comes from: the kernel's commits, their releases, and the page that says it.

A commit is named where the kernel's own history, a pull request or a changelog names it.  Where none is, the commit is
not known, and ``seen`` is the oldest release read that has the later form (``docs/kernel.md`` 0 lists what was read).
A stable release may have a commit long before the next mainline release that has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Commit:
    """A commit of the kernel: the first 12 digits of its hash, the mainline release it came with, its subject."""

    hash: str
    release: str
    subject: str


@dataclass(frozen=True)
class Fact:
    """``section`` of ``docs/kernel.md``; the commits that changed the behaviour, oldest first."""

    section: str
    commits: tuple[Commit, ...]
    seen: str | None = None


_COMMITS: Final = {
    each.hash: each
    for each in (
        Commit(
            "694d071f8d85", "5.12", "KVM: arm64: Filter out the case of only changing permissions from stage-2 map path"
        ),
        Commit("f60ca2f9321a", "5.13", "KVM: arm64: Always zero invalid PTEs"),
        Commit("bc224df155c4", "5.13", "KVM: arm64: Introduce KVM_PGTABLE_S2_NOFWB stage 2 flag"),
        Commit("807923e04a0f", "5.13", "KVM: arm64: Use page-table to track page ownership"),
        Commit("25aa28691bb9", "5.14", "KVM: arm64: Move guest CMOs to the fault handlers"),
        Commit("21cfe6edbadb", "5.14", "arm64: mm: Remove unused support for Normal-WT memory type"),
        Commit("63db506e0762", "5.15", "KVM: arm64: Introduce helper to retrieve a PTE and its level"),
        Commit("4505e9b624ce", "5.15", "KVM: arm64: Allow populating software bits"),
        Commit("2ea2ff91e822", "5.17", "KVM: arm64: Refcount hyp stage-1 pgtable pages"),
        Commit("82bb02445de5", "5.17", "KVM: arm64: Implement kvm_pgtable_hyp_unmap() at EL2"),
        Commit("1577cb5823ce", "6.2", "KVM: arm64: Handle stage-2 faults in parallel"),
        Commit("0ab12f3574db", "6.2", "KVM: arm64: Make block->table PTE changes parallel-aware"),
        Commit("5c359cca1faf", "6.2", "KVM: arm64: Tear down unlinked stage-2 subtree after break-before-make"),
        Commit("331aa3a0547d", "6.2", "KVM: arm64: Split init and set for table PTE"),
        Commit("ddcadb297ce5", "6.3", "KVM: arm64: Ignore EAGAIN for walks outside of a fault"),
        Commit("76259cca4795", "6.3", "KVM: arm64: Return EAGAIN for invalid PTE in attr walker"),
        Commit("7d29a2407df6", "6.3", "KVM: arm64: Don't serialize if the access flag isn't set"),
        Commit("1dfc3e905089", "6.3", "KVM: arm64: Condition HW AF updates on config option"),
        Commit("a9f0e3d5a089", "6.4", "KVM: arm64: Reload PTE after invoking walker callback on preorder traversal"),
        Commit("39bc95be3782", "6.4", "KVM: arm64: Infer PA offset from VA in hyp map walker"),
        Commit("b53d4a272349", "6.5", "KVM: arm64: Use BTI for nvhe"),
        Commit("a12ab1378a88", "6.5", "KVM: arm64: Use local TLBI on permission relaxation"),
        Commit("df6556adf27b", "6.5", "KVM: arm64: Correctly handle page aging notifiers for unaligned memslot"),
        Commit("8f5a3eb7513f", "6.5", "KVM: arm64: Add kvm_pgtable_stage2_split()"),
        Commit("6537565fd9b7", "6.5", "KVM: arm64: Adjust EL2 stage-1 leaf AP bits when ARM64_KVM_HVHE is set"),
        Commit("7657ea920c54", "6.6", "KVM: arm64: Use TLBI range-based instructions for unmap"),
        Commit("be097997a273", "6.7", "KVM: arm64: Always invalidate TLB for stage-2 permission faults"),
        Commit("419edf48d79f", "6.8", "KVM: arm64: Convert translation level parameter to s8"),
        Commit("bd412e2a310c", "6.8", "KVM: arm64: Use LPA2 page-tables for stage2 and hyp stage1"),
        Commit("e7c05540c694", "6.5", "KVM: arm64: Add helper for creating unlinked stage2 subtrees"),
        Commit("c60d847be7b8", "6.8", "KVM: arm64: Fix double-free following kvm_pgtable_stage2_free_unlinked()"),
        Commit("c034ec84e879", "6.9", "KVM: arm64: Introduce new flag for non-cacheable IO memory"),
        Commit("4c36a1567388", "6.9", "KVM: arm64: Ensure target address is granule-aligned for range TLBI"),
        Commit("36e008323926", "6.9", "KVM: arm64: Don't pass a TLBI level hint when zapping table entries"),
        Commit("f62d4c3eb687", "6.9", "KVM: arm64: Don't defer TLB invalidation when zapping table entries"),
        Commit("7cc1d214a6cd", "6.11", "KVM: arm64: Avoid BBM when changing only s/w bits in Stage-2 PTE"),
        Commit("96171cfa55d0", "6.11", "KVM: arm64: Check for PTE validity when checking for executable/cacheable"),
        Commit("55564814a838", "6.11", "arm64/mm: Move PTE_PRESENT_INVALID to overlay PTE_NG"),
        Commit("dc0dddb1d66d", "6.12", "KVM: arm64: Invalidate EL1&0 TLB entries for all VMIDs in nvhe hyp init"),
        Commit("2362506f7cff", "6.13", 'KVM: arm64: Don\'t mark "struct page" accessed when making SPTE young'),
        Commit("e279c25d78d6", "6.14", "KVM: arm64: Pass walk flags to kvm_pgtable_stage2_relax_perms"),
        Commit("0c67288e0c8b", "6.17", "KVM: arm64: Allow cacheable stage 2 mapping using VMA flags"),
        Commit("19cffd16ed64", "6.19", "KVM: arm64: Invert KVM_PGTABLE_WALK_HANDLE_FAULT to fix pKVM walkers"),
        Commit("2608563b466b", "6.19", "KVM: arm64: Add support for FEAT_XNX stage-2 permissions"),
        Commit("156f70afcfec", "6.19", "KVM: arm64: Only drop references on empty tables in stage2_free_walker"),
        Commit("d68d66e57e2b", "6.19", "KVM: arm64: Split kvm_pgtable_stage2_destroy()"),
        Commit("8d8e882c2b4b", "6.19", "KVM: arm64: Fix EL2 S1 XN handling for hVHE setups"),
        Commit("17d7b15131f3", "7.0", "KVM: arm64: Add KVM_PGTABLE_S2_AS_S1 flag"),
        Commit("4f27fe82aa30", "7.0", "KVM: arm64: Kill KVM_PGTABLE_S2_NOFWB"),
        Commit("c6ba94640cf7", "7.1", "KVM: arm64: Generalise kvm_pgtable_stage2_set_owner()"),
        Commit("100baf018489", "7.2", "KVM: arm64: Ensure level is always initialized when relaxing perms"),
    )
}


def _fact(section: str, *hashes: str, seen: str | None = None) -> Fact:
    return Fact(section, tuple(_COMMITS[each] for each in hashes), seen)


FACTS: Final[Mapping[str, Fact]] = {
    "reload_after_pre": _fact("3.2", "a9f0e3d5a089"),
    "shared_walks": _fact("3.3", "1577cb5823ce"),
    "eagain": _fact("3.4", "ddcadb297ce5", "19cffd16ed64"),
    "first_level": _fact("1.1", "419edf48d79f"),
    "invalid": _fact("1.6", "f60ca2f9321a", "0ab12f3574db", "c6ba94640cf7"),
    "attr_hi_lsb": _fact("1.2", "b53d4a272349"),
    "two_bit_xn": _fact("1.3", "2608563b466b"),
    "pgt_flags": _fact("1.3", "bc224df155c4", "17d7b15131f3", "4f27fe82aa30"),
    "software_bits": _fact("1.4", "4505e9b624ce"),
    "lpa2": _fact("1.2", "bd412e2a310c"),
    "prot_layout": _fact("1.4", "c034ec84e879", "2608563b466b"),
    "map_scheme": _fact("4.3", "694d071f8d85", "5c359cca1faf"),
    "software_bits_store": _fact("4.4", "7cc1d214a6cd"),
    "span_flush_aligned": _fact("4.4", "4c36a1567388"),
    "cmo_checks_valid": _fact("4.4", "96171cfa55d0"),
    "annotation": _fact("5", "807923e04a0f", "c6ba94640cf7"),
    "unmap_table_tlbi": _fact("6", "36e008323926"),
    "unmap_deferred_range": _fact("6", "7657ea920c54"),
    "unmap_defers_tables_too": _fact("6", "7657ea920c54", "f62d4c3eb687"),
    "attr_invalid_eagain": _fact("7.1", "76259cca4795"),
    "attr_icache": _fact("7.1", "25aa28691bb9"),
    "attr_walk_flags": _fact("7.3", "1577cb5823ce", "e279c25d78d6"),
    "wrprotect_ignores_eagain": _fact("7.2", "19cffd16ed64"),
    "relax_local_tlbi": _fact("7.3", "a12ab1378a88"),
    "relax_flush_on_eagain": _fact("7.3", "be097997a273"),
    "relax_eagain_level": _fact("7.3", "be097997a273", "100baf018489"),
    "mkyoung_barrier_always": _fact("7.4", "7d29a2407df6"),
    "mkyoung_returns_pte": _fact("7.4", "2362506f7cff"),
    "test_clear_young": _fact("7.5", "df6556adf27b"),
    "split": _fact("8", "8f5a3eb7513f"),
    "split_barrier_each": _fact("8", seen="6.12"),
    "unlinked_double_put": _fact("8", "e7c05540c694", "c60d847be7b8"),
    "get_leaf": _fact("3.6", "63db506e0762"),
    "destroy_in_ranges": _fact("9", "156f70afcfec", "d68d66e57e2b"),
    "hyp_unmap": _fact("10.1", "2ea2ff91e822", "82bb02445de5"),
    "init_all_vmids": _fact("15.4", "dc0dddb1d66d"),
    "hyp_get_before_store": _fact("1.5", "331aa3a0547d"),
    "hyp_conflict_goes_on": _fact("1.5", "2ea2ff91e822"),
    "hyp_running_pa": _fact("1.5", "39bc95be3782"),
    "hyp_hvhe": _fact("1.5", "6537565fd9b7"),
    "hyp_bti": _fact("1.5", "b53d4a272349"),
    "hyp_two_bit_xn": _fact("1.5", "8d8e882c2b4b"),
    "hyp_device_index": _fact("1.5", "21cfe6edbadb"),
    "permission_faults_share_lock": _fact("7.3", seen="6.1"),
    "ha_always": _fact("2.1", "1dfc3e905089"),
    "cacheable_pfnmap": _fact("11.4", "0c67288e0c8b"),
    "present_invalid_bit11": _fact("14.3a", "55564814a838"),
}
"""By field of `inspector.generations.record.Generation`."""
