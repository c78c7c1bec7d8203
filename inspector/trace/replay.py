"""A trace judged: every operation of every table through the protocol's automaton, and a count of all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inspector.codec import Geometry
from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    BARRIER,
    CALL,
    DEFER,
    FREE,
    FREE_EXACT,
    GET,
    PUT,
    RET,
    STORE,
    TLBI,
    RawEvent,
    format_raw,
)
from inspector.findings import BadInput
from inspector.generations import GENERATIONS, WalkFlags
from inspector.protocol.automaton import Protocol
from inspector.protocol.facts import Call, facts_of, operation_name
from inspector.protocol.rules import Violation

_CALLBACK = "stage2_free_unlinked_table_rcu_cb"
_ON_PAGE = frozenset({GET, PUT, ALLOC, FREE, DEFER, ALLOC_EXACT, FREE_EXACT})
_ENDS = frozenset({"destroy", "destroy_pgd"})


@dataclass(frozen=True)
class Broken:
    """A rule that an operation breaks: its number in the trace, the table's, the call as it stands there."""

    operation: int
    table: int
    call: str
    violation: Violation


@dataclass
class Counts:
    """What a trace holds.  ``unknown`` are operations on tables that were made before it began; ``hypercalls`` calls of
    the hypervisor, which does what is not seen; ``returns`` counts return values by operation, ``invalidations`` by
    instruction."""

    operations: int = 0
    events: int = 0
    unknown: int = 0
    unfinished: int = 0
    hypercalls: int = 0
    tables_made: int = 0
    tables_freed: int = 0
    pages_made: int = 0
    pages_freed: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    returns: Counter[tuple[str, int]] = field(default_factory=Counter)
    invalidations: Counter[str] = field(default_factory=Counter)


@dataclass
class _Table:
    number: int
    protocol: Protocol


@dataclass
class _Lane:
    """The operation that a lane is in; ``table`` is not known yet, or never will be, when ``None``."""

    number: int
    name: str
    text: str
    call: Call
    table: _Table | None = None


class Judge:
    """Takes events in their order; ``counts`` and ``broken`` grow.

    ``header`` is the trace's: generation and page size.  Raises `BadInput` for a generation that is not known.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        label = header.get("generation")
        if label not in GENERATIONS or header.get("page_shift") not in (12, 14, 16):
            raise BadInput(f"the trace is of a kernel that is not known here: generation {label!r}")
        self._generation = GENERATIONS[label]
        self._page_shift: int = header["page_shift"]
        self.counts = Counts()
        self.broken: list[Broken] = []
        self._tables: dict[int, _Table] = {}
        self._owners: dict[int, _Table] = {}
        self._lanes: dict[int, _Lane] = {}

    def take(self, lane: int, raw: RawEvent) -> None:
        """One event."""
        counts = self.counts
        counts.events += 1
        kind = raw[0]
        if kind == CALL:
            self._begin(lane, raw)
            return
        operation = self._lanes.get(lane)
        if operation is None:
            return
        if kind == RET:
            self._end(lane, operation, raw)
            return
        if kind == BARRIER and raw[1] == "hvc":
            counts.hypercalls += 1
        elif kind == TLBI:
            counts.invalidations[raw[1]] += 1
        elif kind in (ALLOC, ALLOC_EXACT):
            counts.pages_made += 1 if kind == ALLOC else raw[2] >> self._page_shift
        elif kind in (FREE, FREE_EXACT):
            counts.pages_freed += 1 if kind == FREE else raw[2] >> self._page_shift
        if operation.table is None and not self._find(lane, operation, raw):
            return
        self._feed(lane, operation, raw)

    def _begin(self, lane: int, raw: RawEvent) -> None:
        _, function, arguments = raw
        words = dict(word.partition("=")[::2] for word in str(arguments).split(","))
        name = operation_name(function)
        self.counts.operations += 1
        self.counts.by_name[name] += 1
        shared = "shared" in words or (
            name in ("relax_perms", "mkyoung") and self._generation.attr_walk_flags is WalkFlags.FAULT_SHARED
        )
        call = Call(name, shared=shared and self._generation.shared_walks, waited=function == _CALLBACK)
        operation = _Lane(self.counts.operations, name, format_raw(raw), call)
        self.counts.unfinished += lane in self._lanes
        self._lanes[lane] = operation
        if function == _CALLBACK:
            return
        pgt = int(words.get("pgt", "0"), 16)
        if "ia_bits" in words:
            lpa2 = bool(int(words.get("vtcr", "0"), 16) >> 32 & 1)
            self._tables[pgt] = self._made(int(words["ia_bits"]), int(words["start_level"]), lpa2)
        operation.table = self._tables.get(pgt)
        if operation.table is None:
            self.counts.unknown += 1
        else:
            operation.table.protocol.begin(lane, call)
        if name in _ENDS:
            self._tables.pop(pgt, None)

    def _made(self, ia_bits: int, start_level: int, lpa2: bool) -> _Table:
        """A new table.  Root tables beyond the first are concatenated (DDI 0487 D8.2.2)."""
        self.counts.tables_made += 1
        stride = self._page_shift - 3
        resolved = stride * (4 - start_level) + self._page_shift
        geometry = Geometry(self._page_shift, ia_bits, start_level, 1 << max(0, ia_bits - resolved), 48, lpa2)
        facts = facts_of(self._generation, geometry, xnx=self._generation.two_bit_xn)
        return _Table(self.counts.tables_made, Protocol(facts))

    def _find(self, lane: int, operation: _Lane, raw: RawEvent) -> bool:
        """The table of the RCU callback's operation, by the first page it touches."""
        if not operation.call.waited:
            return False
        page = raw[1] >> self._page_shift if raw[0] in _ON_PAGE or raw[0] == STORE else -1
        operation.table = self._owners.get(page)
        if operation.table is None:
            return False
        operation.table.protocol.begin(lane, operation.call)
        return True

    def _feed(self, lane: int, operation: _Lane, raw: RawEvent) -> None:
        table = operation.table
        assert table is not None
        if raw[0] == ALLOC:
            self._owners[raw[1] >> self._page_shift] = table
        elif raw[0] == FREE:
            self._owners.pop(raw[1] >> self._page_shift, None)
        table.protocol.feed(lane, raw)
        self._gather(operation)

    def _gather(self, operation: _Lane) -> None:
        table = operation.table
        if table is None or not table.protocol.violations:
            return
        found, table.protocol.violations = table.protocol.violations, []
        self.broken += [Broken(operation.number, table.number, operation.text, each) for each in found]

    def _end(self, lane: int, operation: _Lane, raw: RawEvent) -> None:
        del self._lanes[lane]
        self.counts.returns[operation.name, raw[1]] += 1
        if operation.table is not None:
            operation.table.protocol.end(lane, raw[1])
            self._gather(operation)
            self.counts.tables_freed += operation.name in _ENDS

    def finish(self) -> None:
        """No more events: what was begun and not ended is counted."""
        self.counts.unfinished += len(self._lanes)
