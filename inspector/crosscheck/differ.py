"""Model and kernel code side by side: the same operation on both, everything compared after it.

``Pair`` holds one table on each side.  Addresses need no translation: the harness numbers its pages as the model's
store does (from the same address, never one twice), so the same order of allocations gives the same addresses.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from inspector.codec import GRANULES
from inspector.crosscheck import harness as h
from inspector.crosscheck.kernel import Kernel
from inspector.events import CASFAIL, PUT, RawEvent, format_raw
from inspector.findings import BadInput
from inspector.generations import Generation
from inspector.model.operations import LAST, Operation, format_operation, parse_operation
from inspector.model.pages import NoSuchPage, PageStore
from inspector.model.prot import kernel_prot
from inspector.model.session import NoSuchEntry, Session, Setup, parse_setup
from inspector.model.state import HANDLE_FAULT, IGNORE_EAGAIN, SHARED, SKIP_BBM_TLBI, SKIP_CMO
from inspector.protocol.rules import Violation

_OPS = {
    "unmap": h.Op.UNMAP,
    "wrprotect": h.Op.WRPROTECT,
    "mkold": h.Op.MKOLD,
    "is_young": h.Op.IS_YOUNG,
    "flush": h.Op.FLUSH,
    "get_leaf": h.Op.GET_LEAF,
    "destroy": h.Op.DESTROY,
    "destroy_range": h.Op.DESTROY_RANGE,
    "destroy_pgd": h.Op.DESTROY_PGD,
    "grace_period": h.Op.RCU,
    "hyp_unmap": h.Op.HYP_UNMAP,
    "hyp_destroy": h.Op.HYP_DESTROY,
    "map": h.Op.MAP,
    "relax_perms": h.Op.RELAX_PERMS,
    "mkyoung": h.Op.MKYOUNG,
    "set_owner": h.Op.SET_OWNER,
    "annotate": h.Op.ANNOTATE,
    "test_clear_young": h.Op.TEST_CLEAR_YOUNG,
    "split": h.Op.SPLIT,
    "create_unlinked": h.Op.CREATE_UNLINKED,
    "free_unlinked": h.Op.FREE_UNLINKED,
    "poke": h.Op.POKE,
    "reference": h.Op.REF,
    "hyp_map": h.Op.HYP_MAP,
}
_FLAG_NAMES = (
    (SHARED, "SHARED"),
    (HANDLE_FAULT, "HANDLE_FAULT"),
    (IGNORE_EAGAIN, "IGNORE_EAGAIN"),
    (SKIP_BBM_TLBI, "SKIP_BBM_TLBI"),
    (SKIP_CMO, "SKIP_CMO"),
)
_RACES = {"set": h.Race.SET, "clear": h.Race.CLEAR, "value": h.Race.VALUE}
_ROOTS = frozenset({"init", "hyp_init", "destroy", "destroy_pgd", "hyp_destroy"})
_BY_VALUE = frozenset({"mkyoung", "mkold", "get_leaf", "create_unlinked", "poke", "reference"})


class What(enum.StrEnum):
    """In which respect the two sides differ."""

    FAULT = "the kernel's own code used memory that it does not own"
    MODEL_BROKE = "the model broke"
    ONE_SIDE = "only one side can do it"
    EVENTS = "events"
    RETURN = "return value"
    VALUE = "value"
    LEVEL = "level"
    TABLE = "table entries"
    ROOT = "the root table"
    PAGES = "pages allocated, or their reference counts"
    DEFERRED = "deferred tables"
    PROTOCOL = "the kernel's events break the invalidation protocol"
    WARNING = "the kernel's code warns"
    LEAK = "pages are left allocated, which nobody can give back"


@dataclass(frozen=True)
class Difference:
    """What differed after one operation; the texts show both sides.

    ``broken`` is the rule of the protocol that the kernel's events break, where they were judged and do.
    """

    operation: str
    what: What
    model: str
    kernel: str
    broken: Violation | None = field(default=None, kw_only=True)

    def __str__(self) -> str:
        return f"after {self.operation}: {self.what}\n  model:\n{self.model}\n  kernel:\n{self.kernel}"


class KernelSide:
    """The harness driven by script operations."""

    def __init__(self, setup: Setup, kernel: Kernel, *, every_access: bool = False, sanitize: bool = False) -> None:
        self.setup = setup
        machine = setup.machine
        self.harness = h.Harness(
            kernel.library(setup.granule, hyp=machine.hyp_build, every_access=every_access, sanitize=sanitize),
            store_pages=1 << 14,
            check_faults=False,
            fwb=machine.fwb,
            tlb_range=machine.tlb_range,
            lpa2=setup.lpa2,
            xnx=machine.xnx,
            hvhe=machine.hvhe,
            bti=machine.bti,
            dcache_op=machine.dcache_op,
            icache_op=machine.icache_op,
            rcu_at_once=not machine.rcu,
        )
        self.last_page = 0

    def _flags(self, flags: int) -> int:
        return self.harness.bits("WALK_", " ".join(name for bit, name in _FLAG_NAMES if flags & bit)) if flags else 0

    def _fields(self, o: Operation) -> tuple[h.Op, dict[str, Any]]:
        """The operation as the harness takes it."""
        harness, machine = self.harness, self.setup.machine
        if o.name == "init":
            words = [("NOFWB", machine.no_fwb), ("IDMAP", machine.idmap), ("AS_S1", machine.as_s1)]
            flags = harness.bits("S2_", " ".join(word for word, on in words if on))
            harness.set("force_pte", bool(machine.force_pte))
            shape = {"size": self.setup.ipa, "phys": self.setup.pa, "level": 16}
            return h.Op.INIT, {**shape, "flags": flags, "value": machine.force_pte is not None}
        if o.name == "hyp_init":
            return h.Op.HYP_INIT, {"size": self.setup.va}
        fields: dict[str, Any] = {"addr": o.addr, "size": o.size, "mc": o.cache, "level": o.level}
        if o.name in ("map", "relax_perms", "create_unlinked", "hyp_map"):
            fields["prot"] = kernel_prot(o.prot, self.setup.behaviours)
            fields["phys"] = o.pa
        fields["flags"] = self._flags(o.flags)
        if o.name in ("set_owner", "annotate", "poke"):
            fields["value"] = o.value
        if o.name == "annotate":
            fields["flags"] = o.kind
        elif o.name in ("test_clear_young", "create_unlinked"):
            fields["flags"] = o.switch
        elif o.name in ("poke", "reference"):
            fields["size"] = o.change
        elif o.name == "free_unlinked":
            fields["phys"] = self.last_page if o.value == LAST else o.value
        return _OPS[o.name], fields

    def packed(self, o: Operation) -> bytes:
        """The operation as it crosses the interface."""
        op, fields = self._fields(o)
        return h.pack(op, **fields)

    def apply(self, o: Operation) -> tuple[h.Result, list[RawEvent]]:
        """Run one operation: the kernel's result and events."""
        harness = self.harness
        if o.fail_alloc or o.lose_cas:
            harness.inject = h.Inject(o.fail_alloc, o.lose_cas, _RACES[o.race_mode], o.race_value)
        op, fields = self._fields(o)
        result, raws = harness.one(op, **fields)
        if result.flags & 2:
            raise NoSuchEntry(format_operation(o))
        if o.name == "create_unlinked" and result.ret == 0:
            self.last_page = result.value
        return result, raws

    def store(self) -> tuple[PageStore, int]:
        """What its pages hold now, and the address of its root."""
        store = PageStore(self.harness.page_size)
        store.counts.update(self.harness.outstanding())
        store.pages.update((page, array("Q", self.harness.page(page))) for page in store.counts)
        return store, self.harness.info().pgd

    def close(self) -> None:
        """Give the memory back."""
        self.harness.close()


def _lines(raws: list[RawEvent]) -> str:
    return "\n".join("    " + format_raw(raw) for raw in raws)


def first_difference(ours: list[RawEvent], theirs: list[RawEvent]) -> tuple[str, str]:
    """What stands around the first event that differs, on each side."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    start = max(0, at - 4)
    return _lines(ours[start : at + 4]), _lines(theirs[start : at + 4])


def uses_known_fault(operation: Operation, behaviours: Generation, faults: list[h.Fault]) -> bool:
    """The generation is known for just these faults: create_unlinked's double put of 6.6.9 (kernel.md 8)."""
    return (
        behaviours.unlinked_double_put
        and operation.name in ("create_unlinked", "split")
        and all(fault.kind is h.FaultKind.PUT for fault in faults)
    )


def _uses_freed(raws: list[RawEvent]) -> bool:
    """The model drops a reference that nobody holds."""
    return any(raw[0] == PUT and raw[2] < 0 for raw in raws)


class Pair:
    """One table in the model and one in the kernel's code.

    ``events`` and ``ret`` are the model's for the last operation, ``theirs`` and ``their_ret`` the kernel's.
    """

    def __init__(self, setup: Setup, kernel: Kernel) -> None:
        self.session = Session(setup)
        self.kernel = KernelSide(setup, kernel)
        self.events: list[RawEvent] = []
        self.theirs: list[RawEvent] = []
        self.ret = self.their_ret = 0
        self.known_faults = 0

    @property
    def kernels(self) -> tuple[KernelSide, ...]:
        """The sides that are a kernel's code."""
        return (self.kernel,)

    def stores(self) -> tuple[tuple[PageStore, int], tuple[PageStore, int]]:
        """The pages of either side, and the address of its root."""
        pgt = self.session.pgt
        return (self.session.store, pgt.root if pgt else 0), self.kernel.store()

    def close(self) -> None:
        """Give the memory back: the model's pages too, which the collector would come to late, as they are few objects
        and much memory."""
        self.kernel.close()
        self.session.store.pages.clear()

    def apply(self, operation: Operation) -> Difference | None:
        """Run it on both sides; the first difference, ``None`` when there is none.

        A fault of the kernel's code is a difference, whatever the model does, unless this generation is known for it
        (:func:`uses_known_fault`); ``known_faults`` counts those.

        Raises ``NoSuchEntry`` when neither side has the entry, ``Unsupported`` when neither has the function, and
        ``StoreFull`` when the harness has no page left.
        """
        model_error = kernel_error = None
        faults: list[h.Fault] = []
        try:
            result, theirs = self.kernel.apply(operation)
            self.theirs, self.their_ret = theirs, result.ret
            faults = self.kernel.harness.faults() if result.faults else []
        except (NoSuchEntry, h.Unsupported) as error:
            kernel_error = error
        if any(fault.kind is h.FaultKind.STORE_FULL for fault in faults):
            raise h.StoreFull
        broken = None
        try:
            outcome = self.session.apply(operation)
        except (NoSuchEntry, ValueError) as error:
            model_error = error
        except (NoSuchPage, KeyError, IndexError, RecursionError) as error:
            broken = error
        if faults:
            ours = self.session.store.events
            self.events = ours[:]
            if broken or ours != theirs or not uses_known_fault(operation, self.session.setup.behaviours, faults):
                model = "    does the same" if broken or _uses_freed(ours) else "    does not"
                return Difference(
                    format_operation(operation), What.FAULT, model, "\n".join(f"    {fault}" for fault in faults)
                )
            self.known_faults += len(faults)
        if broken:
            return Difference(format_operation(operation), What.MODEL_BROKE, repr(broken), "")
        if model_error or kernel_error:
            if model_error and kernel_error:
                self.session.store.take_events()
                raise kernel_error
            return Difference(format_operation(operation), What.ONE_SIDE, str(model_error), str(kernel_error))
        ours = self.events = self.session.store.take_events()
        if ours != theirs:
            return Difference(format_operation(operation), What.EVENTS, *first_difference(ours, theirs))
        by_value = operation.name in ("mkyoung", "mkold")
        ret = self.ret = outcome.value - (outcome.value >> 63 << 64) if by_value else outcome.ret
        if ret != result.ret:
            return Difference(format_operation(operation), What.RETURN, str(ret), str(result.ret))
        if operation.name in _BY_VALUE and ret >= 0 and outcome.value != result.value:
            return Difference(format_operation(operation), What.VALUE, f"{outcome.value:#x}", f"{result.value:#x}")
        if operation.name == "get_leaf" and ret == 0 and outcome.level != result.level:
            return Difference(format_operation(operation), What.LEVEL, str(outcome.level), str(result.level))
        return self._compare_state(operation)

    def _compare_state(self, operation: Operation) -> Difference | None:
        """Every allocated page, byte by byte, and its count: with the same root that is the same tree."""
        harness, store = self.kernel.harness, self.session.store
        counts, outstanding = store.counts, harness.outstanding()
        if counts != outstanding:
            odd = {page for page in counts.keys() | outstanding.keys() if counts.get(page) != outstanding.get(page)}
            sides = [str({hex(page): side.get(page) for page in sorted(odd)}) for side in (counts, outstanding)]
            return Difference(format_operation(operation), What.PAGES, *sides)
        for page, entries in store.pages.items():
            if entries.tobytes() != harness.page(page):
                both = odd_entries(page, entries, harness.page(page))
                return Difference(format_operation(operation), What.TABLE, *both)
        if operation.name in _ROOTS:
            root, theirs = self.session.pgt.root if self.session.pgt else 0, harness.info().pgd
            if root != theirs:
                return Difference(format_operation(operation), What.ROOT, f"{root:#x}", f"{theirs:#x}")
        if store.deferred != harness.deferred():
            return Difference(format_operation(operation), What.DEFERRED, str(store.deferred), str(harness.deferred()))
        return None


def odd_entries(page: int, ours: array[int], theirs: bytes) -> tuple[str, str]:
    """The entries of a page that differ, as each side has them."""
    other = memoryview(theirs).cast("Q")
    odd = [index for index, (a, b) in enumerate(zip(ours, other, strict=True)) if a != b]
    return tuple(  # type: ignore[return-value]
        "\n".join(f"    {page:#x}[{index}] {side[index]:#x}" for index in odd[:8]) for side in (ours, other)
    )


class Sides(Protocol):
    """Two implementations of one table: the model and a kernel's code, or two kernels' code.

    ``session`` is the model's, which says what may be done next; ``events`` are the first side's for the last
    operation, ``theirs`` the second's, ``ret`` what it returned.  ``known_faults`` counts those of kernels' code that
    are no difference.
    """

    events: list[RawEvent]
    theirs: list[RawEvent]
    ret: int
    known_faults: int

    @property
    def session(self) -> Session: ...

    @property
    def kernels(self) -> tuple[KernelSide, ...]: ...

    def stores(self) -> tuple[tuple[PageStore, int], tuple[PageStore, int]]: ...

    def apply(self, operation: Operation) -> Difference | None: ...

    def close(self) -> None: ...


Open = Callable[[Setup], Sides]
"""Begins a comparison on a machine."""


def _still_changed(pair: Sides, entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of ``entries``, (pa, value), those that hold another value, in a page that is allocated."""
    shift = GRANULES[pair.session.setup.granule]
    found = []
    for pa, value in entries:
        page = pair.session.store.pages.get(pa >> shift << shift)
        if page is not None and page[(pa & (1 << shift) - 1) // 8] != value:
            found.append((pa, value))
    return found


def run_lines(lines: list[str], kernel: Kernel, patience: int | None = None) -> Difference | None:
    """Run a script on the model and a kernel's code: the first difference, ``None`` when they agree to the end."""
    return run_on(lines, lambda setup: Pair(setup, kernel), patience)


def run_on(
    lines: list[str], open_sides: Open, patience: int | None = None, look: Callable[[Sides], None] | None = None
) -> Difference | None:
    """Run a script on both sides: the first difference, ``None`` when they agree to the end.

    An operation of a kernel that takes ``patience`` milliseconds of the processor does not end (default: 2000).
    Operations that neither side can do are passed over, so that a shrinker may remove any line.  A script that lets a
    foreign change stand after a lost race (another CPU's store has no reference behind it) misuses the table itself:
    it shows nothing.  ``look`` is shown the sides at the start and after each operation, the last one included.
    """
    setup = parse_setup(lines[0])
    pair = open_sides(setup)
    if patience is not None:
        for side in pair.kernels:
            side.harness.set("patience", patience)
    foreign: list[tuple[int, int]] = []
    try:
        if look is not None:
            look(pair)
        for line in lines[1:]:
            try:
                operation = parse_operation(line)
                if foreign and operation.name != "poke":
                    return None
                difference = pair.apply(operation)
            except (NoSuchEntry, h.Unsupported):
                continue
            except (h.StoreFull, ValueError, BadInput):
                return None
            if look is not None:
                look(pair)
            if difference:
                return difference
            lost = [(raw[1], raw[2]) for raw in pair.events if raw[0] == CASFAIL]
            foreign = _still_changed(pair, lost or foreign)
    finally:
        pair.close()
    return None
