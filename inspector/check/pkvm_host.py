"""A protected host's stage 2 beside EL2's stage 1, and the states that the hypervisor keeps of each page.

The hypervisor's state of a page is in ``struct hyp_page`` (6.18, 7.3), and up to 6.12 in software bits [56:55] of EL2's
leaf of it in the half that maps memory (kernel.md 12.2); where the structure has the host's state alone, the
hypervisor's is not known; private mappings (fixmap, stacks, vectors, devices) are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np

from inspector.check.context import Context
from inspector.check.own import Own, linear
from inspector.check.places import where_entry, where_view
from inspector.codec import Descriptor
from inspector.codec.bulk import Flat, Words
from inspector.findings import Where
from inspector.snapshot import Share

_EL2 = 2  # PSTATE.EL, M[3:2]
_MOST = 1 << 18
"""Pages of one entry that are looked at: a block of 1G."""


COUNTERPART = {Share.SHARED_BORROWED: Share.SHARED_OWNED, Share.SHARED_OWNED: Share.SHARED_BORROWED}
"""How a page stands with the other of the two that share it."""


@dataclass(frozen=True, eq=False)
class Hosts:
    """The host's stage 2 beside EL2's stage 1."""

    host: Own
    hyp: Own

    @cached_property
    def _entries(self) -> tuple[Words, Words, Flat]:
        """The entries that are no table pointers, by address: first address, last, position."""
        columns = self.host.columns
        at = np.flatnonzero(~self.host.table)
        at = at[np.argsort(columns.ia[at], kind="stable")]
        starts = columns.ia[at]
        return starts, starts + (columns.size[at] - np.uint64(1)), at

    def entry(self, pa: int) -> int | None:
        """The position of the host's entry for the page at ``pa``; ``None``: nothing there, and the host owns it."""
        starts, lasts, at = self._entries
        found = int(np.searchsorted(starts, np.uint64(pa), "right")) - 1
        return int(at[found]) if found >= 0 and int(lasts[found]) >= pa else None

    def descriptor(self, pa: int) -> Descriptor | None:
        at = self.entry(pa)
        return None if at is None else self.host.columns.decoded(at)

    def where(self, pa: int) -> Where:
        """The place of the host's entry for ``pa``."""
        at = self.entry(pa)
        if at is None:
            return where_view(self.host.view, ipa=pa, size=self.host.columns.geometry.granule)
        return where_entry(self.host.view, self.host.columns, at)

    def pages(self, start: int, size: int) -> Iterator[int]:
        """The pages of RAM in a range, as far as a host's tables go page by page."""
        granule = self.hyp.columns.geometry.granule
        parts = (
            range(max(start, low), min(start + size, high), granule) for low, high in self.hyp.view.capture.host.ram
        )
        return islice(chain.from_iterable(parts), _MOST)

    @property
    def in_entries(self) -> bool:
        """Page states are in software bits of the tables' entries."""
        return self.hyp.view.table.states_in_entries

    @cached_property
    def states(self) -> Mapping[int, tuple[Share, Share]]:
        """The states (host's, hypervisor's) of every page that is not just the host's, by PA."""
        granule = self.hyp.columns.geometry.granule
        recorded = self.hyp.view.table.states
        if recorded is not None:
            return {
                pa: (_share(run.host), _share(run.hyp)) for run in recorded for pa in range(run.start, run.end, granule)
            }
        found: dict[int, tuple[Share, Share]] = {}
        for pa, state in self._leaf_states():
            found[pa] = self.host_state(pa), state
        columns = self.host.columns
        shared = self.host.leaf & (columns.raw >> np.uint64(55) & np.uint64(3) != 0)
        for pa in columns.output[shared].tolist():
            found.setdefault(pa, (self.host_state(pa), Share.NOPAGE))
        return found

    def _leaf_states(self) -> Iterator[tuple[int, Share]]:
        """By software bits: each page of EL2's half for memory."""
        columns, chosen = self.hyp.columns, linear(self.hyp)
        if chosen is None:
            return
        some = columns.at(np.flatnonzero(chosen))
        for pa, size, raw in zip(some.output.tolist(), some.size.tolist(), some.raw.tolist(), strict=True):
            for page in self.pages(pa, size):
                yield page, Share(raw >> 55 & 3)

    @cached_property
    def lent(self) -> Mapping[int, int] | None:
        """To how many entries of guests' tables each page is lent, as the hypervisor counts; ``None``: it does not."""
        runs = self.hyp.view.table.states
        if runs is None or any(run.guests is None for run in runs):
            return None
        granule = self.hyp.columns.geometry.granule
        return {pa: run.guests for run in runs if run.guests for pa in range(run.start, run.end, granule)}

    def host_state(self, pa: int) -> Share:
        """The host's state of a page by its entry (kernel.md 12.2)."""
        found = self.descriptor(pa)
        if found is None or not found.raw:
            return Share.OWNED
        return Share(found.sw & 3) if found.valid else Share.NOPAGE


def _share(state: int) -> Share:
    """A state of ``struct hyp_page``; what is none of the three of a page that is there is ``NOPAGE``."""
    return Share(state) if state < Share.NOPAGE else Share.NOPAGE


def in_transition(context: Context) -> str | None:
    """Why what contradicts may pass: pages change hands at EL2 alone, which is not interrupted."""
    for cpu in context.capture.host.cpus:
        if cpu.registers.get("cpsr", 0) >> 2 & 3 == _EL2:
            return f"legal while a page changes hands: CPU {cpu.index} is at EL2"
    return None


def both_tables(context: Context) -> Iterator[Hosts]:
    """Where the states of pages are known: a kernel that has them in hyp_vmemmap, unread, tells nothing."""
    if context.hyp and context.host_stage2:
        table = context.hyp[0].view.table
        if table.states is not None or table.states_in_entries:
            yield Hosts(context.host_stage2[0], context.hyp[0])


def runs_of_pages(wrong: list[int], granule: int) -> Iterator[tuple[int, str]]:
    """Runs of wrong pages: the first, and how many there are, in words."""
    start = 0
    for number, pa in enumerate(wrong):
        if number + 1 == len(wrong) or wrong[number + 1] != pa + granule:
            count = number + 1 - start
            yield wrong[start], f" ({count} pages)" if count > 1 else ""
            start = number + 1
