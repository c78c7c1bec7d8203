"""M3 and M11: write permission against slots, their dirty logs, and the VMM's own rights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.findings import Finding
from inspector.snapshot import Backing, BackingState, Mmu, MmuKind
from tests.check.build import BLOCK, PAGE, READ, RW, RWX, TYPE, VALID, WRITE, Guest, World, good_world
from tests.check.judge import ERROR, NOTE, at, only, silent, verdict

BASE, PA = 0x4000_0000, 0x8000_0000
READONLY, GUEST_MEMFD = 1 << 1, 1 << 2


def change_slot(guest: Guest, number: int = 0, **changes: Any) -> None:
    guest.slots[number] = replace(guest.slots[number], **changes)


# M3: slots


@pytest.mark.parametrize(("attributes", "legal"), [(RW & ~WRITE, True), (RWX & ~WRITE, True), (RW, False)])
def test_a_read_only_slot(attributes: int, legal: bool) -> None:
    world = good_world()
    world.guests[2].slot(0x9000_0000, BLOCK, 0x9000_0000, flags=READONLY)
    table, index = world.guests[2].map(0x9000_0000, 0x9000_0000, attributes)
    if legal:
        silent(world)
    else:
        at(only(world, "M3"), vm="vm2", ipa=0x9000_0000, size=PAGE, table_pa=table, index=index)


def test_a_read_only_slot_whose_pages_the_vmm_cannot_write_either_is_one_finding() -> None:
    world = good_world()
    slot = world.guests[2].slot(0x9000_0000, BLOCK, 0x9000_0000, flags=READONLY)
    change_slot(world.guests[2], 1, backing=(replace(slot.backing[0], writable=False),))
    world.guests[2].map(0x9000_0000, 0x9000_0000)
    only(world, "M3")


@pytest.mark.parametrize("attributes", [RW & ~READ, RW & ~READ & ~WRITE])
def test_a_leaf_that_cannot_be_read(attributes: int) -> None:
    world = good_world()
    table, index = world.guests[0].map(BASE + PAGE, PA + PAGE, attributes)
    at(only(world, "M3"), vm="vm0", ipa=BASE + PAGE, table_pa=table, index=index)


# M3: dirty logs


def logged(dirty: set[int], pages: int = 64) -> tuple[World, Guest]:
    """A VM with one slot of ``pages`` pages whose log has ``dirty``, and nobody busy."""
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(BASE, pages * PAGE, PA, flags=1)
    bits = sum(1 << page for page in dirty)
    change_slot(guest, dirty_bitmap=0xFFFF_8000_1234_0000, dirty_pages=bits.to_bytes(-(-pages // 8), "little"))
    guest.vm_changes["slots_locked"] = False
    return world, guest


def test_pages_of_a_logged_slot() -> None:
    """Marked and writable, marked and not writable (read back, or cleared by the guest's exit), neither."""
    world, guest = logged({0, 1, 9})
    guest.map(BASE, PA)
    guest.map(BASE + PAGE, PA + PAGE, RW & ~WRITE)
    guest.map(BASE + 2 * PAGE, PA + 2 * PAGE, RW & ~WRITE)
    silent(world)
    table, index = guest.map(BASE + 2 * PAGE, PA + 2 * PAGE)
    at(only(world, "M3"), ipa=BASE + 2 * PAGE, size=PAGE, table_pa=table, index=index)


@pytest.mark.parametrize("missing", [None, 0, 200, 511])
def test_a_writable_block_of_a_logged_slot(missing: int | None) -> None:
    """Legal only before the log's first clearing with all bits set from the start (KVM_DIRTY_LOG_INITIALLY_SET)."""
    world, guest = logged(set(range(512)) - {missing}, 512)
    guest.map(BASE, PA, RW, level=2)
    if missing is None:
        silent(world)
    else:
        at(only(world, "M3"), ipa=BASE, size=BLOCK, level=2)


def test_a_read_only_block_of_a_logged_slot() -> None:
    world, guest = logged(set(), 512)
    guest.map(BASE, PA, RW & ~WRITE, level=2)
    silent(world)


@pytest.mark.parametrize("unknown", ["no log", "a ring"])
def test_without_a_bitmap_nothing_is_said(unknown: str) -> None:
    world, guest = logged(set())
    change_slot(guest, dirty_pages=None, dirty_bitmap=0 if unknown == "no log" else guest.slots[0].dirty_bitmap)
    guest.map(BASE, PA)
    silent(world)


@pytest.mark.parametrize(("locked", "severity"), [(False, ERROR), (True, NOTE), (None, NOTE)])
def test_while_somebody_changes_the_slots(locked: bool | None, severity: Any) -> None:
    """Logging is switched on first and write protection comes after, both under slots_lock."""
    world, guest = logged(set())
    for page in range(8):
        guest.map(BASE + page * PAGE, PA + page * PAGE)
    guest.vm_changes["slots_locked"] = locked
    finding = only(world, "M3", severity)
    at(finding, ipa=BASE, size=8 * PAGE)


@pytest.mark.parametrize(("pages", "severity"), [(1, NOTE), (2, ERROR)])
@pytest.mark.parametrize("who", ["a CPU in the kernel", "a preempted vCPU"])
def test_a_fault_between_mapping_and_marking(pages: int, severity: Any, who: str) -> None:
    world, guest = logged(set())
    for page in range(pages):
        guest.map(BASE + page * PAGE, PA + page * PAGE)
    guest.vcpu(0)
    world.cpu("user")
    only(world, "M3", ERROR)
    if who == "a CPU in the kernel":
        world.cpu("host", "kvm_handle_guest_abort")
    else:
        guest.vm_changes["vcpus"] = (replace(guest.vm_changes["vcpus"][0], preempted=True),)
    only(world, "M3", severity)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 63)), st.sets(st.integers(0, 63)), st.sets(st.integers(0, 63)))
def test_exactly_the_unmarked_writable_pages_are_reported(
    mapped: set[int], writable: set[int], dirty: set[int]
) -> None:
    world, guest = logged(dirty)
    for page in mapped:
        guest.map(BASE + page * PAGE, PA + page * PAGE, RW if page in writable else RW & ~WRITE)
    found = verdict(world)
    assert {f.check for f in found} <= {"M3"}
    assert pages_of(found) == (mapped & writable) - dirty


def pages_of(found: list[Finding]) -> set[int]:
    pages: set[int] = set()
    for finding in found:
        assert finding.where.ipa is not None and finding.where.size is not None
        first = (finding.where.ipa - BASE) // PAGE
        pages |= set(range(first, first + finding.where.size // PAGE))
    return pages


# M11


@pytest.mark.parametrize(
    ("readable", "writable", "attributes", "legal"),
    [
        (True, False, RW, False),  # shared copy-on-write
        (True, False, RW & ~WRITE, True),
        (True, True, RW, True),
        (False, False, RW, True),  # PROT_NONE: NUMA hinting leaves the rights in the VMA
    ],
)
def test_a_page_that_the_vmm_may_only_read(readable: bool, writable: bool, attributes: int, legal: bool) -> None:
    world = good_world()
    slot = world.guests[2].slot(0x9000_0000, PAGE, 0x9000_0000)
    change_slot(world.guests[2], 1, backing=(replace(slot.backing[0], readable=readable, writable=writable),))
    table, index = world.guests[2].map(0x9000_0000, 0x9000_0000, attributes)
    if legal:
        silent(world)
        return
    at(only(world, "M11"), vm="vm2", ipa=0x9000_0000, table_pa=table, index=index)
    world.guests[2].vm_changes["invalidating"] = True
    only(world, "M11", NOTE)


def test_one_read_only_page_under_a_writable_block() -> None:
    world = good_world()
    slot = world.guests[0].slots[0]
    run = slot.backing[0]
    page = 0x20_0000 + 3 * PAGE
    assert run.pa is not None
    runs = (
        replace(run, size=page),
        Backing(run.hva + page, PAGE, run.pa + page, BackingState.PRESENT, True, False, PAGE),
        replace(run, hva=run.hva + page + PAGE, pa=run.pa + page + PAGE, size=run.size - page - PAGE),
    )
    change_slot(world.guests[0], 0, backing=runs)
    at(only(world, "M11"), vm="vm0", ipa=0x4020_0000, size=BLOCK, level=2)


def test_memory_that_two_vmms_share_is_nobodys_fault() -> None:
    """The same page behind slots of two VMs, writable to both VMMs: a shared file, as virtual devices use it."""
    world = good_world()
    for number in (1, 2):
        world.guests[number].slot(0x9000_0000, PAGE, 0x9900_0000)
        world.guests[number].map(0x9000_0000, 0x9900_0000)
    silent(world)


def test_a_guest_memfd_page_in_two_vms() -> None:
    world = good_world()
    for number in (1, 2):
        world.guests[number].slot(0x9000_0000, 2 * PAGE, 0x9900_0000)
    change_slot(world.guests[1], 1, flags=GUEST_MEMFD, backing=())
    world.guests[1].map(0x9000_0000, 0x9900_0000)
    world.guests[2].map(0x9000_1000, 0x9900_1000)
    silent(world)
    world.guests[2].map(0x9000_0000, 0x9900_0000)
    at(only(world, "M11"), vm="vm2", ipa=0x9000_0000, size=PAGE)


def test_a_shadow_table_has_rights_of_its_own() -> None:
    """Its permissions are those of the nested guest's hypervisor, cut by the slot's; its addresses are no slot's."""
    world = good_world()
    guest = world.guests[0]
    root = world.new_table(2)
    keep, guest.root = guest.root, root
    guest.map(BASE, PA, RW & ~READ)
    guest.root = keep
    own: Mmu = guest.mmu()
    guest.more_mmus.append(
        replace(
            own,
            address=own.address + 0x1000,
            kind=MmuKind.SHADOW,
            vmid=9,
            vmid_raw=0x1_0009,
            pgd_phys=root,
            pgd_pa=root,
        )
    )
    silent(world)
    assert world.pages[guest.place(BASE, 3)[0]][0] & (VALID | TYPE)
