"""S7, S8, M1, M2, M4: where a guest's leaves point, held against memslots, the host's memory, and the VMM's tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inspector.capture.view import TableView
from inspector.check.backing import GUEST_MEMFD, Placed, joined, slot_range, touching
from inspector.check.catalogue import invariant
from inspector.check.context import LIMIT, Context, error, error_or_note, many, note, spans, where_view, where_vm
from inspector.check.entries import Mask
from inspector.codec import Descriptor
from inspector.findings import Finding, Where
from inspector.snapshot import BackingState

_UNMAP = "kvm_unmap_gfn_range"
_FAULT = "user_mem_abort"


# --- S7: inside the IPA space and inside memslots ---


def _may_be_device(descriptor: Descriptor) -> bool:
    """Device memory, or a memory type that KVM never writes (which is for `M6` to say)."""
    return descriptor.memory_type.startswith(("device", "memattr"))


@invariant(
    "S7",
    "Every valid entry lies below 2^ia_bits, and every leaf inside a memslot; outside of one only a device that KVM "
    "itself maps (GICv2's virtual CPU interface: device memory that is not RAM).",
    "DDI 0487 D8.2.3; kvm_arch_flush_shadow_memslot, kvm_phys_addr_ioremap",
)
def inside_slots(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view = owned.view
        for problem in view.tree.problems:
            if problem.kind == "beyond-ia":
                where = where_view(
                    view,
                    ipa=problem.ia,
                    size=view.geometry.block_size(problem.level),
                    level=problem.level,
                    table_pa=problem.table_pa,
                    index=problem.index,
                    raw=problem.raw,
                )
                yield error(
                    "S7",
                    where,
                    f"entries below IPA {1 << view.geometry.ia_bits:#x} only",
                    f"{problem.raw:#018x}",
                    "KVM refuses such addresses with -ERANGE, and the CPU never walks there",
                    "kvm_pgtable_walk",
                )
    ram = joined(context.capture.host.ram)
    for placed in context.placed:
        view, entries = placed.owned.view, placed.owned.entries
        outside = placed.settled & ~placed.in_slots
        device = entries.matching(_may_be_device) & ~touching(entries.output, entries.size, *ram)
        for span in spans(view, entries, outside & ~device):
            yield error(
                "S7",
                span.where,
                "a memslot around every leaf",
                f"{span.where.raw or 0:#018x}, PA {int(entries.output[span.first]):#x}{many(span.count)}",
                "the guest reaches host memory that its VMM does not give it (any more)",
                "kvm_arch_flush_shadow_memslot",
            )


# --- S8: the host's own memory ---


@invariant(
    "S8",
    "No leaf of any guest maps a stage-2 table, the host kernel's image (the zero page aside, to read), or a struct "
    "kvm.",
    "user_mem_abort, alloc_pages",
)
def not_the_hosts(context: Context) -> Iterator[Finding]:
    memory = context.host_memory
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        for span in spans(view, entries, memory.mapped_by(entries)):
            low = int(entries.output[span.first])
            what = memory.at(low, int(entries.size[span.first]))
            yield error(
                "S8",
                span.where,
                "memory that belongs to the guest",
                f"PA {low:#x} is {what.what} ({what.start:#x}){many(span.count)}",
                "the guest can read or change what the host relies on",
                _FAULT,
            )


# --- M1, M4: what backs the guest's memory ---


@dataclass(frozen=True)
class _Run:
    """Neighbouring pieces that are wrong in the same way: the place, its first piece, and what to say of the rest."""

    where: Where
    first: int
    rest: str


def _runs(placed: Placed, wrong: Mask) -> Iterator[_Run]:
    """The pieces of ``wrong``, those that continue each other joined; at most `LIMIT`, the last one counts the rest."""
    pieces, entries, at = placed.pieces, placed.owned.entries, np.flatnonzero(wrong)
    if not len(at):
        return
    apart = pieces.pa[at] - pieces.must_be[at]
    level = entries.level[pieces.leaf[at]]
    joins = (pieces.ipa[at][1:] == pieces.end[at][:-1]) & (apart[1:] == apart[:-1]) & (level[1:] == level[:-1])
    starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    ends = np.concatenate((starts[1:], [len(at)]))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        first = int(at[start])
        leaf = int(pieces.leaf[first])
        where = where_view(
            placed.owned.view,
            ipa=int(pieces.ipa[first]),
            size=int(pieces.end[at[end - 1]]) - int(pieces.ipa[first]),
            level=int(entries.level[leaf]),
            table_pa=int(entries.table_pa[leaf]),
            index=int(entries.index[leaf]),
            raw=int(entries.raw[leaf]),
        )
        more = len(starts) - LIMIT if number == LIMIT - 1 else 0
        yield _Run(where, first, f" (and {more} more ranges)" if more > 0 else "")
        if number == LIMIT - 1:
            return


def _notifier_excuse(view: TableView) -> str | None:
    if view.vm.invalidating:
        return "an MMU-notifier invalidation was in progress: the leaf is removed before it ends"
    return None


@invariant(
    "M1",
    "Every 4K page of every leaf is the page that the VMM's own page tables have at the memslot's address for it "
    "(where they have none: M4).",
    "user_mem_abort, kvm_unmap_gfn_range (MMU notifier)",
)
def same_backing(context: Context) -> Iterator[Finding]:
    for placed in context.placed:
        yield from _unjudged(placed)
        pieces = placed.pieces
        for run in _runs(placed, pieces.elsewhere):
            yield error_or_note(
                "M1",
                run.where,
                f"PA {int(pieces.must_be[run.first]):#x}, the VMM's page",
                f"PA {int(pieces.pa[run.first]):#x}{run.rest}",
                "the guest sees other memory than its VMM does",
                _UNMAP,
                _notifier_excuse(placed.owned.view),
            )


def _unjudged(placed: Placed) -> Iterator[Finding]:
    """One note a slot whose backing is not known, rather than silence."""
    view = placed.owned.view
    for slot in view.vm.memslots:
        unread = not slot.backing or any(run.state is BackingState.UNREADABLE for run in slot.backing)
        if unread and slot.npages and not slot.flags & GUEST_MEMFD:
            start, end = slot_range(slot, placed.page)
            yield note(
                "M1",
                where_vm(view.vm, view.mmu),
                f"the page tables behind slot {slot.id} at {start:#x}..{end:#x}",
                "not readable",
                "the leaves there are not judged: the VMM may be exiting",
            )


@invariant(
    "M2",
    "A block stands only where IPA and host virtual address agree modulo its size, and inside one memslot.",
    "fault_supports_stage2_huge_mapping",
)
def fitting_blocks(context: Context) -> Iterator[Finding]:
    for placed in context.placed:
        view, entries = placed.owned.view, placed.owned.entries
        for span in spans(view, entries, placed.unfit_blocks):
            slot = view.vm.memslots[placed.slot[span.first]]
            start, end = slot_range(slot, placed.page)
            yield error(
                "M2",
                span.where,
                f"pages: slot {slot.id} is {start:#x}..{end:#x} at HVA {slot.userspace_addr:#x}",
                f"{span.where.raw or 0:#018x}, a block of {int(entries.size[span.first]):#x}{many(span.count)}",
                "one piece of host memory this big cannot lie behind it: the guest sees memory that is not its own",
                "fault_supports_stage2_huge_mapping",
            )


@invariant(
    "M4",
    "No leaf outlives its backing: none maps a page where the VMM's own page tables have none (any more), once the "
    "MMU-notifier invalidation has ended.",
    "kvm_unmap_gfn_range (5.10: kvm_unmap_hva_range), kvm_mmu_notifier_invalidate_range_start",
)
def nothing_outlives_its_backing(context: Context) -> Iterator[Finding]:
    for placed in context.placed:
        pieces = placed.pieces
        for run in _runs(placed, pieces.nowhere):
            yield error_or_note(
                "M4",
                run.where,
                "no leaf where the VMM has no page",
                f"PA {int(pieces.pa[run.first]):#x}{run.rest}",
                "the host may have given the page to somebody else: the guest has a use-after-free in its hands",
                _UNMAP,
                _notifier_excuse(placed.owned.view),
            )
