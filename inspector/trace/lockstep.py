"""The model in lockstep with a live table: each operation performed again with the live arguments, everything compared.

The model takes the pages that the kernel's allocator gave (`_LiveStore`), so both sides have the same addresses and the
events need no translation: the same stores, references, pages, invalidations and cache maintenance in the same order,
and the same return value, are the same tables and counts.  Barriers are left to the protocol's automaton.

What is not seen while it happens:

- The hardware sets access flags (VTCR_EL2.HA) without a store.  A CAS tells what it found; else AF is taken to be set
  where the kernel's code behaves as if it were, if it may be (`_Shadow._flags_that_may_be_set`).
- Operations that overlap in time on one table are performed in the order in which they ended, then in that in which
  they began.  Where neither gives what was seen, they raced within: what they stored is taken over, the protocol judges
  it, and they are counted (``raced``).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from inspector.codec import Geometry
from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    ALLOCFAIL,
    BARRIER,
    FREE,
    STORE,
    TLBI,
    TTL_UNKNOWN,
    WARN,
    RawEvent,
    format_raw,
)
from inspector.generations import Generation
from inspector.model.attributes import AF
from inspector.model.hyp import HypStage1
from inspector.model.machine import Machine
from inspector.model.pages import MemoryCache, NoSuchPage, PageStore
from inspector.model.prot import model_prot
from inspector.model.stage2 import Stage2
from inspector.model.state import HANDLE_FAULT, IGNORE_EAGAIN, SHARED, SKIP_BBM_TLBI, SKIP_CMO
from inspector.trace.performed import Performed
from inspector.trace.truth import Truth

_FLAGS: Final[Mapping[str, int]] = {
    "SHARED": SHARED,
    "HANDLE_FAULT": HANDLE_FAULT,
    "IGNORE_EAGAIN": IGNORE_EAGAIN,
    "SKIP_BBM_TLBI": SKIP_BBM_TLBI,
    "SKIP_CMO": SKIP_CMO,
}
"""``KVM_PGTABLE_WALK_…`` as the model has them."""
_HA: Final = 1 << 21
"""VTCR_EL2.HA: the hardware sets access flags (DDI 0487 D19.2)."""
_ELSEWHERE: Final = 1 << 46
"""Where a page is put that the model allocates and the kernel did not: no RAM is there."""
_PLENTY: Final = 1 << 20
_AROUND: Final = 4
_ISH: Final[RawEvent] = (BARRIER, "ish")
_INVALIDATION: Final = -1
"""In place of TLBI in what is compared: (…, "ipa"|"ipa_nsh"|"range"|"vmid", start, end, level)."""


@dataclass(frozen=True)
class Difference:
    """Where model and kernel part: what differs, and what either did from there on, a line each."""

    what: str
    model: tuple[str, ...]
    kernel: tuple[str, ...]


@dataclass
class Verdicts:
    """``held`` operations the model performed as the kernel did; ``raced`` are those that it could not be asked for."""

    held: int = 0
    raced: int = 0
    found: list[tuple[Performed, Difference]] = field(default_factory=list)


class _LiveStore(PageStore):
    """Gives the pages that the kernel's allocator gave, in their order; 0 where it had none."""

    __slots__ = ("given",)

    def __init__(self, granule: int) -> None:
        super().__init__(granule)
        self.next_address = _ELSEWHERE
        self.given: list[int] = []

    def _next(self) -> int | None:
        return self.given.pop() if self.given else None

    def zalloc(self, cache: MemoryCache | None = None) -> int:
        """As of the base."""
        page = self._next()
        if page is None:
            return super().zalloc(cache)
        if not page:
            self.emit((ALLOCFAIL,))
            return 0
        self.pages[page] = self.zero[:]
        self.counts[page] = 1
        self.emit((ALLOC, page))
        return page

    def zalloc_exact(self, count: int) -> int:
        """As of the base."""
        first = self._next()
        if first is None:
            return super().zalloc_exact(count)
        if not first:
            self.emit((ALLOCFAIL,))
            return 0
        for page in range(first, first + count * self.granule, self.granule):
            self.pages[page] = self.zero[:]
            self.counts[page] = 1
        self.emit((ALLOC_EXACT, first, count * self.granule))
        return first


class Shadow:
    """One live table in the model.

    ``features`` are those of the CPU that the table's ``init`` was told with; ``flags`` the kernel's walk flags by
    name.  What was seen stored, counted and allocated is kept beside the model's own store, which is brought back to it
    where they part.
    """

    def __init__(
        self,
        generation: Generation,
        geometry: Geometry,
        features: Mapping[str, int],
        flags: Mapping[str, int],
        hyp: Machine | None = None,
    ) -> None:
        """``hyp``: the table is the hypervisor's own, on this machine."""
        pgt_flags = features.get("flags", 0)
        machine = Machine(
            fwb=bool(features["fwb"]),
            tlb_range=bool(features["tlb_range"]),
            xnx=bool(features["xnx"]),
            no_fwb=bool(pgt_flags & generation.pgt_flags.bit("NOFWB")),
            idmap=bool(pgt_flags & generation.pgt_flags.bit("IDMAP")),
            as_s1=bool(pgt_flags & generation.pgt_flags.bit("AS_S1")),
        )
        self._generation = generation
        self._store = _LiveStore(1 << geometry.granule_shift)
        self._pgt: Stage2 | HypStage1 = (
            Stage2(generation, machine, geometry, self._store)
            if hyp is None
            else HypStage1(generation, hyp, geometry, self._store)
        )
        self._truth = Truth(1 << geometry.granule_shift)
        self._hardware_af = bool(features.get("vtcr", 0) & _HA)
        self._hints = bool(features["ttl"])
        self._flags = [(bit, _FLAGS[name]) for name, bit in flags.items() if name in _FLAGS]
        self._open = 0
        self._ended: list[Performed] = []
        self._mask = -(1 << geometry.granule_shift)

    def take_over(self, truth: Truth, root: int) -> None:
        """The table is this one already; ``truth`` is copied."""
        self._truth = truth.copied()
        self._pgt.root = root
        self._bring_back()

    def begin(self) -> None:
        """An operation on the table begins."""
        self._open += 1

    def end(self, performed: Performed, verdicts: Verdicts) -> None:
        """One has ended; what is known now is added to ``verdicts``."""
        self._open -= 1
        self._ended.append(performed)
        if self._open:
            return
        group, self._ended = self._ended, []
        if len(group) == 1:
            self._alone(group[0], verdicts)
        else:
            self._together(group, verdicts)

    # --- operations

    def _alone(self, performed: Performed, verdicts: Verdicts) -> None:
        difference = self._perform(performed)
        if difference is not None and self._hardware_af and self._with_guesses(performed):
            difference = None
        self._truth.advance(performed.events)
        if difference is None:
            verdicts.held += 1
            return
        verdicts.found.append((performed, difference))
        self._bring_back()

    def _with_guesses(self, performed: Performed) -> bool:
        """The model does the same if the hardware set access flags before: of leaves that kept one, of all that were
        stored to, or of all in the range.
        """
        first: dict[tuple[int, int], int] = {}
        for raw in performed.events:
            if raw[0] == STORE:
                first.setdefault(self._place(raw[1]), raw[3])
        self._bring_back()
        unset = self._flags_that_may_be_set(performed)
        stored = [place for place in unset if place in first]
        kept = [place for place in stored if first[place] & 1 and first[place] & AF]
        for places in (kept, stored, unset):
            self._bring_back()
            if not places:
                continue
            for page, index in places:
                self._store.pages[page][index] |= AF
            if self._perform(performed) is None:
                # What it is now is not known: what was not stored to is taken to be unset until something tells.
                for page, index in places:
                    if (page, index) not in first and page in self._store.pages:
                        self._store.pages[page][index] &= ~AF
                return True
        return False

    def _together(self, group: list[Performed], verdicts: Verdicts) -> None:
        for order in (group, sorted(group, key=lambda each: each.number)):
            if all(self._perform(each) is None for each in order):
                verdicts.held += len(group)
                self._catch_up(group)
                return
            self._bring_back()
        verdicts.raced += len(group)
        self._catch_up(group)
        self._bring_back()

    def _catch_up(self, group: list[Performed]) -> None:
        """The truth after all of them: what was seen, in the order in which it was."""
        merged = sorted((at, raw) for each in group for at, raw in zip(each.places, each.events, strict=True))
        self._truth.advance([raw for _, raw in merged])

    def _perform(self, performed: Performed) -> Difference | None:
        """The model's turn."""
        store = self._store
        unseen = self._changed_unseen(performed)
        if unseen is not None:
            return unseen
        store.given = [
            0 if raw[0] == ALLOCFAIL else raw[1]
            for raw in reversed(performed.events)
            if raw[0] in (ALLOC, ALLOC_EXACT, ALLOCFAIL)
        ]
        store.events.clear()
        try:
            result = _RUN[performed.name](self, performed)
        except KeyError:
            return Difference(f"{performed.name} is an operation that the model has not", (), ())
        except (NoSuchPage, ValueError, IndexError, RecursionError) as error:
            return Difference(f"the model cannot do it: {error}", _lines(store.take_events()[-_AROUND:]), ())
        ours, theirs = self._comparable(store.take_events()), self._live(performed.events)
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if not self._same(a, b)), None)
        if at is None and len(ours) != len(theirs):
            at = min(len(ours), len(theirs))
        if at is not None:
            window = slice(max(0, at - _AROUND), at + _AROUND)
            what = _what(ours[at] if at < len(ours) else None, theirs[at] if at < len(theirs) else None)
            return Difference(what, _lines(ours[window]), _lines(theirs[window]))
        if result is not None and result != performed.ret:
            return Difference("the return value", (_value(result),), (_value(performed.ret),))
        return None

    # --- comparing

    def _comparable(self, events: Sequence[RawEvent]) -> list[RawEvent]:
        """The model's events as the instructions are told."""
        found: list[RawEvent] = []
        for raw in events:
            if raw[0] in (BARRIER, WARN):
                continue
            if raw[0] != TLBI:
                found.append(raw)
            elif raw[1] == "vmid":
                found.append((_INVALIDATION, "vmid", 0, 0, None))
            elif raw[1] == "range":
                found.append((_INVALIDATION, "range", raw[2], raw[2] + raw[4] * self._store.granule, None))
            else:
                start = raw[2] & ~0xFFF
                found.append((_INVALIDATION, raw[1], start, start, raw[3]))
        return found

    def _live(self, events: Sequence[RawEvent]) -> list[RawEvent]:
        """The instructions as the calls they are of: one group of IPAS2E1IS ends with the VMALLE1IS after it.

        For some errata (ARM64_WORKAROUND_REPEAT_TLBI) a kernel repeats a TLBI after a DSB ISH, or makes one of EL2 that
        means nothing (``__tlbi_sync_s1ish_hyp``, ``vale2is`` of 0): neither is a call.
        """
        found: list[RawEvent] = []
        group: list[RawEvent] = []
        last: tuple[RawEvent, ...] = ()
        for raw in events:
            before, last = last, (*last[-1:], raw)
            if raw[0] == BARRIER:
                continue
            if raw[0] != TLBI:
                found.append(raw)
            elif before == (raw, _ISH) or raw[1].startswith(("va", "alle2")):
                continue
            elif raw[1] in ("vmalls12e1is", "vmalls12e1"):
                found.append((_INVALIDATION, "vmid", 0, 0, None))
            elif raw[1] in ("vmalle1is", "vmalle1"):
                found += self._group(group)
                group = []
            else:
                group.append(raw)
        return found + self._group(group)

    def _group(self, group: list[RawEvent]) -> list[RawEvent]:
        if not group:
            return []
        if len(group) == 1 and not group[0][1].startswith("r"):
            _, name, start, level, _ = group[0]
            return [(_INVALIDATION, "ipa" if name.endswith("is") else "ipa_nsh", start, start, level)]
        found: list[RawEvent] = []
        for _, _, start, _, pages in group:
            size = (1 if pages is None else pages) * self._store.granule
            if found and found[-1][3] == start:
                found[-1] = (_INVALIDATION, "range", found[-1][2], start + size, None)
            else:
                found.append((_INVALIDATION, "range", start, start + size, None))
        return found

    def _same(self, ours: RawEvent, theirs: RawEvent) -> bool:
        if ours[0] != _INVALIDATION or theirs[0] != _INVALIDATION:
            if self._hardware_af and ours[0] == theirs[0] == STORE and ours[2] & 1:
                return bool(ours[1] == theirs[1] and ours[2] | AF == theirs[2] | AF and ours[3:] == theirs[3:])
            return bool(ours == theirs)
        _, kind, start, end, level = ours
        _, their_kind, their_start, their_end, hint = theirs
        if kind == "range" and their_kind == "ipa":
            return bool(start == their_start and end - start == self._store.granule)
        if (kind, start, end) != (their_kind, their_start, their_end):
            return False
        # __tlbi_level: a hint for a CPU with FEAT_TTL, of a level that it can name; 0 is none up to 6.8.
        no_hint = not self._hints or level is None or not 1 <= level <= 3
        return no_hint if hint is None else bool(hint == level)

    # --- what was seen

    def _changed_unseen(self, performed: Performed) -> Difference | None:
        """What a CAS found that nobody was seen to store: an access flag that the hardware set, or a difference."""
        seen: set[int] = set()
        for raw in performed.events:
            if raw[0] != STORE or not raw[5] or raw[1] in seen:
                continue
            seen.add(raw[1])
            page, index = self._place(raw[1])
            entries = self._store.pages.get(page)
            if entries is None or entries[index] == raw[2]:
                continue
            known = entries[index]
            if self._hardware_af and known & 1 and raw[2] == known | AF:
                entries[index] = raw[2]
                continue
            return Difference(
                "the entry as it was before: it changed with no store that was seen",
                (f"{raw[1]:#x} {known:#x}",),
                (f"{raw[1]:#x} {raw[2]:#x}",),
            )
        return None

    def _flags_that_may_be_set(self, performed: Performed) -> list[tuple[int, int]]:
        """Leaves of the operation's range whose access flag the hardware may have set unseen."""
        pgt = self.model
        start = performed.words.get("addr", 0) & self._mask
        end = start + max(performed.words.get("size", 0), 1)
        found: list[tuple[int, int]] = []
        try:
            for page, level, base, _, _ in pgt.tables():
                shift = pgt.shifts[level]
                for index, pte in enumerate(self._truth.pages[page]):
                    at = base + (index << shift)
                    young = pte & AF or not pte & 1 or pgt.is_table(pte, level)
                    if not young and at < end and at + (1 << shift) > start:
                        found.append((page, index))
        except NoSuchPage:
            return []  # The table itself is broken: nothing is excused.
        return found

    def _place(self, pa: int) -> tuple[int, int]:
        return pa & self._mask, (pa & ~self._mask) >> 3

    def _bring_back(self) -> None:
        """The model's pages as the truth has them."""
        store, truth = self._store, self._truth
        store.events.clear()
        for page in [page for page in store.pages if page not in truth.pages]:
            del store.pages[page]
            store.counts.pop(page, None)
        for page, entries in truth.pages.items():
            if page not in store.pages:
                store.pages[page] = entries[:]
            elif store.pages[page] != entries:
                store.pages[page] = array("Q", entries)
            store.counts[page] = truth.counts.get(page, 0)
        store.deferred[:] = truth.deferred

    # --- the operations with their live arguments

    def flags(self, performed: Performed) -> int:
        """The model's walk flags for the kernel's."""
        if not self._generation.shared_walks:
            return 0
        given = performed.words.get("flags", 0) & 0xFFFFFFFF
        return sum(ours for bit, ours in self._flags if given & bit)

    def prot(self, performed: Performed) -> int:
        """The model's permissions.  Raises ``ValueError``."""
        return model_prot(performed.words["prot"], self._generation)

    @property
    def model(self) -> Stage2:
        """The table in the model.  Raises ``TypeError`` when it is the hypervisor's."""
        if not isinstance(self._pgt, Stage2):
            raise TypeError("this is a table of hyp stage-1")
        return self._pgt

    @property
    def hyp(self) -> HypStage1:
        """The hypervisor's table in the model.  Raises ``TypeError`` when it is a guest's."""
        if not isinstance(self._pgt, HypStage1):
            raise TypeError("this is a table of stage-2")
        return self._pgt

    def deferred_page(self, performed: Performed) -> tuple[int, int]:
        """The table that an RCU callback frees: the last page that goes.  Raises ``ValueError`` when none waits."""
        last = next((raw[1] for raw in reversed(performed.events) if raw[0] == FREE), None)
        for at, (page, level) in enumerate(self._store.deferred):
            if page == last:
                del self._store.deferred[at]
                return page, level
        raise ValueError("the table that is freed was not handed to RCU")

    @property
    def gives_entry(self) -> bool:
        """``mkyoung`` returns the old entry; later releases return nothing."""
        return self._generation.mkyoung_returns_pte


class AnyShadow:
    """A table in the model, as often as there are CPUs that it may be on, where that is not told.

    What the kernel does says which: those that do otherwise are left out, as long as one does the same.
    """

    def __init__(self, possible: Sequence[Shadow]) -> None:
        self._possible = list(possible)

    def take_over(self, truth: Truth, root: int) -> None:
        """As of `Shadow`."""
        for each in self._possible:
            each.take_over(truth, root)

    def begin(self) -> None:
        """As of `Shadow`."""
        for each in self._possible:
            each.begin()

    def end(self, performed: Performed, verdicts: Verdicts) -> None:
        """As of `Shadow`."""
        outcomes = []
        for each in self._possible:
            own = Verdicts()
            each.end(performed, own)
            outcomes.append((each, own))
        good = [(each, own) for each, own in outcomes if not own.found]
        if good:
            self._possible = [each for each, _ in good]
        told = (good or outcomes)[0][1]
        verdicts.held += told.held
        verdicts.raced += told.raced
        verdicts.found += told.found


def hyp_shadow(
    generation: Generation, geometry: Geometry, features: Mapping[str, int], flags: Mapping[str, int]
) -> AnyShadow:
    """Hyp stage-1: hVHE, BTI and LPA2 are not told."""
    wide = generation.lpa2 and geometry.granule_shift != 16
    features = {"tlb_range": 0, **features}  # it has no range invalidations
    return AnyShadow(
        [
            Shadow(generation, replace(geometry, lpa2=lpa2), features, flags, Machine(hvhe=hvhe, bti=bti))
            for lpa2 in (False, True)[: 1 + wide]
            for hvhe in (False, True)
            for bti in (False, True)
        ]
    )


def guest_shadow(
    generation: Generation, geometry: Geometry, features: Mapping[str, int], flags: Mapping[str, int]
) -> Shadow | AnyShadow:
    """A guest's table.  QEMU 11.1 shows no ID_AA64ISAR0_EL1: whether the CPU invalidates by range is not told then."""
    if "tlb_range" in features:
        return Shadow(generation, geometry, features, flags)
    return AnyShadow([Shadow(generation, geometry, {**features, "tlb_range": each}, flags) for each in (1, 0)])


def _cache(performed: Performed) -> MemoryCache | None:
    """None where the caller gave none; what is in one is told by the allocations."""
    return MemoryCache(_PLENTY) if performed.words["mc"] else None


def _map(shadow: Shadow, performed: Performed) -> int:
    words = performed.words
    prot, flags = shadow.prot(performed), shadow.flags(performed)
    return shadow.model.map(words["addr"], words["size"], words["phys"], prot, _cache(performed), flags)


def _mkyoung(shadow: Shadow, performed: Performed) -> int | None:
    found = shadow.model.mkyoung(performed.words["addr"], shadow.flags(performed))
    return found if shadow.gives_entry else None


def _free(shadow: Shadow, performed: Performed) -> None:
    shadow.model.free_unlinked(*shadow.deferred_page(performed))


def _nothing(run: Callable[[Stage2, Mapping[str, int]], None]) -> Callable[[Shadow, Performed], None]:
    return lambda shadow, performed: run(shadow.model, performed.words)


_RUN: Final[Mapping[str, Callable[[Shadow, Performed], int | None]]] = {
    "init": lambda s, p: s.model.init(),
    "map": _map,
    "unmap": lambda s, p: s.model.unmap(p.words["addr"], p.words["size"]),
    "wrprotect": lambda s, p: s.model.wrprotect(p.words["addr"], p.words["size"]),
    "mkyoung": _mkyoung,
    "mkold": lambda s, p: s.model.mkold(p.words["addr"]),
    "is_young": lambda s, p: s.model.is_young(p.words["addr"]),
    "test_clear_young": lambda s, p: s.model.test_clear_young(
        p.words["addr"], p.words["size"], bool(p.words["mkold"] & 0xFF)
    ),
    "relax_perms": lambda s, p: s.model.relax_perms(p.words["addr"], s.prot(p), s.flags(p)),
    "flush": lambda s, p: s.model.flush(p.words["addr"], p.words["size"]),
    "set_owner": lambda s, p: s.model.set_owner(p.words["addr"], p.words["size"], _cache(p), p.words["owner"] & 0xFF),
    "annotate": lambda s, p: s.model.annotate(
        p.words["addr"], p.words["size"], _cache(p), p.words["type"] & 0xFFFFFFFF, p.words["owner"]
    ),
    "split": lambda s, p: s.model.split(p.words["addr"], p.words["size"], MemoryCache(_PLENTY)),
    "destroy": _nothing(lambda model, words: model.destroy()),
    "destroy_range": _nothing(lambda model, words: model.destroy_range(words["addr"], words["size"])),
    "destroy_pgd": _nothing(lambda model, words: model.destroy_pgd()),
    "grace_period": _free,
    "hyp_init": lambda s, p: s.hyp.init(),
    "hyp_map": lambda s, p: s.hyp.map(p.words["addr"], p.words["size"], p.words["phys"], s.prot(p)),
    "hyp_unmap": lambda s, p: s.hyp.unmap(p.words["addr"], p.words["size"]),
    "hyp_destroy": lambda s, p: s.hyp.destroy(),
}


def _value(value: Any) -> str:
    return f"{value:#x}" if abs(value) >= 1 << 16 else str(value)


def _lines(events: Sequence[RawEvent]) -> tuple[str, ...]:
    return tuple(_line(raw) for raw in events)


def _line(raw: RawEvent) -> str:
    if raw[0] != _INVALIDATION:
        return format_raw(raw)
    _, kind, start, end, level = raw
    if kind == "vmid":
        return "invalidation of the whole VMID"
    if kind == "range":
        return f"invalidation of the range {start:#x}-{end:#x}"
    hint = "no level hint" if level in (None, TTL_UNKNOWN) else f"level {level}"
    return f"invalidation of IPA {start:#x}, {hint}{', this CPU alone' if kind == 'ipa_nsh' else ''}"


def _what(ours: RawEvent | None, theirs: RawEvent | None) -> str:
    if ours is None:
        return f"the kernel does what the model does not: {_line(theirs or ())}"
    if theirs is None:
        return f"the kernel does not do what the model does: {_line(ours)}"
    return f"the kernel does '{_line(theirs)}' where the model does '{_line(ours)}'"
