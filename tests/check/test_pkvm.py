"""P1 to P4, each fired by a fault put into captures of protected hosts (`fixtures/captures/own`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inspector.capture.selection import choose_own
from inspector.capture.view import OwnView
from inspector.check import run_checks
from inspector.codec import Kind
from inspector.findings import Finding, Severity
from inspector.snapshot import Capture, OwnKind, PageStates, Share
from inspector.tables import Entry, entries
from tests.check.test_hyp import HELD, area, errors, hyp, recorded, with_raw, with_register

OLD, NEW = "6.12-protected", "7.3-protected"
BOTH = (OLD, NEW)
#: kernel.md 1.6: an entry that says that the hypervisor owns the page.
HYP_OWNS = {OLD: 0x4, NEW: 0x2000_0000_0000_0002}
S2AP = 3 << 6


def host(capture: Capture) -> OwnView:
    return choose_own(capture, OwnKind.HOST)


def first(capture: Capture, kind: Kind, above: int = 0) -> Entry:
    """The first entry of ``kind`` in the host's table from an address on, with no software bits."""
    found = (e for e in entries(host(capture).tree) if e.descriptor.kind is kind and e.ia >= above)
    return next(e for e in found if not e.descriptor.sw)


def entry_of(capture: Capture, pa: int) -> Entry:
    """The host's entry for a page."""
    found = [e for e in entries(host(capture).tree) if e.ia <= pa < e.ia + e.descriptor.size]
    return found[-1]


def the_error(capture: Capture, check: str, entry: Entry) -> Finding:
    found = errors(capture)
    places = [(f.check, f.where.regime, f.where.table_pa, f.where.index) for f in found]
    assert places == [(check, "host stage-2", entry.table_pa, entry.index)], found
    return found[0]


@pytest.mark.parametrize("name", BOTH)
def test_clean(name: str) -> None:
    capture = recorded(name)
    assert errors(capture) == []
    owned = [e for e in entries(host(capture).tree) if e.descriptor.kind is Kind.ANNOTATED]
    assert len(owned) > 2000 and {e.descriptor.raw for e in owned} == {HYP_OWNS[name]}


@pytest.mark.parametrize("name", BOTH)
def test_not_the_identity(name: str) -> None:
    capture = recorded(name)
    entry = first(capture, Kind.PAGE)
    found = the_error(with_raw(capture, entry, entry.descriptor.raw ^ 0x100_0000), "P3", entry)
    assert f"{entry.ia:#x}" in found.expected


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        (OLD, 3 << 2),
        (OLD, 0x4 | 1 << 20),
        (OLD, 1 << 10),
        (NEW, 0x2000_0000_0000_0006),  # owner 3
        (NEW, 0x2000_0000_0000_0012),  # the hypervisor, with metadata
        (NEW, 0x2000_0000_0000_0004),  # a guest with handle 0
        (NEW, 0x3000_0000_0000_0000),  # POISONED, of guests' tables
        (NEW, 0x1000_0000_0000_0000),  # LOCKED
    ],
)
def test_an_owner_that_nobody_knows(name: str, raw: int) -> None:
    capture = recorded(name)
    entry = first(capture, Kind.ANNOTATED)
    found = [one for one in errors(with_raw(capture, entry, raw)) if one.check == "P1"]
    assert [(one.where.table_pa, one.where.index) for one in found] == [(entry.table_pa, entry.index)]


def test_a_guests_page_is_no_finding() -> None:
    """Donated to the guest with handle 0x1000, gfn 0x80000 (kernel.md 1.6)."""
    capture = recorded(NEW)
    entry = entry_of(capture, area(capture, "hyp rodata").start)
    assert errors(with_raw(capture, entry, 0x2000_0080_0001_0004)) == []


def with_states(capture: Capture, pa: int, host_state: Share, hyp_state: Share) -> Capture:
    """hyp_vmemmap says this of a page that was the host's alone."""
    table = hyp(capture).table
    assert table.states is not None
    assert not any(run.start <= pa < run.end for run in table.states)
    states = (*table.states, PageStates(pa, pa + 0x1000, host_state, hyp_state))
    own = tuple(replace(one, states=states) if one.kind is OwnKind.HYP else one for one in capture.own)
    return replace(capture, own=own)


@pytest.mark.parametrize(
    ("host_state", "hyp_state", "checks"),
    [
        (Share.OWNED, Share.OWNED, {"P1", "P4"}),
        (Share.NOPAGE, Share.OWNED, {"P4"}),
        (Share.OWNED, Share.SHARED_BORROWED, {"P2"}),
        (Share.SHARED_BORROWED, Share.SHARED_BORROWED, {"P2"}),
        (Share.OWNED, Share.SHARED_OWNED, {"P2"}),
        (Share.SHARED_OWNED, Share.SHARED_BORROWED, set()),
        (Share.SHARED_BORROWED, Share.SHARED_OWNED, set()),
        (Share.SHARED_OWNED, Share.NOPAGE, set()),  # with a guest
    ],
)
def test_states_that_contradict(host_state: Share, hyp_state: Share, checks: set[str]) -> None:
    clean = recorded(NEW)
    capture = with_states(clean, first(clean, Kind.PAGE).ia, host_state, hyp_state)
    found = errors(capture)
    assert {one.check for one in found} == checks and len(found) == len(checks), found


def test_annotated_and_the_hosts() -> None:
    """The entry says the hypervisor's, hyp_vmemmap says the host's."""
    capture = recorded(NEW)
    entry = first(capture, Kind.PAGE)
    the_error(with_raw(capture, entry, HYP_OWNS[NEW]), "P1", entry)


def test_a_share_that_one_side_forgot() -> None:
    """6.12 keeps states in software bits: SW0 of the host's entry for what the hypervisor has with SW1."""
    capture = recorded(OLD)
    shared = [e for e in entries(host(capture).tree) if e.descriptor.kind is Kind.PAGE and e.descriptor.sw]
    assert {e.descriptor.sw for e in shared} == {1, 2}
    for state in (1, 2):
        entry = next(e for e in shared if e.descriptor.sw == state)
        the_error(with_raw(capture, entry, entry.descriptor.raw & ~(3 << 55)), "P2", entry)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("what", ["hyp rodata", "hyp bss", "EL2's root", "the host's root", "zero"])
def test_the_hypervisors_memory_in_the_hosts_table(name: str, what: str) -> None:
    capture = recorded(name)
    roots = {"EL2's root": hyp(capture).root_pa, "the host's root": host(capture).root_pa, "zero": hyp(capture).root_pa}
    entry = entry_of(capture, roots[what] if what in roots else area(capture, what).start)
    assert entry.descriptor.kind is Kind.ANNOTATED
    good = first(capture, Kind.PAGE)
    raw = 0 if what == "zero" else good.descriptor.raw & ~good.ia | entry.ia
    found = errors(with_raw(capture, entry, raw))
    assert {one.check for one in found} == {"P4"} and len(found) == 1, found
    assert found[0].where.ipa == entry.ia


def test_the_hypervisors_text_may_be_read_and_no_more() -> None:
    """fix_host_ownership_walker of 7.3 maps it with KVM_PGTABLE_PROT_R."""
    capture = recorded(NEW)
    entry = entry_of(capture, area(capture, "hyp text").start)
    assert entry.descriptor.permissions == "R--"
    found = the_error(with_raw(capture, entry, entry.descriptor.raw | S2AP), "P4", entry)
    assert "the hypervisor's" in found.expected


@pytest.mark.parametrize("name", BOTH)
def test_another_root(name: str) -> None:
    """H1, of VTTBR_EL2 while the host runs."""
    capture = recorded(name)
    own = tuple(replace(one, recorded=one.root + 0x1000) if one.kind is OwnKind.HOST else one for one in capture.own)
    found = errors(replace(capture, own=own))
    assert [(one.check, one.where.regime) for one in found] == [("H1", "host stage-2")]


@pytest.mark.parametrize(("what", "raw"), [("P1", 0x1000_0000_0000_0000), ("P4", 0)])
def test_a_cpu_at_el2_may_be_in_the_middle_of_it(what: str, raw: int) -> None:
    """LOCKED and not yet annotated: legal while __pkvm_host_donate_hyp runs, and at no other time."""
    capture = recorded(NEW)
    entry = entry_of(capture, area(capture, "hyp rodata").start)
    spoiled = with_raw(capture, entry, raw)
    assert what in {one.check for one in errors(spoiled)}
    found = run_checks(with_register(spoiled, 1, "cpsr", 0x3C9), HELD)
    assert {(one.check, one.severity) for one in found if one.check == what} == {(what, Severity.NOTE)}
    assert errors(with_register(spoiled, 1, "cpsr", 0x3C9)) == []


@pytest.mark.parametrize("name", BOTH)
def test_states_that_are_not_known_are_not_guessed(name: str) -> None:
    """hyp_vmemmap of a very large machine is not read; software bits then mean nothing."""
    capture = recorded(name)
    own = tuple(replace(one, states=None, states_in_entries=False) for one in capture.own)
    assert errors(replace(capture, own=own)) == []
