"""The states: of a table page, of an entry that owes an invalidation, of a CPU."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from inspector.protocol.facts import Call


class Step(enum.IntEnum):
    """How far the invalidation of an entry has come; only the CPU that broke it moves it on."""

    BROKEN = 0
    GUARDED = 1
    STAGE2 = 2
    STAGE2_DONE = 3
    ISSUED = 4
    CLEAN = 5

    @property
    def text(self) -> str:
        """In words."""
        return _STEPS[self]


_STEPS = {
    Step.BROKEN: "invalid, not yet ordered by a barrier",
    Step.GUARDED: "invalid and ordered, not invalidated in the TLBs",
    Step.STAGE2: "invalidated at stage 2, not yet complete",
    Step.STAGE2_DONE: "invalidated at stage 2, combined stage-1 entries not yet",
    Step.ISSUED: "invalidated, not yet complete",
    Step.CLEAN: "clean",
}


class Kind(enum.Enum):
    """Why an invalidation is owed."""

    BREAK = "was made invalid"
    RESTRICTION = "lost permissions"
    RELAXATION = "gained permissions"


class Life(enum.Enum):
    """Where a table page is between alloc and free."""

    PRIVATE = "allocated, in no live table"
    LIVE = "in the table"
    DETACHED = "taken out of the table"


@dataclass(slots=True, eq=False)
class Owed:
    """An invalidation that is owed for one entry.

    ``base`` and ``size``: the input addresses of the entry; ``low`` and ``high``: what of them is still to be covered,
    where all must be (``whole``: a table that still has entries); ``lost``: bits of permissions and AF taken away;
    ``rule`` and ``why``: which rule it is that nobody
    has kept, so far.
    """

    kind: Kind
    page: Page
    pa: int
    old: int
    lost: int
    level: int
    base: int
    size: int
    table: bool
    whole: bool
    cpu: int
    rule: str
    why: str
    low: int
    high: int
    step: Step = Step.BROKEN


@dataclass(slots=True, eq=False)
class Page:
    """A table page.  ``level`` of its entries and ``base`` are known once it is in the table.

    ``count`` by the events of its references, ``counted`` by its entries; ``surplus``: references that others hold.
    ``parent``: the entry that points to it.  ``top``: of a page taken out, the one whose entry was changed, and
    ``broken`` that entry's debt.  ``writer`` and ``fence``: who wrote to it last, between which barriers.
    ``queued``: the CPU that handed it to RCU, and as which of all that were handed over.
    """

    pa: int
    count: int = 1
    life: Life = Life.PRIVATE
    level: int | None = None
    base: int = 0
    parent: int = 0
    root: bool = False
    values: dict[int, int] = field(default_factory=dict)
    counted: int = 0
    surplus: int = 0
    writer: int = 0
    fence: int = 0
    linked_by: int = 0
    detached_at: int = 0
    deferred: bool = False
    queued: tuple[int, int] = (-1, 0)
    kept: bool = False
    top: Page | None = None
    broken: Owed | None = None


IDLE = Call()


@dataclass(slots=True, eq=False)
class Cpu:
    """A CPU, or a fiber, and the operation that it is in: number ``serial``, 0 for none."""

    number: int
    call: Call = IDLE
    serial: int = 0
    fence: int = 0
    owed: list[Owed] = field(default_factory=list)
    mixed: bool = False
    allocated: list[Page] = field(default_factory=list)
    detached: list[Page] = field(default_factory=list)
    dcache: tuple[int, int] = (0, 0)
    icache: tuple[int, int] = (0, 0)
