"""V1, V2, R1: VMIDs and reference counts."""

from __future__ import annotations

import pytest

from inspector.snapshot import CpuState, Mode, Running
from tests.check.build import (
    PAGE,
    TRAITS_61,
    TRAITS_73,
    TRAITS_510,
    TRAITS_612,
    VTCR,
    World,
    good_world,
)
from tests.check.judge import ERROR, NOTE, at, only, silent, verdict

# V1


def test_two_vms_with_one_vmid_in_one_generation() -> None:
    world = good_world()
    world.guests[2].vmid = 2
    finding = only(world, "V1")
    at(finding, vm="vm2", regime="stage-2 VMID 2")
    assert "vm1" in finding.actual


def test_two_vms_with_one_vmid_of_two_generations() -> None:
    """After a rollover an old number is replaced before its next run (kvm_arm_vmid_update)."""
    world = good_world()
    world.guests[2].mmu_changes.update(vmid=2, vmid_raw=0x2_0002)
    silent(world)


def test_vms_that_never_ran_have_no_vmid() -> None:
    world = good_world()
    for guest in world.guests[1:]:
        guest.mmu_changes.update(vmid=None, vmid_raw=0)
    silent(world)


def running(world: World, vttbr: int, vtcr: int = VTCR[40]) -> World:
    world.cpus[0] = CpuState(0, {"VTTBR_EL2": vttbr, "VTCR_EL2": vtcr}, Running.GUEST, None, True)
    return world


def test_a_guest_that_runs_with_vmid_0() -> None:
    world = good_world()
    finding = only(running(world, world.guests[0].root | 1), "V1")
    at(finding, vm="vm0", regime="stage-2 VMID 1")
    assert "VMID 0" in finding.actual


def test_a_guest_that_runs_with_another_vmid_than_its_mmus() -> None:
    world = good_world()
    finding = only(running(world, 5 << 48 | world.guests[0].root | 1), "V1")
    at(finding, vm="vm0")
    assert "VMID 5" in finding.actual and "VMID 1" in finding.expected


# V2


def test_a_vmid_wider_than_vs() -> None:
    world = World()
    world.features["vmid16"] = 0
    guest = world.guest(vmid=255)
    guest.mmu_changes["vtcr"] = VTCR[40] & ~(1 << 19)
    silent(world)
    guest.mmu_changes.update(vmid=256, vmid_raw=0x100)
    finding = only(world, "V2")
    at(finding, vm="vm0", regime="stage-2 VMID 256")


def test_a_register_with_a_vmid_wider_than_vs() -> None:
    world = World()
    world.features["vmid16"] = 0
    guest = world.guest(vmid=7)
    guest.mmu_changes["vtcr"] = VTCR[40] & ~(1 << 19)
    guest.vcpu(0, loaded_on=0)
    world.cpu("guest", vttbr=0x0107 << 48 | guest.root, vtcr=VTCR[40] & ~(1 << 19))
    finding = only(world, "V2")
    at(finding, vm="vm0")
    assert "CPU 0" in finding.actual


# R1

GENERATIONS = [TRAITS_510, TRAITS_61, TRAITS_612, TRAITS_73]


def counted(traits: dict[str, bool], change: int) -> tuple[World, int]:
    world = good_world(traits)
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.freeze_counts()
    assert world.refcounts[table] == 7
    world.refcounts[table] += change
    return world, table


@pytest.mark.parametrize("traits", GENERATIONS)
@pytest.mark.parametrize("change", [-1, -2, -6, -7])
def test_a_count_too_low(traits: dict[str, bool], change: int) -> None:
    world, table = counted(traits, change)
    finding = only(world, "R1")
    at(finding, vm="vm0", table_pa=table, level=3)
    assert "page_count 7" in finding.expected and f"page_count {7 + change}" in finding.actual


@pytest.mark.parametrize("traits", GENERATIONS)
@pytest.mark.parametrize("change", [1, 2, 50])
def test_a_count_too_high_is_a_note(traits: dict[str, bool], change: int) -> None:
    world, table = counted(traits, change)
    at(only(world, "R1", NOTE), table_pa=table)


@pytest.mark.parametrize(
    ("running", "symbol", "low", "severity"),
    [
        ("host", "stage2_map_walker", 1, NOTE),
        ("host", "stage2_map_walker", 2, ERROR),  # one CPU cannot be behind by two
        ("tlb-helper", "__kvm_tlb_flush_vmid_ipa", 1, NOTE),
        ("hyp", None, 1, NOTE),
        ("host", "cpu_do_idle", 1, ERROR),
        ("user", None, 1, ERROR),
        ("guest", None, 1, ERROR),
    ],
)
def test_a_count_too_low_while_a_walk_may_be_in_progress(
    running: str, symbol: str | None, low: int, severity: object
) -> None:
    world, table = counted(TRAITS_612, -low)
    world.cpu(running, symbol)
    finding = only(world, "R1", NOTE if severity is NOTE else ERROR)
    at(finding, table_pa=table)


def test_each_page_of_a_root_is_counted_by_itself() -> None:
    world = good_world()
    world.freeze_counts()
    root = world.guests[1].root  # four pages at level 2; only the last has entries
    assert [world.refcounts[root + n * PAGE] for n in range(4)] == [1, 1, 1, 3]
    world.refcounts[root + 3 * PAGE] -= 1
    at(only(world, "R1"), vm="vm1", table_pa=root + 3 * PAGE, level=2)


def test_stale_entries_are_not_counted_on_5_10() -> None:
    world = good_world(TRAITS_510)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = 0x8000_97DA
    silent(world)


@pytest.mark.parametrize(("traits", "locked"), [(TRAITS_612, 1 << 10), (TRAITS_73, 1 << 60)])
def test_a_locked_entry_is_never_counted(traits: dict[str, bool], locked: int) -> None:
    world = good_world(traits)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    assert {f.check for f in verdict(world)} == {"S6"}
    world.refcounts[table] += 1
    assert {f.check for f in verdict(world)} == {"S6", "R1"}


def test_a_page_that_is_not_allocated_is_s3s() -> None:
    world, table = counted(TRAITS_612, -7)
    world.states[table] = "free"
    only(world, "S3")


def test_tables_without_a_struct_page_are_said() -> None:
    world = good_world()
    capture = world.capture(page_info={})
    findings = verdict(capture)
    assert [(f.check, f.severity, f.where.vm) for f in findings] == [("R1", NOTE, f"vm{n}") for n in range(3)]


def test_protected_tables_have_other_counts() -> None:
    world = good_world(TRAITS_61)
    world.host_changes["mode"] = Mode.PROTECTED
    silent(world.capture(page_info={}))
