"""A trace judged: every operation of every table through the protocol's automaton, and a count of all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    BARRIER,
    CALL,
    CHAIN,
    DEFER,
    ENTER,
    FREE,
    FREE_EXACT,
    GET,
    LEAVE,
    OBTAIN,
    PUT,
    RELEASE,
    RET,
    STORE,
    SYSREG,
    TLBI,
    RawEvent,
    format_raw,
)
from inspector.generations import WalkFlags
from inspector.model.prot import Prot, model_prot
from inspector.protocol.automaton import Protocol
from inspector.protocol.context import ALL_VMIDS, Contexts, Flush, stale_at_init
from inspector.protocol.facts import Call, facts_of, operation_name
from inspector.protocol.faults import is_exec_fault, unasked_execution
from inspector.protocol.obtained import Done, Fault, not_let_go, unbalanced
from inspector.protocol.rules import Violation
from inspector.snapshot import Capture
from inspector.trace.functions import ABORTING, IOCTL, LOADING, PROTECTING, RELEASING_FRAMES
from inspector.trace.lockstep import AnyShadow, Difference, Shadow, Verdicts, guest_shadow, hyp_shadow
from inspector.trace.performed import (
    BEGUN,
    CALLBACK,
    ENDS,
    Performed,
    bounded,
    generation_of,
    geometry_of,
    words_of,
)
from inspector.trace.taken import Before, Taken, taken_over, without_surplus

_ON_PAGE = frozenset({GET, PUT, ALLOC, FREE, DEFER, ALLOC_EXACT, FREE_EXACT})
_CONTEXT = frozenset({ENTER, LEAVE, SYSREG})
_ENTRIES = frozenset({"mkyoung", "mkold"})
_UNREADABLE = (1 << 64) - 1
"""What the probe tells of memory that it cannot read."""


@dataclass(frozen=True)
class Broken:
    """A rule that an operation breaks: its number in the trace, the table's, the call as it stands there.

    ``callers`` are the functions that called it, the innermost first, as far as they were told.
    """

    operation: int
    table: int
    call: str
    violation: Violation
    callers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Differing:
    """An operation that the model performs otherwise: its number in the trace, the table's, the call as it stands."""

    operation: int
    table: int
    call: str
    difference: Difference
    callers: tuple[str, ...] = ()


@dataclass
class Counts:
    """What a trace holds.  ``unknown`` are operations on tables that were made before it began and are not known;
    ``under_way`` those that had begun before it on tables that are, and what overlapped with them; ``orphans`` RCU
    callbacks for tables that were taken out before; ``tables_taken`` are tables that were known by a capture, of which
    ``dropped`` could not be gone on with, and ``tables_left_out`` those that it shows and that were not taken;
    ``surplus`` are pages with more references than their entries are worth, others' or forgotten ones; ``protected``:
    the host is in protected mode; ``hypercalls`` calls of the hypervisor of which nothing is seen; ``returns`` counts
    return values by operation, ``invalidations`` by instruction."""

    operations: int = 0
    events: int = 0
    unknown: int = 0
    unfinished: int = 0
    under_way: int = 0
    orphans: int = 0
    dropped: int = 0
    surplus: int = 0
    tables_taken: int = 0
    tables_left_out: int = 0
    hypercalls: int = 0
    protected: bool = False
    tables_made: int = 0
    tables_freed: int = 0
    pages_made: int = 0
    pages_freed: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    returns: Counter[tuple[str, int]] = field(default_factory=Counter)
    invalidations: Counter[str] = field(default_factory=Counter)


@dataclass
class _Table:
    """``shadow`` is the table in the model, ``None`` where the CPU's features are not known; ``dic`` is CTR_EL0.DIC, 1
    where it is not known.

    ``taken``: it was made before, and is not judged yet: ``under_way`` are lanes of operations on it that had begun, or
    overlap with such a one.
    """

    number: int
    protocol: Protocol
    shadow: Shadow | AnyShadow | None
    dic: int = 1
    taken: Taken | None = None
    under_way: set[int] = field(default_factory=set)
    disturbed: bool = False


@dataclass
class _Lane:
    """The operation that a lane is in; ``table`` is not known yet, or never will be, when ``None``.

    ``begun``: its beginning was not seen; ``unjudged``: what it does is taken over as it is.
    """

    performed: Performed
    call: Call
    table: _Table | None = None
    flush: Flush | None = None
    begun: bool = False
    unjudged: bool = False

    @property
    def name(self) -> str:
        return self.performed.name


class Judge:
    """Takes events in their order; ``counts`` and ``broken`` grow.

    ``header`` is the trace's: generation and page size; ``capture`` is what it begins with.  Raises `BadInput` for a
    generation that is not known.
    """

    def __init__(self, header: Mapping[str, Any], capture: Capture | None = None) -> None:
        self._generation = generation_of(header)
        self._page_shift: int = header["page_shift"]
        self.counts = Counts()
        self.broken: list[Broken] = []
        self.differing: list[Differing] = []
        self.verdicts = Verdicts()
        self._initialising: tuple[str, ...] = tuple(header.get("initialising", ()))
        self._walk_flags: Mapping[str, int] = header.get("walk_flags", {})
        self._tables: dict[int, _Table] = {}
        self._owners: dict[int, _Table] = {}
        self._lanes: dict[int, _Lane] = {}
        self._contexts = Contexts(orders_switches=self._generation.relax_local_tlbi)
        self._flushes: dict[int, tuple[Flush, int | None, Performed]] = {}
        self._loading: dict[int, int] = {}
        self._chains: dict[int, tuple[str, ...]] = {}
        self._aborts: dict[int, tuple[int, int | None]] = {}
        self._faults: dict[int, Fault] = {}
        self._by_frame = RELEASING_FRAMES in header.get("functions", ())
        self._ignored: set[int] = set()
        self._number = 0
        if capture is not None:
            self._take_over(taken_over(capture, header))

    def _take_over(self, before: Before) -> None:
        """What was there when the trace began."""
        for taken in before.tables:
            table = self._tables[taken.pgt] = self._new_table(taken.words, hyp=taken.is_hyp)
            table.taken = taken
            self._owners.update((page >> self._page_shift, table) for page in taken.truth.pages)
            self._contexts.take_over(table.number, taken.root, taken.vmid)
        self.counts.tables_taken, self.counts.tables_left_out = len(before.tables), len(before.left_out)
        for cpu in before.cpus:
            self._contexts.take_over_cpu(cpu.number, cpu.vttbr, cpu.vcpu, in_guest=cpu.in_guest)

    def take(self, lane: int, raw: RawEvent) -> None:
        """One event.  Raises one of `performed.NONSENSE` for what no kernel does."""
        counts = self.counts
        counts.events += 1
        bounded(raw)
        kind = raw[0]
        if kind == CALL:
            self._begin(lane, raw)
            return
        if kind == CHAIN:
            self._chains[raw[1]] = tuple(str(raw[2]).split("<"))
            return
        operation = self._lanes.get(lane)
        if operation is None:
            self._outside(lane, raw)
            return
        if kind == RET:
            self._end(lane, operation, raw)
            return
        if kind in _CONTEXT:
            self._context(lane, operation, raw)
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

    def _context(self, lane: int, operation: _Lane, raw: RawEvent) -> None:
        """What a TLB function does within an operation."""
        if raw[0] == ENTER:
            number = operation.table.number if operation.table is not None else None
            operation.flush = self._contexts.enter(raw[1], words_of(str(raw[2])).get("cpu", 0), number)
        elif operation.flush is None:
            self._forced(raw)
            return
        elif raw[0] == LEAVE:
            self._contexts.leave(operation.flush)
            operation.flush = None
        else:
            self._contexts.feed(operation.flush, raw)
        self._gather_contexts(operation.performed)

    def _forced(self, raw: RawEvent) -> None:
        """Within a TLB function whose beginning was not seen."""
        if raw[0] == SYSREG and raw[2] == "vttbr_el2":
            self._contexts.forced(raw[1], raw[3])

    def _outside(self, lane: int, raw: RawEvent) -> None:
        """What lies in no operation: ioctls and vCPUs that are loaded, and the TLB functions that these call."""
        kind = raw[0]
        if lane in self._ignored:
            self._forced(raw)
            if kind == LEAVE:
                self._ignored.discard(lane)
        elif kind == ENTER and raw[2] == BEGUN:
            self._ignored.add(lane)
        elif lane in self._flushes:
            self._flush(lane, raw)
        elif kind == ENTER:
            words = words_of(str(raw[2]))
            if raw[1] == ABORTING:
                self._aborts[lane] = words.get("cpu", 0), words.get("esr")
                self._faults[lane] = Fault(words.get("cpu", 0))
            elif raw[1] == LOADING:
                self._loading[lane] = words.get("cpu", 0)
                self._contexts.load(words.get("cpu", 0), words.get("vcpu", 0))
            elif raw[1] != IOCTL:
                flush = self._contexts.enter(raw[1], words.get("cpu", 0), None)
                self._flushes[lane] = flush, words.get("in"), _around(raw)
        elif kind == LEAVE and raw[1] == ABORTING:
            self._aborts.pop(lane, None)
            self._let_go(lane, raw)
        elif kind in (OBTAIN, RELEASE):
            if fault := self._faults.get(lane):
                (fault.obtained if kind == OBTAIN else fault.released).append(raw[1])
        elif kind == LEAVE and raw[1] == LOADING:
            self._contexts.loaded(self._loading.pop(lane, 0))
        elif kind == LEAVE:
            for table in self._tables.values():
                table.protocol.end_section(lane)
                self._gather_of(table, _around(raw))
        elif kind == SYSREG:
            self._contexts.wrote(raw[1], raw[3])
            self._gather_contexts(_around(raw))

    def _let_go(self, lane: int, raw: RawEvent) -> None:
        """A guest's fault ends."""
        fault = self._faults.pop(lane, None)
        what = unbalanced(fault, self._page_shift, by_frame=self._by_frame) if fault is not None else None
        if fault is not None and what is not None:
            self.broken.append(self._is_broken(_around(raw), 0, not_let_go(fault, what, raw)))

    def _did(self, operation: _Lane, ret: int) -> None:
        """An operation that maps or relaxes has ended: whether it is a fault's."""
        words = operation.performed.words
        fault = self._faults.get(words.get("in", -1))
        if fault is None or "prot" not in words:
            return
        frame = words["phys"] >> self._page_shift if "phys" in words else None
        counted = not model_prot(words["prot"], self._generation) & (Prot.DEVICE | Prot.NORMAL_NC)
        fault.done.append(Done(frame, words.get("size", 0) >> self._page_shift, counted, ret))

    def _flush(self, lane: int, raw: RawEvent) -> None:
        """Within a TLB function that no operation called."""
        flush, section, around = self._flushes[lane]
        if raw[0] == TLBI:
            self.counts.invalidations[raw[1]] += 1
        if raw[0] != LEAVE:
            self._contexts.feed(flush, raw)
        else:
            self._contexts.leave(flush)
            del self._flushes[lane]
            for table in self._tables.values():
                if table.number == flush.table:
                    table.protocol.flushed(lane, flush.events, section)
        self._gather_contexts(around)

    def _gather_contexts(self, done: Performed) -> None:
        if self._contexts.found:
            found = self._contexts.take_found(done.text.split()[0])
            self.broken += [self._is_broken(done, each.table, each.violation) for each in found]

    def _is_broken(self, done: Performed, table: int, violation: Violation) -> Broken:
        return Broken(done.number, table, done.text, violation, self._callers(done))

    def _callers(self, done: Performed) -> tuple[str, ...]:
        return self._chains.get(done.words.get("by", 0), ())

    def _begin(self, lane: int, raw: RawEvent) -> None:
        _, function, arguments = raw
        if function == PROTECTING:
            self.counts.protected = True
            return
        numbers = words_of(str(arguments))
        name = operation_name(function)
        self.counts.operations += 1
        self.counts.by_name[name] += 1
        shared = "shared" in str(arguments).split(",") or (
            name in ("relax_perms", "mkyoung") and self._generation.attr_walk_flags is WalkFlags.FAULT_SHARED
        )
        call = Call(
            name,
            shared=shared and self._generation.shared_walks,
            waited=function == CALLBACK,
            section=numbers.get("in") if numbers.get("in") not in self._aborts else None,
        )
        operation = _Lane(Performed(self.counts.operations, name, format_raw(raw), numbers), call)
        operation.begun = BEGUN in str(arguments).split(",")
        self.counts.unfinished += lane in self._lanes
        self._lanes[lane] = operation
        if function == CALLBACK:
            return
        pgt = numbers.get("pgt", 0)
        if "ia_bits" in numbers:
            self._tables[pgt] = self._made(numbers, hyp=name == "hyp_init")
            if name == "hyp_init":
                self._initialised(operation.performed, self._tables[pgt], raw)
        if name.startswith("hyp_") and 0 in self._tables:
            # There is one, wherever its structure is.
            self._tables[pgt] = self._tables.pop(0)
        operation.table = self._tables.get(pgt)
        if operation.table is None:
            self.counts.unknown += 1
        else:
            self._start(lane, operation, operation.table)
        if operation.table is not None and "prot" in numbers and numbers.get("in") in self._aborts:
            self._fault(operation, operation.table, raw)
        if name in ENDS:
            self._tables.pop(pgt, None)

    def _initialised(self, done: Performed, table: _Table, raw: RawEvent) -> None:
        """The hypervisor gets a table of its own: nVHE, in which each CPU's EL2 is initialised next."""
        if self._generation.init_all_vmids and self._initialising and ALL_VMIDS not in self._initialising:
            self.broken.append(self._is_broken(done, table.number, stale_at_init(self._initialising, raw)))

    def _fault(self, operation: _Lane, table: _Table, raw: RawEvent) -> None:
        """An operation in a guest's fault: whether that entitles it to what it makes of the page."""
        words = operation.performed.words
        cpu, esr = self._aborts[words["in"]]
        if table.dic or esr is None or esr == _UNREADABLE or is_exec_fault(esr):
            return
        if model_prot(words["prot"], self._generation) & Prot.X:
            where = f"IPA {words.get('addr', 0):#x}"
            broken = unasked_execution(operation.name, where, esr, cpu, raw)
            self.broken.append(self._is_broken(operation.performed, table.number, broken))

    def _start(self, lane: int, operation: _Lane, table: _Table) -> None:
        if table.taken is not None and (operation.begun or table.under_way):
            table.under_way.add(lane)
            operation.unjudged = table.disturbed = True
            self.counts.under_way += 1
            return
        if table.taken is not None and not self._settle(table, table.taken):
            operation.table = None
            self.counts.unknown += 1
            return
        table.protocol.begin(lane, operation.call)
        if table.shadow is not None:
            table.shadow.begin()

    def _settle(self, table: _Table, taken: Taken) -> bool:
        """Nobody walks a table that was made before: from here on it is judged.  Whether it can be."""
        truth, table.taken = taken.truth, None
        surplus = without_surplus(truth, taken.facts)
        self.counts.surplus += len(surplus)
        if surplus and table.disturbed:
            # The kernel's counts from here on are not known: a reference may have gone while it was walked.
            self.counts.dropped += 1
            for pgt in [pgt for pgt, each in self._tables.items() if each is table]:
                del self._tables[pgt]
            return False
        truth.deferred = [each for each in truth.deferred if each[0] in truth.pages]
        root = range(taken.root, taken.root + taken.facts.geometry.root_pages * truth.granule, truth.granule)
        table.protocol.take_over(root, truth.pages, truth.counts, [page for page, _ in truth.deferred])
        if table.shadow is not None:
            table.shadow.take_over(truth, taken.root)
        return True

    def _made(self, words: Mapping[str, int], *, hyp: bool) -> _Table:
        """A new table, a guest's or the hypervisor's own."""
        self.counts.tables_made += 1
        return self._new_table(words, hyp=hyp)

    def _new_table(self, words: Mapping[str, int], *, hyp: bool) -> _Table:
        self._number += 1
        geometry = geometry_of(words, self._page_shift)
        facts = facts_of(self._generation, geometry, xnx=self._generation.two_bit_xn, hyp=hyp)
        of = hyp_shadow if hyp else guest_shadow
        shadow = of(self._generation, geometry, words, self._walk_flags) if "fwb" in words else None
        return _Table(self._number, Protocol(facts), shadow, words.get("dic", 1))

    def _find(self, lane: int, operation: _Lane, raw: RawEvent) -> bool:
        """The table of the RCU callback's operation, by the first page it touches."""
        if not operation.call.waited:
            return False
        page = raw[1] >> self._page_shift if raw[0] in _ON_PAGE or raw[0] == STORE else -1
        operation.table = self._owners.get(page)
        if operation.table is None:
            return False
        self._start(lane, operation, operation.table)
        return operation.table is not None

    def _feed(self, lane: int, operation: _Lane, raw: RawEvent) -> None:
        table = operation.table
        assert table is not None
        if operation.flush is not None:
            self._contexts.feed(operation.flush, raw)
            self._gather_contexts(operation.performed)
        elif raw[0] == ALLOC_EXACT:
            self._contexts.made(table.number, raw[1])
        if raw[0] == ALLOC:
            self._owners[raw[1] >> self._page_shift] = table
        elif raw[0] == FREE:
            self._owners.pop(raw[1] >> self._page_shift, None)
        if operation.unjudged:
            if table.taken is not None:
                table.taken.truth.advance((raw,))
            return
        table.protocol.feed(lane, raw)
        if table.shadow is not None:
            operation.performed.events.append(raw)
            operation.performed.places.append(self.counts.events)
        self._gather(operation)

    def _gather(self, operation: _Lane) -> None:
        if operation.table is not None:
            self._gather_of(operation.table, operation.performed)

    def _gather_of(self, table: _Table, done: Performed) -> None:
        if table.protocol.violations:
            found, table.protocol.violations = table.protocol.violations, []
            self.broken += [self._is_broken(done, table.number, each) for each in found]

    def _end(self, lane: int, operation: _Lane, raw: RawEvent) -> None:
        del self._lanes[lane]
        ret = raw[1]
        self._did(operation, ret)
        if operation.name in _ENTRIES:
            # One entry or none; later kernels' mkyoung returns nothing.
            self.counts.returns[operation.name, int(bool(ret and self._generation.mkyoung_returns_pte))] += 1
        else:
            self.counts.returns[operation.name, ret] += 1
        table = operation.table
        if table is None:
            self.counts.orphans += operation.call.waited
            return
        if operation.unjudged:
            table.under_way.discard(lane)
        else:
            table.protocol.end(lane, ret)
            self._gather(operation)
        if operation.name in ENDS:
            self.counts.tables_freed += 1
            self._contexts.gone(table.number)
        if table.shadow is not None and not operation.unjudged:
            operation.performed.ret = ret
            self._compare(table, table.shadow, operation.performed)

    def _compare(self, table: _Table, shadow: Shadow | AnyShadow, performed: Performed) -> None:
        """With what the model does."""
        before = len(self.verdicts.found)
        shadow.end(performed, self.verdicts)
        self.differing += [
            Differing(done.number, table.number, done.text, difference, self._callers(done))
            for done, difference in self.verdicts.found[before:]
        ]

    def finish(self) -> None:
        """No more events: what was begun and not ended is counted."""
        self.counts.unfinished += len(self._lanes)


def _around(raw: RawEvent) -> Performed:
    """What is in no operation, as where something was found."""
    return Performed(0, "", format_raw(raw), {})
