"""A trace that begins in the midst: tables are taken over from a capture, and held from there on like any other.

The events are those of the compiled pgtable.c, as in `test_lockstep` and `test_replay`, cut at every place; the capture
is what the events in front of it have made of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from inspector.events import ALLOC, ALLOC_EXACT, CALL, DEFER, FREE, GET, PUT, RET, STORE, TLBI, RawEvent
from inspector.model.session import Setup
from inspector.snapshot import Capture
from inspector.trace.replay import Judge
from inspector.trace.truth import Truth
from tests.check.build import Guest, World
from tests.trace import test_lockstep, test_replay
from tests.trace.test_lockstep import FEATURES, HA, WALK_FLAGS
from tests.trace.test_replay import PGT

pytestmark = pytest.mark.harness

LABEL = "6.12"
PAGE = 4096
VALID_TABLE = 3
Events = list[tuple[int, RawEvent]]


def after(events: Events) -> Truth:
    """What the table is when these have happened."""
    truth = Truth(PAGE)
    truth.advance(raw for _, raw in events)
    return truth


def reachable(truth: Truth, pages: Sequence[int], level: int) -> Iterator[int]:
    """By the table entries alone (DDI 0487 D8.3: bits 1:0 are 3 above level 3)."""
    for page in pages:
        yield page
        if level < 3:
            below = [value & 0xFFFF_FFFF_F000 for value in truth.pages[page] if value & 3 == VALID_TABLE]
            yield from reachable(truth, below, level + 1)


def captured(events: Events) -> Capture:
    """The table as a capture has it when these have happened."""
    truth, geometry = after(events), Setup(LABEL).geometry()
    root, size = next(raw[1:] for _, raw in events if raw[0] == ALLOC_EXACT)
    world = World()
    for pa in reachable(truth, range(root, root + size, PAGE), geometry.start_level):
        world.pages[pa] = list(truth.pages[pa])
        world.refcounts[pa] = truth.counts[pa]
    guest = Guest(world, 0, 1, geometry.ia_bits, root)
    guest.mmu_changes = {"pgt": PGT, "vtcr": HA, "geometry": geometry, "start_level": geometry.start_level}
    world.guests.append(guest)
    return world.capture()


def rest(events: Events, at: int) -> Events:
    """What is told from there on: an operation under way first, with the pages that it holds, as the assembler does."""
    begins = max(place for place in range(at) if events[place][1][0] == CALL)
    if any(raw[0] == RET for _, raw in events[begins:at]):
        return events[at:]
    truth = after(events[:at])
    held = {raw[1] for _, raw in events[begins:at] if raw[0] == ALLOC} & truth.pages.keys()
    call = events[begins][1]
    told: Events = [(0, (CALL, call[1], f"{call[2]},begun"))]
    for page in sorted(held):
        told.append((0, (ALLOC, page)))
        told += [(0, (STORE, page + 8 * i, 0, value, 0, 0)) for i, value in enumerate(truth.pages[page]) if value]
        told += [(0, (GET, page))] * (truth.counts[page] - 1)
    return [*told, *events[at:]]


def judged(events: Events, capture: Capture, features: dict[str, int]) -> Judge:
    told = {**features, "dic": 1} if features else {}
    header = {"generation": LABEL, "page_shift": 12, "walk_flags": WALK_FLAGS, "features": told}
    judge = Judge(header, capture)
    for lane, raw in events:
        judge.take(lane, raw)
    judge.finish()
    return judge


def from_there(events: Events, at: int, features: dict[str, int]) -> Judge:
    return judged(rest(events, at), captured(events[:at]), features)


@pytest.fixture(scope="module")
def lockstep() -> Events:
    return test_lockstep.traced(LABEL, FEATURES, [*test_lockstep.operations(LABEL, 25)])


@pytest.fixture(scope="module")
def protocol() -> Events:
    return test_replay.traced()


def life(events: Events) -> range:
    """Where the table is there: after its init, and until its VM gives it up (kvm_free_stage2_pgd)."""
    low = next(at for at, (_, raw) in enumerate(events) if raw[0] == RET) + 1
    return range(low, next(at for at, (_, raw) in enumerate(events) if raw[0] == CALL and "destroy" in raw[1]) + 1)


def test_wherever_it_begins_the_model_goes_on(lockstep: Events) -> None:
    """At every event; what is not held is told."""
    within = 0
    for at in life(lockstep):
        judge = from_there(lockstep, at, FEATURES)
        counts = judge.counts
        assert judge.differing == [], at
        assert (counts.tables_taken, counts.dropped, counts.surplus) == (1, 0, 0)
        assert judge.verdicts.held == counts.operations - counts.under_way - counts.orphans, at
        assert counts.unknown == counts.unfinished == 0
        assert counts.under_way <= 1
        within += counts.under_way
    assert within > 100


def test_wherever_it_begins_no_rule_is_broken(protocol: Events) -> None:
    for at in life(protocol):
        judge = from_there(protocol, at, {})
        assert judge.broken == [], at


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (STORE, lambda raw: (*raw[:3], raw[3] ^ 1 << 7, *raw[4:])),
        (STORE, lambda raw: None),
        (GET, lambda raw: None),
        (PUT, lambda raw: None),
        (TLBI, lambda raw: None),
        (RET, lambda raw: (RET, -11)),
    ],
)
def test_what_the_kernel_does_otherwise_to_a_table_made_before(
    lockstep: Events, kind: int, change: Callable[[RawEvent], RawEvent | None]
) -> None:
    at = len(lockstep) // 3
    at = next(place for place in range(at, len(lockstep)) if lockstep[place][1][0] == CALL)
    which = sum(raw[0] == kind and raw[1] not in ("vmalle1is", -11, -12) for _, raw in lockstep[:at]) + 1
    changed = test_lockstep.changed(lockstep, kind, change, which)
    assert changed[:at] == lockstep[:at]
    judge = from_there(changed, at, FEATURES)
    assert judge.differing


@pytest.mark.parametrize(("kind", "rules"), [(TLBI, {"B2", "B3", "B7"}), (DEFER, {"R2"})])
def test_a_rule_that_is_broken_on_a_table_made_before(protocol: Events, kind: int, rules: set[str]) -> None:
    place = max(at for at, (_, raw) in enumerate(protocol) if raw[0] == kind)
    at = max(at for at in range(place) if protocol[at][1][0] == CALL)
    judge = from_there([*protocol[:place], *protocol[place + 1 :]], at, {})
    assert {broken.violation.rule for broken in judge.broken} & rules


def with_count(capture: Capture, change: int, which: Callable[[list[int]], int] = max) -> tuple[Capture, int]:
    """A page's count is another."""
    pa = which(sorted(capture.page_info))
    info = replace(capture.page_info[pa], refcount=capture.page_info[pa].refcount + change)
    return replace(capture, page_info={**capture.page_info, pa: info}), pa


def test_a_reference_too_few_is_found(protocol: Events) -> None:
    at = next(at for at, (_, raw) in enumerate(protocol) if raw[0] == CALL and raw[1].endswith("wrprotect"))
    capture, pa = with_count(captured(protocol[:at]), -1)
    broken = judged(rest(protocol, at), capture, {}).broken
    assert [(each.violation.rule, each.operation) for each in broken[:1]] == [("R1", 1)]
    assert f"{pa:#x}" in broken[0].violation.where


def test_a_reference_of_anybody_is_no_finding(lockstep: Events) -> None:
    """It may be gone at once: nobody's walk sees it go.  That it was there is told."""
    at = max(at for at, (_, raw) in enumerate(lockstep) if raw[0] == CALL and raw[1].endswith("_map"))
    capture, _ = with_count(captured(lockstep[:at]), 1)
    judge = judged(rest(lockstep, at), capture, FEATURES)
    assert (judge.differing, judge.counts.surplus) == ([], 1)
    assert judge.verdicts.held


def test_a_table_with_other_references_that_is_walked_is_left_alone(lockstep: Events) -> None:
    """Which of its counts are its walk's is not known: it is not judged, and that is told."""
    at = next(
        at
        for at in range(len(lockstep) // 2, len(lockstep))
        if lockstep[at][1][0] == STORE and lockstep[at + 1][1][0] != RET
    )
    capture, _ = with_count(captured(lockstep[:at]), 5, min)
    judge = judged(rest(lockstep, at), capture, FEATURES)
    assert (judge.differing, judge.broken, judge.counts.dropped) == ([], [], 1)
    assert judge.counts.unknown


def test_an_rcu_callback_for_what_was_taken_out_before_is_told(protocol: Events) -> None:
    defer = next(at for at, (_, raw) in enumerate(protocol) if raw[0] == DEFER)
    at = next(at for at in range(defer, len(protocol)) if protocol[at][1][0] == RET) + 1
    judge = from_there(protocol, at, {})
    assert judge.counts.orphans == sum(raw[0] == FREE for _, raw in protocol[at : at + 8]) == 1
    assert judge.broken == []


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ({"features": {"fwb": "yes"}, "only": 7}, 0),
        ({"features": [1], "capture": -1}, 0),
        ({"only": [1]}, None),
        ({"only": [PGT]}, 0),
    ],
)
def test_a_header_of_whatever_is_taken_as_far_as_it_goes(
    protocol: Events, words: dict[str, object], left: int | None
) -> None:
    at = life(protocol)[0]
    judge = Judge({"generation": LABEL, "page_shift": 12, **words}, captured(protocol[:at]))
    assert judge.counts.tables_taken == (0 if left is None else 1)
    for lane, raw in protocol[at:]:
        judge.take(lane, raw)
    assert judge.broken == []


def test_a_shape_that_no_table_has_is_left_out(protocol: Events) -> None:
    capture = captured(protocol[: life(protocol)[0]])
    for changes in ({"ia_bits": 12}, {"start_level": 3}, {"ia_bits": 48}, {"pgt": None}):
        mmu = replace(capture.vms[0].mmus[0], **changes)
        spoilt = replace(capture, vms=(replace(capture.vms[0], mmus=(mmu,)),))
        counts = Judge({"generation": LABEL, "page_shift": 12}, spoilt).counts
        assert (counts.tables_taken, counts.tables_left_out) == (0, 1), changes
