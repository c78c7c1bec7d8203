"""What is judged without stores: sequences as kernels make them, and each with one thing wrong."""

from __future__ import annotations

import pytest

from inspector.events import BARRIER, CALL, RET, TLBI, RawEvent
from inspector.trace.gdb_rules import JUDGED, OperationJudge, is_by_gdb

HEADER = {"generation": "6.12", "page_shift": 12, "source": "gdb"}
ISHST, ISH, NSHST, NSH, ISB = ((BARRIER, kind) for kind in ("ishst", "ish", "nshst", "nsh", "isb"))
STAGE1 = (TLBI, "vmalle1is", None, None, None)
LOCAL_STAGE1 = (TLBI, "vmalle1", None, None, None)
ALL = (TLBI, "vmalls12e1is", None, None, None)
AGAIN = (TLBI, "vale2is", 0, None, None)


def by_ipa(ipa: int, level: int | None = None, name: str = "ipas2e1is") -> RawEvent:
    return (TLBI, name, ipa, level, None)


def by_range(start: int, pages: int) -> RawEvent:
    return (TLBI, "ripas2e1is", start, None, pages)


def helper(*invalidations: RawEvent) -> list[RawEvent]:
    """As ``__kvm_tlb_flush_vmid_ipa`` and ``__kvm_tlb_flush_vmid_range`` do it in VHE (kernel.md 15.4)."""
    return [ISHST, *invalidations, ISH, STAGE1, ISH, ISB]


def broken(function: str, arguments: str, events: list[RawEvent], returned: int = 0) -> list[str]:
    judge = OperationJudge(HEADER)
    judge.take(0, (CALL, f"kvm_pgtable_stage2_{function}", f"pgt=0xff00,{arguments}"))
    for event in events:
        judge.take(0, event)
    judge.take(0, (RET, returned))
    judge.finish()
    assert judge.counts.operations == 1
    assert all(line for each in judge.broken for line in each.violation.lines())
    return [each.violation.rule for each in judge.broken]


RELAXED = [NSHST, by_ipa(0x5000, 3, "ipas2e1"), NSH, LOCAL_STAGE1, NSH, ISB]
GOOD = [
    ("unmap", "addr=0x4000,size=0x2000", [*helper(by_ipa(0x4000, 3)), *helper(by_ipa(0x5000, 3))]),
    ("unmap", "addr=0x4000,size=0x1000", []),
    ("unmap", "addr=0x4000,size=0x1800", helper(by_range(0x4000, 2))),
    ("unmap", "addr=0x4000,size=0x3000", helper(by_ipa(0x4000, 3), by_range(0x5000, 2))),
    ("unmap", "addr=0x4000,size=0x300000", [ISHST, ALL, ISH, ISB]),
    # A table is taken away, a block is hinted at by its level, whose whole range is told.
    ("map", "addr=0x205000,size=0x1000", helper(by_ipa(0x205000))),
    ("map", "addr=0x205000,size=0x1000", helper(by_ipa(0x205000, 2))),
    ("map", "addr=0x200000,size=0x200000", helper(by_range(0x200000, 512))),
    ("relax_perms", "addr=0x5000", RELAXED),
    ("relax_perms", "addr=0x5000", helper(by_ipa(0x5000, 3))),
    ("wrprotect", "addr=0x4000,size=0x200000", []),
    # cortex-a76 r3p0: ARM64_WORKAROUND_REPEAT_TLBI.
    ("unmap", "addr=0x4000,size=0x1000", [ISHST, by_ipa(0x4000, 3), ISH, STAGE1, ISH, AGAIN, ISH, ISB]),
]


@pytest.mark.parametrize(("function", "arguments", "events"), GOOD)
def test_good(function: str, arguments: str, events: list[RawEvent]) -> None:
    assert broken(function, arguments, events) == []


UNMAP = ("unmap", "addr=0x4000,size=0x3000")
RELAX = ("relax_perms", "addr=0x5000")
BAD = [
    ("B2", UNMAP, [by_ipa(0x4000), ISH, STAGE1, ISH]),
    ("B2", UNMAP, [ISHST, by_ipa(0x4000), ISH, STAGE1]),
    ("B2", UNMAP, [ISHST, by_ipa(0x4000), ISH, STAGE1, ISHST]),
    ("B2", UNMAP, [ISHST, by_ipa(0x4000), ISH, STAGE1, NSH]),
    ("B2", UNMAP, [ALL, ISH]),
    ("B3", UNMAP, helper(by_ipa(0x3000))),
    ("B3", UNMAP, helper(by_ipa(0x7000))),
    ("B3", ("map", "addr=0x200000,size=0x200000"), helper(by_range(0x400000, 512))),
    ("B3", ("wrprotect", "addr=0x4000,size=0x3000"), RELAXED),
    ("B3", RELAX, []),
    ("B3", RELAX, [NSHST, by_ipa(0x6000, 3, "ipas2e1"), NSH, LOCAL_STAGE1, NSH]),
    ("B4", UNMAP, [ISHST, by_ipa(0x4000), ISH]),
    ("B4", UNMAP, [ISHST, by_ipa(0x4000), STAGE1, ISH]),
    ("B4", UNMAP, [ISHST, by_ipa(0x4000), ISH, LOCAL_STAGE1, ISH]),
    ("B6", UNMAP, helper(by_range(0x4000, 2))),
    ("B6", UNMAP, helper(by_range(0x5000, 2))),
    ("B6", UNMAP, helper(by_range(0x4000, 1), by_range(0x6000, 1))),
]


@pytest.mark.parametrize(("rule", "operation", "events"), BAD)
def test_bad(rule: str, operation: tuple[str, str], events: list[RawEvent]) -> None:
    assert set(broken(*operation, events)) == {rule}


def test_each_rule_has_bad_ones() -> None:
    rules = [rule for rule, _, _ in BAD]
    assert all(rules.count(rule) >= 2 for rule in JUDGED)


def test_operations_on_two_cpus_are_kept_apart() -> None:
    judge = OperationJudge(HEADER)
    calls = [(CALL, "kvm_pgtable_stage2_unmap", f"pgt=0xff00,addr={ipa:#x},size=0x1000") for ipa in (0x4000, 0x8000)]
    for lane, call in enumerate(calls):
        judge.take(lane, call)
    for events in zip(helper(by_ipa(0x4000, 3)), helper(by_ipa(0x8000, 3)), strict=True):
        for lane, event in enumerate(events):
            judge.take(lane, event)
    judge.take(1, (RET, 0))
    judge.take(0, (RET, 0))
    assert judge.broken == []
    assert judge.counts.returns == {("unmap", 0): 2}


def test_a_header_says_its_source() -> None:
    assert is_by_gdb(HEADER)
    assert not is_by_gdb({"generation": "6.12"})
