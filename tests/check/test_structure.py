"""S3 to S6 and S9: each fires on one spoiled entry, at its place, and on nothing else."""

from __future__ import annotations

import pytest

from inspector.codec import Geometry
from inspector.snapshot import Mode
from tests.check.build import (
    AF,
    BLOCK,
    GIB,
    INNER,
    NORMAL_FWB,
    PAGE,
    RAM,
    READ,
    RW,
    RWX,
    TRAITS_61,
    TRAITS_73,
    TRAITS_510,
    TRAITS_612,
    TYPE,
    VALID,
    VTCR,
    WRITE,
    XN,
    World,
    good_world,
)
from tests.check.judge import ERROR, NOTE, at, only, silent, verdict

ALL_TRAITS = [TRAITS_510, TRAITS_61, TRAITS_612, TRAITS_73]


@pytest.mark.parametrize("traits", ALL_TRAITS)
def test_good_tables_pass(traits: dict[str, bool]) -> None:
    silent(good_world(traits))


def spoiled(ipa: int, level: int, value: int, guest: int = 0) -> tuple[World, int, int]:
    """A good world in which one existing or new entry has ``value``: the world, the entry's table and index.

    The reference counts are those from before.
    """
    world = good_world()
    table, index = world.guests[guest].place(ipa, level)
    world.freeze_counts()
    world.pages[table][index] = value
    return world, table, index


# S3


def test_a_pointer_outside_ram() -> None:
    world, table, index = spoiled(0x4000_0000, 2, 0x0800_0000 | VALID | TYPE)
    finding = only(world, "S3")
    at(finding, vm="vm0", table_pa=table, index=index, level=2, ipa=0x4000_0000, raw=0x0800_0003)
    assert "not RAM" in finding.actual


def test_a_pointer_beyond_the_output_size() -> None:
    world = good_world()
    for guest in world.guests:
        guest.mmu_changes["vtcr"] = VTCR[guest.ia_bits] & ~(7 << 16) | 2 << 16  # PS: 40 bits
    world.guests.pop()  # its 48-bit IPA would not fit
    for guest in world.guests:
        guest.mmu_changes["geometry"] = Geometry.from_vtcr(guest.mmu_changes["vtcr"])
    world.cpus.clear()
    world.features["parange"] = 2
    silent(world)
    table, index = world.guests[0].place(0x4000_0000, 2)
    world.freeze_counts()
    world.pages[table][index] = 1 << 40 | VALID | TYPE
    finding = only(world, "S3")
    at(finding, table_pa=table, index=index)
    assert "below 0x10000000000" in finding.expected


def test_a_loop() -> None:
    world = good_world()
    root = world.guests[0].root
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.freeze_counts()
    world.pages[table][index] = root | VALID | TYPE
    world.refcounts[table] += 1  # as if KVM had written it
    finding = only(world, "S3")
    at(finding, table_pa=table, index=index, ipa=0x4060_0000, level=2)
    assert "the root of stage-2 VMID 1 of vm0" in finding.actual


def test_a_table_that_points_at_itself() -> None:
    world = good_world()
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] = table | VALID | TYPE
    finding = only(world, "S3")
    at(finding, table_pa=table, index=index)


def test_a_child_with_two_parents_in_one_tree() -> None:
    world = good_world()
    child, _ = world.guests[0].place(0x4000_0000, 3)
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] = child | VALID | TYPE
    finding = only(world, "S3")
    at(finding, vm="vm0", table_pa=table, index=index)
    assert f"{child:#x}" in finding.actual and f"{table:#x}[0]" in finding.actual


@pytest.mark.parametrize("thief", [0, 1])
def test_a_child_shared_by_two_vms(thief: int) -> None:
    """Whichever comes first: one finding that names both, and nothing about addresses that nobody can be sure of."""
    world = good_world()
    owner = world.guests[1 - thief]
    child, _ = owner.place(0x4000_0000 if thief else 0xC020_7000, 3)
    table, index = world.guests[thief].place(0xC060_0000, 2)
    world.pages[table][index] = child | VALID | TYPE
    finding = only(world, "S3")
    assert {finding.where.vm, owner.name} <= {"vm0", "vm1"}
    assert "vm0" in finding.actual and finding.where.vm == "vm1"


def test_a_root_that_two_vms_have() -> None:
    world = good_world()
    twin = world.guest(vmid=7)
    twin.root = world.guests[0].root
    twin.slots = world.guests[0].slots
    finding = only(world, "S3")
    at(finding, vm="vm3", table_pa=twin.root, index=None)


@pytest.mark.parametrize("state", ["free", "slab", "reserved"])
def test_a_table_page_that_is_not_allocated(state: str) -> None:
    world = good_world()
    child, _ = world.guests[0].place(0x4000_0000, 3)
    table, index = world.guests[0].place(0x4000_0000, 2)
    world.states[child] = state
    finding = only(world, "S3")
    at(finding, table_pa=table, index=index)
    assert state in finding.actual


def test_a_table_that_could_not_be_read() -> None:
    world = good_world()
    child, _ = world.guests[0].place(0x4000_0000, 3)
    table, index = world.guests[0].place(0x4000_0000, 2)
    capture = world.capture()
    pages = {pa: page for pa, page in capture.pages.items() if pa != child}
    finding = only(world.capture(pages=pages, unreadable={child: "ballooned away"}), "S3")
    at(finding, table_pa=table, index=index)
    assert "ballooned away" in finding.actual


# S4


def test_a_level_3_entry_without_the_type_bit() -> None:
    world, table, index = spoiled(0x4000_1000, 3, 0x8000_1000 | RW | VALID)
    finding = only(world, "S4")
    at(finding, table_pa=table, index=index, level=3, ipa=0x4000_1000, size=PAGE)


def test_a_block_at_level_0() -> None:
    world, table, index = spoiled(0, 0, 0 | RW | VALID, guest=2)
    finding = only(world, "S4")
    at(finding, vm="vm2", table_pa=table, index=index, level=0)


def test_a_block_that_only_the_architecture_allows() -> None:
    """DDI 0487 D8.3.1: with DS=1 a 4K granule has level-0 blocks; KVM_PGTABLE_MIN_BLOCK_LEVEL is 1."""
    world = World()
    world.features.update(lpa2=1, parange=6)
    world.host_changes["ram"] = ((0x4000_0000, 0x200_0000_0000),)
    guest = world.guest(vmid=1, ia_bits=48)
    value = VTCR[48] & ~(7 << 16) | 6 << 16 | 1 << 32
    guest.mmu_changes.update(vtcr=value, geometry=Geometry.from_vtcr(value))
    guest.slot(1 << 39, 1 << 39, 1 << 40)
    silent(world)
    attributes = NORMAL_FWB | READ | WRITE | AF | XN  # with DS=1 bits [9:8] are an address
    table, index = guest.map(1 << 39, 1 << 40, attributes, level=0)
    finding = only(world, "S4")
    at(finding, table_pa=table, index=index, level=0)
    assert "never makes" in finding.why


@pytest.mark.parametrize("bit", [12, 15, 17, 20])
def test_a_misaligned_block(bit: int) -> None:
    world, table, index = spoiled(0x4020_0000, 2, 0x8020_0000 | 1 << bit | RWX | VALID)
    finding = only(world, "S4")
    at(finding, table_pa=table, index=index, level=2, size=BLOCK)
    assert f"{1 << bit:#x}" in finding.actual


def test_an_output_beyond_ps() -> None:
    world = World()
    world.features["parange"] = 2
    value = VTCR[40] & ~(7 << 16) | 2 << 16
    guest = world.guest(vmid=1)
    guest.mmu_changes.update(vtcr=value, geometry=Geometry.from_vtcr(value))
    guest.slot(0x4000_0000, BLOCK, 1 << 40)
    table, index = guest.map(0x4000_0000, 1 << 40)
    finding = only(world, "S4")
    at(finding, table_pa=table, index=index)
    assert "address size fault" in finding.why


# S5


@pytest.mark.parametrize("bit", [11, 48, 49, 50, 51, 52, 53, 59, 60, 61, 62, 63])
def test_a_leaf_bit_that_kvm_never_sets(bit: int) -> None:
    table_value = 0x8000_1000 | RW | VALID | TYPE | 1 << bit
    world, table, index = spoiled(0x4000_1000, 3, table_value)
    finding = only(world, "S5")
    at(finding, table_pa=table, index=index, level=3, ipa=0x4000_1000, size=PAGE, raw=table_value)
    assert str(bit) in finding.actual


def test_nt_in_a_block() -> None:
    """DDI 0487 D8.3.1: bit 16 of a block is nT (FEAT_BBM)."""
    world, table, index = spoiled(0x4020_0000, 2, 0x8020_0000 | 1 << 16 | RWX | VALID)
    finding = only(world, "S5")
    at(finding, table_pa=table, index=index)
    assert "nT" in finding.actual


@pytest.mark.parametrize("bit", [2, 10, 11, 48, 50, 51, 58, 59, 62, 63])
def test_a_bit_beside_the_address_of_a_table(bit: int) -> None:
    world = good_world()
    child, _ = world.guests[0].place(0x4000_0000, 3)
    table, index = world.guests[0].place(0x4000_0000, 2)
    world.pages[table][index] = child | VALID | TYPE | 1 << bit
    finding = only(world, "S5")
    at(finding, table_pa=table, index=index, level=2)


def test_neighbours_with_the_same_wrong_bit_are_one_finding() -> None:
    world = good_world()
    for number in range(3):
        table, index = world.guests[0].place(0x4000_0000 + number * PAGE, 3)
        world.pages[table][index] |= 1 << 51
    finding = only(world, "S5")
    at(finding, table_pa=table, index=0, ipa=0x4000_0000, size=3 * PAGE)
    assert "3 entries" in finding.actual


def test_more_places_than_anybody_reads_are_cut_with_a_count() -> None:
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, 2 * BLOCK, 0x8000_0000)
    for number in range(0, 512, 2):  # no neighbours: 256 places
        guest.map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE, RW | 1 << 51)
    findings = verdict(world)
    assert len(findings) == 64 and {f.check for f in findings} == {"S5"}
    assert "193 entries" in findings[-1].actual


@pytest.mark.parametrize(("xnx", "fires"), [(1, False), (0, True)])
def test_bit_53_of_kernels_that_write_two_bits(xnx: int, fires: bool) -> None:
    """7.x writes XN[54:53] where the CPU has FEAT_XNX, and 00 or 10 elsewhere (stage2_set_xn_attr).

    With FEAT_XNX the bit is a field's, and what it says is for M5.
    """
    world = good_world(TRAITS_73)
    world.features["xnx"] = xnx
    world.guests[0].map(0x4000_1000, 0x8000_1000, RW | 1 << 53)
    only(world, "S5" if fires else "M5")


def test_address_bits_above_48_with_lpa2() -> None:
    world = World()
    world.features.update(lpa2=1, parange=6)
    guest = world.guest(vmid=1)
    value = VTCR[40] & ~(7 << 16) | 6 << 16 | 1 << 32
    guest.mmu_changes.update(vtcr=value, geometry=Geometry.from_vtcr(value))
    high = 0xD_0000_8000_0000  # PA[51:50] = 3, [49:48] = 1
    world.host_changes["ram"] = ((0x4000_0000, 0x2_4000_0000), (high, high + BLOCK))
    guest.slot(0x4000_0000, BLOCK, high)
    table, index = guest.place(0x4000_0000, 3)
    attributes = NORMAL_FWB | READ | WRITE | AF | XN
    world.pages[table][index] = high & (1 << 50) - 1 | 3 << 8 | attributes | VALID | TYPE
    silent(world)


# S6


@pytest.mark.parametrize("traits", [TRAITS_61, TRAITS_612, TRAITS_73])
@pytest.mark.parametrize("value", [0x4, 0x8000_1000 | RW, 1 << 63, 1 << 1])
def test_an_invalid_entry_that_is_not_zero(traits: dict[str, bool], value: int) -> None:
    world = good_world(traits)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    if value & 1 << 10 and traits is TRAITS_612:
        value &= ~(1 << 10)
    world.pages[table][index] = value
    finding = only(world, "S6")
    at(finding, vm="vm0", table_pa=table, index=index, level=3, ipa=0x4000_9000, raw=value)


def test_stale_bits_of_5_10() -> None:
    world = good_world(TRAITS_510)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.pages[table][index] = 0x8000_9000 | RW | TYPE
    silent(world)


LOCKED = [(TRAITS_612, 1 << 10), (TRAITS_73, 1 << 60)]


@pytest.mark.parametrize(("traits", "locked"), LOCKED)
def test_a_locked_entry_that_nobody_holds(traits: dict[str, bool], locked: int) -> None:
    world = good_world(traits)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    finding = only(world, "S6")
    at(finding, table_pa=table, index=index, raw=locked)


@pytest.mark.parametrize(("traits", "locked"), LOCKED)
@pytest.mark.parametrize(
    ("running", "symbol"),
    [
        ("host", "stage2_map_walker"),
        ("tlb-helper", "__kvm_tlb_flush_vmid_ipa"),
        ("hyp", None),
        ("host", "gic_handle_irq"),
    ],
)
def test_a_locked_entry_while_a_walk_may_be_in_progress(
    traits: dict[str, bool], locked: int, running: str, symbol: str | None
) -> None:
    world = good_world(traits)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    world.cpu(running, symbol)
    finding = only(world, "S6", NOTE)
    assert "CPU 2" in finding.why


@pytest.mark.parametrize(("traits", "locked"), [(TRAITS_61, 1 << 10), (TRAITS_612, 1 << 60), (TRAITS_73, 1 << 10)])
def test_another_generations_lock_is_garbage(traits: dict[str, bool], locked: int) -> None:
    world = good_world(traits)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    world.cpu("host", "stage2_map_walker")
    only(world, "S6", ERROR)


def test_a_poisoned_entry_of_a_protected_guest() -> None:
    world = good_world(TRAITS_73)
    table, index = world.guests[0].place(0x4000_9000, 3)
    world.pages[table][index] = 0x3000_0000_0000_0000
    only(world, "S6")
    world.host_changes["mode"] = Mode.PROTECTED
    silent(world)


# S9


def test_an_empty_table_is_a_note() -> None:
    world = good_world()
    table, _ = world.guests[0].place(0x4060_0000, 3)
    finding = only(world, "S9", NOTE)
    at(finding, vm="vm0", table_pa=table, level=3, ipa=0x4060_0000)


def test_an_empty_root_is_not() -> None:
    world = World()
    world.guest(vmid=1)
    silent(world)


def test_a_table_of_stale_bits_is_empty_on_5_10() -> None:
    world = good_world(TRAITS_510)
    table, index = world.guests[0].place(0x4060_0000, 3)
    world.pages[table][index] = 0x8060_0000 | RW | TYPE
    only(world, "S9", NOTE)


# everything at once


def test_a_page_of_random_bits_as_a_table_is_survived() -> None:
    """A pointer to a page that is no table: findings, each with a place, and the rest is still judged."""
    world = good_world()
    state = 0x1234_5678_9ABC_DEF1
    words = []
    for _ in range(512):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        words.append(state)
    garbage = 0x7000_0000
    world.pages[garbage] = words
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] = garbage | VALID | TYPE
    findings = verdict(world)
    assert {f.check for f in findings if f.severity is ERROR} >= {"S4", "S5", "S6"}
    assert all(f.where.vm == "vm0" and f.where.table_pa == garbage for f in findings if f.check != "R1")


def test_constants_of_the_builder() -> None:
    """kernel.md 1.7: the kernel's own test vectors."""
    assert 0x4812_3000 | RW | VALID | TYPE == 0x0040_0000_4812_37DB
    assert 0x4820_0000 | NORMAL_FWB | READ | INNER | AF | VALID == 0x4820_0759
    assert RAM[0] % GIB == 0
