"""VTTBR_EL2, HCR_EL2, VMIDs and vCPUs: traces written by hand from the kernel's tlb.c, vmid.c and arm.c.

Written as those of `test_traces`, with ``kernel:`` where it is not 6.12 and the plan's ``initialising:`` and
``functions:``, and judged
as a trace file is: ``cpu=`` is the lane, from 4096 on what a CPU does in nothing that is followed, from 8192 on what
has operations in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.events import parse_raw
from inspector.protocol.rules import RULES
from inspector.trace.replay import Broken, Judge
from tests.protocol.test_traces import ALL as TABLES
from tests.protocol.test_traces import broken as broken_by_table
from tests.protocol.test_traces import header

TRACES = Path(__file__).parent / "contexts"
ALL = sorted(path.stem for path in TRACES.glob("*_*.trace"))
OF_CONTEXTS = frozenset({"B5", "B10", "V1", "V3", "V4"})


def text_of(name: str) -> str:
    return (TRACES / f"{name}.trace").read_text()


def feed(judge: Judge, name: str) -> None:
    text = text_of(name)
    if first := header(text, "after"):
        feed(judge, first)
    for line in text.splitlines():
        if not line.startswith("#"):
            found = re.match(r"cpu=(\d+) (.*)", line)
            judge.take(int(found[1]) if found else 0, parse_raw(found[2] if found else line))


def judged(name: str) -> list[Broken]:
    text = text_of(name)
    plan = {"page_shift": 12, "initialising": header(text, "initialising").split()}
    plan["functions"] = header(text, "functions").split()
    judge = Judge({"generation": header(text, "kernel") or "6.12", **plan})
    feed(judge, name)
    judge.finish()
    assert not judge.counts.unfinished
    return judge.broken


def breaks(name: str) -> set[str]:
    return set(header(text_of(name), "breaks").split())


@pytest.mark.parametrize("name", ALL)
def test_a_trace_breaks_what_it_says(name: str) -> None:
    found = judged(name)
    assert {each.violation.rule for each in found} == breaks(name), "\n".join(str(each.violation) for each in found)
    assert bool(found) == name.startswith("bad_")


def test_every_rule_is_broken_by_a_trace() -> None:
    assert set().union(*map(broken_by_table, TABLES), *map(breaks, ALL)) == RULES.keys()


@pytest.mark.parametrize("rule", sorted(OF_CONTEXTS | {"B8", "R3"}))
def test_every_rule_of_contexts_is_broken_in_two_ways(rule: str) -> None:
    assert sum(rule in breaks(name) for name in ALL) >= 2


def test_a_violation_says_where_it_is_and_what_came_before() -> None:
    (found,) = judged("bad_other_vmid")
    assert (found.operation, found.table) == (3, 1)
    violation = found.violation
    assert violation.what == "ipas2e1is is of VMID 2: VTTBR_EL2, 0x2000040010001, is table 2's"
    assert violation.operation == "__kvm_tlb_flush_vmid_ipa"
    assert violation.history[1] == "CPU 0: sysreg cpu=0 reg=vttbr_el2 value=0x2000040010001"


def test_a_finding_names_who_called() -> None:
    judge = Judge({"generation": "6.12", "page_shift": 12})
    feed(judge, "vm")
    judge.take(0, parse_raw("chain number=7 functions=kvm_unmap_gfn_range<kvm_mmu_notifier_invalidate_range_start"))
    lines = (TRACES / "bad_other_vmid.trace").read_text().replace("size=0x1000", "size=0x1000,by=7").splitlines()
    for line in lines:
        if not line.startswith("#"):
            judge.take(0, parse_raw(line))
    (found,) = judge.broken
    assert found.callers == ("kvm_unmap_gfn_range", "kvm_mmu_notifier_invalidate_range_start")


def test_what_is_in_no_operation_is_told_so() -> None:
    (found,) = judged("bad_other_vcpu")
    assert (found.operation, found.table) == (0, 1)
    assert "vCPU 0x100 of this VM ran last on CPU 0" in found.violation.what
    (found,) = judged("bad_logged_no_flush")
    assert (found.operation, found.table) == (0, 1)
    assert found.violation.where == "entry at 0x40000010, level 1, IA 0x80000000"
