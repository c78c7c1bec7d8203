"""A schedule for a reader: one column for each operation, one line for each access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from inspector.codec import GRANULES
from inspector.crosscheck.interleave.outcome import OF_ACCESSES, RCU, Access, Outcome
from inspector.crosscheck.verdict import WIDTH
from inspector.events import RawEvent, format_raw
from inspector.model.session import Setup

_LONGEST = 60
"""Lines that are shown; the middle of a longer schedule is left out."""


@dataclass(frozen=True)
class _Names:
    """Short names: of pages, in the order in which they are met, of tables in entries, of the LOCKED entry."""

    pages: dict[int, str]
    shift: int
    locked: int

    def entry(self, pa: int) -> str:
        """``T0[3]``."""
        return f"{self.pages[pa >> self.shift]}[{(pa & (1 << self.shift) - 1) // 8}]"

    def value(self, value: int) -> str:
        """What an entry holds: ``LOCKED``, ``table T1``, or the number."""
        if self.locked and value == self.locked:
            return "LOCKED"
        table = self.pages.get((value & (1 << 48) - 1) >> self.shift)
        return f"table {table}" if table is not None and value & (1 << self.shift) - 1 == 3 else f"{value:#x}"


def _names(outcome: Outcome, setup: Setup) -> _Names:
    shift = GRANULES[setup.granule]
    pages = dict.fromkeys(access.pa >> shift for access in outcome.accesses)
    return _Names({page: f"T{number}" for number, page in enumerate(pages)}, shift, setup.behaviours.locked_value)


def _text(access: Access, names: _Names) -> str:
    if access.kind in ("get", "put", "count"):
        return f"{access.kind} {names.pages[access.pa >> names.shift]} ({access.old})"
    place, old, new = names.entry(access.pa), names.value(access.old), names.value(access.new)
    if access.kind == "read":
        return f"{place} {old}"
    if access.kind == "store":
        return f"{place} = {new}"
    if access.kind == "cas":
        return f"{place} {old} => {new}"
    return f"{place} {old}: lost"


def _merged(outcome: Outcome) -> Iterator[tuple[int, Access | RawEvent]]:
    """Fiber by fiber, accesses and those events that are none, in the order of time.

    An event that is no access comes before the next access of its fiber that is one as well.
    """
    events = {fiber: [raw for of, raw in outcome.events if of == fiber] for fiber in set(outcome.schedule)}
    left = {fiber: sum(access.fiber == fiber for access in outcome.accesses) for fiber in events}
    for access in outcome.accesses:
        fiber, own = access.fiber, events[access.fiber]
        left[fiber] -= 1
        kind = OF_ACCESSES.get(access.kind)
        if any(raw[0] == kind and raw[1] == access.pa for raw in own):
            while (raw := own.pop(0))[0] != kind or raw[1] != access.pa:
                yield fiber, raw
        yield fiber, access
        if not left[fiber]:
            yield from ((fiber, raw) for raw in own)


def schedule_text(schedule: Sequence[int]) -> str:
    """Who makes how many accesses, in turn: ``A12 B3 A5 R4`` (R the RCU callback)."""
    return " ".join(f"{'ABCR'[fiber]}{sum(1 for _ in turns)}" for fiber, turns in groupby(schedule))


def _event(raw: RawEvent, names: _Names) -> str:
    pa = raw[1] if len(raw) > 1 and isinstance(raw[1], int) else 0
    page = names.pages.get(pa >> names.shift)
    text = format_raw(raw).replace("kind=", "").replace(" pa=", " ")
    return text if page is None else f"{text.split()[0]} {page}"


def _is_empty(step: tuple[int, Access | RawEvent]) -> tuple[int, int] | None:
    """Fiber and entry of a read that finds nothing."""
    fiber, access = step
    return (fiber, access.pa) if isinstance(access, Access) and access.kind == "read" and not access.old else None


def _steps(outcome: Outcome, names: _Names) -> Iterator[tuple[int, str]]:
    """Fiber and text of each line; one line for a fiber's reads of several empty entries of one table in a row."""
    waiting: list[tuple[int, int]] = []

    def flushed() -> Iterator[tuple[int, str]]:
        places = [names.entry(pa) for _, pa in waiting]
        if len(set(places)) > 2:
            yield waiting[0][0], f"{places[0]} to {places[-1]} 0x0"
        else:
            yield from ((fiber, f"{place} 0x0") for (fiber, _), place in zip(waiting, places, strict=True))
        waiting.clear()

    for step in _merged(outcome):
        empty = _is_empty(step)
        if waiting and (
            empty is None or (empty[0], empty[1] >> names.shift) != (waiting[0][0], waiting[0][1] >> names.shift)
        ):
            yield from flushed()
        if empty is not None:
            waiting.append(empty)
            continue
        fiber, one = step
        yield fiber, _text(one, names) if isinstance(one, Access) else _event(one, names)
    yield from flushed()


def columns(outcome: Outcome, setup: Setup) -> Iterator[str]:
    """Lines of at most `WIDTH` columns; operation A on the left, the RCU callback on the right."""
    names = _names(outcome, setup)
    fibers = [*range(len(outcome.results)), *([RCU] if RCU in outcome.schedule else [])]
    width = (WIDTH - 4) // len(fibers)
    titles = ["RCU" if fiber == RCU else "ABC"[fiber] for fiber in fibers]
    yield "".join(f"{title:{width}}" for title in titles).rstrip()
    steps = list(_steps(outcome, names))
    skipped = range(_LONGEST // 2, len(steps) - _LONGEST // 2) if len(steps) > _LONGEST else range(0)
    for at, (fiber, text) in enumerate(steps):
        if at in skipped:
            if at == skipped.start:
                yield f"... {len(skipped)} lines ..."
            continue
        before = width * fibers.index(fiber)
        yield " " * min(before, max(0, WIDTH - 4 - len(text))) + text
    for fiber, result in enumerate(outcome.results):
        yield f"{'ABC'[fiber]} returns {result.ret}"
