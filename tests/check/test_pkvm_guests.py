"""P1, P2, P4, P7 and R1 of guests whose tables pKVM's hypervisor keeps, each fired by a fault put into a capture.

The capture has two VMs of the scenario ``protected`` on Debian's 7.3: vm0, whose memory the host lends it, and vm1, a
protected guest that shares two pages.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from inspector.capture.view import TableView, table_views
from inspector.check import run_checks
from inspector.codec import Kind
from inspector.findings import Finding, Severity
from inspector.snapshot import Capture, Mmu, OwnKind, PageStates, PkvmMapping, Share
from inspector.tables import Entry, entries, translate
from tests.check.test_hyp import recorded, with_counts, with_raw, with_register
from tests.check.test_pkvm import entry_of, first

PAGE = 0x1000
LENT, OWN = "vm0", "vm1"
SW0, SW1 = 1 << 55, 1 << 56


def clean() -> Capture:
    return recorded("7.3-protected-guests")


def errors(capture: Capture) -> list[Finding]:
    return [one for one in run_checks(capture) if one.severity is Severity.ERROR]


def view(capture: Capture, vm: str) -> TableView:
    return next(one for one in table_views(capture) if one.vm.name == vm)


def leaf(capture: Capture, vm: str, ipa: int) -> Entry:
    """A guest's leaf; the walker of one address and that of trees agree on its place."""
    seen = view(capture, vm)
    entry = next(e for e in entries(seen.tree) if e.ia == ipa and e.descriptor.kind is Kind.PAGE)
    found = translate(
        lambda pa, size: capture.pages[pa & -PAGE][pa % PAGE :][:size], seen.root_pa, seen.geometry, seen.format, ipa
    )
    assert found.pa == entry.descriptor.output_address
    return entry


def with_mmu(capture: Capture, vm: str, **changed: object) -> Capture:
    vms = tuple(
        replace(one, mmus=(replace(one.mmus[0], **changed),)) if one.name == vm else one  # type: ignore[arg-type]
        for one in capture.vms
    )
    return replace(capture, vms=vms)


def mmu(capture: Capture, vm: str) -> Mmu:
    return next(one.mmus[0] for one in capture.vms if one.name == vm)


def with_states(capture: Capture, pa: int, host_state: Share, guests: int) -> Capture:
    """hyp_vmemmap says this of one page."""
    runs: list[PageStates] = [PageStates(pa, pa + PAGE, host_state, Share.NOPAGE, guests)]
    table = next(one for one in capture.own if one.kind is OwnKind.HYP)
    for run in table.states or ():
        parts = [(run.start, min(run.end, pa)), (max(run.start, pa + PAGE), run.end)]
        runs += [replace(run, start=start, end=end) for start, end in parts if start < end]
    changed = replace(table, states=tuple(sorted(runs, key=lambda run: run.start)))
    return replace(capture, own=(changed, *(one for one in capture.own if one is not table)))


def output(entry: Entry) -> int:
    return entry.descriptor.output_address or 0


def test_what_the_capture_holds() -> None:
    """What the scenario's guests did, by the exerciser's source; the numbers of the kernel's are its own."""
    capture = clean()
    assert errors(capture) == []
    lent, own = mmu(capture, LENT), mmu(capture, OWN)
    assert (lent.handle, lent.protected, own.handle, own.protected) == (0x1000, False, 0x1001, True)
    assert (lent.vmid, own.vmid) == (1, 2)  # "VMID 0 is reserved for the host" (init_pkvm_hyp_vm)
    base = 0x4000_0000
    states = {e.ia: e.descriptor.sw & 3 for e in entries(view(capture, OWN).tree) if e.descriptor.kind is Kind.PAGE}
    assert states == {
        0: Share.OWNED,
        PAGE: Share.OWNED,
        **{base + n * PAGE: Share.OWNED for n in (0, 1, 8, 9, 16, 17)},
        **{base + n * PAGE: Share.SHARED_OWNED for n in (2, 3)},
    }
    zero = {output(leaf(capture, LENT, base + n * PAGE)) for n in (16, 18, 20)}
    assert zero == {capture.host.zero_page}
    table = next(one for one in capture.own if one.kind is OwnKind.HYP)
    assert table.guests == 2
    assert [run.guests for run in table.states or () if run.start in zero] == [3]


def the_one(capture: Capture, check: str, entry: Entry) -> Finding:
    found = errors(capture)
    assert [(one.check, one.where.table_pa, one.where.index) for one in found] == [
        (check, entry.table_pa, entry.index)
    ], found
    return found[0]


def test_a_page_of_a_guests_own_that_the_host_has() -> None:
    capture = clean()
    page = leaf(capture, OWN, 0x4000_0000)
    theirs = entry_of(capture, output(page))
    assert theirs.descriptor.raw == 0x2000_0040_0001_0014  # DONATION, gfn 0x40000, handle 0x1001, PKVM_ID_GUEST
    good = first(capture, Kind.PAGE)
    mapped = with_raw(capture, theirs, good.descriptor.raw & ~good.ia | theirs.ia)
    the_one(mapped, "P1", page)


@pytest.mark.parametrize("bits", [1 << 4, 1 << 20])
def test_a_page_that_the_host_gives_to_another_guest_or_place(bits: int) -> None:
    capture = clean()
    page = leaf(capture, OWN, 0x4000_8000)
    theirs = entry_of(capture, output(page))
    found = errors(with_raw(capture, theirs, theirs.descriptor.raw ^ bits))
    assert {(one.check, one.where.table_pa, one.where.index) for one in found} == {
        ("P1", page.table_pa, page.index),
        ("P1", theirs.table_pa, theirs.index),
    }


def test_a_page_that_a_guest_was_given_and_has_not() -> None:
    capture = clean()
    page = leaf(capture, OWN, 0x4000_8000)
    found = errors(with_counts(with_raw(capture, page, 0), page.table_pa, -1))
    assert ("P1", "host stage-2") in {(one.check, one.where.regime) for one in found}
    # A guest more, being ended, may be the one that has it.
    table = next(one for one in capture.own if one.kind is OwnKind.HYP)
    more = replace(capture, own=(replace(table, guests=3), *(one for one in capture.own if one is not table)))
    found = errors(with_counts(with_raw(more, page, 0), page.table_pa, -1))
    assert "P1" not in {one.check for one in found}


@pytest.mark.parametrize("state", [Share.OWNED, Share.SHARED_BORROWED])
def test_a_page_that_a_guest_borrows_and_the_host_did_not_lend(state: Share) -> None:
    capture = clean()
    page = leaf(capture, LENT, 0x4000_0000)
    the_one(with_states(capture, output(page), state, 1), "P2", page)


def test_a_page_that_a_guest_shares_and_the_host_does_not_borrow() -> None:
    capture = clean()
    page = leaf(capture, OWN, 0x4000_2000)
    the_one(with_states(capture, output(page), Share.OWNED, 0), "P2", page)


@pytest.mark.parametrize(("ipa", "guests"), [(0x4000_0000, 0), (0x4000_0000, 2), (0x4001_0000, 2), (0x4001_0000, 4)])
def test_a_page_that_is_lent_otherwise_than_it_is_counted(ipa: int, guests: int) -> None:
    capture = clean()
    page = leaf(capture, LENT, ipa)
    found = errors(with_states(capture, output(page), Share.SHARED_OWNED, guests))
    assert [(one.check, one.where.ipa) for one in found] == [("P2", output(page))], found


def test_a_guests_table_that_the_host_can_reach() -> None:
    capture = clean()
    good = first(capture, Kind.PAGE)
    for vm in (LENT, OWN):
        theirs = entry_of(capture, view(capture, vm).root_pa)
        found = errors(with_raw(capture, theirs, good.descriptor.raw & ~good.ia | theirs.ia))
        assert "P4" in {one.check for one in found}, found


def test_the_hosts_record_and_the_table() -> None:
    """P7: frames that differ, a page that is in one of them only, records that overlap."""
    capture = clean()
    mappings = mmu(capture, LENT).mappings
    assert mappings is not None and len(mappings) == 11
    other = (replace(mappings[2], pfn=mappings[2].pfn + 1), *mappings[:2], *mappings[3:])
    for changed in (
        tuple(sorted(other)),
        mappings[1:],
        (*mappings, PkvmMapping(0x50000, 0x60000, 1)),
        (*mappings[:-1], replace(mappings[-1], npages=2)),
        tuple(sorted((*mappings, mappings[3]))),
    ):
        found = errors(with_mmu(capture, LENT, mappings=changed))
        assert [one.check for one in found] == ["P7"], changed
    assert errors(with_mmu(capture, LENT, mappings=None)) == []
    # Taken by force: poisoned in the protected guest's table, still in the host's record.
    more = (*(mmu(capture, OWN).mappings or ()), PkvmMapping(0x50000, 0x60000, 1))
    assert errors(with_mmu(capture, OWN, mappings=more)) == []


def test_the_record_may_differ_while_the_lock_is_held() -> None:
    capture = with_mmu(clean(), LENT, mappings=())
    assert {one.check for one in errors(capture)} == {"P7"}
    held = tuple(replace(vm, mmu_lock_held=True) if vm.name == LENT else vm for vm in capture.vms)
    assert errors(replace(capture, vms=held)) == []


@pytest.mark.parametrize("vm", [LENT, OWN])
def test_counts_are_the_hypervisors(vm: str) -> None:
    capture = clean()
    page = leaf(capture, vm, 0x4000_0000)
    assert {one.check for one in errors(with_counts(capture, page.table_pa, 1))} <= {"R1"}
    assert "R1" in {one.check for one in run_checks(with_counts(capture, page.table_pa, -1))}


def test_a_cpu_at_el2_may_be_in_the_middle_of_it() -> None:
    capture = clean()
    page = leaf(capture, LENT, 0x4000_0000)
    capture = with_states(capture, output(page), Share.OWNED, 1)
    assert errors(with_register(capture, 0, "cpsr", 0x3C9)) == []
