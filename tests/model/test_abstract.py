"""The reference that cannot share the bug: a dictionary from page to (PA, permissions, memory, AF).

It knows nothing of tables, levels, blocks or counts beyond what an operation promises its caller:

- after a successful map, every page of the range translates as asked;
- pages outside the range are either as they were, or gone (a block that an operation touches in part may be dropped
  and faulted back), never anything else;
- attribute changes concern whole leaves, so pages around the range may change in that attribute only;
- after unmap the range is gone; after destroy nothing is allocated.

Structure is checked independently of how it came about: reference counts, unique parents, aligned leaves.
"""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from errno import EAGAIN, EINVAL, ENOMEM, ERANGE
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from inspector.codec import Format, Geometry, Kind, Regime, decode
from inspector.events import ALLOC, ALLOC_EXACT, FREE, FREE_EXACT, STORE, TLBI
from inspector.model import GENERATIONS, Machine, MemoryCache, Prot, Stage2, generation

PAGE = 4096
BLOCK = 512 * PAGE
BASE = 0x8000_0000
PAGES = st.integers(0, 4 * 512 - 1)
COUNTS = st.one_of(st.integers(1, 4), st.just(512), st.just(1024))
PERMISSIONS = st.sampled_from([int(p) for p in (Prot.R, Prot.RW, Prot.R | Prot.X, Prot.RWX)])


class Page(NamedTuple):
    """What one page of guest memory is to the guest."""

    pa: int
    readable: bool
    writable: bool
    executable: bool
    device: bool
    af: bool


@functools.cache
def _decoded(
    raw: int, level: int, geometry: Geometry, fmt: Format
) -> tuple[Kind, int, tuple[bool, bool, bool, bool, bool]]:
    descriptor = decode(raw, level, geometry, fmt)
    device = descriptor.memory_type.startswith("device")
    executable = descriptor.executable == "X"
    attributes = (descriptor.readable, descriptor.writable, executable, device, descriptor.af)
    return descriptor.kind, descriptor.output_address or 0, attributes


def _wanted(pa: int, prot: int, device: bool) -> Page:
    return Page(pa, bool(prot & Prot.R), bool(prot & Prot.W), bool(prot & Prot.X), device, True)


class AbstractMap(RuleBasedStateMachine):
    """Random operations on the model; the dictionary is what must be true afterwards."""

    label = "6.12"

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[int, Page] = {}
        self.memory: dict[int, array[int]] = {}

    @initialize(fwb=st.booleans(), tlb_range=st.booleans(), shared_end=st.booleans())
    def begin(self, fwb: bool, tlb_range: bool, shared_end: bool) -> None:
        self.geometry = Geometry.for_ipa(40)
        self.format = Format(Regime.STAGE2, fwb=fwb)
        self.base = BASE if not shared_end else (1 << 39) - 2 * BLOCK
        self.pgt = Stage2(generation(self.label), Machine(fwb=fwb, tlb_range=tlb_range), self.geometry)
        assert self.pgt.init() == 0
        self._see_events()

    # --- reading the model's table by the codec and plain arithmetic

    def _read(self) -> dict[int, Page]:
        found: dict[int, Page] = {}
        store = self.pgt.store

        def under(table: int, level: int, base: int) -> None:
            size = self.geometry.block_size(level)
            for index, raw in enumerate(store.pages[table]):
                if not raw:
                    continue
                kind, pa, attributes = _decoded(raw, level, self.geometry, self.format)
                ia = base + index * size
                if kind is Kind.TABLE:
                    under(pa, level + 1, ia)
                elif kind.is_leaf:
                    assert pa % size == 0
                    assert level in self.geometry.block_levels
                    for offset in range(0, size, PAGE):
                        found[ia + offset] = Page(pa + offset, *attributes)

        for number in range(self.geometry.root_pages):
            reach = self.geometry.block_size(self.geometry.start_level - 1)
            under(self.pgt.root + number * PAGE, self.geometry.start_level, number * reach)
        return found

    def _see_events(self) -> set[int]:
        """Replay the stores on a memory of our own; the pages' contents must be what the stores made them.

        Returns the kinds of events seen.
        """
        kinds = set()
        for raw in self.pgt.store.take_events():
            kinds.add(raw[0])
            if raw[0] == STORE:
                page, index = raw[1] & -PAGE, raw[1] % PAGE // 8
                assert self.memory[page][index] == raw[2], "a store's old value is not what was there"
                self.memory[page][index] = raw[3]
            elif raw[0] in (ALLOC, ALLOC_EXACT):
                for page in range(raw[1], raw[1] + (raw[2] if raw[0] == ALLOC_EXACT else PAGE), PAGE):
                    self.memory[page] = array("Q", bytes(PAGE))
            elif raw[0] in (FREE, FREE_EXACT):
                for page in range(raw[1], raw[1] + (raw[2] if raw[0] == FREE_EXACT else PAGE), PAGE):
                    del self.memory[page]
        return kinds

    def _settle(self, start: int, count: int, inside: dict[int, Page]) -> None:
        """Inside the range exactly ``inside``; outside as before, or gone with the block it was part of."""
        found = self._read()
        first, last = start, start + count * PAGE
        for ia, page in found.items():
            expected = inside.get(ia) if first <= ia < last else self.truth.get(ia)
            assert page == expected, f"{ia:#x}: {page}, expected {expected}"
        for ia in inside:
            assert ia in found, f"{ia:#x} should be mapped"
        for ia in self.truth:
            if not first <= ia < last and ia not in found:
                near = ia - ia % BLOCK
                assert near < last and near + BLOCK > first, f"{ia:#x} vanished far from the range"
        self.truth = found

    # --- what a VMM's memory goes through

    @rule(page=PAGES, count=COUNTS, prot=PERMISSIONS, device=st.booleans(), shift=st.sampled_from([0, 0, 0, 7]))
    def map(self, page: int, count: int, prot: int, device: bool, shift: int) -> None:
        if count >= 512 and not shift:
            page -= page % 512
        if shift:
            count = min(count, 8)
        start = self.base + page * PAGE
        count = min(count, 4 * 512 - page)
        pa = 0x4000_0000 + (page + shift) * PAGE
        if device:
            prot = (prot & ~int(Prot.X)) | int(Prot.DEVICE)
        before = dict(self.truth)
        ret = self.pgt.map(start, count * PAGE, pa, prot, MemoryCache(40))
        self._see_events()
        inside = {start + i * PAGE: _wanted(pa + i * PAGE, prot, device) for i in range(count)}
        if ret == 0 and generation(self.label).eagain.name != "STOPS_IN_FAULT":
            self._settle(start, count, inside)
            return
        assert ret in (0, -EAGAIN)
        # A refused leaf was there before, at the same place, perhaps with other permissions.  Where a refusal ends the
        # walk (-EAGAIN comes out), what lies behind it is as before.
        found = self._read()
        for ia, page_found in found.items():
            if start <= ia < start + count * PAGE:
                old = before.get(ia)
                assert page_found == inside[ia] or page_found == old
                if page_found != inside[ia] and ret == 0:
                    assert old is not None
                    assert (old.pa, old.device) == (inside[ia].pa, inside[ia].device)
            else:
                assert page_found == before.get(ia)
        if ret == 0:
            assert all(ia in found for ia in inside)
        self.truth = found

    @rule(page=PAGES, count=COUNTS)
    def unmap(self, page: int, count: int) -> None:
        start, count = self.base + page * PAGE, min(count, 4 * 512 - page)
        had = any(start <= ia < start + count * PAGE for ia in self.truth)
        assert self.pgt.unmap(start, count * PAGE) == 0
        kinds = self._see_events()
        assert not had or TLBI in kinds, "a mapping went without an invalidation"
        self._settle(start, count, {})

    def _leaves_touched(self, start: int, count: int) -> set[int]:
        touched: set[int] = set()
        ia = start
        while ia < start + count * PAGE:
            ret, entry, level = self.pgt.get_leaf(ia)
            assert ret == 0
            size = self.geometry.block_size(level)
            first = ia - ia % size
            if entry & 1:
                touched.update(range(first, first + size, PAGE))
            ia = first + size
        self.pgt.store.take_events()
        return touched

    @rule(page=PAGES, count=COUNTS)
    def wrprotect(self, page: int, count: int) -> None:
        start, count = self.base + page * PAGE, min(count, 4 * 512 - page)
        touched = self._leaves_touched(start, count)
        assert self.pgt.wrprotect(start, count * PAGE) == 0
        self._see_events()
        for ia in touched:
            self.truth[ia] = self.truth[ia]._replace(writable=False)
        assert self._read() == self.truth

    @rule(page=PAGES, prot=PERMISSIONS)
    def relax(self, page: int, prot: int) -> None:
        ia = self.base + page * PAGE
        if ia in self.truth and self.truth[ia].device:
            prot &= ~int(Prot.X)
        touched = self._leaves_touched(ia, 1)
        ret = self.pgt.relax_perms(ia, prot)
        assert ret == (0 if touched or not generation(self.label).attr_invalid_eagain else -EAGAIN) or (
            generation(self.label).attr_walk_flags.name == "CALLER" and ret in (0, -EAGAIN)
        )
        self._see_events()
        for each in touched:
            old = self.truth[each]
            self.truth[each] = old._replace(
                readable=old.readable or bool(prot & Prot.R),
                writable=old.writable or bool(prot & Prot.W),
                executable=old.executable or bool(prot & Prot.X),
            )
        assert self._read() == self.truth

    @rule(page=PAGES, young=st.booleans())
    def age(self, page: int, young: bool) -> None:
        ia = self.base + page * PAGE
        touched = self._leaves_touched(ia, 1)
        if young:
            self.pgt.mkyoung(ia)
        elif generation(self.label).test_clear_young:
            was = self.pgt.test_clear_young(ia, PAGE, True)
            assert bool(was) == (ia in self.truth and self.truth[ia].af)
        else:
            was = self.pgt.is_young(ia)
            assert bool(was) == (ia in self.truth and self.truth[ia].af)
            self.pgt.mkold(ia)
        self._see_events()
        for each in touched:
            self.truth[each] = self.truth[each]._replace(af=young)
        assert self._read() == self.truth

    @rule(page=PAGES, count=COUNTS)
    def split(self, page: int, count: int) -> None:
        if not generation(self.label).split:
            return
        start, count = self.base + page * PAGE, min(count, 4 * 512 - page)
        touched = self._leaves_touched(start, count)
        if any(self.truth[ia].device for ia in touched):
            return  # a device block is rebuilt as normal memory: dirty logging is refused on such slots
        blocks = {ia - ia % BLOCK for ia in touched if self.pgt.get_leaf(ia)[2] == 2}
        self.pgt.store.take_events()
        assert self.pgt.split(start, count * PAGE, MemoryCache(8)) == 0
        self._see_events()
        for first in blocks:
            for ia in range(first, first + BLOCK, PAGE):
                self.truth[ia] = self.truth[ia]._replace(af=True)
        assert self._read() == self.truth

    @rule()
    def grace_period(self) -> None:
        self.pgt.grace_period()
        self._see_events()

    # --- what must be refused, with nothing changed

    @rule(page=PAGES, prot=st.sampled_from([int(Prot.RWX | Prot.DEVICE)]))
    def map_device_executable(self, page: int, prot: int) -> None:
        assert self.pgt.map(self.base + page * PAGE, PAGE, 0x4000_0000, prot, MemoryCache(40)) == -EINVAL
        assert not self._see_events()
        assert self._read() == self.truth

    @rule(pages=st.integers(1, 3))
    def map_beyond_the_end(self, pages: int) -> None:
        end = 1 << 40
        assert self.pgt.map(end - PAGE, (pages + 1) * PAGE, 0, int(Prot.R), MemoryCache(40)) == -ERANGE
        assert self.pgt.unmap(end - PAGE, (pages + 1) * PAGE) == -ERANGE
        self._see_events()
        assert self._read() == self.truth

    @rule(page=PAGES)
    def map_without_memory(self, page: int) -> None:
        """An empty cache: done when no table was needed, -ENOMEM with nothing mapped when one was."""
        ia = self.base + page * PAGE + (1 << 34)
        ret = self.pgt.map(ia, PAGE, 0x4000_0000, int(Prot.R), MemoryCache(0))
        assert ret == -ENOMEM
        self._see_events()
        assert self._read() == self.truth

    # --- structure, however it came about

    @invariant()
    def structure(self) -> None:
        if not hasattr(self, "pgt"):
            return
        store = self.pgt.store
        linked = Counter(page for page, *_ in self.pgt.tables())
        assert set(linked.values()) <= {1}, "a table page with two parents"
        for page in linked:
            assert store.counts[page] == 1 + PAGE // 8 - store.pages[page].count(0)
            assert self.memory[page].tobytes() == store.pages[page].tobytes(), "an entry that no store made"
        assert not set(store.pages) - set(linked) or store.deferred, "a table page that nothing leads to"

    def teardown(self) -> None:
        if hasattr(self, "pgt"):
            self.pgt.grace_period()
            self.pgt.destroy()
            assert not self.pgt.store.pages
            assert not self.pgt.store.counts


@pytest.mark.parametrize("label", [label for label in GENERATIONS if label != "5.10"])
def test_the_model_keeps_its_promises(label: str) -> None:
    """5.10 is left to its own tests: there, a non-zero invalid entry is no reference."""
    machine = type("AbstractMapOf" + label.replace(".", "_"), (AbstractMap,), {"label": label})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
