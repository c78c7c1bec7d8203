"""The course of a trace: which operations when, on which tables, in as many pieces as can be drawn.

When is an operation's number: a trace has no clock.  Operations and tables are numbered as in `inspector.trace.replay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final

from inspector.events import CALL, RET, RawEvent
from inspector.findings import BadInput
from inspector.protocol.facts import operation_name
from inspector.trace.file import Trace
from inspector.trace.functions import PROTECTING
from inspector.trace.performed import CALLBACK, ENDS, NONSENSE, words_of
from inspector.trace.replay import Broken, Differing
from inspector.trace.story import Story, Told
from inspector.trace.taken import taken_over

MOST_PIECES: Final = 12_000


@dataclass
class Piece:
    """Operations of one name on one table among ``width`` that follow one another, the first being ``first``.

    ``failed`` counts those that returned an error, ``events`` those of all of them.
    """

    first: int
    table: int
    name: str
    operations: int = 0
    failed: int = 0
    events: int = 0


@dataclass
class TableLife:
    """A table from the operation that made it (0: it was taken over) to the one that ended it (``None``: it was there
    at the end)."""

    number: int
    pgt: int
    made: int
    ended: int | None = None


@dataclass
class Timeline:
    """``width`` is the number of operations in a piece of time; table 0 is one that was made before, or not known."""

    operations: int = 0
    width: int = 1
    pieces: list[Piece] = field(default_factory=list)
    tables: list[TableLife] = field(default_factory=list)


class _Course:
    def __init__(self, before: Sequence[int]) -> None:
        self.found = Timeline(tables=[TableLife(number, pgt, 0) for number, pgt in enumerate(before, 1)])
        self._pieces: dict[tuple[int, int, str], Piece] = {}
        self._tables = {table.pgt: table for table in self.found.tables}
        self._running: dict[int, Piece] = {}

    def take(self, lane: int, raw: RawEvent) -> None:
        if raw[0] == CALL:
            if raw[1] != PROTECTING:
                self._begin(lane, raw)
            return
        piece = self._running.get(lane)
        if piece is None:
            return
        piece.events += 1
        if raw[0] == RET:
            piece.failed += raw[1] < 0 and piece.name not in ("mkyoung", "mkold")
            del self._running[lane]

    def _begin(self, lane: int, raw: RawEvent) -> None:
        words, name = words_of(str(raw[2])), operation_name(raw[1])
        self.found.operations += 1
        number, pgt = self.found.operations, words.get("pgt", 0)
        if "ia_bits" in words:
            self._tables[pgt] = TableLife(len(self.found.tables) + 1, pgt, number)
            self.found.tables.append(self._tables[pgt])
        if name.startswith("hyp_") and 0 in self._tables:
            self._tables[pgt] = self._tables.pop(0)
        table = self._tables.get(pgt) if raw[1] != CALLBACK else None
        if table is not None and name in ENDS:
            table.ended = number
            del self._tables[pgt]
        self._running[lane] = piece = self._piece(number, table.number if table is not None else 0, name)
        piece.operations += 1

    def _piece(self, number: int, table: int, name: str) -> Piece:
        while True:
            first = (number - 1) // self.found.width * self.found.width + 1
            known = self._pieces.get((first, table, name))
            if known is not None:
                return known
            if len(self._pieces) < MOST_PIECES:
                made = self._pieces[first, table, name] = Piece(first, table, name)
                return made
            self._double()

    def _double(self) -> None:
        """Pieces of twice the width."""
        self.found.width *= 2
        before, self._pieces = self._pieces, {}
        moved: dict[int, Piece] = {}
        for piece in before.values():
            first = (piece.first - 1) // self.found.width * self.found.width + 1
            into = self._pieces.setdefault((first, piece.table, piece.name), Piece(first, piece.table, piece.name))
            into.operations += piece.operations
            into.failed += piece.failed
            into.events += piece.events
            moved[id(piece)] = into
        self._running = {lane: moved[id(piece)] for lane, piece in self._running.items()}

    def end(self) -> Timeline:
        self.found.pieces = sorted(self._pieces.values(), key=lambda piece: (piece.first, piece.table, piece.name))
        return self.found


def timeline(events: Iterable[tuple[int, RawEvent]], before: Sequence[int] = ()) -> Timeline:
    """The course of ``events``; ``before`` are the addresses of the pgt of tables that were taken over.

    Raises `BadInput` for what no kernel does.
    """
    course = _Course(before)
    try:
        for lane, raw in events:
            course.take(lane, raw)
    except NONSENSE as error:
        raise BadInput(f"after operation {course.found.operations} the trace makes no sense: {error}") from None
    return course.end()


def timeline_of(path: Path) -> Timeline:
    """That of a file.  Raises `BadInput`."""
    trace = Trace(path)
    if trace.capture is None:
        return timeline(trace.events())
    return timeline(trace.events(), [taken.pgt for taken in taken_over(trace.capture, trace.header).tables])


MOST_EVENTS: Final = 300
"""Of one operation, that are told."""


@dataclass
class Explained:
    """The first events of an operation, and how many more there are."""

    events: list[Told] = field(default_factory=list)
    more: int = 0


def explained(path: Path, numbers: set[int]) -> dict[int, Explained]:
    """Some operations event by event; those that the trace has not are left out.  Raises `BadInput`."""
    found: dict[int, Explained] = {}
    if not numbers:
        return found
    missing = set(numbers)
    for told in Story(path).events():
        if told.operation in numbers:
            into = found.setdefault(told.operation, Explained())
            if len(into.events) < MOST_EVENTS:
                into.events.append(told)
            else:
                into.more += 1
            if told.raw[0] == RET:
                missing.discard(told.operation)
                if not missing:
                    break
    return found


# --- with what was found ---

MOST_FINDINGS: Final = 400
MOST_EXPLAINED: Final = 24
"""Operations that are shown event by event: the first ones of each kind of finding."""


@dataclass(frozen=True)
class FoundHere:
    """A rule that is broken (``kind`` is its id), or what the model does otherwise (``model``), and where."""

    operation: int
    table: int
    kind: str
    call: str
    what: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Course:
    """A trace's course under a name, with the first findings, how many more there are, and some operations told."""

    label: str
    timeline: Timeline
    findings: Sequence[FoundHere]
    more: int
    told: Mapping[int, Explained]


def course(label: str, path: Path, broken: Sequence[Broken], differing: Sequence[Differing]) -> Course:
    """Of a trace file and the verdict on it.  Raises `BadInput`."""
    found = [*map(_broken, broken), *map(_differing, differing)]
    found.sort(key=lambda one: one.operation)
    return Course(
        label, timeline_of(path), found[:MOST_FINDINGS], len(found[MOST_FINDINGS:]), explained(path, _told(found))
    )


def _told(found: Sequence[FoundHere]) -> set[int]:
    """The operations to be told: of each kind the first, then the second, as long as there is room."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for one in found:
        if one.operation:
            kinds.setdefault((one.kind, one.what), []).append(one.operation)
    turns = (number for turn in zip_longest(*kinds.values()) for number in turn if number is not None)
    return set(islice(dict.fromkeys(turns), MOST_EXPLAINED))


def _by(callers: Sequence[str]) -> tuple[str, ...]:
    return (f"called by: {' < '.join(callers)}",) if callers else ()


def _broken(one: Broken) -> FoundHere:
    told = one.violation
    lines = (*told.lines(), *_by(one.callers))
    return FoundHere(one.operation, one.table, told.rule, one.call, told.what, lines)


def _differing(one: Differing) -> FoundHere:
    sides = (("model", one.difference.model), ("kernel", one.difference.kernel))
    events = (line for side, told in sides for line in (f"{side}:", *(f"  {event}" for event in told)))
    lines = (one.difference.what, *events, *_by(one.callers))
    return FoundHere(one.operation, one.table, "model", one.call, one.difference.what, lines)
