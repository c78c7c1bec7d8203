"""The automaton of one table: events in, violations out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from inspector import events as ev
from inspector.events import RawEvent, format_raw
from inspector.protocol.facts import AF, DEAD, DEBTS, IN_PLACE, S2AP, XN, Call, Counted, Facts, operation_name
from inspector.protocol.rules import Violation
from inspector.protocol.state import IDLE, Cpu, Kind, Life, Owed, Page, Step
from inspector.protocol.tlbi import TLBIS, Reach, Stages, Tlbi

_HISTORY = 12
LANES = 64
"""A CPU's number modulo this, where an operation runs beside another that began there (trace/assemble.py)."""
"""Lines of history that a violation shows."""

_RIGHTS_OF_XN = (3, 1, 0, 2)
"""XN[54:53] with FEAT_XNX as a set of rights: 1 for EL0, 2 for EL1 (DDI 0487 D8.4)."""

_NORMAL = 0xF
"""MemAttr of write-back memory without FWB (kernel.md 1.3)."""

_PRIVATE, _LIVE, _DETACHED = Life.PRIVATE, Life.LIVE, Life.DETACHED
_DSB = frozenset({"ish", "ishst", "sy", "osh", "oshst", "st"})
_COMPLETES = frozenset({"ish", "sy", "osh"})
_OF_THIS_CPU = {"nshst": False, "nsh": True}
"""DSBs that are enough where only this CPU's TLB is to forget; whether they wait for a TLBI too."""


class Protocol:
    """One table from its ``init`` on; CPUs are any numbers.

    ``violations`` grows.  After one, the automaton goes on as if the entry were in order, so that one fault is not
    reported again and again.  Raises :class:`~inspector.events.BadEvent` for an invalidation it does not know.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.violations: list[Violation] = []
        self.pages: dict[int, Page] = {}
        geometry = facts.geometry
        self._page_mask = -geometry.granule
        self._offset_mask = geometry.granule - 1
        self._shifts = {level: geometry.level_shift(level) for level in range(-1, 4)}
        self._cpus: dict[int, Cpu] = {}
        self._broken: dict[int, Owed] = {}
        self._locked: dict[int, int] = {}
        self._changed: set[int] = set()  # entries with other debts than a break's, and some that had such
        self._dirty: set[Page] = set()
        self._foreign: set[Page] = set()
        self._dead = False
        self._serial = 0
        self._busy = 0
        self._log: list[tuple[int, Sequence[RawEvent]]] = []
        self._unfinished: list[tuple[int, int]] = []
        self._handed_over = 0
        self._left: dict[int, list[Owed]] = {}
        self._nonzero = facts.counted is Counted.NONZERO
        self._handlers = self._bind()

    def _bind(self) -> tuple[Callable[[Cpu, RawEvent], None], ...]:
        handlers: dict[int, Callable[[Cpu, RawEvent], None]] = {
            ev.STORE: self._store,
            ev.TLBI: self._tlbi,
            ev.CACHE: self._cache,
            ev.GET: self._get,
            ev.PUT: self._put,
            ev.ALLOC: self._alloc,
            ev.ALLOC_EXACT: self._alloc_exact,
            ev.FREE_EXACT: self._free_exact,
            ev.FREE: self._free,
            ev.DEFER: self._defer,
            ev.BARRIER: self._barrier,
            ev.CALL: self._call,
            ev.RET: self._ret,
        }
        return tuple(handlers.get(kind, _nothing) for kind in range(len(ev.EVENT_TYPES)))

    # ---- what the caller does

    def feed(self, cpu: int, raw: RawEvent) -> None:
        """One event of a CPU; ``call`` and ``ret`` begin and end an operation."""
        self.feed_all(cpu, (raw,))

    def feed_all(self, cpu: int, raws: Sequence[RawEvent]) -> None:
        """Events of one CPU, in their order."""
        handlers = self._handlers
        who = self._cpus.get(cpu) or self._cpus.setdefault(cpu, Cpu(cpu))
        self._log.append((cpu, raws))
        for raw in raws:
            handlers[raw[0]](who, raw)
            if self._unfinished:
                self._complete(raws, raw)

    def begin(self, cpu: int, call: Call) -> None:
        """A CPU enters an operation."""
        who = self._cpus.get(cpu) or self._cpus.setdefault(cpu, Cpu(cpu))
        self._serial += 1
        self._busy += not who.serial
        who.call, who.serial = call, self._serial
        who.allocated, who.detached = [], []
        who.dcache = who.icache = (0, 0)
        if call.name in DEAD:
            self._dead = True
        elif call.name in ("init", "hyp_init"):
            self._dead = False

    def end(self, cpu: int, ret: int = 0) -> None:
        """A CPU leaves its operation, which returned ``ret``: what is owed now is not paid any more."""
        who = self._cpus[cpu]
        self._owed_at_end(who)
        self._pages_at_end(who, ret)
        self._busy -= bool(who.serial)
        who.serial = 0
        if not self._busy:
            self._counts_at_rest()
        if self._unfinished:
            self._complete(None, None)
        who.call = IDLE

    def take_over(
        self, root: Sequence[int], pages: Mapping[int, Sequence[int]], counts: Mapping[int, int], waiting: Iterable[int]
    ) -> None:
        """The table is there already, and nobody walks it: its ``root`` pages in their order, and all of its ``pages``
        with their entries.  ``waiting`` are tables that were taken out, and handed to RCU.

        What a page's count is beyond its entries, others hold; that it is less is found when the next operation ends.
        """
        for pa, entries in pages.items():
            page = self.pages[pa] = Page(pa, counts.get(pa, 1))
            page.values = {pa + 8 * at: value for at, value in enumerate(entries) if value}
            page.counted = sum(self._holds(value) for value in page.values.values() if not self._is_locked(value))
            self._surplus(page, max(0, page.count - 1 - page.counted))
            self._dirty.add(page)
        geometry = self.facts.geometry
        span = geometry.entries << geometry.level_shift(geometry.start_level)
        for number, pa in enumerate(root):
            self._place(self.pages[pa], geometry.start_level, number * span, 0)
            self.pages[pa].root = True
        for pa in waiting:
            self._taken_out(self.pages[pa], self.pages[pa])

    def _place(self, page: Page, level: int, base: int, parent: int) -> None:
        """A page that is in the table already, with all below it."""
        self._live(page, level, base, parent, 0)
        for entry, value in page.values.items():
            child = self._child(value, level)
            if child is not None and child.life is _PRIVATE:
                self._place(child, level + 1, self._ia(page, entry), entry)

    def _taken_out(self, page: Page, top: Page) -> None:
        """Out of the table, and waiting with all below it for the end of a grace period."""
        page.life, page.top, page.deferred = _DETACHED, top, page is top
        for value in page.values.values():
            child = self._child(value, page.level)
            if child is not None and child.life is _PRIVATE:
                self._taken_out(child, top)

    def flushed(self, lane: int, raws: Sequence[RawEvent], section: int | None) -> None:
        """A TLB function ran in no operation: what the operations of its ioctl left is invalidated by it.

        ``section`` is that ioctl's number, ``None`` where that is not known: then it is for all.
        """
        who = Cpu(lane)
        paid = [section] if section is not None else list(self._left)
        for each in paid:
            who.owed = self._left.pop(each, [])
            for raw in raws:
                if raw[0] in (ev.TLBI, ev.BARRIER):
                    self._handlers[raw[0]](who, raw)
            if who.owed:
                self._left[each] = who.owed

    def end_section(self, section: int) -> None:
        """An ioctl returns: what its operations took away must be taken away in the TLBs."""
        left = self._left.pop(section, None)
        if not left or self._dead:
            return
        owed = left[0]
        more = f", nor are {len(left) - 1} more" if len(left) > 1 else ""
        what = f"the ioctl returns, and what write protection took away is still in the TLBs{more}: {owed.why}"
        state = f"{owed.step.text}, was {owed.old:#x}"
        self._say(owed.rule, what, self._entry_text(owed.page, owed.pa), state, Cpu(owed.cpu), owed.pa)
        self._complete(None, None)

    def other_store(self, ia: int, level: int, value: int, references: int = 0) -> None:
        """Hardware or another subsystem changed the entry for an input address, and the references on its page."""
        page = self._page_for(ia, level)
        if page is not None:
            pa = page.pa + ((ia >> self._shifts[level]) % self.facts.geometry.entries) * 8
            self._resync(page, pa, page.values.get(pa, 0), value, references)

    def other_reference(self, ia: int, level: int, change: int) -> None:
        """Somebody else took or dropped references on the page that holds the entry for an input address."""
        page = self._page_for(ia, level)
        if page is not None:
            page.count += change
            self._surplus(page, page.surplus + change)

    def fork(self) -> Protocol:
        """A copy that goes its own way from here."""
        log, self._log = self._log, []
        handlers, self._handlers = self._handlers, ()
        facts = self.facts
        try:
            other = copy.deepcopy(self, {id(facts): facts})
        finally:
            self._log, self._handlers = log, handlers
        other._log = list(log)
        other._handlers = other._bind()
        return other

    # ---- violations

    def _say(self, rule: str, what: str, where: str, state: str, cpu: Cpu, entry: int = 0, page: int = 0) -> None:
        self.violations.append(Violation(rule, what, where, state, cpu.number, cpu.call.name, None))
        self._unfinished.append((entry, page))

    def _complete(self, raws: Sequence[RawEvent] | None, raw: RawEvent | None) -> None:
        """Put event and history into the violations that lack them."""
        first = len(self.violations) - len(self._unfinished)
        for number, (entry, page) in enumerate(self._unfinished, first):
            history = tuple(self._history(entry, page, raws, raw))
            self.violations[number] = replace(self.violations[number], event=raw, history=history)
        self._unfinished = []

    def _history(self, entry: int, page: int, raws: Sequence[RawEvent] | None, last: RawEvent | None) -> list[str]:
        """The events that concern an entry or a page, up to the last one; invalidations since it was last stored to."""
        lines: list[str] = []
        own = entry & self._page_mask if entry else page
        open_break, stores = False, 0
        for cpu, run in self._log:
            for raw in run:
                if run is raws and raw is last:
                    break
                kind = raw[0]
                if kind in (ev.STORE, ev.CASFAIL):
                    mine = raw[1] == entry if entry else self._points_to(raw, page)
                    if mine:
                        open_break, lines = True, lines[:stores]
                elif kind in (ev.TLBI, ev.BARRIER):
                    mine = open_break
                elif kind in (ev.GET, ev.PUT, ev.ALLOC, ev.FREE, ev.DEFER):
                    mine = raw[1] == own
                else:
                    mine = False
                if mine:
                    lines.append(f"CPU {cpu}: {format_raw(raw)}")
                    if kind not in (ev.TLBI, ev.BARRIER):
                        stores = len(lines)
        return lines[-_HISTORY:]

    def _points_to(self, raw: RawEvent, page: int) -> bool:
        return bool(page) and any(value & 3 == 3 and self._oa(value) == page for value in (raw[2], raw[3]))

    def _entry_text(self, page: Page, pa: int) -> str:
        if page.level is None:
            return f"entry at {pa:#x}, in a page that is in no table"
        ia = self._ia(page, pa)
        return f"entry at {pa:#x}, level {page.level}, IA {ia:#x}"

    # ---- shape

    def _oa(self, value: int) -> int:
        geometry = self.facts.geometry
        if geometry.lpa2:
            return (value & 0x0003_FFFF_FFFF_F000 & self._page_mask) | (value >> 8 & 3) << 50
        oa = value & 0x0000_FFFF_FFFF_F000 & self._page_mask
        return oa | (value >> 12 & 0xF) << 48 if geometry.granule_shift == 16 else oa

    def _ia(self, page: Page, pa: int) -> int:
        return page.base + (((pa & self._offset_mask) >> 3) << self._shifts[page.level or 0])

    def _page_for(self, ia: int, level: int) -> Page | None:
        """The live page that holds the entry of a level for an input address."""
        for page in self.pages.values():
            if page.life is _LIVE and page.level == level:
                span = self._shifts[level - 1] if level >= 0 else 64
                if page.base >> span == ia >> span:
                    return page
        return None

    def _is_locked(self, value: int) -> bool:
        facts = self.facts
        return bool(facts.locked_mask) and not value & 1 and value & facts.locked_mask == facts.locked_value

    def _rights(self, value: int) -> int:
        """R, W, EL0 and EL1 execute as a set of bits.

        Without FEAT_XNX bit 53 is RES0 (DDI 0487 D8.4.1): an entry that has it set, which is not the kernel's, says
        nothing of execution, and is taken for one that allowed it.
        """
        execute = _RIGHTS_OF_XN[value >> 53 & 3] if self.facts.xnx else 0 if value >> 53 & 3 == 2 else 3
        return value & S2AP | execute

    # ---- references and pages

    def _surplus(self, page: Page, surplus: int) -> None:
        page.surplus = surplus
        if surplus:
            self._foreign.add(page)
        else:
            self._foreign.discard(page)

    def _resync(self, page: Page, pa: int, known: int, value: int, references: int = 0) -> None:
        """An entry changed without an event: hardware's access flag, another subsystem."""
        if value:
            page.values[pa] = value
        else:
            page.values.pop(pa, None)
        self._locked.pop(pa, None)
        change = self._holds(value) - self._holds(known)
        page.counted += change
        page.count += references
        self._surplus(page, page.surplus + references - change)

    def _holds(self, value: int) -> int:
        return int(bool(value) if self._nonzero else value & 1)

    def _get(self, cpu: Cpu, raw: RawEvent) -> None:
        page = self.pages.get(raw[1])
        if page is None:
            self._say("R2", "a reference is taken on a page that is not allocated", f"page {raw[1]:#x}", "free", cpu)
            return
        page.count += 1
        self._dirty.add(page)

    def _put(self, cpu: Cpu, raw: RawEvent) -> None:
        page = self.pages.get(raw[1])
        if page is None:
            if self.facts.double_put and cpu.call.name in ("create_unlinked", "split"):
                return
            what = "a reference is dropped that nobody holds: the page is not allocated"
            self._say("R2", what, f"page {raw[1]:#x}", "free", cpu, page=raw[1])
            return
        page.count -= 1
        if page.count != raw[2]:
            self._surplus(page, page.surplus + raw[2] - page.count)
            page.count = raw[2]
        self._dirty.add(page)

    def _alloc(self, cpu: Cpu, raw: RawEvent) -> None:
        page = self.pages[raw[1]] = Page(raw[1], writer=cpu.number, fence=cpu.fence)
        if cpu.call.name == "hyp_init":
            self._live(page, self.facts.geometry.start_level, 0, 0, 0)
            page.root = True
        else:
            cpu.allocated.append(page)

    def _alloc_exact(self, cpu: Cpu, raw: RawEvent) -> None:
        geometry = self.facts.geometry
        span = geometry.entries << geometry.level_shift(geometry.start_level)
        for number in range(raw[2] // geometry.granule):
            page = self.pages[raw[1] + number * geometry.granule] = Page(raw[1] + number * geometry.granule)
            self._live(page, geometry.start_level, number * span, 0, 0)
            page.root = True

    def _free_exact(self, cpu: Cpu, raw: RawEvent) -> None:
        for pa in range(raw[1], raw[1] + raw[2], self.facts.geometry.granule):
            page = self.pages.get(pa)
            if page is not None and not self._foreign and page.count != 1:
                what = f"a root page is given back with {page.count - 1} references on it"
                self._say("R1", what, f"page {pa:#x}", page.life.value, cpu, page=pa)
            self._free(cpu, (ev.FREE, pa))

    def _free(self, cpu: Cpu, raw: RawEvent) -> None:
        pa = raw[1]
        page = self.pages.pop(pa, None)
        if page is None:
            self._say("R2", "a page is freed that is not allocated", f"page {pa:#x}", "free", cpu, page=pa)
            return
        self._dirty.discard(page)
        self._foreign.discard(page)
        if page.deferred and cpu.call.waited:
            self._before_it(cpu, page)
        if self._broken:
            for entry in [entry for entry, owed in self._broken.items() if owed.page is page]:
                del self._broken[entry]
        if not self._dead:
            self._may_be_freed(cpu, page)
        if page.level != 3 and not self._foreign:
            for entry, value in page.values.items():
                child = self._child(value, page.level)
                if child is not None and child.parent == entry and child.life is not _LIVE:
                    self._say(
                        "R2",
                        f"a table is lost: its parent {pa:#x} is freed before it",
                        *_page(child),
                        cpu,
                        page=child.pa,
                    )

    def _before_it(self, cpu: Cpu, freed: Page) -> None:
        """RCU calls back what one CPU handed over in its order: what came before is free by now."""
        by, number = freed.queued
        for page in [each for each in self.pages.values() if each.deferred]:
            if page.queued[0] == by and page.queued[1] < number:
                page.deferred = False
                what = f"a table is left, and {freed.pa:#x}, which the same CPU handed to RCU after it, is freed"
                self._say("R2", what, *_page(page), cpu, page.parent, page.pa)

    def _may_be_freed(self, cpu: Cpu, page: Page) -> None:
        if page.life is _LIVE:
            owner = "it is a root" if page.root else f"the entry at {page.parent:#x} points to it"
            self._say("B7", f"a table is freed while {owner}", *_page(page), cpu, page.parent, page.pa)
        if page.life is not _DETACHED:
            return
        top = page.top or page
        owed = top.broken
        if owed is not None and owed.step is not Step.CLEAN and not self.facts.tables_deferred:
            what = f"a table is freed before its parent entry is invalidated in the TLBs: {owed.why}"
            self._say("B7", what, *_page(page), cpu, owed.pa, page.pa)
        if not self.facts.rcu or cpu.call.waited:
            return
        for other in self._cpus.values():
            if other.call.shared and 0 < other.serial <= top.detached_at:
                who = "itself walks" if other is cpu else f"CPU {other.number} still walks"
                self._say(
                    "R2",
                    f"a table is freed before the end of a grace period: {who} it",
                    *_page(page),
                    cpu,
                    page.parent,
                    page.pa,
                )

    def _defer(self, cpu: Cpu, raw: RawEvent) -> None:
        page = self.pages.get(raw[1])
        if page is None or page.life is not _DETACHED:
            state = page.life.value if page else "free"
            what = "a table is handed over for freeing that was not taken out"
            self._say("B7", what, f"page {raw[1]:#x}", state, cpu, page.parent if page else 0, raw[1])
        if page is not None:
            page.deferred = True
            self._handed_over += 1
            page.queued = cpu.number % LANES, self._handed_over

    def _child(self, value: int, level: int | None) -> Page | None:
        """The page that a value points to as a table; in a page of unknown level a leaf is told by its access flag."""
        if value & 3 != 3 or level == 3 or (level is None and value & AF):
            return None
        return self.pages.get(self._oa(value))

    # ---- barriers and invalidations

    def _barrier(self, cpu: Cpu, raw: RawEvent) -> None:
        kind = raw[1]
        if kind in _OF_THIS_CPU:
            self._barrier_of_this_cpu(cpu, _OF_THIS_CPU[kind])
        if kind not in _DSB:
            return
        cpu.fence += 1
        if not cpu.owed:
            return
        completes = kind in _COMPLETES
        for owed in cpu.owed:
            _wait(owed, completes)
        if completes:
            self._drop_clean(cpu)

    def _barrier_of_this_cpu(self, cpu: Cpu, completes: bool) -> None:
        """A non-shareable DSB: enough for what gained permissions, which other CPUs may go on not to know."""
        for owed in cpu.owed:
            if owed.kind is Kind.RELAXATION:
                _wait(owed, completes)
        if completes and cpu.owed:
            self._drop_clean(cpu)

    def _drop_clean(self, cpu: Cpu) -> None:
        left = []
        for owed in cpu.owed:
            if owed.step is not Step.CLEAN:
                left.append(owed)
            elif self._broken.get(owed.pa) is owed:
                del self._broken[owed.pa]
        cpu.owed = left
        cpu.mixed = cpu.mixed and any(owed.kind is not Kind.BREAK for owed in left)

    def _tlbi(self, cpu: Cpu, raw: RawEvent) -> None:
        tlbi = TLBIS.get(raw[1])
        if tlbi is None:
            raise ev.BadEvent(f"no invalidation is called {raw[1]}")
        if not cpu.owed:
            return
        for owed in cpu.owed:
            if owed.step < Step.CLEAN and self._covers(owed, tlbi, raw, owed is cpu.owed[-1]):
                self._advance(owed, tlbi)
        self._drop_clean(cpu)

    def _advance(self, owed: Owed, tlbi: Tlbi) -> None:
        if tlbi.helper:
            owed.step = Step.CLEAN
        elif owed.step is Step.BROKEN:
            owed.rule, owed.why = "B2", "there was no barrier between the store and the TLBI"
        elif tlbi.stages is Stages.BOTH:
            owed.step, owed.rule, owed.why = Step.ISSUED, "B2", "no DSB completed the TLBI"
        elif tlbi.stages is Stages.TWO and owed.step is Step.GUARDED:
            owed.step, owed.rule, owed.why = Step.STAGE2, "B4", "no DSB and no stage-1 TLBI came after the one by IPA"
        elif tlbi.stages is Stages.ONE and owed.step is Step.STAGE2:
            owed.rule, owed.why = "B4", "the stage-1 TLBI came before a DSB completed the one by IPA"
        elif tlbi.stages is Stages.ONE and owed.step is Step.STAGE2_DONE:
            owed.step, owed.rule, owed.why = Step.ISSUED, "B2", "no DSB completed the TLBI"

    def _covers(self, owed: Owed, tlbi: Tlbi, raw: RawEvent, newest: bool) -> bool:
        """Does it reach all that the entry served?  If not, the debt remembers why."""
        _, word, ia, level, pages = raw
        if tlbi.local and owed.kind is not Kind.RELAXATION:
            if tlbi.stages is not Stages.ONE:
                owed.rule, owed.why = "B3", f"{word} reaches one CPU only"
            return False
        if tlbi.reach is Reach.ALL:
            return tlbi.stages is not Stages.ONE or owed.step >= Step.STAGE2
        if tlbi.last and owed.table:
            owed.rule, owed.why = "B3", f"{word} does not reach tables"
            return False
        if tlbi.reach is Reach.RANGE:
            return self._range_covers(owed, ia & self._page_mask, pages, level)
        if not owed.base <= ia < owed.base + owed.size:
            if newest:
                owed.rule, owed.why = "B3", f"the TLBI was for IA {ia:#x}"
            return False
        return self._hint_fits(owed, level) and not self._is_partial(owed, ia)

    def _is_partial(self, owed: Owed, ia: int) -> bool:
        if owed.whole:
            owed.rule, owed.why = "B3", f"the TLBI was for IA {ia:#x} alone, and the table had entries"
        return owed.whole

    def _hint_fits(self, owed: Owed, level: int | None) -> bool:
        if level is None or level == ev.TTL_UNKNOWN or (level == 0 and self.facts.zero_is_no_hint):
            return True
        if owed.table:
            if self.facts.own_level_for_tables and level == owed.level:
                return True
            owed.rule, owed.why = "B3", f"the TLBI hints at a leaf of level {level}, and the entry was a table"
            return False
        if level != owed.level:
            owed.rule, owed.why = "B3", f"the TLBI hints at level {level}"
        return level == owed.level

    def _range_covers(self, owed: Owed, start: int, pages: int, level: int | None) -> bool:
        end = start + (pages << self.facts.geometry.granule_shift)
        if not self._hint_fits(owed, level):
            return False
        if not owed.whole:
            if start < owed.base + owed.size and end > owed.base:
                return True
        elif start <= owed.low < end:
            owed.low = min(end, owed.high)
        elif start < owed.high <= end:
            owed.high = max(start, owed.low)
        if owed.whole and owed.low >= owed.high:
            return True
        owed.rule, owed.why = "B6", f"the range {start:#x} to {end:#x} does not reach all of it"
        return False

    def _cache(self, cpu: Cpu, raw: RawEvent) -> None:
        if raw[1] == "dcache":
            cpu.dcache = raw[2], raw[2] + raw[3]
        else:
            cpu.icache = raw[2], raw[2] + raw[3]

    # ---- stores

    def _store(self, cpu: Cpu, raw: RawEvent) -> None:
        _, pa, old, new, _, _ = raw
        page = self.pages.get(pa & self._page_mask)
        if page is None:
            what = "an entry is stored in a page that is not allocated"
            self._say("R2", what, f"entry at {pa:#x}", "free", cpu, pa)
            return
        values = page.values
        known = values.get(pa, 0)
        if known != old:
            self._resync(page, pa, known, old)
        if new:
            values[pa] = new
        elif old:
            del values[pa]
        self._dirty.add(page)
        holder = self._locked.pop(pa, None) if self._locked else None
        before = old & 1 if not self._nonzero else old != 0 and holder is None
        if page.life is _PRIVATE:
            page.counted += (new & 1 if not self._nonzero else new != 0) - before
            page.writer, page.fence = cpu.number, cpu.fence
            child = self._child(new, None)
            if child is not None and child.life is _PRIVATE:
                child.parent = pa
            return
        locks = not new & 1 and new != 0 and self._is_locked(new)
        page.counted += (new & 1 if not self._nonzero else new != 0 and not locks) - before
        if locks:
            self._locked[pa] = cpu.number
        if self._dead:
            return
        self._check_turn(cpu, page, raw, holder)
        if page.life is not _LIVE:
            return
        if old & 1:
            if not new & 1:
                self._break(cpu, page, raw)
            elif old != new:
                self._in_place(cpu, page, raw)
        elif new & 1:
            self._make(cpu, page, raw)

    def _check_turn(self, cpu: Cpu, page: Page, raw: RawEvent, holder: int | None) -> None:
        pa = raw[1]
        if holder is not None and holder != cpu.number:
            what = f"an entry is changed that CPU {holder} has LOCKED"
            self._say("C3", what, self._entry_text(page, pa), "LOCKED", cpu, pa)
        elif holder is None and cpu.call.shared and not raw[5] and (page.life is _LIVE or self.facts.rcu):
            what = "a shared walk stores to an entry that it has not LOCKED, and not by cmpxchg"
            self._say("C3", what, self._entry_text(page, pa), _value(raw[2]), cpu, pa)

    def _owe(
        self, cpu: Cpu, kind: Kind, page: Page, raw: RawEvent, child: Page | None, rule: str, why: str, lost: int = 0
    ) -> Owed:
        level = page.level or 0
        pa, size = raw[1], 1 << self._shifts[level]
        base = self._ia(page, pa)
        table = level < 3 and raw[2] & 3 == 3
        whole = child is not None and any(value & 1 for value in child.values.values())
        owed = Owed(
            kind, page, pa, raw[2], lost, level, base, size, table, whole, cpu.number, rule, why, base, base + size
        )
        if cpu.call.skip_tlbi:
            owed.step = Step.CLEAN
        else:
            cpu.owed.append(owed)
            if kind is not Kind.BREAK:
                cpu.mixed = True
                self._changed.add(pa)
        return owed

    def _break(self, cpu: Cpu, page: Page, raw: RawEvent) -> None:
        child = self._child(raw[2], page.level)
        if raw[1] in self._changed:
            # What was changed in this entry and is not invalidated yet, the break's invalidation reaches.
            self._changed.discard(raw[1])
            for other in self._cpus.values():
                if other.mixed:
                    other.owed = [owed for owed in other.owed if owed.pa != raw[1] or owed.kind is Kind.BREAK]
        owed = self._owe(cpu, Kind.BREAK, page, raw, child, "B2", "no TLBI came after the store")
        if owed.step is not Step.CLEAN:
            self._broken[raw[1]] = owed
        if child is not None and child.life is _LIVE:
            self._detach(cpu, child, child, owed)

    def _detach(self, cpu: Cpu, page: Page, top: Page, owed: Owed | None) -> None:
        page.life, page.top = _DETACHED, top
        cpu.detached.append(page)
        if page is top:
            page.broken, page.detached_at = owed, self._serial
        if page.level != 3:
            for value in page.values.values():
                child = self._child(value, page.level)
                if child is not None and child.life is _LIVE:
                    self._detach(cpu, child, top, owed)

    def _in_place(self, cpu: Cpu, page: Page, raw: RawEvent) -> None:
        _, pa, old, new, _, _ = raw
        where = self._entry_text(page, pa)
        if cpu.call.name == "hyp_map" and page.level != 3 and new & 2 and not old & 2:
            # hyp_map_walker over a block: no break, and the block's reference is never put.  No caller does that.
            self._surplus(page, page.surplus + 1)
            self._link(cpu, page, raw)
            return
        if (old ^ new) & ~IN_PLACE or (page.level != 3 and (old ^ new) & 2):
            what = f"a valid entry becomes another valid one, which differs in {_bits(old ^ new)}, without a break"
            self._say("B1", what, where, _value(old), cpu, pa)
            child = self._child(old, page.level)
            if child is not None and child.life is _LIVE:
                self._detach(cpu, child, child, None)
            self._link(cpu, page, raw)
            return
        gained, lost = self._rights(new) & ~self._rights(old), self._rights(old) & ~self._rights(new)
        if lost or old & ~new & AF:
            why = "no TLBI came after the store"
            taken = old & ~new & (S2AP | AF) | ((old ^ new) & XN if lost & 3 else 0)
            self._owe(cpu, Kind.RESTRICTION, page, raw, None, "B8", why, taken)
        elif gained:
            why = "no TLBI came after the store, not even a local one"
            self._owe(cpu, Kind.RELAXATION, page, raw, None, "B3", why)
        if gained & 3 and not self._rights(old) & 3 and self.facts.attr_invalidates:
            self._check_cache(cpu, page, raw, cpu.icache, "instruction cache")

    def _make(self, cpu: Cpu, page: Page, raw: RawEvent) -> None:
        _, pa, old, new, _, _ = raw
        owed = self._broken.pop(pa, None) if self._broken else None
        if owed is not None:
            what = f"an entry is used again before its old value is invalidated in the TLBs: {owed.why}"
            state = f"{owed.step.text}, broken by CPU {owed.cpu}, was {owed.old:#x}"
            self._say(owed.rule, what, self._entry_text(page, pa), state, cpu, pa)
            self._forget(owed)
        if page.level != 3 and new & 2:
            self._link(cpu, page, raw)
            return
        call = cpu.call
        facts = self.facts
        if call.name == "split" and not old and page.linked_by == cpu.serial:
            what = "a block's table is filled after it was linked"
            self._say("B9", what, self._entry_text(page, pa), _value(old), cpu, pa)
        if call.name != "map" or call.skip_cmo:
            return
        if facts.map_cleans and not facts.fwb and new >> 2 & 0xF == _NORMAL:
            self._check_cache(cpu, page, raw, cpu.dcache, "data cache")
        if facts.map_invalidates and self._rights(new) & 3:
            self._check_cache(cpu, page, raw, cpu.icache, "instruction cache")

    def _check_cache(self, cpu: Cpu, page: Page, raw: RawEvent, done: tuple[int, int], which: str) -> None:
        size = 1 << self._shifts[page.level or 0]
        oa = self._oa(raw[3]) & -size
        if not (done[0] <= oa and oa + size <= done[1]):
            what = f"the {which} is not maintained for {oa:#x} to {oa + size:#x} before the store"
            self._say("B11", what, self._entry_text(page, raw[1]), _value(raw[2]), cpu, raw[1])

    def _forget(self, owed: Owed) -> None:
        cpu = self._cpus[owed.cpu]
        cpu.owed = [other for other in cpu.owed if other is not owed]
        owed.step = Step.CLEAN

    def _link(self, cpu: Cpu, page: Page, raw: RawEvent) -> None:
        _, pa, old, new, release, cas = raw
        if page.level == 3 or new & 3 != 3:
            return
        where = self._entry_text(page, pa)
        child = self.pages.get(self._oa(new))
        if child is None or child.life is not _PRIVATE:
            what = f"the entry points to a table at {self._oa(new):#x} that is {child.life.value if child else 'free'}"
            self._say("R2" if child is None or child.life is _DETACHED else "S3", what, where, _value(old), cpu, pa)
            return
        if not release and not cas and child.writer == cpu.number and child.fence == cpu.fence:
            what = "a table is linked by a plain store, and nothing orders its contents before"
            self._say("B9", what, where, _value(old), cpu, pa)
        self._live(child, (page.level or 0) + 1, self._ia(page, pa), pa, cpu.serial)

    def _live(self, page: Page, level: int, base: int, parent: int, serial: int) -> None:
        page.life, page.level, page.base, page.parent, page.linked_by = _LIVE, level, base, parent, serial
        if level < 3:
            for entry, value in page.values.items():
                child = self._child(value, level)
                if child is not None and child.life is _PRIVATE and child.parent == entry:
                    self._live(child, level + 1, self._ia(page, entry), entry, 0)

    # ---- the end of an operation

    def _call(self, cpu: Cpu, raw: RawEvent) -> None:
        words = {word for word in str(raw[2]).split(",") if word}
        flags = {word: True for word in ("shared", "skip_tlbi", "skip_cmo", "ragged") if word in words}
        self.begin(cpu.number, Call(operation_name(raw[1]), **flags))

    def _ret(self, cpu: Cpu, raw: RawEvent) -> None:
        self.end(cpu.number, raw[1])

    def _owed_at_end(self, cpu: Cpu) -> None:
        if not cpu.owed:
            return
        may, _ = DEBTS.get(cpu.call.name, (0, ""))
        said: set[str] = set()
        for owed in cpu.owed:
            if self._broken.get(owed.pa) is owed:
                del self._broken[owed.pa]
            excused = cpu.call.ragged or (owed.kind is Kind.RESTRICTION and not owed.lost & ~may)
            if excused and owed.lost & S2AP and cpu.call.section is not None:
                self._left.setdefault(cpu.call.section, []).append(owed)
                continue
            if not excused and owed.rule not in said:
                said.add(owed.rule)
                what = f"the operation ends, and an entry that {owed.kind.value} is still in the TLBs: {owed.why}"
                state = f"{owed.step.text}, was {owed.old:#x}"
                self._say(owed.rule, what, self._entry_text(owed.page, owed.pa), state, cpu, owed.pa)
            owed.step = Step.CLEAN
        cpu.owed, cpu.mixed = [], False

    def _pages_at_end(self, cpu: Cpu, ret: int) -> None:
        for pa in [pa for pa, holder in self._locked.items() if holder == cpu.number]:
            del self._locked[pa]
            page = self.pages.get(pa & self._page_mask)
            if page is not None:
                what = "the operation ends, and an entry that it LOCKED still is"
                self._say("S6", what, self._entry_text(page, pa), "LOCKED", cpu, pa)
        for page in cpu.allocated:
            if page.life is _PRIVATE and not page.parent and self.pages.get(page.pa) is page and not page.kept:
                page.kept = True
                if cpu.call.name != "create_unlinked" and not page.surplus:
                    self._say(
                        "R2", "a page is allocated, and neither linked nor freed", *_page(page), cpu, page=page.pa
                    )
        if not self._dead:
            for page in cpu.detached:
                lost = self.pages.get(page.pa) is page and not (page.top or page).deferred
                if lost and not page.surplus:
                    self._say("R2", "a table is taken out and not freed", *_page(page), cpu, page.parent, page.pa)
        if cpu.call.name in ("destroy", "destroy_pgd", "hyp_destroy") and not self._foreign:
            for page in [page for page in self.pages.values() if page.life is _LIVE]:
                del self.pages[page.pa]
                self._say("R2", "a table is left after the table's end", *_page(page), cpu, page.parent, page.pa)
        # The kernel's callback is for one table; the harness' operation frees all that wait.
        if cpu.call.name == "grace_period" and not cpu.call.waited and not self._foreign:
            for page in [page for page in self.pages.values() if page.life is _DETACHED]:
                top = page.top or page
                if top.deferred and top.detached_at < cpu.serial:
                    del self.pages[page.pa]
                    self._say("R2", "a table is left after its grace period", *_page(page), cpu, page.parent, page.pa)

    def _counts_at_rest(self) -> None:
        """R1, where nobody is in an operation; a table that was taken out is being walked by who frees it."""
        if self.facts.counted is not Counted.NONE and not self._dead:
            for page in self._dirty:
                if page.life is _DETACHED or page.count == 1 + page.counted + page.surplus:
                    continue
                what = f"the count is {page.count}, with {page.counted} counted entries"
                what += f" and {page.surplus} references of others" if page.surplus else ""
                last = next(iter(self._cpus.values()))
                self._say("R1", what, *_page(page), last, page=page.pa)
                page.count = 1 + page.counted + page.surplus
        self._dirty.clear()


def _wait(owed: Owed, completes: bool) -> None:
    """A DSB orders the store of a debt; one that ``completes`` waits for its TLBI."""
    if owed.step is Step.BROKEN:
        owed.step = Step.GUARDED
    elif completes and owed.step is Step.STAGE2:
        owed.step, owed.rule, owed.why = Step.STAGE2_DONE, "B4", "stage 1 was not invalidated after stage 2"
    elif completes and owed.step is Step.ISSUED:
        owed.step = Step.CLEAN


def _nothing(_: Cpu, __: RawEvent) -> None:
    """A kind of event that moves nothing."""


def _page(page: Page) -> tuple[str, str]:
    """Where and state, of a page."""
    return f"table page {page.pa:#x}", page.life.value


def _value(value: int) -> str:
    return f"{'valid' if value & 1 else 'invalid'}, {value:#x}"


def _bits(changed: int) -> str:
    return ", ".join(_names(changed))


def _names(changed: int) -> Iterator[str]:
    fields: Iterable[tuple[str, int]] = (
        ("type", 2),
        ("memory type", 0xF << 2),
        ("permissions", S2AP),
        ("shareability", 3 << 8),
        ("AF", AF),
        ("address", 0x0000_FFFF_FFFF_F000 | 3 << 48),
    )
    for name, mask in fields:
        if changed & mask:
            yield name
            changed &= ~mask
    if changed:
        yield f"bits {changed:#x}"
