"""A clean machine seen by the tests that plant faults in it: its tables, and what is found with a fault in place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from inspector.capture.view import TableView, table_views
from inspector.check import run_checks
from inspector.codec import Kind
from inspector.findings import Finding
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.snapshot import Capture, Memslot
from inspector.symbols import Symbols, open_symbols
from inspector.tables import Entry, entries
from inspector.target.connect import open_target
from tests.live.conftest import take_from
from tests.live.machine import Machine
from tests.live.poke import RAM, Ram, qmp, written

PAGE_ADDRESS = 0x0000_FFFF_FFFF_F000
AF = 1 << 10


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

    def findings(self, words: Mapping[int, int], size: int = 8) -> list[Finding]:
        """What is found with each little-endian word of ``size`` bytes (PA to value) in place."""
        return self.found_with({pa: value.to_bytes(size, "little") for pa, value in words.items()})

    def found_with(self, changes: Mapping[int, bytes]) -> list[Finding]:
        """What is found with ``changes`` (PA to bytes) in place."""
        with written(self.machine, changes):
            capture = take_from(self.machine, self.symbols)
            found = run_checks(capture)
        self.rest_is_shown(capture, changes)
        return found

    def u64(self, pa: int) -> int:
        """The word at ``pa``."""
        with qmp(self.machine) as client:
            ram = Ram(self.machine, client)
            try:
                return ram.u64(pa)
            finally:
                ram.close()

    def rest_is_shown(self, capture: Capture, words: Mapping[int, object]) -> None:
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
            # The host may age pages meanwhile (multi-generational LRU): the access flag may be cleared, and set again.
            assert all((after[place] ^ before[place]) & ~AF == 0 for place in before if place in after)


def _below(view: TableView, entry: Entry, tables: set[int]) -> bool:
    parents = {table.pa: table.parent_pa for table in view.tree.tables}
    at: int | None = entry.table_pa
    while at is not None:
        if at in tables:
            return True
        at = parents.get(at)
    return False


@contextmanager
def clean_scene(machine: Machine) -> Iterator[Scene]:
    """``machine``, in which nothing is found before and nothing after."""
    symbols = open_symbols(image=machine.image)
    clean = take_from(machine, symbols)
    assert run_checks(clean) == []
    yield Scene(machine, symbols, clean)
    assert run_checks(take_from(machine, symbols)) == [], "the tests did not put things back"


def vmm_entry_pa(scene: Scene, view: TableView, hva: int) -> int:
    """Where the VMM's own level-3 entry for ``hva`` lies: found from ``kvm->mm->pgd``."""
    target = open_target(scene.machine.gdb_socket)
    try:
        target.stop()
        kernel = find_kernel(StoppedMemory(target.memory), scene.symbols, target.cpus(), lambda _: None)
        mm = kernel.at("kvm", view.vm.address).u("mm")
        table = kernel.space.pa(kernel.at("mm_struct", mm).u("pgd"))
        geometry = kernel.space.geometry
        if target.runs_when_left:
            target.resume()
    finally:
        target.close()
    with qmp(scene.machine) as client:
        ram = Ram(scene.machine, client)
        try:
            for level in range(geometry.start_level, 3):
                raw = ram.u64(table + 8 * geometry.index(level, hva))
                assert raw & 3 == 3, f"no table for {hva:#x}"
                table = raw & PAGE_ADDRESS
            return table + 8 * geometry.index(3, hva)
        finally:
            ram.close()


def slot_of(view: TableView, ipa: int) -> Memslot:
    """The slot that ``ipa`` lies in."""
    return next(s for s in view.vm.memslots if s.base_gfn <= ipa >> 12 < s.base_gfn + s.npages)


def refcount_pa(scene: Scene, page: int) -> int:
    """Where a page's ``_refcount`` lies, asked of the kernel's own VMCOREINFO: VMEMMAP_START and PHYS_OFFSET.

    Debian's 6.1 and 6.12: sizeof(struct page) 64, _refcount at 52 (kernel.md 13.2); vmemmap is walked with the kernel's
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
