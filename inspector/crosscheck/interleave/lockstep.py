"""The model on the schedule that the kernel's code took.

Each operation of the model is a coroutine that stops before every access to an entry or to a count; it is resumed in
the order of the kernel's accesses, and must make the same ones, find the same values, do the same things in between,
and leave the same tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from greenlet import getcurrent, greenlet

from inspector.codec import GRANULES
from inspector.crosscheck.interleave.outcome import RCU, Access, Outcome
from inspector.events import RawEvent, format_raw
from inspector.model.destroy import free_unlinked
from inspector.model.operations import Operation
from inspector.model.pages import MemoryCache, NoSuchPage, PageStore
from inspector.model.session import Session, Setup

ARENA = 1024
"""Pages that one fiber may allocate: ``ARENA`` of interleave.c."""

_ON_ENTRY = frozenset({"read", "store", "cas", "casfail"})


@dataclass(frozen=True)
class Disagreement:
    """Where the model first does something else: after how many accesses, and both sides in words."""

    after: int
    model: str
    kernel: str


class _Entries(array):  # type: ignore[type-arg]
    """The entries of a page: whoever reads one in a coroutine stops first.  A store follows the read of its event, a
    cmpxchg the read of what is there, so that these are one access each."""

    page = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, int):
            _stop("entry", self.page + 8 * index)
        return super().__getitem__(index)


def _stop(kind: str, pa: int) -> None:
    here = getcurrent()
    if isinstance(here, _Fiber) and here.parent is not None:
        here.parent.switch((kind, pa))


class _Fiber(greenlet):
    """An operation of the model that runs as a coroutine."""

    number: int


class _Store(PageStore):
    """Table pages whose accesses stop a coroutine, and of which each coroutine allocates from an arena of its own."""

    __slots__ = ("arenas",)

    def __init__(self, granule: int) -> None:
        super().__init__(granule)
        self.arenas: dict[int, int] = {}

    def _watched(self, page: int) -> None:
        entries = _Entries("Q", self.pages[page])
        entries.page = page
        self.pages[page] = entries

    def zalloc(self, cache: MemoryCache | None = None) -> int:
        """As of the base, from the arena of who asks."""
        here = getcurrent()
        if not isinstance(here, _Fiber):
            return super().zalloc(cache)
        self.next_address, kept = self.arenas[here.number], self.next_address
        page = super().zalloc(cache)
        self.arenas[here.number], self.next_address = self.next_address, kept
        if page:
            self._watched(page)
        return page

    def get(self, page: int) -> None:
        """As of the base."""
        _stop("get", page)
        super().get(page)

    def put(self, page: int) -> None:
        """As of the base."""
        _stop("put", page)
        super().put(page)

    def page_count(self, page: int) -> int:
        """As of the base."""
        _stop("count", page)
        return super().page_count(page)

    def count_or_none(self, page: int) -> int:
        """As of the base."""
        _stop("count", page)
        return super().count_or_none(page)


class Lockstep:
    """The model in a starting state, from which it takes any number of schedules.

    ``start`` are the operations that lead there, ``operations`` those that are interleaved.
    """

    def __init__(self, setup: Setup, start: Sequence[Operation], operations: Sequence[Operation]) -> None:
        self._session = session = Session(setup)
        self._store = store = _Store(1 << GRANULES[setup.granule])
        session.store = store
        for operation in start:
            session.apply(operation)
            store.events.clear()
        assert session.pgt is not None
        session.pgt.each_read = True
        self._operations = tuple(operations)
        self._pages = {page: bytes(entries) for page, entries in store.pages.items()}
        self._counts = dict(store.counts)
        self._deferred = list(store.deferred)

    def _reset(self) -> None:
        store = self._store
        store.pages.clear()
        for page, data in self._pages.items():
            store.pages[page] = array("Q", data)
            store._watched(page)
        store.counts.clear()
        store.counts.update(self._counts)
        store.deferred[:] = self._deferred
        store.events.clear()
        used = store.next_address
        store.arenas = {number: used + number * ARENA * store.granule for number in range(RCU + 1)}

    def follow(self, outcome: Outcome) -> Disagreement | None:
        """Take the schedule of ``outcome``: where the model does otherwise, ``None`` when it does the same."""
        self._reset()
        run = _Run(self._session, self._store, self._operations)
        try:
            for at, access in enumerate(outcome.accesses):
                if (wrong := run.step(access)) is not None:
                    return Disagreement(at, wrong, _said(access))
        except NoSuchPage as error:
            return Disagreement(at, str(error), _said(access))
        finally:
            run.abandon()
        return run.compare(outcome)


def _said(access: Access) -> str:
    if access.kind in _ON_ENTRY:
        return f"{access.kind} of the entry at {access.pa:#x}, which holds {access.old:#x}"
    return f"{access.kind} of the page {access.pa:#x}, with count {access.old}"


class _Run:
    """One schedule of the model."""

    def __init__(self, session: Session, store: _Store, operations: Sequence[Operation]) -> None:
        self.session, self.store = session, store
        self.returns: dict[int, int] = {}
        self.events: list[tuple[int, RawEvent]] = []
        self.fibers: dict[int, _Fiber] = {}
        self.stands: dict[int, tuple[str, int] | None] = {}
        for number, operation in enumerate(operations):
            self._begin(number, operation)

    def _begin(self, number: int, operation: Operation | tuple[int, int]) -> None:
        def body() -> None:
            if isinstance(operation, Operation):
                outcome = self.session.apply(operation)
                self.returns[number] = outcome.value if operation.name == "mkyoung" else outcome.ret
            else:
                free_unlinked(self.session.stage2, *operation)

        fiber = _Fiber(body)
        fiber.number = number
        self.fibers[number] = fiber
        self.stands.pop(number, None)

    def _go_on(self, number: int) -> None:
        """Up to the next access, which is not made yet."""
        before = len(self.store.events)
        answer = self.fibers[number].switch()
        self.stands[number] = answer if isinstance(answer, tuple) else None
        self.events += [(number, raw) for raw in self.store.events[before:]]

    def step(self, access: Access) -> str | None:
        """The next access of a fiber; what the model does in its place, ``None``: the same."""
        number = access.fiber
        if number == RCU and self.stands.get(RCU) is None:
            table = next((each for each in self.store.deferred if each[0] == access.pa & -self.store.granule), None)
            if table is None:
                return "hands no such table to RCU"
            self.store.deferred.remove(table)
            self._begin(RCU, table)
        if number not in self.stands:
            self._go_on(number)
        place = self.stands[number]
        if place is None:
            return "has ended"
        kind, pa = place
        wanted = "entry" if access.kind in _ON_ENTRY else access.kind
        if (kind, pa) != (wanted, access.pa):
            return f"stands before {'an entry' if kind == 'entry' else kind} at {pa:#x}"
        page = access.pa & -self.store.granule
        if wanted == "entry":
            entries = self.store.pages.get(page)
            found = None if entries is None else memoryview(entries)[(access.pa - page) // 8]
        else:
            found = self.store.counts.get(page, 0)
        if found != access.old:
            return f"finds {found if found is None else hex(found)} there"
        before = len(self.store.events)
        self._go_on(number)
        if access.kind in ("store", "cas", "casfail"):
            wrong = self._stored(access, self.store.events[before:])
            if wrong:
                return wrong
        return None

    def _stored(self, access: Access, events: list[RawEvent]) -> str | None:
        if access.kind == "store" and not access.new:
            return None  # a store by no macro: its value was not told
        first = format_raw(events[0]) if events else "nothing"
        kind = "casfail" if access.kind == "casfail" else "store"
        if not first.startswith(f"{kind} pa={access.pa:#x}") or f"new={access.new:#x}" not in first:
            return f"does: {first}"
        return None

    def compare(self, outcome: Outcome) -> Disagreement | None:
        """What is left to compare at the end."""
        end = len(outcome.accesses)
        for number, place in self.stands.items():
            if place is not None:
                return Disagreement(end, f"operation {number} has not ended", "it has")
        for mine, theirs in zip_longest(self.events, outcome.events):
            if mine != theirs:
                texts = [f"{one[0]}: {format_raw(one[1])}" if one else "nothing" for one in (mine, theirs)]
                return Disagreement(end, *texts)
        for number, result in enumerate(outcome.results):
            value = self.returns.get(number, 0)
            if value >> 63 == 1:
                value -= 1 << 64
            if value != result.ret:
                return Disagreement(end, f"operation {number} returns {value}", f"it returns {result.ret}")
        pages = {page: entries.tobytes() for page, entries in self.store.pages.items()}
        if pages != outcome.pages:
            odd = [
                hex(page) for page in pages.keys() | outcome.pages.keys() if pages.get(page) != outcome.pages.get(page)
            ]
            return Disagreement(end, f"other contents of {', '.join(odd)}", "")
        if self.store.counts != outcome.counts:
            return Disagreement(end, f"counts {dict(self.store.counts)}", f"counts {outcome.counts}")
        return None

    def abandon(self) -> None:
        """Let go of coroutines that stand somewhere."""
        for fiber in self.fibers.values():
            if fiber and not fiber.dead:
                fiber.throw()
