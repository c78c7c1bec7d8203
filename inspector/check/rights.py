"""M3 and M11: what a guest may do to its memory, held against its slots, their dirty logs, and the VMM's own rights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check import excuses
from inspector.check.backing import GUEST_MEMFD, READONLY, GuestMemory, slot_range
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.codec.bulk import Flags
from inspector.findings import Finding
from inspector.snapshot import Memslot
from inspector.tables.intervals import Intervals


def _writable(guest: GuestMemory) -> Flags:
    return guest.owned.matching(lambda d: d.writable)


@invariant(
    "M3",
    "A leaf is readable; it is writable only in a slot that is not read-only and, while the slot's dirty log is on, "
    "only where every page of it is marked dirty.",
    "user_mem_abort, mark_page_dirty_in_slot, kvm_mmu_wp_memory_region, kvm_arch_mmu_enable_log_dirty_pt_masked",
    function="user_mem_abort",
)
def slot_rights(rule: Judge, context: Context) -> Iterator[Finding]:
    for guest in context.guests:
        for span in guest.owned.spans(guest.certain & guest.owned.matching(lambda d: not d.readable)):
            yield rule.error(
                span,
                "S2AP[0] set",
                f"{span.raw}, not readable",
                "KVM lets a guest read whatever it maps: each read faults, and the fault finds nothing to do",
                "attributes",
            )
        writable = _writable(guest)
        for number, slot in enumerate(guest.owned.view.vm.memslots):
            if slot.flags & READONLY:
                for span in guest.owned.spans(writable & guest.fitting(number)):
                    yield rule.error(
                        span,
                        f"no write permission in slot {slot.id}, which is read-only",
                        f"{span.raw}, writable",
                        "the guest changes memory that its VMM holds to be constant (firmware, flash)",
                    )
            elif slot.dirty_pages is not None:
                yield from _unlogged(rule, context, guest, slot, writable & guest.fitting(number))


def _unlogged(rule: Judge, context: Context, guest: GuestMemory, slot: Memslot, mask: Flags) -> Iterator[Finding]:
    """Leaves (of those of ``mask``, in a logged slot) that the guest can write without the log telling."""
    columns = guest.owned.columns
    start, end = slot_range(slot, guest.page)
    at = np.flatnonzero(mask)
    bits = np.unpackbits(np.frombuffer(slot.dirty_pages or b"", np.uint8), bitorder="little")
    if not len(at) or len(bits) * guest.page < end - start:
        return
    dirty = np.concatenate(([0], np.cumsum(bits, dtype=np.int64)))
    ours = columns.at(at)
    first = ((ours.ia - np.uint64(start)) // np.uint64(guest.page)).astype(np.int64)
    pages = (ours.size // np.uint64(guest.page)).astype(np.int64)
    clean = dirty[first + pages] - dirty[first] < pages
    mask[at[~clean]] = False
    excuse = excuses.unlogged(context.capture.host, guest.owned.view.vm, int(np.count_nonzero(clean)))
    for span in guest.owned.spans(mask):
        yield rule.error(
            span,
            f"write permission in slot {slot.id} only where its dirty log has every page",
            f"{span.raw}, writable, and not marked dirty",
            "what the guest writes there is not migrated: the log does not tell it, and no fault will",
            "kvm_mmu_wp_memory_region",
            excuse=excuse,
        )


@invariant(
    "M11",
    "A guest writes only to pages that its VMM may write to, never to one that is shared copy-on-write (fork, KSM); "
    "and no page of one VM's guest_memfd is mapped in another VM.",
    "hva_to_pfn (FOLL_WRITE), mmu_notifier_invalidate_range_start (fork, KSM, mprotect); kvm_gmem_get_pfn",
)
def only_its_own(rule: Judge, context: Context) -> Iterator[Finding]:
    for guest in context.guests:
        constant = np.zeros(len(guest.owned.columns.raw), dtype=bool)
        for number, slot in enumerate(guest.owned.view.vm.memslots):
            if slot.flags & READONLY:
                constant |= guest.slot == number  # M3 reports those
        for span in guest.owned.spans(_writable(guest) & ~constant & guest.pieces.readonly):
            yield rule.error(
                span,
                "no write permission: the VMM may only read the page",
                f"{span.raw}, PA {span.output:#x}, writable",
                "the page may be shared with other processes and other guests, which see what this guest writes",
                "kvm_unmap_gfn_range",
                excuse=excuses.invalidation(guest.owned.view.vm),
            )
    yield from _guest_memory(rule, context)


def _guest_memory(rule: Judge, context: Context) -> Iterator[Finding]:
    """Leaves of other VMs on what lies behind a slot with a guest_memfd, which is one VM's alone."""
    for owner in context.guests:
        columns, private = owner.owned.columns, np.zeros(len(owner.owned.columns.raw), dtype=bool)
        for number, slot in enumerate(owner.owned.view.vm.memslots):
            if slot.flags & GUEST_MEMFD:
                private |= owner.fitting(number)
        ours = columns.at(private)
        memory = Intervals.union(ours.output, ours.output + ours.size)
        for guest in context.guests:
            if guest.owned.view.vm is owner.owned.view.vm or not private.any():
                continue
            columns = guest.owned.columns
            # Where the VMM's own tables contradict the leaf, M1 and M4 say so.
            shared = guest.in_slots & ~guest.contradicted
            shared = columns.among(shared, lambda c, memory=memory: memory.touch(c.output, c.size))  # type: ignore[misc]
            for span in guest.owned.spans(shared):
                yield rule.error(
                    span,
                    "memory that no other VM has",
                    f"PA {span.output:#x} is guest_memfd memory of {owner.owned.view.vm.name}",
                    "guest_memfd pages belong to one VM: two guests share memory that neither VMM gave to both",
                    "kvm_gmem_get_pfn",
                )
