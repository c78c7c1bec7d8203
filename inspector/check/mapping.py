"""S7, S8, M1: what a guest's leaves map, held against memslots, the host's own memory, and the VMM's page tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.capture.data import Backing, Memslot, Vm
from inspector.capture.view import TableView
from inspector.check.catalogue import invariant
from inspector.check.context import LIMIT, Context, error, error_or_note, many, note, spans, where_view, where_vm
from inspector.check.entries import U64, Entries, Mask
from inspector.check.ownership import Owned
from inspector.codec import Kind
from inspector.findings import Finding

_UNMAP = "kvm_unmap_gfn_range"
_FAULT = "user_mem_abort"

#: The slot's pages may come from a guest_memfd and not from its HVA (``KVM_MEM_GUEST_MEMFD``).
_GUEST_MEMFD = 1 << 2


def _slot_range(slot: Memslot, page: int) -> tuple[int, int]:
    """The slot's IPA range in bytes, ``[start, end)``."""
    return slot.base_gfn * page, (slot.base_gfn + slot.npages) * page


def _contested(owned: Owned) -> Mask:
    """Where an entry's input address is in doubt, because a table above it has two parents (`S3` says so)."""
    if not owned.contested:
        return np.zeros(len(owned.entries.raw), dtype=bool)
    mask: Mask = np.isin(owned.entries.table_pa, np.array(sorted(owned.contested), dtype=np.uint64))
    return mask


# --- S7: inside the IPA space and inside memslots ---


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[U64, U64]:
    """Ascending disjoint starts and ends of the union of ``ranges``, touching ones joined."""
    joined: list[list[int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        elif end > start:
            joined.append([start, end])
    table = np.array(joined, dtype=np.uint64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _inside(start: U64, size: U64, starts: U64, ends: U64) -> Mask:
    """Where ``[start, start+size)`` lies in one of the disjoint ranges."""
    if not len(starts):
        return np.zeros(len(start), dtype=bool)
    at = np.searchsorted(starts, start, side="right") - 1
    inside: Mask = (at >= 0) & (start + size <= ends[np.maximum(at, 0)])
    return inside


@invariant(
    "S7",
    "Every valid entry lies below 2^ia_bits, and every leaf inside a memslot; outside of one only a device that KVM "
    "itself maps (GICv2's virtual CPU interface: device memory, execute-never, not RAM).",
    "DDI 0487 D8.2.3; kvm_arch_flush_shadow_memslot, kvm_phys_addr_ioremap",
)
def inside_slots(context: Context) -> Iterator[Finding]:
    page = context.capture.host.page_size
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        for problem in view.tree.problems:
            if problem.kind == "beyond-ia":
                where = where_view(
                    view, ipa=problem.ia, size=view.geometry.block_size(problem.level), level=problem.level,
                    table_pa=problem.table_pa, index=problem.index, raw=problem.raw,
                )  # fmt: skip
                yield error(
                    "S7", where, f"entries below IPA {1 << view.geometry.ia_bits:#x} only", f"{problem.raw:#018x}",
                    "KVM refuses such addresses with -ERANGE, and the CPU never walks there", "kvm_pgtable_walk",
                )  # fmt: skip
        if view.mmu.kind != "vm":
            continue  # a shadow table's input addresses are the nested guest's
        starts, ends = _joined([_slot_range(slot, page) for slot in view.vm.memslots])
        outside = entries.leaf & ~_contested(owned) & ~_inside(entries.ia, entries.size, starts, ends)
        device = outside & entries.matching(lambda d: d.memory_type.startswith("device") and d.executable == "-")
        for at in np.flatnonzero(device):
            device[at] = not context.touches_ram(int(entries.output[at]), int(entries.size[at]))
        for span in spans(view, entries, outside & ~device):
            yield error(
                "S7", span.where, "a memslot around every leaf",
                f"{span.where.raw or 0:#018x}, PA {int(entries.output[span.first]):#x}{many(span.count)}",
                "the guest reaches host memory that its VMM does not give it (any more)",
                "kvm_arch_flush_shadow_memslot",
            )  # fmt: skip


# --- S8: the host's own memory ---


@dataclass(frozen=True)
class _Forbidden:
    """Memory that no guest may reach: ``[start, end)`` and what it is."""

    start: int
    end: int
    what: str


def _forbidden(context: Context) -> Iterator[_Forbidden]:
    for start, end in context.capture.host.kernel_pa:
        yield _Forbidden(start, end, "the host kernel's image")
    for vm in context.capture.vms:
        start, end = vm.object_pa
        if end > start:
            yield _Forbidden(start, end, f"struct kvm of {vm.name}")
    for view in context.views:
        for table in view.tree.tables:
            what = f"a level-{table.level} table of {view.regime} of {view.vm.name}"
            yield _Forbidden(table.pa, table.pa + view.geometry.granule, what)


def _reads_zero_page(context: Context, entries: Entries) -> Mask:
    """Where a leaf is the zero page, to read: it lies in the image, and backs anonymous memory that was only read."""
    zero = context.capture.host.zero_page
    if zero is None:
        return np.zeros(len(entries.raw), dtype=bool)
    read: Mask = (entries.output == np.uint64(zero)) & entries.matching(
        lambda d: d.kind is Kind.PAGE and not d.writable
    )
    return read


@invariant(
    "S8",
    "No leaf of any guest maps a stage-2 table, the host kernel's image (the zero page aside, to read), or a struct "
    "kvm.",
    "user_mem_abort, alloc_pages",
)
def not_the_hosts(context: Context) -> Iterator[Finding]:
    forbidden = sorted(_forbidden(context), key=lambda f: f.start)
    if not forbidden:
        return
    starts = np.array([f.start for f in forbidden], dtype=np.uint64)
    # Ranges may overlap in a corrupt capture: the highest end so far keeps the search one-dimensional.
    ends = np.maximum.accumulate(np.array([f.end for f in forbidden], dtype=np.uint64))
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        last = np.searchsorted(starts, entries.output + entries.size, side="left") - 1
        hit = entries.leaf & (last >= 0) & (ends[np.maximum(last, 0)] > entries.output)
        for span in spans(view, entries, hit & ~_reads_zero_page(context, entries)):
            low = int(entries.output[span.first])
            size = int(entries.size[span.first])
            what = next(f for f in forbidden if f.start < low + size and low < f.end)
            yield error(
                "S8", span.where, "memory that belongs to the guest",
                f"PA {low:#x} is {what.what} ({what.start:#x}){many(span.count)}",
                "the guest can read or change what the host relies on", _FAULT,
            )  # fmt: skip


# --- M1: what backs the guest's memory ---

_NONE, _PRESENT, _UNREADABLE, _UNKNOWN = range(4)
_STATES = {"present": _PRESENT, "none": _NONE, "swap": _NONE, "unreadable": _UNREADABLE}
_NO_PA = (1 << 64) - 1


@dataclass(frozen=True)
class _Backed:
    """What backs the IPA space of a VM, as ascending runs: IPA, end, PA (or `_NO_PA`), state, HVA."""

    ipa: U64
    end: U64
    pa: U64
    state: NDArray[np.int8]
    hva: U64


def _backed(vm: Vm, page: int) -> _Backed:
    parts = [_backed_slot(slot, *_slot_range(slot, page)) for slot in vm.memslots]
    table = np.concatenate(parts) if parts else np.zeros((0, 5), dtype=np.uint64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return _Backed(table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.int8), table[:, 4])


def _backed_slot(slot: Memslot, start: int, end: int) -> U64:
    """Rows (IPA, end, PA, state, HVA) of one slot, cut to the slot."""
    if slot.flags & _GUEST_MEMFD or not slot.backing:
        unknown = _UNKNOWN if slot.flags & _GUEST_MEMFD else _UNREADABLE
        return np.array([[start, end, _NO_PA, unknown, slot.userspace_addr]], dtype=np.uint64)
    count = len(slot.backing)
    hva = np.fromiter((run.hva for run in slot.backing), np.uint64, count)
    size = np.fromiter((run.size for run in slot.backing), np.uint64, count)
    pa = np.fromiter((_NO_PA if run.pa is None else run.pa for run in slot.backing), np.uint64, count)
    state = np.fromiter((_state(run) for run in slot.backing), np.uint64, count)
    low = np.clip(hva, slot.userspace_addr, slot.userspace_addr + end - start)
    high = np.clip(hva + size, slot.userspace_addr, slot.userspace_addr + end - start)
    pa = np.where(pa == np.uint64(_NO_PA), pa, pa + (low - hva))
    shift = np.uint64((start - slot.userspace_addr) & (1 << 64) - 1)
    rows: U64 = np.stack((low + shift, high + shift, pa, state, low), axis=1)
    kept: U64 = rows[high > low]
    return kept


def _state(run: Backing) -> int:
    state = _STATES.get(run.state, _UNREADABLE)
    return _NONE if state == _PRESENT and run.pa is None else state


@dataclass(frozen=True)
class _Pieces:
    """Leaves cut where their backing changes: each piece of leaf ``leaf`` starts at ``ipa`` and has ``run`` behind it.

    ``run`` is -1 where the slots' backing has a gap.
    """

    ipa: U64
    end: U64
    leaf: NDArray[np.int64]
    run: NDArray[np.int64]


def _pieces(ipa: U64, end: U64, backed: _Backed) -> _Pieces:
    """``ipa``/``end`` are those of leaves, ascending and disjoint."""
    cuts = np.sort(np.concatenate((ipa, end, backed.ipa, backed.end)))
    cuts = cuts[np.concatenate(([True], cuts[1:] != cuts[:-1]))]
    starts, stops = cuts[:-1], cuts[1:]
    leaf = np.searchsorted(ipa, starts, side="right") - 1
    inside = (leaf >= 0) & (stops <= end[np.maximum(leaf, 0)])
    starts, stops, leaf = starts[inside], stops[inside], leaf[inside]
    run = np.searchsorted(backed.ipa, starts, side="right") - 1
    if len(backed.ipa):
        run[stops > backed.end[np.maximum(run, 0)]] = -1
    return _Pieces(starts, stops, leaf, run)


@invariant(
    "M1",
    "Every 4K page of every leaf is the page that the VMM's own page tables have at the memslot's address for it.",
    "user_mem_abort, kvm_unmap_gfn_range (MMU notifier)",
)
def same_backing(context: Context) -> Iterator[Finding]:
    page = context.capture.host.page_size
    for owned in context.owned:
        view = owned.view
        if view.mmu.kind != "vm" or not view.vm.memslots:
            continue
        yield from _unjudged(view, page)
        yield from _backing_findings(context, owned, _backed(view.vm, page))


def _unjudged(view: TableView, page: int) -> Iterator[Finding]:
    """One note a slot whose backing is not known, rather than silence."""
    for slot in view.vm.memslots:
        unread = not slot.backing or any(run.state == "unreadable" for run in slot.backing)
        if unread and slot.npages and not slot.flags & _GUEST_MEMFD:
            start, end = _slot_range(slot, page)
            yield note(
                "M1", where_vm(view.vm, view.mmu), f"the page tables behind slot {slot.id} at {start:#x}..{end:#x}",
                "not readable", "the leaves there are not judged: the VMM may be exiting",
            )  # fmt: skip


def _backing_findings(context: Context, owned: Owned, backed: _Backed) -> Iterator[Finding]:
    view, entries, page = owned.view, owned.entries, context.capture.host.page_size
    starts, ends = _joined([_slot_range(slot, page) for slot in view.vm.memslots])
    # A leaf that reaches out of the slots is S7's; one that shares its addresses with another is S3's.
    judged = np.flatnonzero(entries.leaf & ~_contested(owned) & _inside(entries.ia, entries.size, starts, ends))
    judged = judged[np.argsort(entries.ia[judged], kind="stable")]
    ipa, size = entries.ia[judged], entries.size[judged]
    if len(judged) > 1:
        distinct = np.concatenate(([True], ipa[1:] >= ipa[:-1] + size[:-1]))
        judged, ipa, size = judged[distinct], ipa[distinct], size[distinct]
    if not len(judged):
        return
    pieces = _pieces(ipa, ipa + size, backed)
    leaf_pa = entries.output[judged][pieces.leaf] + (pieces.ipa - ipa[pieces.leaf])
    run = np.maximum(pieces.run, 0)
    if len(backed.ipa):
        gap = pieces.run < 0
        state = np.where(gap, _NONE, backed.state[run])
        must_be = np.where(gap | (backed.pa[run] == _NO_PA), leaf_pa, backed.pa[run] + (pieces.ipa - backed.ipa[run]))
    else:
        state = np.full(len(pieces.ipa), _NONE)
        must_be = leaf_pa
    wrong = np.flatnonzero((state == _NONE) | ((state == _PRESENT) & (must_be != leaf_pa)))
    yield from _reports(context, view, entries, judged[pieces.leaf], pieces, leaf_pa, must_be, state, wrong)


def _reports(
    context: Context,
    view: TableView,
    entries: Entries,
    leaf: NDArray[np.int64],
    pieces: _Pieces,
    leaf_pa: U64,
    must_be: U64,
    state: NDArray[np.int64],
    wrong: NDArray[np.int64],
) -> Iterator[Finding]:
    if not len(wrong):
        return
    joins = (
        (pieces.ipa[wrong][1:] == pieces.end[wrong][:-1])
        & (state[wrong][1:] == state[wrong][:-1])
        & (leaf_pa[wrong][1:] - must_be[wrong][1:] == leaf_pa[wrong][:-1] - must_be[wrong][:-1])
        & (entries.level[leaf[wrong]][1:] == entries.level[leaf[wrong]][:-1])
    )
    starts = np.concatenate(([0], np.flatnonzero(~joins) + 1))
    ends = np.concatenate((starts[1:], [len(wrong)]))
    excuse = None
    if view.vm.invalidating:
        excuse = "an MMU-notifier invalidation was in progress: the leaf is removed before it ends"
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        first = int(wrong[start])
        at = int(leaf[first])
        rest = f" (and {len(starts) - LIMIT} more ranges)" if number == LIMIT - 1 and len(starts) > LIMIT else ""
        where = where_view(
            view,
            ipa=int(pieces.ipa[first]),
            size=int(pieces.end[wrong[end - 1]]) - int(pieces.ipa[first]),
            level=int(entries.level[at]),
            table_pa=int(entries.table_pa[at]),
            index=int(entries.index[at]),
            raw=int(entries.raw[at]),
        )
        if state[first] == _NONE:
            expected, actual = "no leaf where the VMM has no page", f"PA {int(leaf_pa[first]):#x}{rest}"
            why = "the page may belong to somebody else by now: the guest has a use-after-free in its hands"
        else:
            expected, actual = f"PA {int(must_be[first]):#x}, the VMM's page", f"PA {int(leaf_pa[first]):#x}{rest}"
            why = "the guest sees other memory than its VMM does"
        yield error_or_note("M1", where, expected, actual, why, _UNMAP, excuse)
        if number == LIMIT - 1:
            return
