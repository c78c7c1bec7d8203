"""Traces of a kernel's own code: clean as it is, and with an event taken away the rule that then is broken.

The events are those of the compiled pgtable.c (tests/crosscheck), framed as the assembler frames those of a machine.
"""

from __future__ import annotations

import pytest

from inspector import report
from inspector.crosscheck.differ import KernelSide
from inspector.events import BARRIER, CACHE, CALL, DEFER, FREE, GET, RET, STORE, TLBI, RawEvent
from inspector.findings import BadInput, ExitCode
from inspector.model.operations import Operation
from inspector.model.prot import Prot
from inspector.model.session import Setup
from inspector.model.state import HANDLE_FAULT, SHARED
from inspector.trace.follow import Followed
from inspector.trace.replay import Judge
from tests.crosscheck import kernels

pytestmark = pytest.mark.harness

LABEL = "6.12"
PGT = 0xFFFF000002000000
IPA, PAGE, BLOCK = 0x80000000, 4096, 2 << 20
RWX = int(Prot.RWX)
NAMES = {"init": "__kvm_pgtable_stage2_init", "grace_period": "stage2_free_unlinked_table_rcu_cb"}
OPERATIONS = (
    Operation("init"),
    Operation("map", IPA, PAGE, 0x100000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("map", IPA, PAGE, 0x200000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("wrprotect", IPA, BLOCK),
    Operation("relax_perms", IPA, prot=RWX),
    Operation("map", IPA, BLOCK, 0x300000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("grace_period"),
    Operation("unmap", IPA, BLOCK),
    Operation("destroy"),
)


TWO_TABLES = (
    Operation("init"),
    Operation("map", IPA, PAGE, 0x100000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("map", IPA + BLOCK, PAGE, 0x200000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("map", IPA, 2 * BLOCK, 0x300000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("grace_period"),
    Operation("destroy"),
)


def callbacks(raws: list[RawEvent]) -> list[list[RawEvent]]:
    """What the harness does in one operation, as the kernel does it: a callback for each table, which ends with it."""
    found: list[list[RawEvent]] = [[]]
    for raw in raws:
        found[-1].append(raw)
        if raw[0] == FREE:
            found.append([])
    return [each for each in found if each]


def traced(operations: tuple[Operation, ...] = OPERATIONS) -> list[tuple[int, RawEvent]]:
    """One table from init to destroy."""
    setup = Setup(LABEL)
    side = KernelSide(setup, kernels.kernel(LABEL))
    geometry = setup.geometry()
    found: list[tuple[int, RawEvent]] = []
    try:
        for operation in operations:
            result, raws = side.apply(operation)
            name = NAMES.get(operation.name, f"kvm_pgtable_stage2_{operation.name}")
            words = [f"pgt={PGT:#x}" if operation.name != "grace_period" else "head=0x1"]
            if operation.name == "init":
                words += [f"ia_bits={geometry.ia_bits}", f"start_level={geometry.start_level}", "vtcr=0x0"]
            words += ["shared"] if operation.flags & SHARED else []
            ret = result.ret if operation.name != "grace_period" else 0
            for each in callbacks(raws) if operation.name == "grace_period" else [raws]:
                found += [(0, (CALL, name, ",".join(words))), *((0, raw) for raw in each), (0, (RET, ret))]
    finally:
        side.close()
    return found


def judged(events: list[tuple[int, RawEvent]]) -> Judge:
    judge = Judge({"generation": LABEL, "page_shift": 12})
    for lane, raw in events:
        judge.take(lane, raw)
    judge.finish()
    return judge


def test_a_clean_trace() -> None:
    judge = judged(traced())
    assert judge.broken == []
    counts = judge.counts
    assert counts.operations == len(OPERATIONS)
    assert (counts.tables_made, counts.tables_freed, counts.unknown, counts.unfinished) == (1, 1, 0, 0)
    assert counts.pages_made == counts.pages_freed == 2 + 2
    assert counts.returns["map", 0] == 3


@pytest.mark.parametrize(
    ("operation", "kind", "rules"),
    [
        (2, TLBI, {"B2"}),
        (2, CACHE, {"B11"}),
        (4, TLBI, {"B3"}),
        (5, TLBI, {"B2", "B7"}),
        (5, DEFER, {"R2"}),
        (7, TLBI, {"B2"}),
        (2, GET, {"R1"}),
    ],
)
def test_an_event_that_is_missing_breaks_its_rule(operation: int, kind: int, rules: set[str]) -> None:
    events = traced()
    starts = [at for at, (_, raw) in enumerate(events) if raw[0] == CALL] + [len(events)]
    low, high = starts[operation], starts[operation + 1]
    kept = [each for at, each in enumerate(events) if not (low <= at < high and each[1][0] == kind)]
    assert len(kept) < len(events)
    judge = judged(kept)
    assert {each.violation.rule for each in judge.broken} & rules, judge.broken
    assert judge.broken[0].operation >= operation + 1
    assert judge.broken[0].table == 1


def test_a_store_that_was_not_seen_is_missed_at_the_count() -> None:
    events = traced()
    at = max(at for at, (_, raw) in enumerate(events[:40]) if raw[0] == STORE)
    assert judged(events[:at] + events[at + 1 :]).broken


def test_a_table_made_before_the_trace_is_said_not_to_be_followed() -> None:
    events = traced()
    begin = next(at for at, (_, raw) in enumerate(events) if raw[0] == RET) + 1
    judge = judged(events[begin:])
    assert judge.counts.unknown == len(OPERATIONS) - 2  # the RCU callback's table is not known either
    assert judge.broken == []


def test_a_hypervisor_that_was_not_seen_is_not_judged() -> None:
    """It is called for a TLBI: those are not seen, and missing ones are not held against the kernel."""
    events = [(0, (BARRIER, "hvc")) if raw[0] == TLBI else (lane, raw) for lane, raw in traced()]
    judge = judged(events)
    assert judge.counts.hypercalls
    followed = Followed({"release": "", "generation": LABEL}, judge, {}, 0.0)
    assert report.trace.code_of(followed) is ExitCode.UNTESTABLE
    document = report.trace.document(followed, "replay")
    assert (document.verdict, list(document.broken)) == ("not tested", [])
    assert "hypervisor" in document.reason


def test_a_protected_host_is_not_judged() -> None:
    judge = judged([(0, (CALL, "_kvm_host_prot_finalize", "")), *traced()])
    followed = Followed({"release": "", "generation": LABEL}, judge, {}, 0.0)
    assert report.trace.code_of(followed) is ExitCode.UNTESTABLE
    assert "protected" in report.trace.why_not(followed)
    assert judge.counts.operations == len(OPERATIONS)


def test_each_rcu_callback_frees_its_own_table() -> None:
    """Two tables wait; the first callback leaves the second alone, and rightly."""
    judge = judged(traced(TWO_TABLES))
    assert judge.broken == []
    assert judge.counts.by_name["grace_period"] == 2
    assert judge.counts.pages_made == judge.counts.pages_freed


def test_an_operation_that_does_not_end_is_counted() -> None:
    assert judged(traced()[:-1]).counts.unfinished == 1
    events = traced()
    ret = next(at for at, (_, raw) in enumerate(events) if raw[0] == RET)
    assert judged(events[:ret] + events[ret + 1 :]).counts.unfinished == 1


@pytest.mark.parametrize("header", [{}, {"generation": "1.0", "page_shift": 12}, {"generation": LABEL}])
def test_a_header_of_no_known_kernel(header: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Judge(header)
