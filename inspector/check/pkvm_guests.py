"""What guests have under pKVM where the hypervisor keeps their tables (6.18 and later), against the host's side of it.

A leaf's software bits [56:55] are the guest's ``enum pkvm_page_state`` (nvhe/mem_protect.c 7.3: guest_get_page_state):
memory of a protected guest is its own, of any other it is borrowed from the host, which counts to how many entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from inspector.check.context import Context
from inspector.check.ownership import Owned
from inspector.check.pkvm_host import COUNTERPART, Hosts
from inspector.check.places import where_entry, where_view
from inspector.codec import Kind
from inspector.codec.bulk import Flat, Words
from inspector.findings import Where
from inspector.snapshot import PkvmMapping, Share

_GUEST = 2  # PKVM_ID_GUEST
_MOST = 8
"""Findings of one kind a guest."""
_MOST_PAGES = 1 << 24
"""So much of a guest is looked at page by page: 64 GiB of 4K."""


@dataclass(frozen=True)
class Wrong:
    """One contradiction."""

    where: Where
    expected: str
    actual: str


@dataclass(frozen=True, eq=False)
class Guest:
    """One guest's table by pages: of page ``n``, ``gfns[n]`` and ``pfns[n]`` are host pages, ``at[n]`` the leaf's
    position."""

    owned: Owned

    @cached_property
    def _pages(self) -> tuple[Words, Words, Flat]:
        columns = self.owned.columns
        leaves = np.flatnonzero(columns.leaf)
        shift = np.uint64(columns.geometry.granule_shift)
        counts = (columns.size[leaves] >> shift).astype(np.int64)
        few = np.cumsum(counts) <= _MOST_PAGES
        leaves, counts = leaves[few], counts[few]
        at = np.repeat(leaves, counts)
        within = (np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.uint64)
        return (columns.ia[at] >> shift) + within, (columns.output[at] >> shift) + within, at

    @property
    def gfns(self) -> Words:
        return self._pages[0]

    @property
    def pfns(self) -> Words:
        return self._pages[1]

    @property
    def at(self) -> Flat:
        return self._pages[2]

    @cached_property
    def states(self) -> Words:
        """The guest's `Share` of each page."""
        found: Words = self.owned.columns.raw[self.at] >> np.uint64(55) & np.uint64(3)
        return found

    @property
    def tables(self) -> list[int]:
        """The PAs of its table pages."""
        found: list[int] = self.owned.columns.page_pa.tolist()
        return found

    def where(self, page: int) -> Where:
        """The place of page number ``page``."""
        columns = self.owned.columns
        ipa = int(self.gfns[page]) << columns.geometry.granule_shift
        return where_entry(self.owned.view, columns, int(self.at[page]), columns.geometry.granule, ipa)


@dataclass(frozen=True, eq=False)
class Guests:
    """Every guest whose table the hypervisor keeps, beside the host's tables."""

    context: Context
    both: Hosts

    @cached_property
    def guests(self) -> tuple[Guest, ...]:
        return tuple(Guest(owned) for owned in self.context.owned if owned.view.mmu.at_el2)

    @property
    def granule_shift(self) -> int:
        return self.both.hyp.columns.geometry.granule_shift

    @property
    def are_all(self) -> bool:
        """No other VM's table is with the hypervisor: all are read, and as many as it has."""
        vms = self.context.capture.vms
        read = all(vm.unreadable is None and all(mmu.unreadable is None for mmu in vm.mmus) for vm in vms)
        return read and self.both.hyp.view.table.guests == len(self.guests)


def lost_by_guests(guests: Guests) -> Iterator[Wrong]:
    """Pages of a guest's own that the host has for its own, or for another's."""
    both, shift = guests.both, guests.granule_shift
    for guest in guests.guests:
        handle, said = guest.owned.view.mmu.handle, 0
        for page in np.flatnonzero(guest.states == Share.OWNED).tolist():
            pa, gfn = int(guest.pfns[page]) << shift, int(guest.gfns[page])
            found = both.descriptor(pa)
            if found is not None and found.kind is Kind.ANNOTATED and found.field("owner") == _GUEST:
                if (found.field("handle"), found.field("gfn")) == (handle, gfn):
                    continue
                actual = f"it is of the guest {found.field('handle'):#x}, at frame {found.field('gfn'):#x}"
            else:
                actual = "nothing, so that it is the host's" if found is None else f"{found.raw:#018x}"
            said += 1
            if said <= _MOST:
                expected = f"the host's entry of page {pa:#x} names the guest {handle:#x} and frame {gfn:#x}"
                yield Wrong(guest.where(page), expected, actual)


def given_to_nobody(guests: Guests) -> Iterator[Wrong]:
    """Pages that the host's table gives to a guest which has them not; where every guest is known."""
    if not guests.are_all:
        return
    have = {
        (guest.owned.view.mmu.handle, gfn, pfn)
        for guest in guests.guests
        for gfn, pfn in zip(guest.gfns.tolist(), guest.pfns.tolist(), strict=True)
    }
    host, shift, said = guests.both.host, guests.granule_shift, 0
    columns = host.columns
    for at in np.flatnonzero(~columns.valid & (columns.raw != 0)).tolist():
        found = columns.decoded(at)
        if found.kind is not Kind.ANNOTATED or "gfn" not in found.fields:
            continue
        handle, gfn, pa = found.field("handle"), found.field("gfn"), int(columns.ia[at])
        if (handle, gfn, pa >> shift) not in have and (said := said + 1) <= _MOST:
            expected = f"the guest {handle:#x} has page {pa:#x} at frame {gfn:#x}, as the host's entry says"
            yield Wrong(where_entry(host.view, columns, at), expected, "it has not")


def shared_with_guests(guests: Guests) -> Iterator[Wrong]:
    """Pages that a guest borrows and the host has not lent, or the other way round, and their counts."""
    both, shift = guests.both, guests.granule_shift
    for guest in guests.guests:
        said = 0
        for mine, theirs in COUNTERPART.items():
            for page in np.flatnonzero(guest.states == mine).tolist():
                pa = int(guest.pfns[page]) << shift
                host = both.states.get(pa, (Share.OWNED, Share.NOPAGE))[0]
                if host is not theirs and (said := said + 1) <= _MOST:
                    yield Wrong(
                        guest.where(page), f"page {pa:#x} {theirs.name} by the host", f"{host.name} by the host"
                    )
    if both.lent is not None:
        yield from _counted(guests, both.lent)


def _counted(guests: Guests, lent: Mapping[int, int]) -> Iterator[Wrong]:
    """``host_share_guest_count`` against the entries that there are."""
    shift = guests.granule_shift
    parts = [guest.pfns[guest.states == Share.SHARED_BORROWED] for guest in guests.guests]
    pfns, counts = np.unique(np.concatenate(parts) if parts else np.empty(0, np.uint64), return_counts=True)
    found = {int(pfn) << shift: int(count) for pfn, count in zip(pfns.tolist(), counts.tolist(), strict=True)}
    said = 0
    for pa in sorted(found.keys() | lent.keys()):
        there, counted = found.get(pa, 0), lent.get(pa, 0)
        if there > counted or (there < counted and guests.are_all):
            said += 1
            if said <= _MOST:
                actual = f"page {pa:#x} is lent {counted} times (host_share_guest_count)"
                yield Wrong(guests.both.where(pa), f"{there}: so many entries of guests' tables map it", actual)


def not_recorded(guest: Guest) -> Iterator[Wrong]:
    """Where the host's ``pkvm_mappings`` are not what the guest's table maps; nothing where they are not known."""
    mmu = guest.owned.view.mmu
    if mmu.mappings is not None:
        yield from _recorded(guest, mmu.mappings, protected=mmu.protected)


def _recorded(guest: Guest, mappings: Sequence[PkvmMapping], *, protected: bool) -> Iterator[Wrong]:
    view, shift = guest.owned.view, guest.owned.columns.geometry.granule_shift
    starts, firsts, counts = (
        np.array([getattr(each, name) for each in mappings], np.uint64) for name in ("gfn", "pfn", "npages")
    )
    ends = starts + counts
    for before, after in pairwise(mappings):
        if after.gfn < before.gfn + before.npages:
            where = where_view(view, ipa=after.gfn << shift, size=after.npages << shift)
            yield Wrong(
                where, "pkvm_mappings apart from each other", f"one of {before.npages} pages before it reaches in"
            )
            return
    of = np.searchsorted(starts, guest.gfns, "right").astype(np.int64) - 1
    known = of >= 0
    known[known] = guest.gfns[known] < ends[of[known]]
    same = known.copy()
    same[known] = guest.pfns[known] - firsts[of[known]] == guest.gfns[known] - starts[of[known]]
    for page in np.flatnonzero(~same)[:_MOST].tolist():
        gfn = int(guest.gfns[page])
        actual = "nothing"
        if known[page]:
            actual = f"frame {int(firsts[of[page]]) + gfn - int(starts[of[page]]):#x}"
        yield Wrong(guest.where(page), f"a pkvm_mapping of frame {gfn:#x} to {int(guest.pfns[page]):#x}", actual)
    if protected:
        return  # what was taken from the guest by force is poisoned in its table, and still recorded
    gfns = np.sort(guest.gfns)
    there = np.searchsorted(gfns, ends) - np.searchsorted(gfns, starts)
    for at in np.flatnonzero(there.astype(np.uint64) < counts)[:_MOST].tolist():
        one = mappings[at]
        where = where_view(view, ipa=one.gfn << shift, size=one.npages << shift)
        yield Wrong(
            where, f"{one.npages} pages from frame {one.pfn:#x}, by a pkvm_mapping", f"{int(there[at])} are mapped"
        )
