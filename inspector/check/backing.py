"""What lies behind each leaf of a VM: its memslot, and the VMM's page at the slot's address for it.

Leaves are cut where their backing changes, so that a block is compared page by page at the cost of a few arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.backing import KNOWN, READABLE, SPECIAL, STATES, WRITABLE, BackingRuns
from inspector.check.ownership import Owned
from inspector.check.places import LIMIT
from inspector.codec import Kind
from inspector.codec.bulk import Flags, Flat, Words
from inspector.snapshot import BackingState, Memslot, Vm
from inspector.tables.columns import Columns
from inspector.tables.intervals import Intervals, runs

#: The slot's pages may come from a guest_memfd and not from its HVA (``KVM_MEM_GUEST_MEMFD``).
GUEST_MEMFD = 1 << 2
#: ``KVM_MEM_READONLY``.
READONLY = 1 << 1
#: The slot is being deleted or moved (``KVM_MEMSLOT_INVALID``, include/linux/kvm_host.h).
INVALID = 1 << 16

NONE, PRESENT, UNREADABLE, UNKNOWN = range(4)
"""What is behind a piece: no page; a page; the VMM's tables cannot be read there; not the VMM's (guest_memfd)."""

_STATES = np.array(
    [
        {BackingState.PRESENT: PRESENT, BackingState.NONE: NONE, BackingState.SWAP: NONE}.get(state, UNREADABLE)
        for state in STATES
    ],
    dtype=np.uint8,
)
"""By the state's number in the rows."""
_NO_PA = _WORD = (1 << 64) - 1
_READABLE, _WRITABLE, _SPECIAL = 1, 2, 4
_RIGHTS = np.array(
    [
        bool(flags & READABLE) * _READABLE | bool(flags & WRITABLE) * _WRITABLE | bool(flags & SPECIAL) * _SPECIAL
        for flags in range(16)
    ],
    dtype=np.uint8,
)
"""By the flags of the rows."""


def slot_range(slot: Memslot, page: int) -> tuple[int, int]:
    """The slot's IPA range in bytes, ``[start, end)``."""
    return slot.base_gfn * page, (slot.base_gfn + slot.npages) * page


def slots_of(vm: Vm, page: int) -> Intervals:
    """All IPAs that lie in a slot of ``vm``."""
    return Intervals.of(slot_range(slot, page) for slot in vm.memslots)


@dataclass(frozen=True)
class Backed:
    """What backs IPAs, as ascending runs: where, PA (or `_NO_PA`), state, rights."""

    at: Intervals
    pa: Words
    state: NDArray[np.uint8]
    rights: NDArray[np.uint8]

    def rows(self, chosen: Flags | Flat) -> Backed:
        """Only these runs."""
        at = Intervals(self.at.start[chosen], self.at.end[chosen])
        return Backed(at, self.pa[chosen], self.state[chosen], self.rights[chosen])


def backed(vm: Vm, page: int) -> Backed:
    """The whole of a VM's memory.  Of a big guest this is as big as its table: nothing is copied that need not be."""
    parts = [_backed_slot(slot, *slot_range(slot, page)) for slot in vm.memslots]
    if len(parts) == 1:
        found = parts[0]
    else:
        none = np.zeros(0, dtype=np.uint64)
        found = Backed(
            Intervals(
                *(np.concatenate([none, *(getattr(one.at, name) for one in parts)]) for name in ("start", "end"))
            ),
            np.concatenate([none, *(one.pa for one in parts)]),
            *(
                np.concatenate([np.zeros(0, dtype=np.uint8), *(getattr(one, name) for one in parts)])
                for name in ("state", "rights")
            ),
        )
    start = found.at.start
    return found if (start[1:] >= start[:-1]).all() else found.rows(np.argsort(start, kind="stable"))


def _backed_slot(slot: Memslot, start: int, end: int) -> Backed:
    """What backs one slot, cut to the slot."""
    if slot.flags & GUEST_MEMFD or not slot.backing:
        unknown = UNKNOWN if slot.flags & GUEST_MEMFD else UNREADABLE
        whole = Intervals(np.array([start], dtype=np.uint64), np.array([end], dtype=np.uint64))
        return Backed(whole, np.array([_NO_PA], dtype=np.uint64), np.array([unknown], np.uint8), np.zeros(1, np.uint8))
    runs = BackingRuns.of(slot.backing).rows
    known = runs["flags"] & KNOWN != 0
    state = _STATES[runs["state"]]
    state[(state == PRESENT) & ~known] = NONE
    top = slot.userspace_addr + end - start
    low = np.clip(runs["hva"], slot.userspace_addr, top)
    high = np.clip(runs["hva"] + runs["size"], slot.userspace_addr, top)
    pa = np.where(known, runs["pa"] + (low - runs["hva"]), np.uint64(_NO_PA))
    kept = high > low
    shift = np.uint64((start - slot.userspace_addr) & (1 << 64) - 1)
    low += shift
    high += shift
    found = Backed(Intervals(low, high), pa, state, _RIGHTS[runs["flags"]])
    return found if kept.all() else found.rows(kept)


@dataclass
class Run:
    """Neighbouring pieces that are wrong in the same way: ``[ipa, end)``, and of the first its place in the table's
    columns, its level, the ``pa`` that it has and the one that it ``must_be``.
    """

    ipa: int
    end: int
    leaf: int
    level: int
    pa: int
    must_be: int


@dataclass
class Runs:
    """The first runs of pieces that are wrong in one way, `LIMIT` of them; ``count`` is how many there are."""

    first: list[Run]
    count: int = 0
    last: Run | None = None

    def add(self, wrong: Flags, pieces: _Window) -> None:
        """The next pieces, in order of address."""
        at = np.flatnonzero(wrong)
        ipa, end, level = pieces.ipa[at], pieces.end[at], pieces.level[at]
        apart = pieces.pa[at] - pieces.must_be[at]
        starts, ends = runs((ipa, end - ipa), (apart, 0), (level, 0))
        self.count += len(starts)
        if not len(starts):
            return
        edges = {*range(min(len(starts), LIMIT + 1)), len(starts) - 1}
        for start, stop in ((int(starts[n]), int(ends[n]) - 1) for n in sorted(edges)):
            found = Run(
                int(ipa[start]),
                int(end[stop]),
                int(pieces.leaf[at[start]]),
                int(level[start]),
                int(pieces.pa[at[start]]),
                int(pieces.must_be[at[start]]),
            )
            if start == 0 and self.last is not None and _goes_on(self.last, found):
                self.last.end = found.end
                self.count -= 1
                continue
            self.last = found
            if len(self.first) < LIMIT:
                self.first.append(found)


def _goes_on(one: Run, after: Run) -> bool:
    apart = (one.pa - one.must_be) & _WORD == (after.pa - after.must_be) & _WORD
    return one.end == after.ipa and one.level == after.level and apart


@dataclass(frozen=True)
class _Window:
    """Some leaves cut where their backing changes; parallel arrays, ascending by IPA.

    ``leaf`` is the place in the table's columns, ``pa`` what the leaf has at the piece, ``must_be`` what backs it
    (equal to ``pa`` where that is not known), ``state`` one of `NONE` … `UNKNOWN`; a gap in the backing is `NONE`.
    """

    ipa: Words
    end: Words
    leaf: Flat
    level: Flat
    pa: Words
    must_be: Words
    state: Flat
    rights: Flat


@dataclass(frozen=True)
class Pieces:
    """What became of the leaves that only their backing can judge, cut where it changes; masks are of the entries.

    ``judged``: all of them.  Of some piece the VMM has another page (``elsewhere``) or none (``nowhere``): with the
    runs of such pieces.  It has this very page and may read it and not write it (``readonly``; a page that it may not
    even read says nothing: NUMA hinting), or has it as ordinary memory and not by frame number alone (``ordinary``).
    """

    judged: Flags
    elsewhere: Flags
    nowhere: Flags
    readonly: Flags
    ordinary: Flags
    other: Runs
    none: Runs


_WINDOW = 1 << 17
"""Leaves cut at a time."""


def pieces_over(owned: Owned, judged: Flags, backed: Backed) -> Pieces:
    """The leaves of ``judged``, which lie inside the slots, over ``backed``."""
    seen, elsewhere, nowhere, readonly, ordinary = (np.zeros(len(judged), dtype=bool) for _ in range(5))
    pieces = Pieces(seen, elsewhere, nowhere, readonly, ordinary, Runs([]), Runs([]))
    leaves = _by_address(owned.columns, np.flatnonzero(judged))
    ends = np.sort(backed.at.end)
    top = np.uint64(0)
    for start in range(0, len(leaves), _WINDOW):
        some = leaves[start : start + _WINDOW]
        found = owned.columns.at(some)
        end = found.ia + found.size
        # Of leaves at one address only the first is looked at: a corrupt tree.
        above = np.maximum.accumulate(np.concatenate(([top], end)))
        distinct, top = found.ia >= above[:-1], above[-1]
        window = _window(owned.columns, some[distinct], backed, ends)
        here, same = window.state == PRESENT, window.must_be == window.pa
        agreed, other, none = here & same, here & ~same, window.state == NONE
        may_only_read = window.rights & (_READABLE | _WRITABLE) == _READABLE
        seen[window.leaf] = True
        elsewhere[window.leaf[other]] = True
        nowhere[window.leaf[none]] = True
        readonly[window.leaf[agreed & may_only_read]] = True
        ordinary[window.leaf[agreed & (window.rights & _SPECIAL == 0)]] = True
        pieces.other.add(other, window)
        pieces.none.add(none, window)
    return pieces


def _by_address(columns: Columns, at: Flat) -> Flat:
    """Positions in order of input address."""
    ia = np.empty(len(at), dtype=np.uint64)
    for start in range(0, len(at), _WINDOW):
        ia[start : start + _WINDOW] = columns.at(at[start : start + _WINDOW]).ia
    if (ia[1:] >= ia[:-1]).all():  # leaves of one level
        return at
    return at[np.argsort(ia, kind="stable")]


def _window(columns: Columns, leaves: Flat, backed: Backed, ends: Words) -> _Window:
    some = columns.at(leaves)
    ipa, end = some.ia, some.ia + some.size
    edges = [one[slice(*np.searchsorted(one, (ipa[0], end[-1])))] for one in (backed.at.start, ends) if len(ipa)]
    cuts = np.sort(np.concatenate((ipa, end, *edges)), kind="stable")  # four that are sorted
    cuts = cuts[np.append(cuts[:-1] != cuts[1:], True)] if len(cuts) else cuts
    starts = cuts[:-1]
    which = Intervals(ipa, end).holding(starts)
    kept = which >= 0
    starts, stops, which = starts[kept], cuts[1:][kept], which[kept]
    leaf, level, pa = leaves[which], some.level[which], some.output[which] + starts - ipa[which]
    run = backed.at.holding(starts)
    gap = run < 0
    if not len(backed.pa):
        nothing = np.zeros(len(starts), dtype=np.intp)
        return _Window(starts, stops, leaf, level, pa, pa, nothing + NONE, nothing)
    unknown = gap | (backed.pa[run] == np.uint64(_NO_PA))
    return _Window(
        ipa=starts,
        end=stops,
        leaf=leaf,
        level=level,
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
    def slot(self) -> NDArray[np.integer[Any]]:
        """For each entry the place in ``vm.memslots`` of the slot that its first page lies in (-1: none)."""
        ranges = [slot_range(slot, self.page) for slot in self.owned.view.vm.memslots]
        small = np.min_scalar_type(-len(ranges) - 1)
        order = np.array([*sorted(range(len(ranges)), key=lambda n: ranges[n]), -1], dtype=small)
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
        return pieces_over(self.owned, judged, backed(self.owned.view.vm, self.page))

    @property
    def contradicted(self) -> Flags:
        """The leaves that map something else than the VMM has there (`M1` and `M4` report them)."""
        return self.pieces.elsewhere | self.pieces.nowhere

    @property
    def sound(self) -> Flags:
        """The leaves that map what the VMM has there, as far as that is known."""
        return self.pieces.judged & ~self.contradicted
