"""What one schedule did: its shared accesses, its events, its results, and the tables at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inspector.crosscheck.harness import Fault, Result
from inspector.events import CASFAIL, GET, PUT, STORE, RawEvent

RCU: Final = 3
"""The fiber of the RCU callback; the operations are 0, 1 and 2."""

KINDS: Final = ("read", "store", "cas", "casfail", "get", "put", "count")
"""``enum access_kind`` of harness.h."""

OF_ACCESSES: Final = {"store": STORE, "cas": STORE, "casfail": CASFAIL, "get": GET, "put": PUT}
"""The event that an access of this kind is as well; a store that goes through no macro is none."""


@dataclass(frozen=True, slots=True)
class Access:
    """One access to an entry (``pa`` its address, ``old`` what was there, ``new`` what was stored or offered) or to
    the reference count of the page ``pa`` (``old`` the count before).  ``new`` of a store that went through no macro
    is 0: the compiler does not say the value."""

    fiber: int
    kind: str
    pa: int
    old: int
    new: int


@dataclass(frozen=True)
class Outcome:
    """``schedule`` names the fiber of each access, which is all that is needed to run it again.
    ``events`` and ``accesses`` are in the order of time.

    ``events`` are (fiber, event); ``broken`` are sentences about what does not hold at the end.
    """

    schedule: tuple[int, ...]
    preemptions: int
    accesses: tuple[Access, ...]
    events: tuple[tuple[int, RawEvent], ...]
    results: tuple[Result, ...]
    faults: tuple[Fault, ...]
    broken: tuple[str, ...]
    pages: dict[int, bytes]
    counts: dict[int, int]

    @property
    def sound(self) -> bool:
        """Nothing was misused, and everything holds at the end."""
        return not self.faults and not self.broken
