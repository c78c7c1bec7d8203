"""A table as it was seen to become: what is stored, counted, allocated and freed happens to its pages."""

from __future__ import annotations

from collections.abc import Iterable

from inspector.events import ALLOC, ALLOC_EXACT, DEFER, FREE, FREE_EXACT, GET, PUT, STORE, RawEvent
from inspector.model.pages import PageStore


class Truth(PageStore):
    """Pages, counts and what waits for RCU, by what was seen; nothing is judged."""

    __slots__ = ()

    def copied(self) -> Truth:
        """Another one, which goes its own way."""
        other = Truth(self.granule)
        other.pages.update({page: entries[:] for page, entries in self.pages.items()})
        other.counts.update(self.counts)
        other.deferred = list(self.deferred)
        return other

    def advance(self, events: Iterable[RawEvent]) -> None:
        """These happen."""
        for raw in events:
            kind = raw[0]
            if kind == STORE:
                page = raw[1] & -self.granule
                if page in self.pages:
                    self.pages[page][(raw[1] - page) >> 3] = raw[3]
            elif kind == GET:
                self.counts[raw[1]] = self.counts.get(raw[1], 0) + 1
            elif kind == PUT:
                self.counts[raw[1]] = raw[2]
            elif kind == ALLOC:
                self.pages[raw[1]], self.counts[raw[1]] = self.zero[:], 1
            elif kind == FREE:
                self.pages.pop(raw[1], None)
                self.counts.pop(raw[1], None)
                self.deferred = [each for each in self.deferred if each[0] != raw[1]]
            elif kind == DEFER:
                self.deferred.append((raw[1], raw[2]))
            elif kind in (ALLOC_EXACT, FREE_EXACT):
                for page in range(raw[1], raw[1] + raw[2], self.granule):
                    self.pages.pop(page, None)
                    self.counts.pop(page, None)
                    if kind == ALLOC_EXACT:
                        self.pages[page], self.counts[page] = self.zero[:], 1
