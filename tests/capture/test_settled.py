"""Readings of a kernel that runs on: only what two in a row hold alike is kept to be judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inspector.capture.file import load
from inspector.capture.settled import MOVED, READINGS, settled
from inspector.capture.view import table_views
from inspector.snapshot import Capture

RECORDED = load(str(Path(__file__).resolve().parents[2] / "fixtures/captures/6.1-max.s2cap"))
VIEW = next(view for view in table_views(RECORDED) if view.vm.memslots)
VM = VIEW.vm.name


def with_entry(value: int) -> Capture:
    """The first entry of the VM's root is another."""
    pa = VIEW.root_pa
    page = value.to_bytes(8, "little") + RECORDED.pages[pa][8:]
    return replace(RECORDED, pages={**RECORDED.pages, pa: page})


def without_slots() -> Capture:
    return replace(RECORDED, vms=tuple(replace(vm, memslots=()) if vm.name == VM else vm for vm in RECORDED.vms))


def unjudged(readings: list[Capture]) -> set[str]:
    """The VMs that are not judged, when the readings bring these, the last one over and over."""
    left = list(readings)
    capture = settled(lambda: left.pop(0) if len(left) > 1 else left[0])
    assert "the kernel ran" in capture.host.notes[-1]
    return {vm.name for vm in capture.vms if any(mmu.unreadable == MOVED for mmu in vm.mmus)}


def test_what_stands_still_is_judged() -> None:
    assert not unjudged([RECORDED])


def test_a_change_that_is_over_is_waited_for() -> None:
    assert not unjudged([with_entry(1), with_entry(2), without_slots(), RECORDED])


def test_what_changes_all_the_time_is_not_judged() -> None:
    assert unjudged([with_entry(8 * number) for number in range(READINGS)]) == {VM}
    assert unjudged([without_slots(), RECORDED] * (READINGS // 2)) == {VM}


def test_a_vm_that_came_is_not_judged_and_names_do_not_count() -> None:
    fewer = replace(RECORDED, vms=tuple(replace(vm, name=f"other {vm.name}") for vm in RECORDED.vms if vm.name != VM))
    assert unjudged([fewer, RECORDED] * (READINGS // 2)) == {VM}
