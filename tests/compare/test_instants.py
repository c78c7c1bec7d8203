"""Two captures of one host: what came, went and changed is said, as few ranges, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from inspector.compare import Changes, TableChange, VmChange, changes
from inspector.snapshot import Capture
from inspector.tables import Range
from tests.check.build import BLOCK, PAGE, RW, RWX, WRITE, World, good_world


def between(before: World, after: World) -> Changes:
    return changes(before.capture(), after.capture())


def only_vm(found: Changes) -> VmChange:
    assert not found.host and len(found.vms) == 1
    return found.vms[0]


def only_table(found: Changes) -> TableChange:
    vm = only_vm(found)
    assert vm.kind == "changed" and not vm.facts and len(vm.tables) == 1
    return vm.tables[0]


def shape(found: Range | None) -> tuple[int, int, int, int] | None:
    """(IPA, PA, leaves, level)."""
    return None if found is None else (found.ia, found.pa, found.leaves, found.level)


def test_nothing() -> None:
    assert between(good_world(), good_world()).same


def test_time_and_cpus_are_not_compared() -> None:
    before = good_world().capture()
    after = replace(before, made="2026-01-01T00:00:09+00:00", stopped_seconds=2.0, command="again")
    assert changes(before, replace(after, host=replace(after.host, cpus=()))).same


def test_mappings_that_came_are_merged() -> None:
    after = good_world()
    for number in range(10, 20):
        after.guests[0].map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    table = only_table(between(good_world(), after))
    assert (table.removed, table.added, table.changed, table.omitted) == (0, 10, 0, 0)
    assert [(shape(m.before), shape(m.after)) for m in table.mappings] == [(None, (0x4000_A000, 0x8000_A000, 10, 3))]
    assert table.allocated == table.freed == ()
    back = only_table(between(after, good_world()))
    assert (back.removed, back.added) == (10, 0) and back.mappings[0].after is None


def test_a_block_that_became_pages() -> None:
    after = good_world()
    guest = after.guests[0]
    table, index = guest.place(0x4020_0000, 2)
    after.pages[table][index] = 0
    for number in range(512):
        guest.map(0x4020_0000 + number * PAGE, 0x8020_0000 + number * PAGE, RWX & ~WRITE)
    found = only_table(between(good_world(), after))
    assert [(shape(m.before), shape(m.after)) for m in found.mappings] == [
        ((0x4020_0000, 0x8020_0000, 1, 2), None),
        (None, (0x4020_0000, 0x8020_0000, 512, 3)),
    ]
    assert len(found.allocated) == 1 and not found.freed


def test_write_protection() -> None:
    after = good_world()
    for number in (0, 1, 2):
        table, index = after.guests[0].place(0x4000_0000 + number * PAGE, 3)
        after.pages[table][index] &= ~WRITE
    found = only_table(between(good_world(), after))
    assert (found.removed, found.added, found.changed) == (0, 0, 3)
    (mapping,) = found.mappings
    assert shape(mapping.before) == shape(mapping.after) == (0x4000_0000, 0x8000_0000, 3, 3)
    assert mapping.before and mapping.after
    assert mapping.before.attrs.raw ^ mapping.after.attrs.raw == WRITE


def test_a_page_that_moved_and_neighbours_that_did_not() -> None:
    after = good_world()
    after.guests[0].map(0x4000_1000, 0x8000_9000)
    (mapping,) = only_table(between(good_world(), after)).mappings
    assert (shape(mapping.before), shape(mapping.after)) == (
        (0x4000_1000, 0x8000_1000, 1, 3),
        (0x4000_1000, 0x8000_9000, 1, 3),
    )


def test_ranges_beyond_the_limit_are_counted() -> None:
    after = good_world()
    for number in range(6, 206, 2):
        after.guests[0].map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    found = only_table(between(good_world(), after))
    assert (found.added, len(found.mappings), found.omitted) == (100, 64, 36)


def test_a_reference_count_alone() -> None:
    after = good_world()
    table, _ = after.guests[0].place(0x4000_0000, 3)
    after.refcounts[table] = 8
    (change,) = only_table(between(good_world(), after)).counts
    assert (change.what, change.before, change.after) == (f"table {table:#x}", "page_count 7", "page_count 8")


def test_vms_that_come_and_go() -> None:
    after = good_world()
    fourth = after.guest(vmid=4)
    fourth.slot(0x4000_0000, BLOCK, 0xB000_0000)
    fourth.map(0x4000_0000, 0xB000_0000, RW)
    found = between(good_world(), after)
    assert [(vm.name, vm.kind) for vm in found.vms] == [("vm3", "came")]
    found = between(after, good_world())
    assert [(vm.name, vm.kind) for vm in found.vms] == [("vm3", "gone")]


def test_a_vm_in_the_place_of_another() -> None:
    """The name is the same, the struct kvm is not: it is another VM."""
    before = good_world().capture()
    other = replace(before.vms[2], address=before.vms[2].address + 0x9000, pid=777)
    found = changes(before, replace(before, vms=(*before.vms[:2], other)))
    assert [(vm.name, vm.kind) for vm in found.vms] == [("vm2", "gone"), ("vm2", "came")]


def test_slots_and_vmids() -> None:
    before, after = good_world(), good_world()
    guest = after.guests[1]
    guest.slot(0x1000_0000, BLOCK, 0xB000_0000)
    guest.slots[0] = replace(guest.slots[0], flags=1)
    guest.vmid = 9
    vm = only_vm(between(before, after))
    assert (vm.name, vm.tables) == ("vm1", ())
    assert [fact.what for fact in vm.facts] == ["memslot 0", "memslot 1", "VMID of stage-2 VMID 9"]
    assert vm.facts[1].before is None and "0x10000000-0x10200000" in (vm.facts[1].after or "")
    assert (vm.facts[2].before, vm.facts[2].after) == ("2", "9")
    assert [fact.what for fact in only_vm(between(after, before)).facts][1] == "memslot 1"


def test_a_new_generation_of_vmids() -> None:
    after = good_world()
    after.guests[2].mmu_changes = {"vmid_raw": 0x2_0003}
    (fact,) = only_vm(between(good_world(), after)).facts
    assert (fact.before, fact.after) == ("0x10003", "0x20003") and "generation" in fact.what


def test_another_boot_is_matched_by_name() -> None:
    before = good_world().capture()
    moved: Capture = replace(
        before,
        host=replace(before.host, kaslr_slide=0x5555_0000),
        vms=tuple(replace(vm, address=vm.address ^ 0x100_0000) for vm in before.vms),
    )
    found = changes(before, moved)
    assert found.other_boot and [change.what for change in found.host] == ["KASLR slide"] and not found.vms
