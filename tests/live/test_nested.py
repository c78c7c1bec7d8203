"""A guest hypervisor on a real host: its shadow tables as KVM made them, and faults planted in them.

The newest QEMU and the newest kernel: FEAT_NV2 is in QEMU from 9.0 on, KVM_CAP_ARM_EL2 in Linux from 6.16.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspector.capture.selection import translate_by_guest, translate_in
from inspector.capture.view import TableView, table_views
from inspector.check import run_checks
from inspector.findings import Severity
from inspector.tables import Entry, entries
from tests.conftest import kernel_labels
from tests.live.conftest import take_from
from tests.live.counting import qemu
from tests.live.machine import Machine
from tests.live.scene import PAGE_ADDRESS, Scene, clean_scene

pytestmark = pytest.mark.live

PAGE, WRITE, XN = 0x1000, 1 << 7, 3 << 53  # DDI 0487 D8.3.1-2
FOREIGN = 0x6800_0000  # RAM, past the kernel; which page of it the VM has not is looked up
UNDER_STAGE2 = 0x1_0000_4010_0000  # fixtures/exerciser/nested.c


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    options = ["--qemu", str(qemu("--newest"))]
    machine = Machine.start(
        kernel_labels()[-1], smp=1, memory=768, scenario="nested", append="kvm-arm.mode=nested", options=options
    )
    with machine, clean_scene(machine) as scene:
        assert not machine.named("skipped"), machine.named("skipped")
        yield scene


def shadow(scene: Scene) -> TableView:
    return next(view for view in table_views(scene.clean) if view.mmu.nested_vttbr == UNDER_STAGE2)


def leaf(scene: Scene, ipa: int) -> Entry:
    return next(e for e in entries(shadow(scene).tree) if e.ia == ipa and e.descriptor.kind.is_leaf)


def test_it_maps_what_the_exerciser_says(scene: Scene) -> None:
    """PFNs from /proc/self/pagemap, addresses of L1 from what it wrote into its own table."""
    told = scene.machine.named("nested")
    assert len(told) > 15
    by_vttbr = {view.mmu.nested_vttbr: view for view in table_views(scene.clean)}
    for event in told:
        view, ipa = by_vttbr[int(event["vttbr"], 0)], int(event["l2"], 0)
        assert translate_in(view, ipa).pa == int(event["pfn"], 0) * PAGE, event
        own = translate_by_guest(view, ipa)
        assert (own and own[1].pa) == (int(event["ipa"], 0) if event["stage2"] else None)


def test_planted(scene: Scene) -> None:
    """Foreign PA, wrong PA of the VM's own, widened rights, all at once: each at its place, and nothing else."""
    foreign, wrong, other, data, text, constant = (
        leaf(scene, ipa) for ipa in (0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000, 0x2_1000, 0x4_0000)
    )
    memory = [run for slot in shadow(scene).vm.memslots for run in slot.backing if run.pa is not None]
    taken = {pa for run in memory for pa in range(run.pa or 0, (run.pa or 0) + run.size, PAGE)} | set(scene.clean.pages)
    page = next(pa for pa in range(FOREIGN, FOREIGN + (1 << 24), PAGE) if pa not in taken)
    cases = [
        ("N1", Severity.ERROR, foreign, foreign.descriptor.raw & ~PAGE_ADDRESS | page),
        ("N2", Severity.ERROR, wrong, wrong.descriptor.raw & ~PAGE_ADDRESS | other.descriptor.raw & PAGE_ADDRESS),
        ("N3", Severity.ERROR, constant, constant.descriptor.raw | WRITE),
        ("N3", Severity.NOTE, data, data.descriptor.raw & ~XN),
        ("N3", Severity.NOTE, text, text.descriptor.raw | WRITE),
    ]
    found = scene.findings({entry.table_pa + 8 * entry.index: raw for _, _, entry, raw in cases})
    places = [(f.check, f.severity, f.where.table_pa, f.where.index) for f in found]
    assert places == [(check, severity, entry.table_pa, entry.index) for check, severity, entry, _ in cases], found


def test_an_entry_that_the_hypervisor_takes_away_is_a_note(scene: Scene) -> None:
    """Its own table, in the VM's memory: broken, and not invalidated yet."""
    view = shadow(scene)
    own = translate_by_guest(view, 0x1_0000)
    assert own is not None
    last = own[1].steps[-1]
    pa = dict(view.mmu.nested_tables)[last.table_pa] + 8 * last.index
    (found,) = scene.findings({pa: 0})
    assert (found.check, found.severity, found.where.ipa) == ("N2", Severity.NOTE, 0x1_0000)


def test_clean_after_the_hypervisor_went_on(scene: Scene) -> None:
    assert scene.machine.command("touch 0 0 w 0x40060000 3")[-1]["ok"]
    assert run_checks(take_from(scene.machine, scene.symbols)) == []


def test_a_hypervisor_that_swaps_its_entries(scene: Scene) -> None:
    """By break-before-make, all the time: between break and invalidation that is a note, and never an error."""
    assert scene.machine.command("spin on busy=0 sleep_us=0")[-1]["ok"]
    for _ in range(2):
        found = run_checks(take_from(scene.machine, scene.symbols))
        assert {(f.check, f.severity) for f in found} <= {("N2", Severity.NOTE)}, found
    assert scene.machine.command("idle")[-1]["ok"]
    scene.machine.command("progress")
    assert scene.machine.named("progress")[-1]["counter"] > 1
