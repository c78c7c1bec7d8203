"""N1 to N5: shadow tables, held against the guest hypervisor's own stage 2 composed with the VM's memory.

What only that table contradicts may be the hypervisor's own doing.  DDI 0487 lets a TLB keep an entry until it is
invalidated: so an entry that is gone, or allows less, is a note.  One that is there and maps other memory, or in
another size, was changed by break-before-make (D8.17; KVM shows its guests no FEAT_BBM), and its invalidation empties
the shadow: while the table is in force, that is an error, the kernel's or the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check import excuses
from inspector.check.backing import Runs
from inspector.check.catalogue import Judge, invariant
from inspector.check.composed import Nested
from inspector.check.context import Context
from inspector.check.places import LIMIT, where_entry
from inspector.codec import MemoryType
from inspector.codec.bulk import Flags
from inspector.findings import Finding

_ITS_OWN = (
    "or the guest hypervisor changed a valid entry without break-before-make and invalidation, which DDI 0487 D8.17 "
    "forbids"
)


@invariant(
    "N1",
    "Every page of a leaf of a shadow table is memory that the VMM has behind some slot of the VM.",
    "user_mem_abort (nested), kvm_nested_s2_unmap (MMU notifier)",
    function="kvm_nested_s2_unmap",
    why="the guest's guest reaches memory that is not the VM's: whatever its hypervisor did, KVM gave it away",
)
def no_foreign_memory(rule: Judge, context: Context) -> Iterator[Finding]:
    for one in context.nested:
        for span in one.owned.spans(one.foreign):
            yield rule.error(
                span,
                f"memory of {one.owned.view.vm.name}",
                f"PA {span.output:#x}, which its VMM has behind no slot",
                excuse=excuses.invalidation(one.owned.view.vm),
            )


@invariant(
    "N2",
    "A leaf of a shadow table maps what the guest hypervisor's own stage 2 gives for its address (without one: the "
    "same address), translated by memslot and the VMM's page tables; judged while that stage 2 is in force for a vCPU.",
    "kvm_handle_guest_abort, kvm_walk_nested_s2; kvm_s2_mmu_iterate_by_vmid (TLBI)",
    function="kvm_walk_nested_s2",
)
def composed(rule: Judge, context: Context) -> Iterator[Finding]:
    for one in context.nested:
        if one.stage2 and not one.current:
            yield from _given_up(rule, one)
            continue
        for span in one.owned.spans(one.gone) if one.stage2 else ():
            yield rule.note(
                span,
                "an entry of the guest hypervisor's own stage 2",
                f"{span.raw}, and none there",
                "the hypervisor may have taken its entry away and not have invalidated it yet",
            )
        why = "the guest's guest sees other memory than its hypervisor gave it" + (
            f"; {_ITS_OWN}" if one.stage2 else ""
        )
        yield from _pieces(rule, one, one.pieces.elsewhere, one.pieces.other, why)
        yield from _pieces(rule, one, one.pieces.nowhere, one.pieces.none, why)


def _given_up(rule: Judge, one: Nested) -> Iterator[Finding]:
    """One note for a shadow that is not what a table says which is in force nowhere."""
    if not one.readable:
        return
    differ = np.flatnonzero(one.pieces.elsewhere | one.pieces.nowhere)
    if len(differ):
        yield rule.note(
            where_entry(one.owned.view, one.owned.columns, int(differ[0])),
            "what the guest hypervisor's own stage 2 gives now",
            f"other memory of the VM's in {len(differ)} of {int(one.leaves.sum())} leaves",
            "that table is in force for no vCPU: its guest may have ended, and the memory be used for something else",
        )


def _pieces(rule: Judge, one: Nested, wrong: Flags, runs: Runs, why: str) -> Iterator[Finding]:
    one.owned.marked[wrong] = True
    none = runs is one.pieces.none
    for number, run in enumerate(runs.first):
        more = runs.count - LIMIT if number == LIMIT - 1 else 0
        yield rule.error(
            where_entry(one.owned.view, one.owned.columns, run.leaf, run.end - run.ipa, run.ipa),
            "no leaf: the VMM has no page there" if none else f"PA {run.must_be:#x}",
            f"PA {run.pa:#x}" + (f" (and {more} more ranges)" if more > 0 else ""),
            why,
            excuse=excuses.invalidation(one.owned.view.vm),
        )


@invariant(
    "N3",
    "A leaf of a shadow table allows no more than the guest hypervisor's entry (read, write, execution at EL1 and EL0: "
    "XN has two bits with FEAT_XNX), and no writing where the VM itself may not write.",
    "adjust_nested_fault_perms, adjust_nested_exec_perms, kvm_nested_s2_wp",
    function="user_mem_abort",
)
def rights(rule: Judge, context: Context) -> Iterator[Finding]:
    for one in context.nested:
        writable = one.leaves & one.owned.matching(lambda d: d.writable) & ~one.foreign
        if one.all_known:
            memory = one.writable
            refused = one.owned.columns.among(writable, lambda c, memory=memory: ~memory.contain(c.output, c.size))  # type: ignore[misc]
            for span in one.owned.spans(refused):
                yield rule.error(
                    span,
                    "no write permission: the VM itself has none to this memory",
                    f"{span.raw}, PA {span.output:#x}, writable",
                    "the slot is read-only, or the page is shared copy-on-write: others see what is written",
                    excuse=excuses.invalidation(one.owned.view.vm),
                )
        else:
            refused = np.zeros_like(writable)
        if not one.stage2 or not one.current:
            continue
        for span in one.owned.spans(one.wider & ~refused & ~one.too_large):
            yield rule.note(
                span,
                "no more than the guest hypervisor's entry allows",
                f"{span.raw}, {span.pattern.permissions}",
                "KVM gave a right that the hypervisor withholds, or that took it away and has not invalidated yet",
            )


@invariant(
    "N4",
    "A leaf of a shadow table is no larger than the guest hypervisor's entry, and software bits [56:55] have the level "
    "of that entry.",
    "kvm_s2_resolve_vma_size (7.1; before: user_mem_abort); kvm_encode_nested_level",
    function="user_mem_abort",
)
def sizes(rule: Judge, context: Context) -> Iterator[Finding]:
    for one in context.nested:
        if not one.stage2 or not one.current:
            continue
        for span in one.owned.spans(one.too_large):
            yield rule.error(
                span,
                "a leaf no larger than the hypervisor's entry",
                f"{span.raw}, {span.pattern.size:#x} bytes",
                f"the neighbours of what the hypervisor mapped are mapped with it; {_ITS_OWN}",
            )
        for span in one.owned.spans(one.wrong_level & ~one.too_large & one.translated):
            yield rule.error(
                span,
                "the level of the hypervisor's entry in bits [56:55]",
                f"{span.raw}: {span.pattern.sw & 3}",
                "KVM computes from it how much an invalidation without a level covers: too little, and stale entries "
                f"stay; {_ITS_OWN}",
                "kvm_encode_nested_level",
            )


@invariant(
    "N5",
    "A leaf of a shadow table maps RAM Normal write-back, as a VM's own table does, whatever type the guest "
    "hypervisor's entry has.",
    "user_mem_abort (nested): stage2_set_prot_attr",
    function="user_mem_abort",
)
def memory_types(rule: Judge, context: Context) -> Iterator[Finding]:
    for one in context.nested:
        uncached = one.owned.matching(lambda d: d.memory_type in (MemoryType.DEVICE, MemoryType.NORMAL_NC))
        memory = one.ordinary
        wrong = one.owned.columns.among(one.leaves & uncached, lambda c: context.ram.contain(c.output, c.size))
        wrong = one.owned.columns.among(wrong, lambda c, memory=memory: memory.contain(c.output, c.size))  # type: ignore[misc]
        for span in one.owned.spans(wrong):
            yield rule.error(
                span,
                "Normal write-back: it is RAM",
                f"{span.raw}, {span.pattern.memory_type}, PA {span.output:#x}",
                "the guest's writes bypass caches that the host and its devices read and write the page through",
            )
