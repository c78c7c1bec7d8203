"""From the probe's records to the event grammar, operation by operation.

Who runs is told by the stack, not by the CPU: an operation that is preempted goes on elsewhere.  A page's physical
address is that of its place in the linear map, whose distance the first store there tells.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    ALLOCFAIL,
    BARRIER,
    CACHE,
    CALL,
    CASFAIL,
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
    RawEvent,
)
from inspector.protocol.facts import AF
from inspector.trace.functions import ABORTING, FUNCTIONS, LOADING, PROTECTING, Function, Role
from inspector.trace.instructions import event_of, register_of
from inspector.trace.plan import EXIT, REGISTERS, Plan
from inspector.trace.raw import SIZES, Record, RecordKind

_STACK_SHIFT = 14
"""``MIN_THREAD_SHIFT`` of arch/arm64/include/asm/memory.h; stacks are aligned to twice their size."""
_DS = 32
"""VTCR_EL2.DS: descriptors of 52-bit addresses, and ranges of TLBI in units of 64K (DDI 0487)."""
_U64 = (1 << 64) - 1
MOST_EARLY = 100_000
"""Records that wait for a store; then there is none."""
OUTSIDE: Final = 4096
"""Added to a CPU's number: the lane of what it does in no function that is followed."""
_AROUND: Final = 2 * OUTSIDE
"""Likewise, of what has operations in it."""
_OF_PAGES: Final = frozenset({Role.OBTAIN, Role.RELEASE})
_PFN_BITS: Final = 52
_HVC: Final[RawEvent] = (BARRIER, "hvc")
_FEATURES: Final = {
    # What the kernel's capabilities are decided by (arch/arm64/kernel/cpufeature.c): register, lowest bit, least value,
    # of four bits but for CTR_EL0.DIC, bit 29, above which are reserved zeroes (bit 31 is one).
    "fwb": ("ID_AA64MMFR2_EL1", 40, 1),
    "ttl": ("ID_AA64MMFR2_EL1", 48, 1),
    "xnx": ("ID_AA64MMFR1_EL1", 28, 1),
    "tlb_range": ("ID_AA64ISAR0_EL1", 56, 2),
    "dic": ("CTR_EL0", 29, 1),
}


def features_of(values: Sequence[int]) -> dict[str, int]:
    """ARM64_HAS_STAGE2_FWB and so on, 0 or 1, by the ID registers of `plan.REGISTERS`.

    ``tlb_range`` is left out where its register is 0: QEMU 11.1 does not show it, and it is 0 on none of its CPUs that
    have EL2.
    """
    registers = dict(zip(REGISTERS, values, strict=True))
    return {
        name: int(registers[of] >> low & (1 if of == "CTR_EL0" else 15) >= least)
        for name, (of, low, least) in _FEATURES.items()
        if name != "tlb_range" or registers[of]
    }


@dataclass
class _Call:
    """A function that is being run; ``lane`` is the number under which its operation's events are told; ``waiting`` is
    what is told of it once there is an operation in it, ``told`` the words that were.  ``obtained``: a fault has a page
    of the host's; ``released`` is how it last let one go."""

    function: Function
    words: tuple[int, ...]
    stack: int
    lane: int = 0
    events: list[RawEvent] = field(default_factory=list)
    waiting: RawEvent | None = None
    told: str = ""
    obtained: bool = False
    released: Record | None = None

    @property
    def flushes(self) -> bool:
        """It is a TLB function."""
        return self.function.role in (Role.FLUSH, Role.HYP_FLUSH)


def _goes_on(last: Record, record: Record) -> bool:
    """Whether the one function was left for the other (x30 and sp are as they were), or has called it (sp is lower)."""
    return last.words[-2:] == record.words[-2:] or record.words[-1] < last.words[-1]


@dataclass
class Assembler:
    """``pages`` are the table pages that are known, entry by entry; ``outside`` counts what lay in no operation.

    ``names`` gives the function of a link address.
    """

    plan: Plan
    names: Callable[[int], str | None] = lambda _: None
    pages: dict[int, dict[int, int]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    outside: Counter[str] = field(default_factory=Counter)
    _running: dict[int, list[_Call]] = field(default_factory=dict)
    _lanes: set[int] = field(default_factory=set)
    _waiting: list[Record] = field(default_factory=list)
    _early: dict[int, deque[Record]] = field(default_factory=dict)
    _distance: int | None = None
    _structs: dict[int, int] = field(default_factory=dict)
    _vtcr: dict[int, int] = field(default_factory=dict)
    _lpa2: bool = False
    _features: Mapping[str, int] = field(default_factory=dict)
    _calling: dict[int, _Call] = field(default_factory=dict)
    _flushing: dict[int, _Call] = field(default_factory=dict)
    _sections: dict[int, list[_Call]] = field(default_factory=dict)
    _force: dict[int, int] = field(default_factory=dict)
    _told: dict[int, int] = field(default_factory=dict)
    _chains: dict[tuple[int, ...], int] = field(default_factory=dict)
    _loading: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._functions = [FUNCTIONS[name] for name in self.plan.functions]
        self._mask = (1 << self.plan.page_shift) - 1
        shift = max(_STACK_SHIFT, self.plan.page_shift)
        self.stack_mask = -(1 << shift) & _U64

    def take(self, record: Record) -> Iterator[tuple[int, RawEvent]]:
        """What a record adds: (lane, event), an operation's events under one lane from its ``call`` to its ``ret``."""
        if record.kind == RecordKind.REGISTERS:
            found = features_of(record.words[: len(REGISTERS)])
            # A CPU may do what the kernel was not built for.
            self._features = found if self.plan.ranges else {**found, "tlb_range": 0}
            return
        if self._distance is None:
            self._waiting.append(record)
            if record.kind != RecordKind.STORE:
                return
            self._distance = record.words[0] - record.words[1]
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                yield from self._in_order(each)
            return
        yield from self._in_order(record)

    # --- beginning in the midst

    @property
    def features(self) -> Mapping[str, int]:
        """What the CPU can do, once that was told."""
        return self._features

    def forget(self) -> None:
        """All that was seen but what is told once: records between are left out."""
        new = Assembler(self.plan, self.names)
        new._features, new._distance, new._lpa2 = self._features, self._distance, self._lpa2
        self.__dict__.update(new.__dict__)

    def under_way(self, allocated: Mapping[int, Sequence[int]]) -> Iterator[tuple[int, RawEvent]]:
        """What had begun where a trace begins, told anew: ``begun`` in a call says that its beginning was not seen.

        ``allocated`` are pages of each lane's operation, which no table may lead to yet: they are told as they are.
        """
        for cpu in list(self._early):
            for record in self._early.pop(cpu):
                for _ in self._take(record):
                    pass
        self._chains.clear()
        for sections in self._sections.values():
            for call in sections:
                if call.waiting is None:
                    yield call.lane, (ENTER, call.function.name, call.told)
        for calls in self._running.values():
            function = calls[0].function
            if function.role is Role.OPERATION:
                yield calls[0].lane, (CALL, function.name, f"{self._arguments(calls[0])},begun")
                for page in allocated.get(calls[0].lane, ()):
                    yield from ((calls[0].lane, raw) for raw in self._page_as_it_is(page))
            elif calls[0].flushes:
                yield calls[0].lane, (ENTER, function.name, "begun")
        for call in self._flushing.values():
            if call.function.role is Role.HYP_FLUSH:
                yield call.lane, (ENTER, call.function.name, "begun")

    def _page_as_it_is(self, page: int) -> Iterator[RawEvent]:
        entries = self.pages.get(page)
        if entries is None:
            return
        yield (ALLOC, page)
        yield from ((STORE, pa, 0, value, 0, 0) for pa, value in entries.items() if value)
        yield from ((GET, page) for _ in range(self.counts.get(page, 1) - 1))

    def take_over(
        self,
        pages: Mapping[int, Sequence[int]],
        counts: Mapping[int, int],
        vttbr: Mapping[int, int],
        *,
        lpa2: bool = False,
    ) -> None:
        """Table pages that were made before, entry by entry, and what each CPU has in VTTBR_EL2."""
        for page, entries in pages.items():
            self.pages[page] = {page + 8 * at: value for at, value in enumerate(entries) if value}
        self.counts.update(counts)
        self._force, self._told, self._lpa2 = dict(vttbr), dict(vttbr), self._lpa2 or lpa2

    def _in_order(self, record: Record) -> Iterator[tuple[int, RawEvent]]:
        """A store is written down after it was made: another CPU may have seen it, and told so, before that.

        What such a CPU tells waits until the store comes.
        """
        if record.cpu in self._early:
            self._early[record.cpu].append(record)
            if sum(map(len, self._early.values())) > MOST_EARLY:
                for cpu in list(self._early):
                    for each in self._early.pop(cpu):
                        yield from self._take(each)
            return
        if self._is_early(record):
            self._early[record.cpu] = deque((record,))
            return
        yield from self._take(record)
        while ready := [cpu for cpu, queue in self._early.items() if not self._is_early(queue[0])]:
            for cpu in ready:
                queue = self._early[cpu]
                while queue and not self._is_early(queue[0]):
                    yield from self._take(queue.popleft())
                if not queue:
                    del self._early[cpu]

    def _is_early(self, record: Record) -> bool:
        """Whether a CAS found what no store has put there, and there is an operation that may yet tell of one.

        The hardware sets access flags without a store that is told (VTCR_EL2.HA).
        """
        if record.kind != RecordKind.STORE or record.words[5] not in self.plan.compare_and_swaps:
            return False
        _, pa, _, _, found, _, _, sp = record.words
        entries = self.pages.get(pa & ~self._mask)
        if entries is None or not (found ^ entries.get(pa, 0)) & ~AF:
            return False
        own = sp & self.stack_mask
        return any(calls and stack != own for stack, calls in self._running.items())

    def _take(self, record: Record) -> Iterator[tuple[int, RawEvent]]:
        calling = self._calling.pop(record.cpu, None)
        if record.kind == RecordKind.PROBE and self._functions[record.number % EXIT].role is Role.HYP_FLUSH:
            yield from self._flush_at_el2(record, calling)
            return
        if calling is not None:
            # A hypercall of which nothing is seen.
            yield from self._tell(calling, _HVC)
        if record.kind == RecordKind.PROBE and self._functions[record.number % EXIT].role is Role.PROTECTED:
            yield record.cpu, (CALL, PROTECTING, "")
            return
        stack = record.words[-1] & self.stack_mask
        if record.kind == RecordKind.PROBE and (function := self._functions[record.number % EXIT]).role in _OF_PAGES:
            yield from self._of_pages(function, record, stack)
            return
        if record.kind == RecordKind.PROBE:
            if record.number >= EXIT:
                yield from self._leave(self._functions[record.number - EXIT], record, stack)
            else:
                yield from self._enter(self._functions[record.number], record, stack)
            return
        calls = self._running.get(stack)
        if record.kind == RecordKind.STORE:
            yield from self._stored(record, calls)
            return
        flushing = self._flushing.get(record.cpu) or next((each for each in calls or () if each.flushes), None)
        if register := register_of(record.words[0]):
            yield from self._switched(record.cpu, register, record.words[1], flushing, calls)
            return
        event = event_of(record.words[0], record.words[1], self._lpa2)
        if event is None:
            return
        if record.cpu in self._flushing:
            calls = [self._flushing[record.cpu]]
        elif event == _HVC and self.plan.hyp:
            if calls:
                self._calling[record.cpu] = calls[0]
            return
        if calls:
            yield from self._tell(calls[0], event)
        elif event[0] != BARRIER:
            self.outside[f"tlbi {event[1]}"] += 1

    def _flush_at_el2(self, record: Record, calling: _Call | None) -> Iterator[tuple[int, RawEvent]]:
        """EL2 runs on a stack of its own, and to its end: what comes between on this CPU is its, or its caller's."""
        function = self._functions[record.number % EXIT]
        if record.number < EXIT:
            call = calling
            if call is None:
                call = _Call(function, (), record.words[-1], self._free_lane(record.cpu))
            self._flushing[record.cpu] = call
            yield from self._enter_flush(call, function, record.cpu, own=calling is None, section=None)
        elif record.cpu in self._flushing:
            call = self._flushing.pop(record.cpu)
            yield from self._tell(call, (LEAVE, function.name))
            if call.function is function:
                self._lanes.discard(call.lane)

    def _enter_flush(
        self, call: _Call, function: Function, cpu: int, *, own: bool, section: int | None
    ) -> Iterator[tuple[int, RawEvent]]:
        """A TLB function begins, with what the CPU has in VTTBR_EL2 then."""
        force = self._force.get(cpu, 0)
        if self._told.get(cpu, 0) != force:
            self._told[cpu] = force
            yield OUTSIDE + cpu, (SYSREG, cpu, "vttbr_el2", force)
        within = f",in={section}" if own and section is not None else ""
        yield from self._tell(call, (ENTER, function.name, f"cpu={cpu}{within}"))

    def _switched(
        self, cpu: int, register: str, value: int, flushing: _Call | None, calls: list[_Call] | None
    ) -> Iterator[tuple[int, RawEvent]]:
        """A system register is written, by a TLB function or by what lets a guest run."""
        if flushing is not None:
            if register == "vttbr_el2":
                self._force[cpu] = self._told[cpu] = value
            yield from self._tell(calls[0] if calls else flushing, (SYSREG, cpu, register, value))
        elif register == "vttbr_el2":
            self._force[cpu] = value
            # In nVHE each run of a guest begins and ends with such a write: what is no news is not told.
            if value and (cpu in self._loading or self._told.get(cpu) != value):
                self._loading.discard(cpu)
                self._told[cpu] = value
                yield OUTSIDE + cpu, (SYSREG, cpu, register, value)

    def _tell(self, call: _Call, event: RawEvent) -> Iterator[tuple[int, RawEvent]]:
        # What init does is told at its end, when the table's shape is known.
        if call.function.role is Role.INIT:
            call.events.append(event)
        else:
            yield call.lane, event

    def _pa(self, va: int) -> int:
        return va - (self._distance or 0) & _U64

    def _enter(self, function: Function, record: Record, stack: int) -> Iterator[tuple[int, RawEvent]]:
        if function.role is Role.SECTION:
            yield from self._enter_section(function, record, stack)
            return
        calls = self._running.setdefault(stack, [])
        # The stack grows down: what was entered no higher than this has ended, by a way that was not looked at.
        while calls and calls[-1].stack <= record.words[-1]:
            ended = calls.pop()
            self.outside[f"return of {ended.function.name}"] += 1
            if not calls:
                self._lanes.discard(ended.lane)
        call = _Call(function, record.words[: len(function.arguments)], record.words[-1])
        if function.role in (Role.OPERATION, Role.INIT):
            if calls:
                return  # within another operation, whose events go on
            call.lane = self._free_lane(record.cpu)
            calls.append(call)
            if function.role is Role.OPERATION:
                yield from self._tell_section(stack)
                section = self._section(stack)
                within = f",in={section}" if section is not None else ""
                callers = record.words[len(function.arguments) : -2]
                if callers:
                    if callers not in self._chains:
                        self._chains[callers] = len(self._chains) + 1
                        yield call.lane, (CHAIN, self._chains[callers], self._chain(callers))
                    within += f",by={self._chains[callers]}"
                yield call.lane, (CALL, function.name, self._arguments(call) + within)
            return
        if function.role is Role.FLUSH:
            own = not calls
            if own:
                call.lane = self._free_lane(record.cpu)
            calls.append(call)
            yield from self._enter_flush(calls[0], function, record.cpu, own=own, section=self._section(stack))
            return
        if function.role is Role.VTCR:
            calls.append(call)
            return
        if not calls:
            del self._running[stack]
            self.outside[function.name] += 1
            return
        if calls[0].flushes:
            return
        if function.ends:
            calls.append(call)
            return
        yield from self._tell_all(calls[0], self._effect(function, call.words))

    def _chain(self, callers: Sequence[int]) -> str:
        # A return address is that of the instruction after the call.
        return "<".join(self.names(each - 4) or f"{each:#x}" for each in callers)

    def _enter_section(self, function: Function, record: Record, stack: int) -> Iterator[tuple[int, RawEvent]]:
        call = _Call(function, record.words[: len(function.arguments)], record.words[-1])
        call.lane = self._free_lane(_AROUND + record.cpu)
        sections = self._sections.setdefault(stack, [])
        while sections and sections[-1].stack <= call.stack:
            self._lanes.discard(sections.pop().lane)
        sections.append(call)
        if function.name == LOADING:
            self._loading.add(record.cpu)
        words = [f"cpu={record.cpu}", self._arguments(call)]
        if function.name == ABORTING:
            if self.plan.syndrome:
                words.append(f"esr={record.words[len(function.arguments)]:#x}")
            # Most are emulated devices', without an operation.
            call.waiting = (ENTER, function.name, ",".join(words))
            return
        call.told = ",".join(filter(None, words))
        yield call.lane, (ENTER, function.name, call.told)

    def _tell_section(self, stack: int) -> Iterator[tuple[int, RawEvent]]:
        for call in self._sections.get(stack, [])[-1:]:
            if call.waiting is not None:
                call.told = str(call.waiting[2])
                yield call.lane, call.waiting
                call.waiting = None

    def _leave_section(self, function: Function, record: Record, stack: int) -> Iterator[tuple[int, RawEvent]]:
        sections = self._sections.get(stack, [])
        if not sections or sections[-1].function is not function or sections[-1].stack != record.words[-1]:
            return
        call = sections.pop()
        if not sections:
            del self._sections[stack]
        self._lanes.discard(call.lane)
        if call.waiting is None:
            yield call.lane, (LEAVE, function.name)

    def _of_pages(self, function: Function, record: Record, stack: int) -> Iterator[tuple[int, RawEvent]]:
        """A page of the host is obtained or let go: told of a guest's fault, in which nothing but that fault's is."""
        fault = next(iter(self._sections.get(stack, [])[-1:]), None)
        if fault is None or fault.function.name != ABORTING:
            return
        word = record.words[0]
        if function.role is Role.OBTAIN:
            # KVM_PFN_ERR_MASK and KVM_PFN_NOSLOT (include/linux/kvm_host.h): no frame is.
            if record.number >= EXIT and not word >> _PFN_BITS:
                fault.obtained = True
                yield from self._tell_section(stack)
                yield fault.lane, (OBTAIN, word)
            return
        last, fault.released = fault.released, record
        # kvm_release_page_dirty goes on, or calls, kvm_release_page_clean for the same page: one release.
        if last is not None and (last.number != record.number and last.words[0] == word) and _goes_on(last, record):
            return
        if fault.obtained:
            yield fault.lane, (RELEASE, word)

    def _section(self, stack: int) -> int | None:
        """The lane of what runs on this stack around operations."""
        sections = self._sections.get(stack)
        return sections[-1].lane if sections else None

    def _tell_all(self, call: _Call, events: Iterator[RawEvent]) -> Iterator[tuple[int, RawEvent]]:
        for event in events:
            yield from self._tell(call, event)

    def _free_lane(self, cpu: int) -> int:
        """The CPU's number, unless an operation that began there is not done."""
        lane = cpu
        while lane in self._lanes:
            lane += 64
        self._lanes.add(lane)
        return lane

    def _arguments(self, call: _Call) -> str:
        words = [f"{name}={value:#x}" for name, value in zip(call.function.arguments, call.words, strict=True)]
        flags = dict(zip(call.function.arguments, call.words, strict=True)).get("flags", 0)
        if self.plan.shared and (flags & 0xFFFFFFFF) & self.plan.shared:
            words.append("shared")
        return ",".join(words)

    def _leave(self, function: Function, record: Record, stack: int) -> Iterator[tuple[int, RawEvent]]:
        if function.role is Role.SECTION:
            yield from self._leave_section(function, record, stack)
            return
        calls = self._running.get(stack, [])
        if not calls or calls[-1].function is not function or calls[-1].stack != record.words[-1]:
            return
        call = calls.pop()
        if not calls:
            del self._running[stack]
        value = record.words[0]
        if function.role is Role.FLUSH:
            yield from self._tell(calls[0] if calls else call, (LEAVE, function.name))
            if not calls:
                self._lanes.discard(call.lane)
            return
        if function.role is Role.VTCR:
            # kvm_init_stage2_mmu makes the table next (arch/arm64/kvm/mmu.c).
            self._vtcr[stack] = value
            self._lpa2 = bool(value >> _DS & 1)
        elif function.role in (Role.OPERATION, Role.INIT):
            if function.role is Role.INIT:
                shape = f"{self._shape(call.words[0])},vtcr={self._vtcr.pop(stack, 0):#x}"
                shape += "".join(f",{name}={value}" for name, value in self._features.items())
                yield call.lane, (CALL, function.name, f"{self._arguments(call)},{shape}")
                yield from ((call.lane, event) for event in call.events)
            yield call.lane, (RET, function.result(value))
            self._lanes.discard(call.lane)
        elif calls:
            yield from self._tell_all(calls[0], self._result(function, call.words, value))

    def _shape(self, pgt: int) -> str:
        """What init wrote into ``struct kvm_pgtable``."""
        words = []
        for name, (offset, size) in self.plan.members.items():
            value = sum(self._structs.get(pgt + offset + byte, 0) << 8 * byte for byte in range(size))
            signed = value - (1 << 8 * size) if value >> (8 * size - 1) else value
            words.append(f"{name}={signed}")
        return ",".join(words)

    def _effect(self, function: Function, words: tuple[int, ...]) -> Iterator[RawEvent]:
        """Of a function whose entry is all that is looked at."""
        pa = self._pa(words[0])
        page = pa & ~self._mask
        if function.role is Role.GET:
            self.counts[page] = self.counts.get(page, 1) + 1
            yield (GET, page)
        elif function.role is Role.PUT:
            left = self.counts.get(page, 0) - 1
            yield (PUT, page, left)
            if left:
                self.counts[page] = left
            else:
                self._drop(page)
                yield (FREE, page)
        elif function.role is Role.DEFER:
            level = words[1] & 0xFF
            yield (DEFER, page, level - 256 if level >> 7 else level)
        elif function.role is Role.FREE_EXACT:
            for at in range(page, page + words[1], self._mask + 1):
                self._drop(at)
            yield (FREE_EXACT, page, words[1])
        else:
            yield (CACHE, "dcache" if function.role is Role.DCACHE else "icache", pa, words[1])

    def _drop(self, page: int) -> None:
        self.counts.pop(page, None)
        self.pages.pop(page, None)

    def _result(self, function: Function, words: tuple[int, ...], value: int) -> Iterator[RawEvent]:
        """Of a function whose return is looked at."""
        if function.role is Role.FREE_EXACT:
            yield from self._effect(function, words)
            return
        if not value:
            yield (ALLOCFAIL,)
            return
        page = self._pa(value)
        size = self._mask + 1 if function.role is Role.ALLOC else words[0] + self._mask & ~self._mask
        for at in range(page, page + size, self._mask + 1):
            self.pages[at], self.counts[at] = {}, 1
        yield (ALLOC, page) if function.role is Role.ALLOC else (ALLOC_EXACT, page, size)

    def _stored(self, record: Record, calls: list[_Call] | None) -> Iterator[tuple[int, RawEvent]]:
        va, pa, low, high, found, at, compared, _ = record.words
        size = SIZES.get(record.number, 8)
        entries = self.pages.get(pa & ~self._mask)
        if entries is None:
            if calls and calls[0].function.role is Role.INIT:
                value = low | high << 64
                self._structs.update((va + byte, value >> 8 * byte & 0xFF) for byte in range(size))
            return
        if size != 8 or pa & 7:
            self.outside["store of another size to a table"] += 1
            return
        old = entries.get(pa, 0)
        if not calls:
            self.outside["store to a table"] += 1
            return
        cas = int(at in self.plan.compare_and_swaps)
        if cas and found != compared:
            entries[pa] = found
            yield from self._tell(calls[0], (CASFAIL, pa, compared, low))
            return
        entries[pa] = low
        if cas:
            old = found
        yield from self._tell(calls[0], (STORE, pa, old, low, int(at in self.plan.release_stores and not cas), cas))
