"""Corruption of every kind, written into a live machine: each is found at its place, the rest is still shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from inspector.capture.data import Capture
from inspector.capture.view import TableView, table_views
from inspector.check import run_checks
from inspector.codec import Kind
from inspector.findings import Finding, Severity
from inspector.symbols import Symbols, open_symbols
from inspector.tables import Entry, entries
from tests.live.conftest import take_from
from tests.live.machine import Machine
from tests.live.poke import RAM, Ram, planted, qmp

pytestmark = pytest.mark.live

VALID = 0b01
TABLE = 0b11
PAGE_ADDRESS = 0x0000_FFFF_FFFF_F000
OUT_OF_RAM = 0x7_0000_0000


@dataclass(frozen=True)
class Scene:
    """A clean machine and one VM's table: the one with most 4K leaves and, for level 0, the one that starts there."""

    machine: Machine
    symbols: Symbols
    clean: Capture

    def view(self, start_level: int = 1) -> TableView:
        return max(
            (v for v in table_views(self.clean) if v.geometry.start_level == start_level),
            key=lambda v: len(v.tree.tables),
        )

    def entry(self, view: TableView, level: int, kind: Kind, nth: int = 0) -> Entry:
        found = [e for e in entries(view.tree) if e.level == level and e.descriptor.kind is kind]
        return found[nth]

    def findings(self, words: dict[int, int], size: int = 8) -> list[Finding]:
        with planted(self.machine, words, size):
            capture = take_from(self.machine, self.symbols)
            found = run_checks(capture)
        self.rest_is_shown(capture, words)
        return found

    def rest_is_shown(self, capture: Capture, words: dict[int, int]) -> None:
        """Every table but the damaged one's children is read as before."""
        damaged = {pa & -4096 for pa in words}
        for view in table_views(self.clean):
            again = next(v for v in table_views(capture) if v.mmu.address == view.mmu.address)
            before = {(e.table_pa, e.index): e.descriptor.raw for e in entries(view.tree) if e.table_pa not in damaged}
            after = {(e.table_pa, e.index): e.descriptor.raw for e in entries(again.tree)}
            lost = {place for place in before if place not in after}
            # What hangs below an overwritten pointer is gone with it; nothing else is.
            below = {e.table_pa for e in entries(view.tree) if _below(view, e, damaged)}
            assert {table for table, _ in lost} <= below
            assert all(after[place] == before[place] for place in before if place in after)


def _below(view: TableView, entry: Entry, tables: set[int]) -> bool:
    parents = {table.pa: table.parent_pa for table in view.tree.tables}
    at: int | None = entry.table_pa
    while at is not None:
        if at in tables:
            return True
        at = parents.get(at)
    return False


@pytest.fixture(scope="module")
def scene(default_machine: Machine) -> Iterator[Scene]:
    symbols = open_symbols(image=default_machine.image)
    clean = take_from(default_machine, symbols)
    assert run_checks(clean) == []
    yield Scene(default_machine, symbols, clean)
    assert run_checks(take_from(default_machine, symbols)) == [], "the tests did not put things back"


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


@pytest.mark.parametrize("bit", [11, 51, 52, 55, 59, 63])
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
    pa = _refcount_pa(scene, table.pa)
    found = scene.findings({pa: count + delta}, size=4)
    assert [(f.check, f.severity, f.where.table_pa) for f in found] == [
        ("R1", Severity.ERROR if delta < 0 else Severity.NOTE, table.pa)
    ]


def _refcount_pa(scene: Scene, page: int) -> int:
    """Where a page's ``_refcount`` lies, asked of the kernel's own VMCOREINFO: VMEMMAP_START and PHYS_OFFSET.

    Debian's 6.1 and 6.12: sizeof(struct page) 64, _refcount at 52 (facts 13.2); vmemmap is walked with the kernel's
    root, found as the host's TTBR1_EL2.
    """
    with qmp(scene.machine) as client:
        ram = Ram(scene.machine, client)
        try:
            info = _vmcoreinfo(ram)
            memstart = info["PHYS_OFFSET"]
            va = info["VMEMMAP_START"] + ((page - memstart) >> 12) * 64 + 52
            root = scene.clean.host.cpus[0].registers["TTBR1_EL2"] & PAGE_ADDRESS
            for shift in (48, 39, 30, 21, 12) if info["TCR_EL1_T1SZ"] < 16 else (39, 30, 21, 12):
                raw = ram.u64(root + 8 * (va >> shift & (15 if shift == 48 else 511)))
                assert raw & 1
                root = raw & PAGE_ADDRESS
                if shift == 12 or not raw & 2:
                    return (root & -(1 << shift)) | va & ((1 << shift) - 1)
            raise AssertionError("the walk does not end")
        finally:
            ram.close()


def _vmcoreinfo(ram: Ram) -> dict[str, int]:
    for pa in range(RAM, RAM + (1 << 30), 4096):
        if ram.read(pa, 10) == b"OSRELEASE=":
            text = ram.read(pa, 4096).split(b"\0")[0].decode()
            return {k: int(v, 16) & (1 << 64) - 1 for k, v in re.findall(r"NUMBER\((\w+)\)=(0x[0-9a-f]+)", text)}
    raise AssertionError("no VMCOREINFO in RAM")
