"""What lies behind each leaf of a VM: its memslot, and the VMM's page at the slot's address for it.

Leaves are cut where their backing changes, so that a block is compared page by page at the cost of a few arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.check.entries import U64, Mask
from inspector.check.ownership import Owned
from inspector.codec import Kind
from inspector.snapshot import Backing, BackingState, Memslot, Vm

#: The slot's pages may come from a guest_memfd and not from its HVA (``KVM_MEM_GUEST_MEMFD``).
GUEST_MEMFD = 1 << 2
#: ``KVM_MEM_READONLY``.
READONLY = 1 << 1
#: The slot is being deleted or moved (``KVM_MEMSLOT_INVALID``, include/linux/kvm_host.h).
INVALID = 1 << 16

NONE, PRESENT, UNREADABLE, UNKNOWN = range(4)
"""What is behind a piece: no page; a page; the VMM's tables cannot be read there; not the VMM's (guest_memfd)."""

_STATES = {
    BackingState.PRESENT: PRESENT,
    BackingState.NONE: NONE,
    BackingState.SWAP: NONE,
    BackingState.UNREADABLE: UNREADABLE,
}
_NO_PA = (1 << 64) - 1
_READABLE, _WRITABLE, _SPECIAL = 1, 2, 4


def slot_range(slot: Memslot, page: int) -> tuple[int, int]:
    """The slot's IPA range in bytes, ``[start, end)``."""
    return slot.base_gfn * page, (slot.base_gfn + slot.npages) * page


def joined(ranges: Sequence[tuple[int, int]]) -> tuple[U64, U64]:
    """Ascending disjoint starts and ends of the union of ``ranges``, touching ones joined."""
    made: list[list[int]] = []
    for start, end in sorted(ranges):
        if made and start <= made[-1][1]:
            made[-1][1] = max(made[-1][1], end)
        elif end > start:
            made.append([start, end])
    table = np.array(made, dtype=np.uint64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def inside(start: U64, size: U64, starts: U64, ends: U64) -> Mask:
    """Where ``[start, start+size)`` lies in one of the disjoint ranges."""
    if not len(starts):
        return np.zeros(len(start), dtype=bool)
    at = np.searchsorted(starts, start, side="right") - 1
    found: Mask = (at >= 0) & (start + size <= ends[np.maximum(at, 0)])
    return found


def touching(start: U64, size: U64, starts: U64, ends: U64) -> Mask:
    """Where any of ``[start, start+size)`` lies in one of the disjoint ranges."""
    if not len(starts):
        return np.zeros(len(start), dtype=bool)
    at = np.searchsorted(starts, start + size, side="left") - 1
    found: Mask = (at >= 0) & (ends[np.maximum(at, 0)] > start)
    return found


@dataclass(frozen=True)
class _Backed:
    """What backs the IPA space of a VM, as ascending runs: IPA, end, PA (or `_NO_PA`), state, rights."""

    ipa: U64
    end: U64
    pa: U64
    state: U64
    rights: U64


def _backed(vm: Vm, page: int) -> _Backed:
    parts = [_backed_slot(slot, *slot_range(slot, page)) for slot in vm.memslots]
    table = np.concatenate(parts) if parts else np.zeros((0, 5), dtype=np.uint64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return _Backed(*(table[:, column] for column in range(5)))


def _backed_slot(slot: Memslot, start: int, end: int) -> U64:
    """Rows (IPA, end, PA, state, rights) of one slot, cut to the slot."""
    if slot.flags & GUEST_MEMFD or not slot.backing:
        unknown = UNKNOWN if slot.flags & GUEST_MEMFD else UNREADABLE
        return np.array([[start, end, _NO_PA, unknown, 0]], dtype=np.uint64)
    count = len(slot.backing)
    hva = np.fromiter((run.hva for run in slot.backing), np.uint64, count)
    size = np.fromiter((run.size for run in slot.backing), np.uint64, count)
    pa = np.fromiter((_NO_PA if run.pa is None else run.pa for run in slot.backing), np.uint64, count)
    state = np.fromiter((_state(run) for run in slot.backing), np.uint64, count)
    rights = np.fromiter(
        (run.readable * _READABLE | run.writable * _WRITABLE | run.special * _SPECIAL for run in slot.backing),
        np.uint64,
        count,
    )
    low = np.clip(hva, slot.userspace_addr, slot.userspace_addr + end - start)
    high = np.clip(hva + size, slot.userspace_addr, slot.userspace_addr + end - start)
    pa = np.where(pa == np.uint64(_NO_PA), pa, pa + (low - hva))
    shift = np.uint64((start - slot.userspace_addr) & (1 << 64) - 1)
    rows: U64 = np.stack((low + shift, high + shift, pa, state, rights), axis=1)
    kept: U64 = rows[high > low]
    return kept


def _state(run: Backing) -> int:
    state = _STATES.get(run.state, UNREADABLE)
    return NONE if state == PRESENT and run.pa is None else state


@dataclass(frozen=True)
class Pieces:
    """Leaves cut where their backing changes; parallel arrays, ascending by IPA.

    ``leaf`` is the place in the `Entries`, ``pa`` what the leaf has at the piece, ``must_be`` what backs it (equal to
    ``pa`` where that is not known), ``state`` one of `NONE` … `UNKNOWN`; a gap in the backing is `NONE`.
    """

    ipa: U64
    end: U64
    leaf: NDArray[np.int64]
    pa: U64
    must_be: U64
    state: NDArray[np.int64]
    rights: NDArray[np.int64]

    @property
    def elsewhere(self) -> Mask:
        """The VMM has another page there."""
        found: Mask = (self.state == PRESENT) & (self.must_be != self.pa)
        return found

    @property
    def nowhere(self) -> Mask:
        """The VMM has no page there."""
        found: Mask = self.state == NONE
        return found

    @property
    def agreed(self) -> Mask:
        """The VMM has this very page there."""
        found: Mask = (self.state == PRESENT) & (self.must_be == self.pa)
        return found

    @property
    def readonly(self) -> Mask:
        """The VMM may read the page and not write it (a page that it may not even read says nothing: NUMA hinting)."""
        found: Mask = self.agreed & (self.rights & (_READABLE | _WRITABLE) == _READABLE)
        return found

    @property
    def special(self) -> Mask:
        """Mapped by the VMM by frame number alone."""
        found: Mask = (self.rights & _SPECIAL) != 0
        return found


def _pieces(owned: Owned, judged: Mask, backed: _Backed) -> Pieces:
    """The leaves of ``judged``, which lie inside the slots, over ``backed``."""
    entries = owned.entries
    leaves = np.flatnonzero(judged)
    leaves = leaves[np.argsort(entries.ia[leaves], kind="stable")]
    ipa = entries.ia[leaves]
    end = ipa + entries.size[leaves]
    if len(leaves) > 1:  # of leaves at one address only the first is looked at: a corrupt tree
        distinct = np.concatenate(([True], ipa[1:] >= np.maximum.accumulate(end)[:-1]))
        leaves, ipa, end = leaves[distinct], ipa[distinct], end[distinct]
    cuts = np.unique(np.concatenate((ipa, end, backed.ipa, backed.end)))
    starts, stops = cuts[:-1], cuts[1:]
    which = np.searchsorted(ipa, starts, side="right") - 1
    kept = which >= 0
    if len(end):
        kept &= stops <= end[np.maximum(which, 0)]
    starts, stops, which = starts[kept], stops[kept], which[kept]
    run = np.searchsorted(backed.ipa, starts, side="right") - 1
    gap = run < 0
    run = np.maximum(run, 0)
    pa: U64 = entries.output[leaves][which] + starts - ipa[which]
    if not len(backed.ipa):
        nothing = np.zeros(len(starts), dtype=np.int64)
        return Pieces(starts, stops, leaves[which], pa, pa, nothing + NONE, nothing)
    gap |= stops > backed.end[run]
    unknown = gap | (backed.pa[run] == np.uint64(_NO_PA))
    return Pieces(
        ipa=starts,
        end=stops,
        leaf=leaves[which],
        pa=pa,
        must_be=np.where(unknown, pa, backed.pa[run] + (starts - backed.ipa[run])),
        state=np.where(gap, NONE, backed.state[run].astype(np.int64)),
        rights=np.where(gap, 0, backed.rights[run].astype(np.int64)),
    )


@dataclass(frozen=True)
class Placed:
    """The leaves of one VM's own table against its slots.

    ``hosts`` are the leaves that map the host's own memory (`S8` reports them).
    """

    owned: Owned
    page: int
    hosts: Mask

    @cached_property
    def settled(self) -> Mask:
        """The leaves whose input address is beyond doubt: no table above them has two parents (`S3` reports that)."""
        leaf = self.owned.entries.leaf
        if not self.owned.contested:
            return leaf
        contested = np.array(sorted(self.owned.contested), dtype=np.uint64)
        settled: Mask = leaf & ~np.isin(self.owned.entries.table_pa, contested)
        return settled

    @cached_property
    def in_slots(self) -> Mask:
        """The settled leaves that lie inside the slots (`S7` reports the others)."""
        entries = self.owned.entries
        starts, ends = joined([slot_range(slot, self.page) for slot in self.owned.view.vm.memslots])
        return self.settled & inside(entries.ia, entries.size, starts, ends)

    @cached_property
    def slot(self) -> NDArray[np.int64]:
        """For each entry the place in ``vm.memslots`` of the slot that its first page lies in (-1: none)."""
        slots = self.owned.view.vm.memslots
        ranges = [slot_range(slot, self.page) for slot in slots]
        order = np.array(sorted(range(len(slots)), key=lambda n: ranges[n]), dtype=np.int64)
        starts = np.array([ranges[n][0] for n in order], dtype=np.uint64)
        ends = np.array([ranges[n][1] for n in order], dtype=np.uint64)
        ia = self.owned.entries.ia
        if not len(slots):
            return np.full(len(ia), -1, dtype=np.int64)
        at = np.searchsorted(starts, ia, side="right") - 1
        found = (at >= 0) & (ia < ends[np.maximum(at, 0)])
        return np.where(found, order[np.maximum(at, 0)], -1)

    @cached_property
    def unfit_blocks(self) -> Mask:
        """Blocks in the slots that the slot's place does not allow (`M2` reports them).

        Those at a level where KVM never makes any are left to `S4`.
        """
        entries, slots = self.owned.entries, self.owned.view.vm.memslots
        levels = self.owned.view.geometry.block_levels
        block = self.in_slots & entries.matching(lambda d: d.kind is Kind.BLOCK and d.level in levels)
        for number, slot in enumerate(slots):
            start, end = slot_range(slot, self.page)
            mine = self.slot == number
            if slot.flags & GUEST_MEMFD:
                block[mine] = False
                continue
            apart = np.uint64((slot.userspace_addr - start) & (1 << 64) - 1)
            fits = (entries.ia + entries.size <= np.uint64(end)) & (apart & (entries.size - np.uint64(1)) == 0)
            block[mine & fits] = False
        return block

    @cached_property
    def pieces(self) -> Pieces:
        """The leaves that only their backing can judge: in the slots, and wrong in no other way."""
        entries, geometry = self.owned.entries, self.owned.view.geometry
        beyond = entries.output >= np.uint64(1 << geometry.pa_bits)  # S4 reports them
        judged = self.in_slots & ~self.hosts & ~self.unfit_blocks & ~beyond
        return _pieces(self.owned, judged, _backed(self.owned.view.vm, self.page))

    def of_leaves(self, pieces: Mask) -> Mask:
        """The leaves (as a mask of entries) that have any of ``pieces``."""
        mask = np.zeros(len(self.owned.entries.raw), dtype=bool)
        mask[self.pieces.leaf[pieces]] = True
        return mask
