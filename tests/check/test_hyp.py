"""H1 to H5, each fired by a fault put into captures of real kernels that run at EL1 (`fixtures/captures/own`)."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inspector.capture.file import load
from inspector.capture.selection import choose_own, translate_in
from inspector.capture.view import OwnView, table_views
from inspector.check import CATALOGUE, run_checks
from inspector.codec import Kind, table_address
from inspector.findings import Finding, Severity
from inspector.snapshot import Area, Capture, OwnKind, PageState
from inspector.tables import Entry, entries
from tests.check.judge import NOTE, at, only

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "captures" / "own"
NVHE, HVHE, PROTECTED = "6.1-nvhe", "6.12-hvhe", "7.3-protected"
ALL = (NVHE, HVHE, PROTECTED)

# DDI 0487 D8.3.1-2: stage-1 leaf bits.
AP_RO, SH, AF, PXN, XN = 1 << 7, 3 << 8, 1 << 10, 1 << 53, 1 << 54
WXN = 1 << 19


#: What is held of EL2's table and of who reaches it: guests' own rules are tested elsewhere.
HELD = [id for id in CATALOGUE if id[0] in "HPS"]


@functools.cache
def recorded(name: str) -> Capture:
    return load(FOLDER / f"{name}.s2cap")


def errors(capture: Capture) -> list[Finding]:
    return [one for one in run_checks(capture, HELD) if one.severity is Severity.ERROR]


def the_error(capture: Capture, check: str, **place: int) -> Finding:
    """The one error, which is of ``check`` and at that place (6.12's hVHE has a note besides)."""
    found = errors(capture)
    assert [one.check for one in found] == [check], "\n".join(map(str, found))
    at(found[0], regime="hyp stage-1", vm=None, **place)
    return found[0]


def hyp(capture: Capture) -> OwnView:
    return choose_own(capture, OwnKind.HYP)


def area(capture: Capture, name: str) -> Area:
    return next(one for one in hyp(capture).table.areas if one.name == name)


def leaf(capture: Capture, rule: Callable[[Entry], bool]) -> Entry:
    """The first page for which ``rule`` holds, in the half of addresses that has not the idmap."""
    view = hyp(capture)
    half = 1 << view.geometry.ia_bits - 1
    assert not area(capture, "hyp idmap text").start & half
    return next(e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE and e.ia & half and rule(e))


def data(capture: Capture) -> Entry:
    """A page that EL2 may write."""
    return leaf(capture, lambda e: e.descriptor.writable and e.level == 3)


def text(capture: Capture) -> Entry:
    """The second page of the hypervisor's text (the first is the idmap's as well)."""
    start = area(capture, "hyp text").start + 0x1000
    return leaf(capture, lambda e: e.descriptor.output_address == start and not e.descriptor.writable)


def with_word(capture: Capture, table_pa: int, index: int, raw: int) -> Capture:
    page = bytearray(capture.pages[table_pa])
    struct.pack_into("<Q", page, 8 * index, raw)
    return replace(capture, pages={**capture.pages, table_pa: bytes(page)})


def with_raw(capture: Capture, entry: Entry, raw: int) -> Capture:
    return with_word(capture, entry.table_pa, entry.index, raw)


def with_counts(capture: Capture, pa: int, change: int) -> Capture:
    if pa not in capture.page_info:
        return capture
    info = capture.page_info[pa]
    return replace(capture, page_info={**capture.page_info, pa: replace(info, refcount=info.refcount + change)})


def with_register(capture: Capture, cpu: int, name: str, value: int) -> Capture:
    cpus = list(capture.host.cpus)
    cpus[cpu] = replace(cpus[cpu], registers={**cpus[cpu].registers, name: value})
    return replace(capture, host=replace(capture.host, cpus=tuple(cpus)))


def with_table(capture: Capture, **changes: int) -> Capture:
    own = tuple(replace(one, **changes) if one.kind is OwnKind.HYP else one for one in capture.own)  # type: ignore[arg-type]
    return replace(capture, own=own)


# --- clean ---


def test_a_clean_kernel_is_clean() -> None:
    assert run_checks(recorded(NVHE)) == []
    found = run_checks(recorded(PROTECTED))  # the guests' tables, which are EL2's, are noted by S1
    assert [one for one in found if one.check != "S1" or one.severity is not NOTE] == []


def test_hvhe_without_pxn_is_told_once() -> None:
    """6.12 sets UXN alone (commit 8d8e882c2b4b); INIT_SCTLR_EL2_MMU_ON has WXN, so writable pages are safe."""
    found = only(recorded(HVHE), "H2", NOTE)
    assert "8d8e882c2b4b" in found.why and "WXN" in found.why


def test_every_table_page_of_the_tree_is_in_the_file() -> None:
    for name in ALL:
        capture = recorded(name)
        view = hyp(capture)
        assert view.tree.problems == () and len(view.tree.tables) > 15
        assert {table.pa for table in view.tree.tables} <= capture.pages.keys()


# --- H1 ---


@pytest.mark.parametrize("name", ALL)
def test_a_cpu_with_another_root(name: str) -> None:
    capture = recorded(name)
    root = table_address(capture.host.cpus[1].registers["TTBR0_EL2"])
    assert hyp(capture).root_pa == root
    the_error(with_register(capture, 1, "TTBR0_EL2", root + 0x1000), "H1", table_pa=root)


@pytest.mark.parametrize("name", ALL)
def test_the_kernels_record_is_another_root(name: str) -> None:
    capture = recorded(name)
    view = hyp(capture)
    assert view.table.recorded == view.root_pa
    the_error(with_table(capture, recorded=view.root_pa + 0x1000), "H1", table_pa=view.root_pa)


@pytest.mark.parametrize("name", ALL)
def test_a_cpu_with_another_size(name: str) -> None:
    capture = recorded(name)
    tcr = capture.host.cpus[1].registers["TCR_EL2"]
    the_error(with_register(capture, 1, "TCR_EL2", tcr ^ 1), "H1")


# --- H2 ---


@pytest.mark.parametrize("name", ALL)
def test_writable_and_executable(name: str) -> None:
    capture = recorded(name)
    entry = data(capture)
    found = with_raw(capture, entry, entry.descriptor.raw & ~(XN | PXN if name != NVHE else XN))
    the_error(found, "H2", table_pa=entry.table_pa, index=entry.index, ipa=entry.ia)


def test_hvhe_goes_by_pxn_where_the_kernel_writes_it() -> None:
    """With E2H bit 53 decides at EL2, and 54 for EL0."""
    capture = recorded(PROTECTED)
    entry = data(capture)
    assert entry.descriptor.raw & (PXN | XN) == PXN | XN
    the_error(with_raw(capture, entry, entry.descriptor.raw & ~PXN), "H2", index=entry.index)
    the_error(with_raw(capture, entry, entry.descriptor.raw & ~XN), "H3", index=entry.index)


def test_nvhe_has_no_pxn() -> None:
    capture = recorded(NVHE)
    entry = data(capture)
    the_error(with_raw(capture, entry, entry.descriptor.raw | PXN), "H3", index=entry.index)


def test_hvhe_without_pxn_and_without_wxn() -> None:
    capture = recorded(HVHE)
    sctlr = capture.host.cpus[0].registers["SCTLR_EL2"]
    assert sctlr & WXN
    the_error(with_register(capture, 0, "SCTLR_EL2", sctlr & ~WXN), "H2")


@pytest.mark.parametrize("name", ALL)
def test_an_executable_device(name: str) -> None:
    """Index 4 of MAIR_EL2 is device-nGnRE from 5.15 on (MAIR_EL1_SET)."""
    capture = recorded(name)
    entry = text(capture)
    raw = entry.descriptor.raw & ~(7 << 2) | 4 << 2
    found = errors(with_raw(capture, entry, raw))
    assert {one.check for one in found} == {"H2", "H3"}, found


# --- H3 ---


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bit", [5, 10, 11, 51, 52, 59, 63])
def test_a_stray_attribute_bit(name: str, bit: int) -> None:
    capture = recorded(name)
    for entry in (data(capture), text(capture)):
        the_error(with_raw(capture, entry, entry.descriptor.raw ^ 1 << bit), "H3", ipa=entry.ia)


def test_not_shareable() -> None:
    capture = recorded(NVHE)
    entry = data(capture)
    the_error(with_raw(capture, entry, entry.descriptor.raw & ~SH), "H3", ipa=entry.ia)


def test_software_bits_without_pkvm() -> None:
    capture = recorded(NVHE)
    entry = data(capture)
    the_error(with_raw(capture, entry, entry.descriptor.raw | 1 << 55), "H3", ipa=entry.ia)


@pytest.mark.parametrize("name", ALL)
def test_a_stray_bit_of_a_table_entry(name: str) -> None:
    capture = recorded(name)
    entry = next(e for e in entries(hyp(capture).tree) if e.descriptor.kind is Kind.TABLE)
    the_error(with_raw(capture, entry, entry.descriptor.raw | 1 << 59), "H3", table_pa=entry.table_pa)


@pytest.mark.parametrize("name", [NVHE, HVHE])
def test_an_invalid_entry_that_is_not_zero(name: str) -> None:
    """Of a page outside the hypervisor's sections, which may go; its count goes with it."""
    capture = recorded(name)
    entry = data(capture)
    kept = with_counts(with_raw(capture, entry, entry.descriptor.raw & ~1), entry.table_pa, -1)
    sections = [
        one for one in hyp(capture).table.areas if one.start <= (entry.descriptor.output_address or 0) < one.end
    ]
    found = errors(kept)
    assert {one.check for one in found} == ({"H3", "H5"} if sections else {"H3"}), found


def test_the_fixmap_of_pkvm_is_no_finding() -> None:
    """A slot that is not in use is the leaf of PAGE_HYP without bit 0 (fixmap_clear_slot); anything else is wrong."""
    capture = recorded(PROTECTED)
    slot = next(e for e in entries(hyp(capture).tree) if not e.descriptor.valid and e.level == 3)
    the_error(with_raw(capture, slot, slot.descriptor.raw & ~(XN | PXN)), "H3", index=slot.index)


# --- H4 ---


def parent(capture: Capture, level: int = 2, nth: int = 0) -> Entry:
    """An entry that leads to a table."""
    found = [e for e in entries(hyp(capture).tree) if e.descriptor.kind is Kind.TABLE and e.level == level]
    return found[nth]


@pytest.mark.parametrize("name", ALL)
def test_a_table_that_is_not_ram(name: str) -> None:
    capture = recorded(name)
    entry = parent(capture)
    found = errors(with_raw(capture, entry, 0x9000_0003))
    assert "H4" in {one.check for one in found} and {one.check for one in found} <= {"H4", "H5"}, found


def test_a_guests_table_in_the_hypervisors() -> None:
    capture = recorded(NVHE)
    guest = capture.vms[0].mmus[0].pgd_phys
    entry = parent(capture, nth=1)
    found = errors(with_raw(capture, entry, guest | 3))
    assert any(one.check == "H4" and "stage-2" in one.actual for one in found), found


def test_a_table_with_two_parents() -> None:
    capture = recorded(NVHE)
    entry, other = parent(capture, nth=1), parent(capture, nth=2)
    found = errors(with_raw(capture, entry, other.descriptor.raw))
    assert any(one.check == "H4" and "two parents" in one.actual for one in found), found


def test_a_table_that_was_freed() -> None:
    capture = recorded(NVHE)
    pa = parent(capture).descriptor.output_address or 0
    free = replace(capture.page_info[pa], state=PageState.FREE, refcount=0)
    the_error(replace(capture, page_info={**capture.page_info, pa: free}), "H4", table_pa=pa)


@pytest.mark.parametrize("name", [NVHE, HVHE])
@pytest.mark.parametrize("change", [-3, -1, 1, 3])
def test_a_wrong_count(name: str, change: int) -> None:
    """One more or less may be a map in progress, or somebody who looks at the page."""
    capture = recorded(name)
    pa = parent(capture).descriptor.output_address or 0
    found = [one for one in run_checks(with_counts(capture, pa, change), HELD) if one.check == "H4"]
    assert [(one.severity is Severity.NOTE, one.where.table_pa) for one in found] == [(abs(change) == 1, pa)]


# --- H5 ---


@pytest.mark.parametrize("name", ALL)
def test_another_page_in_the_linear_half(name: str) -> None:
    capture = recorded(name)
    entry = data(capture)
    moved = (entry.descriptor.output_address or 0) ^ 0x40_0000
    raw = entry.descriptor.raw ^ 0x40_0000
    sections = [
        one for one in hyp(capture).table.areas if one.start <= (entry.descriptor.output_address or 0) < one.end
    ]
    found = errors(with_raw(capture, entry, raw))
    assert {one.check for one in found} == {"H5"} and len(found) == 1 + bool(sections), found
    assert any(f"{moved:#x}" in one.actual for one in found)


@pytest.mark.parametrize("name", ALL)
def test_text_that_is_not_mapped(name: str) -> None:
    capture = recorded(name)
    entry = text(capture)
    gone = with_counts(with_raw(capture, entry, 0), entry.table_pa, -1)
    assert "hyp text" in the_error(gone, "H5", ipa=entry.ia).expected


@pytest.mark.parametrize("name", ALL)
def test_text_that_cannot_be_executed(name: str) -> None:
    capture = recorded(name)
    entry = text(capture)
    raw = entry.descriptor.raw | XN | (PXN if name == PROTECTED else 0)
    found = errors(with_raw(capture, entry, raw & ~(1 << 50)))
    assert [one.check for one in found] == ["H5"], found


@pytest.mark.parametrize("name", ALL)
def test_text_that_can_be_written(name: str) -> None:
    capture = recorded(name)
    entry = text(capture)
    raw = entry.descriptor.raw & ~AP_RO
    the_error(with_raw(capture, entry, raw), "H2", ipa=entry.ia)


def test_something_else_is_executable() -> None:
    """A page of the kernel's read-only data, which EL2 may read."""
    capture = recorded(NVHE)
    texts = [one for one in hyp(capture).table.areas if one.permissions == "R-X"]

    def elsewhere(e: Entry) -> bool:
        pa = e.descriptor.output_address or 0
        return not e.descriptor.writable and not any(one.start <= pa < one.end for one in texts)

    entry = leaf(capture, elsewhere)
    the_error(with_raw(capture, entry, entry.descriptor.raw & ~XN), "H5", ipa=entry.ia)


@pytest.mark.parametrize("name", [HVHE, PROTECTED])
def test_read_only_data_that_can_be_written(name: str) -> None:
    capture = recorded(name)
    rodata = area(capture, "hyp rodata")
    entry = leaf(capture, lambda e: e.descriptor.output_address == rodata.start)
    found = the_error(with_raw(capture, entry, entry.descriptor.raw & ~AP_RO), "H5", ipa=entry.ia)
    assert "read-only" in found.expected


# --- what guests may not reach ---


def test_a_guest_that_maps_the_hypervisors_table() -> None:
    capture = recorded(NVHE)
    view = max(table_views(capture), key=lambda v: len(v.tree.tables))
    entry = next(e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE and e.descriptor.writable)
    root = hyp(capture).root_pa
    raw = entry.descriptor.raw & ~0xFFFF_FFFF_F000 | root
    found = errors(with_raw(capture, entry, raw))
    assert any(one.check == "S8" and "hyp stage-1" in one.actual for one in found), found


def test_a_translation_of_a_symbols_page() -> None:
    for name in ALL:
        capture = recorded(name)
        start = area(capture, "hyp idmap text").start
        found = translate_in(hyp(capture), start)
        assert found.pa == start and found.steps[-1].descriptor.permissions == "R-X"
