"""S7, S8, M1, M2, M4: where a guest's leaves point, held against memslots, the host's memory, and the VMM's tables."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.backing import BackingRuns
from inspector.check import excuses
from inspector.check.backing import GUEST_MEMFD, GuestMemory, Run, Runs, slot_range
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.places import LIMIT, where_entry, where_problem, where_vm
from inspector.codec import Descriptor
from inspector.codec.bulk import Flags
from inspector.findings import Finding, Where
from inspector.snapshot import BackingState
from inspector.tables import ProblemKind

# --- S7: inside the IPA space and inside memslots ---


def _may_be_device(descriptor: Descriptor) -> bool:
    """Device memory, or a memory type that KVM never writes (which is for `M6` to say)."""
    return descriptor.memory_type.startswith(("device", "memattr"))


@invariant(
    "S7",
    "Every valid entry lies below 2^ia_bits, and every leaf inside a memslot; outside of one only a device that KVM "
    "itself maps (GICv2's virtual CPU interface: device memory that is not RAM).",
    "DDI 0487 D8.2.3; kvm_arch_flush_shadow_memslot, kvm_phys_addr_ioremap",
    function="kvm_arch_flush_shadow_memslot",
)
def inside_slots(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view = owned.view
        for problem in view.tree.problems:
            if problem.kind is ProblemKind.BEYOND_IA:
                yield rule.error(
                    where_problem(view, problem),
                    f"entries below IPA {1 << view.geometry.ia_bits:#x} only",
                    f"{problem.raw:#018x}",
                    "KVM refuses such addresses with -ERANGE, and the CPU never walks there",
                    "kvm_pgtable_walk",
                )
    for guest in context.guests:
        owned, columns = guest.owned, guest.owned.columns
        outside = guest.certain & ~guest.in_slots
        device = outside & owned.matching(_may_be_device)
        device = columns.among(device, lambda c: ~context.ram.touch(c.output, c.size))
        for span in owned.spans(outside & ~device):
            yield rule.error(
                span,
                "a memslot around every leaf",
                f"{span.raw}, PA {span.output:#x}",
                "the guest reaches host memory that its VMM does not give it (any more)",
            )


# --- S8: the host's own memory ---


@invariant(
    "S8",
    "No leaf of any guest maps a stage-2 table, the host kernel's image (the zero page aside, to read), or a struct "
    "kvm.",
    "user_mem_abort, alloc_pages",
    function="user_mem_abort",
    why="the guest can read or change what the host relies on",
)
def not_the_hosts(rule: Judge, context: Context) -> Iterator[Finding]:
    memory = context.host_memory
    for owned in context.owned:
        for span in owned.spans(memory.mapped_by(owned)):
            what = memory.at(span.output, span.pattern.size)
            yield rule.error(
                span, "memory that belongs to the guest", f"PA {span.output:#x} is {what.what} ({what.start:#x})"
            )


# --- M1, M4: what backs the guest's memory ---


def _places(guest: GuestMemory, wrong: Flags, runs: Runs) -> Iterator[tuple[Where, Run, str]]:
    """The places of ``runs``, of the leaves ``wrong``, and what to say of the rest: the last one counts them."""
    guest.owned.marked[wrong] = True
    for number, run in enumerate(runs.first):
        where = where_entry(guest.owned.view, guest.owned.columns, run.leaf, run.end - run.ipa, run.ipa)
        more = runs.count - LIMIT if number == LIMIT - 1 else 0
        yield where, run, f" (and {more} more ranges)" if more > 0 else ""


@invariant(
    "M1",
    "Every 4K page of every leaf is the page that the VMM's own page tables have at the memslot's address for it "
    "(where they have none: M4).",
    "user_mem_abort, kvm_unmap_gfn_range (MMU notifier)",
    function="kvm_unmap_gfn_range",
    why="the guest sees other memory than its VMM does",
)
def same_backing(rule: Judge, context: Context) -> Iterator[Finding]:
    for guest in context.guests:
        yield from _unjudged(rule, guest)
        for where, run, rest in _places(guest, guest.pieces.elsewhere, guest.pieces.other):
            yield rule.error(
                where,
                f"PA {run.must_be:#x}, the VMM's page",
                f"PA {run.pa:#x}{rest}",
                excuse=excuses.invalidation(guest.owned.view.vm),
            )


def _unjudged(rule: Judge, guest: GuestMemory) -> Iterator[Finding]:
    """One note a slot whose backing is not known, rather than silence."""
    view = guest.owned.view
    for slot in view.vm.memslots:
        unread = not slot.backing or BackingRuns.of(slot.backing).having(0, BackingState.UNREADABLE)
        if unread and slot.npages and not slot.flags & GUEST_MEMFD:
            start, end = slot_range(slot, guest.page)
            yield rule.note(
                where_vm(view.vm, view.mmu),
                f"the page tables behind slot {slot.id} at {start:#x}..{end:#x}",
                "not readable",
                "the leaves there are not judged: the VMM may be exiting",
                "",
            )


@invariant(
    "M2",
    "A block stands only where IPA and host virtual address agree modulo its size, and inside one memslot.",
    "fault_supports_stage2_huge_mapping",
    function="fault_supports_stage2_huge_mapping",
    why="one piece of host memory this big cannot lie behind it: the guest sees memory that is not its own",
)
def fitting_blocks(rule: Judge, context: Context) -> Iterator[Finding]:
    for guest in context.guests:
        for span in guest.owned.spans(guest.unfit_blocks):
            slot = guest.owned.view.vm.memslots[guest.slot[span.first]]
            start, end = slot_range(slot, guest.page)
            yield rule.error(
                span,
                f"pages: slot {slot.id} is {start:#x}..{end:#x} at HVA {slot.userspace_addr:#x}",
                f"{span.raw}, a block of {span.pattern.size:#x}",
            )


@invariant(
    "M4",
    "No leaf outlives its backing: none maps a page where the VMM's own page tables have none (any more), once the "
    "MMU-notifier invalidation has ended.",
    "kvm_unmap_gfn_range (5.10: kvm_unmap_hva_range), kvm_mmu_notifier_invalidate_range_start",
    function="kvm_unmap_gfn_range",
    why="the host may have given the page to somebody else: the guest has a use-after-free in its hands",
)
def nothing_outlives_its_backing(rule: Judge, context: Context) -> Iterator[Finding]:
    for guest in context.guests:
        for where, run, rest in _places(guest, guest.pieces.nowhere, guest.pieces.none):
            yield rule.error(
                where,
                "no leaf where the VMM has no page",
                f"PA {run.pa:#x}{rest}",
                excuse=excuses.invalidation(guest.owned.view.vm),
            )
