"""What a live stage-2 must keep to and no single instant can show, with the reason: listed beside the checks.

So that a clean verdict is not taken for more than it is.
"""

from __future__ import annotations

import re

from inspector.check.catalogue import Unseen

_ORDER = "it is about the order of events: one instant has none; 'inspector trace' judges it"
_HIDDEN = "it is about a transition of the hypervisor's, of which one instant shows the end alone"

_RULES = """
R2 Unlinked tables reach a count of 0 and are freed; all table pages together are what the kernel accounts for.
 = kvm_account_pgtable_pages, NR_SECONDARY_PAGETABLE (6.1+); stage2_free_unlinked_table
 ? an unlinked table is reached from nowhere, and the host's counter also has the tables of VMs that are being
   made or destroyed, those that wait for RCU, and from 6.11 the IOMMU's: only its change between two quiet
   instants says anything
R3 Each page that a fault obtained is released exactly once.
 = user_mem_abort, kvm_release_faultin_page
 ? the page's count has every other user's references in it; 'inspector trace' follows each fault
M3 Write protection covers the whole range that it was asked for, also where no dirty log tells it.
 = kvm_pgtable_stage2_wrprotect
 ? outside of a logged slot nothing records what was asked for; 'inspector trace' holds it
   against the model
M5 On CPUs without CTR_EL0.DIC a page of RAM is executable only after the guest tried to execute it.
 = user_mem_abort (exec_fault), ARM64_HAS_CACHE_DIC
 ? whether there was such a fault is not recorded: an executable page of RAM is legal at any instant;
   'inspector trace' knows each fault's syndrome
M8 The access flag is set when a page is mapped and cleared over the whole range that is aged.
 = stage2_set_prot_attr, kvm_pgtable_stage2_test_clear_young (up to 6.5: kvm_pgtable_stage2_mkold)
 ? the host may age any page of RAM at any time, so a clear flag is legal at any instant;
   'inspector trace' holds it against the model
M10 The table is what the model builds by the same operations.
 = kvm_pgtable_stage2_map, unmap, wrprotect, relax_perms and the other walks
 ? the operations are not in a capture; M10 builds each table anew from the mappings that it holds, as
   'inspector diff' does
V3 When VMIDs run out, all TLB entries are invalidated (ALLE1IS) before one is used again.
 = kvm_arm_vmid_update, flush_context (5.10, 5.15: force_vm_exit)
V4 A vCPU that comes to a CPU on which another of its VM ran last has that CPU's TLB invalidated.
 = kvm_arch_vcpu_load, __kvm_flush_cpu_context
V5 Initialising a CPU for KVM invalidates with ALLE1, not VMALLS12E1.
 = __kvm_init_el2_state, __kvm_tlb_flush_local_all
 ? it is done once, before there is a table; 'inspector trace' reads it in the kernel's text
B1 A valid entry changes in more than permissions, access flag and software bits only by way of an invalid one.
 = DDI 0487 D8.16 (break-before-make); stage2_try_break_pte
B2 Between break and make stand DSB, a TLBI that covers the entry, and DSB ISH.
 = DDI 0487 D8.16; __kvm_tlb_flush_vmid_ipa
B3 The TLBI names the tree's VMID, the whole old range, and the old leaf's level or none.
 = kvm_tlb_flush_vmid_ipa, stage2_unmap_put_pte
B4 A TLBI by IPA is followed by DSB ISH and a stage-1 TLBI.
 = DDI 0487 D8.17; __kvm_tlb_flush_vmid_ipa
B5 DSB ISH, and from 6.6 ISB, end an invalidation before VTTBR_EL2 is restored.
 = exit_vmid_context (5.10, 5.15: __tlb_switch_to_host)
B6 Range TLBIs together cover the unmapped range (6.6+).
 = kvm_tlb_flush_vmid_range, __flush_tlb_range_op
B7 A table page is freed only after the invalidation of its parent entry.
 = stage2_unmap_walker
B8 A restriction is followed by a TLBI before the lock is dropped, or the ioctl returns.
 = kvm_mmu_wp_memory_region, kvm_flush_remote_tlbs_memslot
B9 An entry is made with store-release.
 = stage2_make_pte, kvm_set_valid_leaf_pte
B10 VTTBR_EL2 is switched after DSB ISH (nVHE, 6.6+), or with TGE clear and interrupts masked (VHE).
 = enter_vmid_context
B11 Caches are cleaned before an entry is made without FWB, and the icache invalidated before X.
 = stage2_map_walker_try_leaf: dcache_clean_inval_poc, icache_inval_pou
P4 The hypervisor's stacks are not in the host's stage 2.
 = pkvm_create_stack
 ? which pages they are only the hypervisor's private mappings tell
P5 Only memory that memblock knows is donated.
 = check_range_allowed_memory
P6 A transition that fails changes nothing.
 = __pkvm_host_share_hyp and its like
C1 A fault's walk returns -EAGAIN only where the entry changed, or the mapping was there already.
 = stage2_map_walker_try_leaf, stage2_update_leaf_attrs
 ? it is about the order of events: one instant has none; 'inspector trace' holds it against the model
C2 A walk visits each entry of its range once, and no freed table.
 = __kvm_pgtable_walk
 ? it is about the order of events: one instant has none; 'inspector trace' holds it against the model
C3 Entries are written under mmu_lock held for write, or for read by compare-and-exchange.
 = stage2_try_set_pte
"""
"""Each rule with its source after ``=`` and, where it is none of the two above, the reason after ``?``."""


def _rule(text: str) -> Unseen:
    id, _, rest = " ".join(text.split()).partition(" ")
    statement, _, rest = rest.partition(" = ")
    source, _, reason = rest.partition(" ? ")
    return Unseen(id, statement, source, reason or (_HIDDEN if id.startswith("P") else _ORDER))


NOT_SHOWN: tuple[Unseen, ...] = tuple(_rule(text) for text in re.split(r"\n(?=\S)", _RULES.strip()))
"""In the order of the catalogue of rules; an id that is among the checks too names the part that they cannot judge."""
