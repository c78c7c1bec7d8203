"""M3 and M11: what a guest may do to its memory, held against its slots, their dirty logs, and the VMM's own rights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check.backing import GUEST_MEMFD, READONLY, Placed, slot_range, touching
from inspector.check.catalogue import invariant
from inspector.check.context import Context, error, error_or_note, many, spans
from inspector.check.entries import U64, Mask
from inspector.findings import Finding
from inspector.snapshot import Memslot, Vm

_FAULT = "user_mem_abort"


def _in_slot(placed: Placed, number: int) -> Mask:
    """The leaves that slot ``number`` answers for: those inside it that fit it."""
    mask: Mask = placed.in_slots & ~placed.unfit_blocks & (placed.slot == number)
    return mask


def _writable(placed: Placed) -> Mask:
    return placed.owned.entries.matching(lambda d: d.kind.is_leaf and d.writable)


@invariant(
    "M3",
    "A leaf is readable; it is writable only in a slot that is not read-only and, while the slot's dirty log is on, "
    "only where every page of it is marked dirty.",
    "user_mem_abort, mark_page_dirty_in_slot, kvm_mmu_wp_memory_region, kvm_arch_mmu_enable_log_dirty_pt_masked",
)
def slot_rights(context: Context) -> Iterator[Finding]:
    for placed in context.placed:
        view, entries = placed.owned.view, placed.owned.entries
        unreadable = placed.settled & entries.matching(lambda d: not d.readable)
        for span in spans(view, entries, unreadable):
            yield error(
                "M3",
                span.where,
                "S2AP[0] set",
                f"{span.where.raw or 0:#018x}, not readable{many(span.count)}",
                "KVM lets a guest read whatever it maps: each read faults, and the fault finds nothing to do",
                _FAULT,
            )
        writable = _writable(placed)
        for number, slot in enumerate(view.vm.memslots):
            if slot.flags & READONLY:
                for span in spans(view, entries, writable & _in_slot(placed, number)):
                    yield error(
                        "M3",
                        span.where,
                        f"no write permission in slot {slot.id}, which is read-only",
                        f"{span.where.raw or 0:#018x}, writable{many(span.count)}",
                        "the guest changes memory that its VMM holds to be constant (firmware, flash)",
                        _FAULT,
                    )
            elif slot.dirty_pages is not None:
                yield from _unlogged(context, placed, number, slot, writable)


def _unlogged(context: Context, placed: Placed, number: int, slot: Memslot, writable: Mask) -> Iterator[Finding]:
    """Leaves of a logged slot that the guest can write without the log telling."""
    view, entries = placed.owned.view, placed.owned.entries
    start, end = slot_range(slot, placed.page)
    mask = writable & _in_slot(placed, number)
    at = np.flatnonzero(mask)
    bits = np.unpackbits(np.frombuffer(slot.dirty_pages or b"", np.uint8), bitorder="little")
    if not len(at) or len(bits) * placed.page < end - start:
        return
    dirty = np.concatenate(([0], np.cumsum(bits, dtype=np.int64)))
    first = ((entries.ia[at] - np.uint64(start)) // np.uint64(placed.page)).astype(np.int64)
    pages = (entries.size[at] // np.uint64(placed.page)).astype(np.int64)
    clean = dirty[first + pages] - dirty[first] < pages
    mask[at[~clean]] = False
    excuse = _window(context, view.vm, int(np.count_nonzero(clean)))
    for span in spans(view, entries, mask):
        yield error_or_note(
            "M3",
            span.where,
            f"write permission in slot {slot.id} only where its dirty log has every page",
            f"{span.where.raw or 0:#018x}, writable, and not marked dirty{many(span.count)}",
            "what the guest writes there is not migrated: the log does not tell it, and no fault will",
            "kvm_mmu_wp_memory_region",
            excuse,
        )


def _window(context: Context, vm: Vm, count: int) -> str | None:
    """Why ``count`` writable leaves may be missing in a dirty log just now; ``None`` when nothing explains it.

    Logging is switched on, and a log is read and cleared, under ``slots_lock``: the bits and the write protection
    change one after the other, with mmu_lock dropped in between.  A fault maps first and marks then, outside of
    mmu_lock from 6.12: one page for each vCPU that is in the kernel, on a CPU or preempted there.
    """
    if vm.slots_locked is not False:
        held = "was held" if vm.slots_locked else "is not known to be free"
        return f"kvm->slots_lock {held}: logging may be in the course of being switched on, or the log of being cleared"
    faulting = len(context.walkers) + sum(vcpu.preempted for vcpu in vm.vcpus)
    if count <= faulting:
        who = context.walk_in_progress() or "a vCPU was preempted"
        return f"a vCPU may be between mapping the page and marking it ({who})"
    return None


@invariant(
    "M11",
    "A guest writes only to pages that its VMM may write to, never to one that is shared copy-on-write (fork, KSM); "
    "and no page of one VM's guest_memfd is mapped in another VM.",
    "hva_to_pfn (FOLL_WRITE), mmu_notifier_invalidate_range_start (fork, KSM, mprotect); kvm_gmem_get_pfn",
)
def only_its_own(context: Context) -> Iterator[Finding]:
    for placed in context.placed:
        view, entries = placed.owned.view, placed.owned.entries
        constant = np.zeros(len(entries.raw), dtype=bool)
        for number, slot in enumerate(view.vm.memslots):
            if slot.flags & READONLY:
                constant |= placed.slot == number  # M3 reports those
        wrong = _writable(placed) & ~constant & placed.of_leaves(placed.pieces.readonly)
        for span in spans(view, entries, wrong):
            yield error_or_note(
                "M11",
                span.where,
                "no write permission: the VMM may only read the page",
                f"{span.where.raw or 0:#018x}, PA {int(entries.output[span.first]):#x}, writable{many(span.count)}",
                "the page may be shared with other processes and other guests, which see what this guest writes",
                "kvm_unmap_gfn_range",
                "an MMU-notifier invalidation was in progress: the leaf is removed before it ends"
                if view.vm.invalidating
                else None,
            )
    yield from _guest_memory(context)


def _guest_memory(context: Context) -> Iterator[Finding]:
    """Leaves of other VMs on what lies behind a slot with a guest_memfd, which is one VM's alone."""
    private: list[tuple[Placed, U64, U64]] = []
    for placed in context.placed:
        entries = placed.owned.entries
        for number, slot in enumerate(placed.owned.view.vm.memslots):
            if slot.flags & GUEST_MEMFD:
                mine = _in_slot(placed, number)
                order = np.argsort(entries.output[mine], kind="stable")
                low = entries.output[mine][order]
                private.append((placed, low, low + entries.size[mine][order]))
    for owner, starts, ends in private:
        for placed in context.placed:
            if placed.owned.view.vm is owner.owned.view.vm:
                continue
            view, entries = placed.owned.view, placed.owned.entries
            # Where the VMM's own tables contradict the leaf, M1 and M4 say so.
            explained = ~placed.of_leaves(placed.pieces.elsewhere | placed.pieces.nowhere)
            shared = placed.in_slots & explained & touching(entries.output, entries.size, starts, ends)
            for span in spans(view, entries, shared):
                yield error(
                    "M11",
                    span.where,
                    "memory that no other VM has",
                    f"PA {int(entries.output[span.first]):#x} is guest_memfd memory of "
                    f"{owner.owned.view.vm.name}{many(span.count)}",
                    "guest_memfd pages belong to one VM: two guests share memory that neither VMM gave to both",
                    "kvm_gmem_get_pfn",
                )
