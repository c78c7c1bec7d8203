"""What can be judged of operations whose stores are not seen: each by its arguments, return and invalidations.

Which entries an operation found is not known, so an invalidation that is missing shows only where the kernel always
makes one; one that is there is held to what it must be (DDI 0487 D8.17, TLB maintenance; docs/invariants.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inspector.events import BARRIER, CALL, RET, TLBI, RawEvent, Source, format_raw
from inspector.findings import BadInput
from inspector.generations import GENERATIONS
from inspector.protocol.facts import operation_name
from inspector.protocol.rules import Violation
from inspector.protocol.tlbi import TLBIS, Reach, Stages, is_of_el2
from inspector.trace.lockstep import Verdicts
from inspector.trace.replay import Broken, Counts, Differing

JUDGED: Final[Mapping[str, str]] = {
    "B2": "a DSB before each invalidation at stage 2, and one that waits for it before the operation returns",
    "B3": "an invalidation is of what the operation is about, and for all CPUs (in relax_perms this one is enough); "
    "relax_perms makes one when it returns 0",
    "B4": "an invalidation by IPA is complete, and followed by one of stage 1 as far reaching",
    "B6": "the range invalidations of an unmap together cover all of it",
}
"""The rules, and as much of each as needs no stores."""

_STAGE2: Final = frozenset({Stages.TWO, Stages.BOTH})
_ORDERS: Final = frozenset({"ish", "ishst", "sy", "osh", "oshst", "st"})
_COMPLETES: Final = frozenset({"ish", "sy", "osh"})
_HISTORY: Final = 12
_LOCAL: Final = frozenset({"relax_perms"})
"""Whose entry can only gain permissions, so that other CPUs' stale entries do no harm (kernel.md 7.3)."""
_ENDS: Final = frozenset({"destroy", "destroy_pgd"})


def is_by_gdb(header: Mapping[str, Any]) -> bool:
    """The trace was made by gdb: no store is in it."""
    return header.get("source") == Source.GDB


@dataclass
class _Operation:
    """One that a lane is in, with the invalidations and barriers that it made."""

    number: int
    lane: int
    name: str
    table: int
    text: str
    low: int
    high: int
    events: list[RawEvent] = field(default_factory=list)


class OperationJudge:
    """Takes events in their order as `inspector.trace.replay.Judge` does; ``counts`` and ``broken`` grow."""

    def __init__(self, header: Mapping[str, Any]) -> None:
        """Raises `BadInput` for a kernel that is not known."""
        if header.get("generation") not in GENERATIONS or header.get("page_shift") not in (12, 14, 16):
            raise BadInput(f"the trace is of a kernel that is not known here: generation {header.get('generation')!r}")
        self._page_shift: int = header["page_shift"]
        self.counts = Counts()
        self.broken: list[Broken] = []
        # Without stores nothing is performed again.
        self.differing: list[Differing] = []
        self.verdicts = Verdicts()
        self._tables: dict[int, int] = {}
        self._lanes: dict[int, _Operation] = {}

    def take(self, lane: int, raw: RawEvent) -> None:
        """One event."""
        self.counts.events += 1
        if raw[0] == CALL:
            self._begin(lane, raw)
            return
        operation = self._lanes.get(lane)
        if operation is None:
            return
        if raw[0] == RET:
            del self._lanes[lane]
            self._end(operation, raw[1])
            return
        if raw[0] == BARRIER and raw[1] == "hvc":
            self.counts.hypercalls += 1
        elif raw[0] == TLBI:
            self.counts.invalidations[raw[1]] += 1
            if is_of_el2(raw[1]):
                return
        operation.events.append(raw)

    def _begin(self, lane: int, raw: RawEvent) -> None:
        _, function, arguments = raw
        words = dict(word.partition("=")[::2] for word in str(arguments).split(","))
        name = operation_name(function)
        counts = self.counts
        counts.operations += 1
        counts.by_name[name] += 1
        counts.unfinished += lane in self._lanes
        pgt = _number(words, "pgt")
        if "ia_bits" in words:
            counts.tables_made += 1
            self._tables.pop(pgt, None)
        table = self._tables.setdefault(pgt, len(self._tables) + 1) if pgt else 0
        low = _number(words, "addr") & -(1 << self._page_shift)
        high = _number(words, "addr") + max(_number(words, "size"), 1)
        self._lanes[lane] = _Operation(counts.operations, lane, name, table, format_raw(raw), low, high)

    def _end(self, operation: _Operation, returned: int) -> None:
        counts = self.counts
        counts.returns[operation.name, returned] += 1
        counts.tables_freed += operation.name in _ENDS
        for rule, what, at in (*self._ordered(operation), *self._reaching(operation, returned)):
            before = operation.events if at is None else operation.events[: operation.events.index(at)]
            history = tuple(f"CPU {operation.lane}: {format_raw(each)}" for each in before[-_HISTORY:])
            where = f"IPA {operation.low:#x} to {operation.high:#x}"
            violation = Violation(
                rule, what, where, f"returned {returned}", operation.lane, operation.name, at, history
            )
            self.broken.append(Broken(operation.number, operation.table, operation.text, violation))

    def _ordered(self, operation: _Operation) -> Iterator[tuple[str, str, RawEvent | None]]:
        """B2 and B4: barriers, and stage 1 after stage 2."""
        ordered = local = by_ipa = complete = False
        waiting = False
        for raw in operation.events:
            if raw[0] == BARRIER:
                ordered |= raw[1] in _ORDERS or raw[1].startswith("nsh")
                if raw[1] in _COMPLETES or (local and raw[1] == "nsh"):
                    waiting, complete = False, True
                continue
            kind = TLBIS.get(raw[1])
            if raw[0] != TLBI or kind is None:
                continue
            if kind.stages in _STAGE2:
                if not ordered:
                    yield "B2", "an invalidation comes before the DSB that orders what it is for", raw
                by_ipa, complete, local = kind.stages is Stages.TWO, False, kind.local
            elif by_ipa:
                if not complete:
                    yield "B4", "stage 1 is invalidated before the invalidation by IPA is complete", raw
                if kind.local and not local:
                    yield "B4", "stage 1 is invalidated on this CPU alone, stage 2 on all", raw
                by_ipa = ordered = False
            waiting = True
        if by_ipa:
            yield "B4", "no stage 1 is invalidated after an invalidation by IPA", None
        if waiting:
            yield "B2", "the operation returns before its invalidation is complete", None

    def _reaching(self, operation: _Operation, returned: int) -> Iterator[tuple[str, str, RawEvent | None]]:
        """B3 and B6: what is invalidated, and where."""
        covered: list[tuple[int, int]] = []
        ranges = False
        for raw in operation.events:
            kind = TLBIS.get(raw[1]) if raw[0] == TLBI else None
            if kind is None or kind.stages not in _STAGE2:
                continue
            if kind.local and operation.name not in _LOCAL:
                yield "B3", "an invalidation that is owed to all CPUs is for this one alone", raw
            low, high = self._covers(raw) if kind.reach is not Reach.ALL else (0, 1 << 64)
            ranges |= kind.reach is Reach.RANGE
            covered.append((low, high))
            if high <= operation.low or operation.high <= low:
                yield "B3", f"the operation is not about what is invalidated, {low:#x} to {high:#x}", raw
        if operation.name == "relax_perms" and returned == 0 and not covered:
            yield "B3", "permissions were relaxed and no invalidation made", None
        if operation.name == "unmap" and ranges:
            missing = _first_gap(covered, operation.low, operation.high & -(1 << self._page_shift))
            if missing is not None:
                yield "B6", f"the range invalidations leave out {missing:#x}", None

    def _covers(self, raw: RawEvent) -> tuple[int, int]:
        """The addresses that are invalidated: those of a leaf at the hinted level, else of a page."""
        _, _, start, level, pages = raw
        if pages is not None:
            return start, start + (pages << self._page_shift)
        shift = self._page_shift
        if level is not None:
            shift += (self._page_shift - 3) * (3 - level)
        low = start >> shift << shift
        return low, low + (1 << shift)

    def finish(self) -> None:
        """No more events: what was begun and not ended is counted."""
        self.counts.unfinished += len(self._lanes)


def _number(words: Mapping[str, str], name: str) -> int:
    try:
        return int(words.get(name, "0"), 0)
    except ValueError:
        return 0


def _first_gap(parts: list[tuple[int, int]], low: int, high: int) -> int | None:
    """The first address of ``[low, high)`` that is in none of the parts."""
    for start, end in sorted(parts):
        if start > low:
            break
        low = max(low, end)
    return low if low < high else None
