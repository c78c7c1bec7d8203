"""What lies behind each leaf of a VM: its memslot, and the VMM's page at the slot's address for it.

Leaves are cut where their backing changes, so that a block is compared page by page at the cost of a few arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.check.ownership import Owned
from inspector.codec import Kind
from inspector.codec.bulk import Flags, Flat, Words
from inspector.snapshot import Backing, BackingState, Memslot, Vm
from inspector.tables.intervals import Intervals

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


def slots_of(vm: Vm, page: int) -> Intervals:
    """All IPAs that lie in a slot of ``vm``."""
    return Intervals.of(slot_range(slot, page) for slot in vm.memslots)


@dataclass(frozen=True)
class _Backed:
    """What backs the IPA space of a VM, as ascending runs: where, PA (or `_NO_PA`), state, rights."""

    at: Intervals
    pa: Words
    state: Words
    rights: Words


def _backed(vm: Vm, page: int) -> _Backed:
    parts = [_backed_slot(slot, *slot_range(slot, page)) for slot in vm.memslots]
    table = np.concatenate(parts) if parts else np.zeros((0, 5), dtype=np.uint64)
    ipa, end, pa, state, rights = table[np.argsort(table[:, 0], kind="stable")].T
    return _Backed(Intervals(ipa, end), pa, state, rights)


def _backed_slot(slot: Memslot, start: int, end: int) -> Words:
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
    rows: Words = np.stack((low + shift, high + shift, pa, state, rights), axis=1)
    kept: Words = rows[high > low]
    return kept


def _state(run: Backing) -> int:
    state = _STATES.get(run.state, UNREADABLE)
    return NONE if state == PRESENT and run.pa is None else state


@dataclass(frozen=True)
class Pieces:
    """Leaves cut where their backing changes; parallel arrays, ascending by IPA.

    ``leaf`` is the place in the table's columns, ``pa`` what the leaf has at the piece, ``must_be`` what backs it
    (equal to ``pa`` where that is not known), ``state`` one of `NONE` … `UNKNOWN`; a gap in the backing is `NONE`.
    """

    ipa: Words
    end: Words
    leaf: Flat
    pa: Words
    must_be: Words
    state: Flat
    rights: Flat

    @property
    def elsewhere(self) -> Flags:
        """The VMM has another page there."""
        found: Flags = (self.state == PRESENT) & (self.must_be != self.pa)
        return found

    @property
    def nowhere(self) -> Flags:
        """The VMM has no page there."""
        found: Flags = self.state == NONE
        return found

    @property
    def agreed(self) -> Flags:
        """The VMM has this very page there."""
        found: Flags = (self.state == PRESENT) & (self.must_be == self.pa)
        return found

    @property
    def readonly(self) -> Flags:
        """The VMM may read the page and not write it (a page that it may not even read says nothing: NUMA hinting)."""
        found: Flags = self.agreed & (self.rights & (_READABLE | _WRITABLE) == _READABLE)
        return found

    @property
    def special(self) -> Flags:
        """Mapped by the VMM by frame number alone."""
        found: Flags = (self.rights & _SPECIAL) != 0
        return found


def _pieces(owned: Owned, judged: Flags, backed: _Backed) -> Pieces:
    """The leaves of ``judged``, which lie inside the slots, over ``backed``."""
    columns = owned.columns
    leaves = np.flatnonzero(judged)
    leaves = leaves[np.argsort(columns.at(leaves).ia, kind="stable")]
    some = columns.at(leaves)
    ipa, end, output = some.ia, some.ia + some.size, some.output
    if len(leaves) > 1:  # of leaves at one address only the first is looked at: a corrupt tree
        distinct = np.concatenate(([True], ipa[1:] >= np.maximum.accumulate(end)[:-1]))
        leaves, ipa, end, output = leaves[distinct], ipa[distinct], end[distinct], output[distinct]
    cuts = np.sort(np.concatenate((ipa, end, backed.at.start, backed.at.end)), kind="stable")  # four that are sorted
    cuts = cuts[np.append(cuts[:-1] != cuts[1:], True)] if len(cuts) else cuts
    starts = cuts[:-1]
    which = Intervals(ipa, end).holding(starts)
    kept = which >= 0
    starts, stops, which = starts[kept], cuts[1:][kept], which[kept]
    pa: Words = output[which] + starts - ipa[which]
    run = backed.at.holding(starts)
    gap = run < 0
    if not len(backed.pa):
        nothing = np.zeros(len(starts), dtype=np.intp)
        return Pieces(starts, stops, leaves[which], pa, pa, nothing + NONE, nothing)
    unknown = gap | (backed.pa[run] == np.uint64(_NO_PA))
    return Pieces(
        ipa=starts,
        end=stops,
        leaf=leaves[which],
        pa=pa,
        must_be=np.where(unknown, pa, backed.pa[run] + (starts - backed.at.start[run])),
        state=np.where(gap, NONE, backed.state[run].astype(np.intp)),
        rights=np.where(gap, 0, backed.rights[run].astype(np.intp)),
    )


@dataclass(frozen=True, eq=False)
class GuestMemory:
    """The leaves of one VM's own table against its slots and what backs them; masks are of the table's entries.

    ``hosts`` are the leaves that map the host's own memory (`S8` reports them).
    """

    owned: Owned
    page: int
    hosts: Flags

    @cached_property
    def certain(self) -> Flags:
        """The leaves whose input address is beyond doubt: no table above them has two parents (`S3` reports that)."""
        found: Flags = self.owned.leaf & ~self.owned.columns.spread(self.owned.contested)
        return found

    @cached_property
    def in_slots(self) -> Flags:
        """The certain leaves that lie inside the slots (`S7` reports the others)."""
        slots = slots_of(self.owned.view.vm, self.page)
        return self.owned.columns.among(self.certain, lambda c: slots.contain(c.ia, c.size))

    @cached_property
    def slot(self) -> NDArray[np.int32]:
        """For each entry the place in ``vm.memslots`` of the slot that its first page lies in (-1: none)."""
        ranges = [slot_range(slot, self.page) for slot in self.owned.view.vm.memslots]
        order = np.array([*sorted(range(len(ranges)), key=lambda n: ranges[n]), -1], dtype=np.int32)
        start, end = np.array([ranges[n] for n in order[:-1]], dtype=np.uint64).reshape(-1, 2).T
        # One entry after the last slot, so that -1, for none, finds it.
        slots = Intervals(start, end)
        return np.concatenate([order[:0], *(order[slots.holding(part.ia)] for part in self.owned.columns.pieces())])

    def fitting(self, number: int) -> Flags:
        """The leaves that slot ``number`` answers for: those inside it that fit it."""
        found: Flags = self.in_slots & ~self.unfit_blocks & (self.slot == number)
        return found

    @cached_property
    def unfit_blocks(self) -> Flags:
        """Blocks in the slots that the slot's place does not allow (`M2` reports them).

        Those at a level where KVM never makes any are left to `S4`.
        """
        columns, slots = self.owned.columns, self.owned.view.vm.memslots
        levels = self.owned.view.geometry.block_levels
        block = self.in_slots & columns.matching(lambda d: d.kind is Kind.BLOCK and d.level in levels)
        for number, slot in enumerate(slots):
            start, end = slot_range(slot, self.page)
            mine = block & (self.slot == number)
            if slot.flags & GUEST_MEMFD:
                block[mine] = False
                continue
            apart = np.uint64((slot.userspace_addr - start) & (1 << 64) - 1)
            at = np.flatnonzero(mine)
            ours = columns.at(at)
            fits = (ours.ia + ours.size <= np.uint64(end)) & (apart & (ours.size - np.uint64(1)) == 0)
            block[at[fits]] = False
        return block

    @cached_property
    def pieces(self) -> Pieces:
        """The leaves that only their backing can judge: in the slots, and wrong in no other way."""
        judged = self.in_slots & ~self.hosts & ~self.unfit_blocks
        end = np.uint64(1 << self.owned.view.geometry.pa_bits)  # S4 reports what lies beyond
        judged = self.owned.columns.among(judged, lambda c: c.output < end)
        return _pieces(self.owned, judged, _backed(self.owned.view.vm, self.page))

    def of_leaves(self, pieces: Flags) -> Flags:
        """The leaves (as a mask of entries) that have any of ``pieces``."""
        mask = np.zeros(len(self.owned.columns.raw), dtype=bool)
        mask[self.pieces.leaf[pieces]] = True
        return mask

    @cached_property
    def ordinary(self) -> Flags:
        """The leaves that map the very pages that the VMM has there, as ordinary memory.

        The VMM maps carved-out memory ("no-map") by frame number alone: RAM to QEMU, a device to the kernel.
        """
        return self.of_leaves(self.pieces.agreed & ~self.pieces.special)

    @cached_property
    def contradicted(self) -> Flags:
        """The leaves that map something else than the VMM has there (`M1` and `M4` report them)."""
        return self.of_leaves(self.pieces.elsewhere | self.pieces.nowhere)

    @cached_property
    def sound(self) -> Flags:
        """The leaves that map what the VMM has there, as far as that is known."""
        return self.of_leaves(np.ones(len(self.pieces.leaf), dtype=bool)) & ~self.contradicted
