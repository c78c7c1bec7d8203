"""Corruption of every kind, written into a live machine: each is found at its place, the rest is still shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspector.capture.view import TableView, table_views
from inspector.codec import Kind
from inspector.findings import Finding, Severity
from inspector.tables import Entry, entries
from tests.live.machine import Machine
from tests.live.scene import PAGE_ADDRESS, Scene, clean_scene, refcount_pa

pytestmark = pytest.mark.live

VALID = 0b01
TABLE = 0b11
OUT_OF_RAM = 0x7_0000_0000


@pytest.fixture(scope="module")
def scene(default_machine: Machine) -> Iterator[Scene]:
    with clean_scene(default_machine) as scene:
        yield scene


def at(found: list[Finding], check: str, entry: Entry) -> Finding:
    """The error of ``check`` at ``entry``'s place."""
    here = [
        f
        for f in found
        if f.check == check
        and f.severity is Severity.ERROR
        and (f.where.table_pa, f.where.index) == (entry.table_pa, entry.index)
    ]
    assert here, f"no {check} at table {entry.table_pa:#x}[{entry.index}]: {found}"
    return here[0]


def test_loop(scene: Scene) -> None:
    view = scene.view()
    entry = scene.entry(view, 2, Kind.TABLE)
    finding = at(scene.findings({entry.pa: view.root_pa | TABLE}), "S3", entry)
    assert finding.where.level == 2


def test_shared_child(scene: Scene) -> None:
    view = scene.view()
    first = scene.entry(view, 2, Kind.TABLE)
    second = scene.entry(view, 2, Kind.TABLE, 1)
    found = scene.findings({second.pa: first.descriptor.raw})
    at(found, "S3", second)


def test_pointer_outside_ram(scene: Scene) -> None:
    entry = scene.entry(scene.view(), 2, Kind.TABLE)
    at(scene.findings({entry.pa: OUT_OF_RAM | TABLE}), "S3", entry)


def test_reserved_level_3_entry(scene: Scene) -> None:
    entry = scene.entry(scene.view(), 3, Kind.PAGE)
    at(scene.findings({entry.pa: entry.descriptor.raw & ~0b10}), "S4", entry)


def test_level_0_block(scene: Scene) -> None:
    entry = scene.entry(scene.view(start_level=0), 0, Kind.TABLE)
    at(scene.findings({entry.pa: entry.descriptor.raw & ~0b10}), "S4", entry)


def test_misaligned_block(scene: Scene) -> None:
    view = next(v for v in table_views(scene.clean) if any(e.descriptor.kind is Kind.BLOCK for e in entries(v.tree)))
    entry = scene.entry(view, 2, Kind.BLOCK)
    at(scene.findings({entry.pa: entry.descriptor.raw | 0x3000}), "S4", entry)


@pytest.mark.parametrize("bit", [11, 51, 52, 59, 63])
def test_bit_that_must_be_zero(scene: Scene, bit: int) -> None:
    entry = scene.entry(scene.view(), 3, Kind.PAGE, 1)
    at(scene.findings({entry.pa: entry.descriptor.raw | 1 << bit}), "S5", entry)


def test_stale_invalid_entry(scene: Scene) -> None:
    """6.1 writes zero: a leaf with only its valid bit cleared is nobody's."""
    entry = scene.entry(scene.view(), 3, Kind.PAGE, 1)
    at(scene.findings({entry.pa: entry.descriptor.raw & ~1}), "S6", entry)


def test_leaf_moved_to_another_page(scene: Scene) -> None:
    view = scene.view()
    entry = scene.entry(view, 3, Kind.PAGE, 1)
    other = scene.entry(view, 3, Kind.PAGE, 3)
    raw = entry.descriptor.raw & ~PAGE_ADDRESS | other.descriptor.raw & PAGE_ADDRESS
    at(scene.findings({entry.pa: raw}), "M1", entry)


def test_leaf_outside_every_slot(scene: Scene) -> None:
    view = scene.view()
    entry = scene.entry(view, 3, Kind.PAGE, 1)
    table = next(t for t in view.tree.tables if t.pa == entry.table_pa)
    page = view.capture.pages[table.pa]
    free = next(
        i for i in range(512) if page[8 * i : 8 * i + 8] == bytes(8) and not _in_slot(view, table.ia + i * 4096)
    )
    found = scene.findings({table.pa + 8 * free: entry.descriptor.raw})
    assert any(f.check == "S7" and (f.where.table_pa, f.where.index) == (table.pa, free) for f in found), found


def _in_slot(view: TableView, ipa: int) -> bool:
    return any(s.base_gfn <= ipa >> 12 < s.base_gfn + s.npages for s in view.vm.memslots)


def test_table_page_mapped_into_its_guest(scene: Scene) -> None:
    view = scene.view()
    entry = scene.entry(view, 3, Kind.PAGE, 1)
    at(scene.findings({entry.pa: entry.descriptor.raw & ~PAGE_ADDRESS | view.root_pa}), "S8", entry)


@pytest.mark.parametrize("delta", [-1, 1])
def test_reference_count(scene: Scene, delta: int) -> None:
    """One too few is a use-after-free to come, hence an error; one too many may be a foreign reference: a note."""
    view = scene.view()
    table = view.tree.tables[-1]
    count = scene.clean.page_info[table.pa].refcount
    pa = refcount_pa(scene, table.pa)
    found = scene.findings({pa: count + delta}, size=4)
    assert [(f.check, f.severity, f.where.table_pa) for f in found] == [
        ("R1", Severity.ERROR if delta < 0 else Severity.NOTE, table.pa)
    ]
