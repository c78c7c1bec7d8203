"""Faults planted in good tables: each is found at its place, with what the model has there, and nothing else is said.

The worlds are written bit by bit (`tests.check.build`); expected values are those of kernel.md 1.3, 1.6, 1.7 and 10.1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from inspector.capture.view import table_views
from inspector.check import Comparison, Sides, compare_views
from inspector.findings import BadInput, Severity
from inspector.generations import code_of
from inspector.snapshot import Backing, BackingState, Capture
from tests.check.build import (
    AF,
    BLOCK,
    DEVICE,
    GICV,
    HVA,
    INNER,
    NORMAL_NO_FWB,
    PAGE,
    READ,
    RW,
    RWX,
    TRAITS_61,
    TRAITS_73,
    TRAITS_510,
    TRAITS_612,
    WRITE,
    XN,
    World,
    good_world,
)

ERROR, NOTE = Severity.ERROR, Severity.NOTE
TRAITS = {"6.1": TRAITS_61, "6.12": TRAITS_612, "7.3": TRAITS_73}
RELEASES = {"5.10": "5.10.0-33-cloud-arm64", "6.1": "6.1.0-56", "6.12": "6.12.107+deb13", "7.3": "7.3.4"}


def good(label: str = "6.12") -> World:
    """A world that runs that kernel."""
    world = good_world(TRAITS_510 if label == "5.10" else TRAITS[label])
    world.host_changes = {"release": RELEASES[label]}
    return world


def compared(subject: World | Capture, label: str | None = None) -> list[Comparison]:
    capture = subject.capture() if isinstance(subject, World) else subject
    return compare_views(list(table_views(capture)), code_of(capture.host, label))


def differences(subject: World | Capture) -> list[Sides]:
    return [found for one in compared(subject) for found in one.differences]


def only(subject: World | Capture, check: str, severity: Severity) -> Sides:
    """The one difference there is."""
    found = differences(subject)
    assert [(d.finding.check, d.finding.severity) for d in found] == [(check, severity)], "\n".join(map(str, found))
    return found[0]


def place(found: Sides) -> tuple[int | None, int | None]:
    return found.where.table_pa, found.where.index


@pytest.mark.parametrize("label", ["5.10", *TRAITS])
def test_good_tables_are_identical(label: str) -> None:
    results = compared(good(label))
    assert [one.differences for one in results] == [(), (), ()]
    assert [one.identical for one in results] == [True] * 3
    assert [one.leaves for one in results] == [10, 2, 1]
    assert {one.code.label for one in results} == {label}


# --- leaves ---


@pytest.mark.parametrize(
    ("flip", "check", "field"),
    [
        (1 << 2, "M6", "memattr"),  # 0x6 -> 0x7: "as stage 1", which no guest's table has
        (1 << 4, "M6", "memattr"),
        (1 << 8, "M7", "sh"),
        (1 << 9, "M7", "sh"),
        (1 << 11, "S5", "fnxs"),
        (1 << 50, "S5", "50"),
        (1 << 51, "S5", "dbm"),
        (1 << 52, "S5", "contiguous"),
        (1 << 53, "S5", "53"),
        (1 << 55, "M9", "sw"),
        (1 << 58, "M9", "sw"),
        (1 << 59, "S5", "pbha"),
        (1 << 63, "S5", "63"),
        (READ, "M3", "s2ap"),
    ],
)
@pytest.mark.parametrize("label", TRAITS)
def test_a_flipped_bit(label: str, flip: int, check: str, field: str) -> None:
    world = good(label)
    if flip == 1 << 53 and label == "7.3":
        world.features["xnx"] = 0
    table, index = world.guests[0].place(0x4000_1000, 3)
    right = world.pages[table][index]
    assert right == 0x0040_0000_8000_17DB  # kernel.md 1.7, with this page's address
    world.pages[table][index] = right ^ flip
    found = only(world, check, ERROR)
    assert place(found) == (table, index)
    assert (found.where.vm, found.where.ipa, found.where.size, found.where.level) == ("vm0", 0x4000_1000, PAGE, 3)
    assert found.where.raw == right ^ flip
    assert found.live.entry is not None and found.live.entry.raw == right ^ flip
    assert found.model.entry is not None and found.model.entry.raw == right
    assert field in found.what
    assert found.finding.function == "stage2_set_prot_attr"
    assert found.live.page_count == found.model.page_count == 7  # 1 + pages 0, 1, 2, 3, 5, 300


def test_the_encoding_without_fwb_under_fwb() -> None:
    world = good()
    table, index = world.guests[0].map(0x4000_1000, 0x8000_1000, RW | NORMAL_NO_FWB)
    found = only(world, "M6", ERROR)
    assert place(found) == (table, index) and "memattr=0xf, the model's is 0x6" in found.what


def test_without_fwb_it_is_right() -> None:
    world = good()
    world.features["fwb"] = 0
    for pa, words in world.pages.items():
        normal = [w & 1 and w & 0x3C == 0x6 << 2 for w in words]
        world.pages[pa] = [w | NORMAL_NO_FWB if n else w for w, n in zip(words, normal, strict=True)]
    assert differences(world) == []


def test_ram_as_a_device() -> None:
    world = good()
    table, index = world.guests[0].map(0x4000_1000, 0x8000_1000, GICV)
    found = only(world, "M6", ERROR)
    assert place(found) == (table, index)
    assert found.model.entry is not None and found.model.entry.raw == 0x0040_0000_8000_17DB


def test_an_executable_device() -> None:
    world = good()
    table, index = world.guests[0].map(0x0804_0000, 0x0804_0000, GICV & ~XN)
    found = only(world, "M5", ERROR)
    assert place(found) == (table, index)
    assert found.model.entry is not None and found.model.entry.raw & XN
    assert "xn" in found.what


def test_xn_of_el1_and_el0_alone_needs_feat_xnx() -> None:
    world = good("7.3")
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] |= 1 << 53
    found = only(world, "M5", ERROR)  # 0b11: EL1 only, which a CPU with FEAT_XNX has, and KVM has no use for
    assert place(found) == (table, index) and found.model.entry is None  # map can be asked for it
    world.features["xnx"] = 0
    assert place(only(world, "S5", ERROR)) == (table, index)


def test_neighbours_that_are_wrong_alike_are_one() -> None:
    world = good()
    for number in range(3):
        table, index = world.guests[0].place(0x4000_0000 + number * PAGE, 3)
        world.pages[table][index] |= 1 << 11
    found = only(world, "S5", ERROR)
    assert (found.entries, found.where.ipa, found.where.size) == (3, 0x4000_0000, 3 * PAGE)


def test_at_most_so_many_are_shown_and_the_rest_counted() -> None:
    world = good()
    for number in range(0, 200, 2):
        world.guests[0].map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE, RW | 1 << 11)
    one = compared(world)[0]
    # As 'check': 64 places, the last of which counts the rest of the hundred.
    assert (one.errors, len(one.shown), one.omitted) == (64, 64, 0)
    assert "(37 entries)" in one.differences[-1].finding.actual


@pytest.mark.parametrize("low", [1 << 12, 1 << 20])
def test_a_misaligned_block(low: int) -> None:
    world = good()
    table, index = world.guests[0].place(0x4020_0000, 2)
    world.pages[table][index] |= low
    found = only(world, "S4", ERROR)
    assert place(found) == (table, index) and found.where.size == BLOCK


# --- the access flag ---


def test_a_clear_access_flag() -> None:
    world = good()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] &= ~AF
    assert differences(world) == []  # VTCR.HA and FEAT_HAFDBS: the CPU's
    world.features["hafdbs"] = 0
    found = only(world, "M10", NOTE)
    assert place(found) == (table, index)
    world.features["hafdbs"] = 2
    world.guests[0].mmu_changes = {"vtcr": 0x800D_3558}  # the same without HA
    assert place(only(world, "M10", NOTE)) == (table, index)


# --- table entries and structure ---


@pytest.mark.parametrize("bit", [2, 6, 10, 52, 58, 59, 63])
def test_a_bit_in_a_table_entry(bit: int) -> None:
    world = good()
    table, index = world.guests[0].place(0x4000_0000, 2)
    right = world.pages[table][index]
    world.pages[table][index] |= 1 << bit
    found = only(world, "S5", ERROR)
    assert place(found) == (table, index) and str(bit) in found.what
    assert found.model.entry is not None and found.model.entry.raw == right
    assert found.finding.function == "kvm_init_table_pte"


def test_an_empty_table_is_a_note() -> None:
    world = good()
    table, _ = world.guests[0].place(0x4060_0000, 3)
    found = only(world, "S9", NOTE)
    assert place(found) == (table, None)
    assert (found.where.level, found.where.ipa) == (3, 0x4060_0000)


def test_an_empty_table_counts_in_the_table_above() -> None:
    world = good()
    world.guests[0].place(0x4060_0000, 3)
    table, index = world.guests[0].place(0x4020_0000, 2)
    world.pages[table][index] |= 1 << 11
    world.freeze_counts()
    world.refcounts[table] -= 1
    count, leaf, empty = differences(world)
    assert [d.finding.check for d in (count, leaf, empty)] == ["R1", "S5", "S9"]
    assert (count.live.page_count, count.model.page_count) == (4, 5)  # 1 + table, two blocks, empty table
    assert (leaf.live.page_count, leaf.model.page_count) == (4, 5)


def test_a_chain_that_ends_in_an_empty_table_is_one_note() -> None:
    world = good()
    table, _ = world.guests[2].place(0x100_0000_0000, 3)  # from level 0: two tables above it have nothing else
    assert place(only(world, "S9", NOTE)) == (table, None)


def test_a_stray_bit_above_an_empty_table_is_an_error() -> None:
    world = good()
    world.guests[0].place(0x4060_0000, 3)
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] |= 1 << 59
    assert [(d.finding.check, d.finding.severity, place(d)[1]) for d in differences(world)] == [
        ("S5", ERROR, index),
        ("S9", NOTE, None),
    ]


def test_a_table_that_two_entries_lead_to() -> None:
    world = good()
    child = world.pages[world.guests[0].place(0x4000_0000, 2)[0]][world.guests[0].place(0x4000_0000, 2)[1]]
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] = child
    first = world.guests[0].place(0x4000_0000, 2)
    found = only(world, "S3", ERROR)
    assert place(found) == (table, index) and f"{first[0]:#x}[{first[1]}]" in found.what
    assert found.model.entry is not None and found.model.entry.raw == 0


def test_a_table_of_another_guest() -> None:
    """Nobody can say whose it is: both entries are shown, and leaves below it are not held against either's model."""
    world = good()
    mine, theirs = world.guests[0].place(0x4000_0000, 2), world.guests[2].place(0x4000_0000, 2)
    world.freeze_counts()
    world.pages[theirs[0]][theirs[1]] = world.pages[mine[0]][mine[1]]
    leaf = world.guests[0].place(0x4000_1000, 3)
    world.pages[leaf[0]][leaf[1]] |= 1 << 11
    found = [(one.view.vm.name, d.finding.check, place(d)) for one in compared(world) for d in one.differences]
    assert found == [("vm0", "S3", mine), ("vm0", "S5", leaf), ("vm2", "S3", theirs)]
    (one,) = compare_views(list(table_views(world.capture()))[2:], code_of(world.capture().host))
    assert [d.finding.check for d in one.differences] == ["S3"]  # the other guest counts though it is not compared


def test_two_guests_with_one_root() -> None:
    world = good()
    world.guests[2].mmu_changes = {"pgd_phys": world.guests[0].root, "pgd_pa": world.guests[0].root}
    assert [(one.view.vm.name, [d.finding.check for d in one.differences]) for one in compared(world)] == [
        ("vm0", ["S3"]),
        ("vm1", []),
        ("vm2", ["S3"]),
    ]


def test_a_loop() -> None:
    world = good()
    table, index = world.guests[0].place(0x4060_0000, 2)
    world.pages[table][index] = table | 3
    found = only(world, "S3", ERROR)
    assert place(found) == (table, index) and f"{table:#x}" in found.what


def test_reserved_and_impossible_leaves() -> None:
    world = good()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] &= ~2
    found = only(world, "S4", ERROR)
    assert place(found) == (table, index) and "reserved" in found.what


def test_a_block_at_level_0() -> None:
    world = good()
    world.pages[world.guests[2].root][5] = 0x0000_0080_0000_0000 | RWX | 1
    found = only(world, "S4", ERROR)
    assert place(found) == (world.guests[2].root, 5)
    assert found.model.entry is not None and found.model.entry.raw == 0


# --- invalid entries ---


@pytest.mark.parametrize("label", TRAITS)
def test_an_invalid_entry_that_is_not_zero(label: str) -> None:
    world = good(label)
    world.freeze_counts()
    table, index = world.guests[0].place(0x4000_7000, 3)
    world.pages[table][index] = 0x4  # hyp's owner id, which no guest's table has
    found = only(world, "S6", ERROR)
    assert place(found) == (table, index)
    assert found.model.entry is not None and found.model.entry.raw == 0


def test_5_10_leaves_stale_bits() -> None:
    world = good("5.10")
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] &= ~1
    assert differences(world) == []


@pytest.mark.parametrize(("label", "locked"), [("6.12", 0x400), ("7.3", 1 << 60)])
def test_locked(label: str, locked: int) -> None:
    world = good(label)
    table, index = world.guests[0].place(0x4000_7000, 3)
    world.freeze_counts()
    world.pages[table][index] = locked
    assert place(only(world, "S6", ERROR)) == (table, index)
    world.cpu("host", "kvm_pgtable_stage2_map")
    found = only(world, "S6", NOTE)
    assert "kvm_pgtable_stage2_map" in found.finding.why
    assert found.finding.function == "stage2_try_break_pte"


# --- reference counts ---


def test_a_count_too_high_is_a_note() -> None:
    world = good()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.refcounts[table] = 8
    found = only(world, "R1", NOTE)
    assert place(found) == (table, None) and (found.live.page_count, found.model.page_count) == (8, 7)


def test_a_count_too_low_is_an_error() -> None:
    world = good()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.refcounts[table] = 6
    found = only(world, "R1", ERROR)
    assert place(found) == (table, None) and (found.live.page_count, found.model.page_count) == (6, 7)
    world.cpu("host", "stage2_unmap_walker")
    assert only(world, "R1", NOTE).finding.severity is NOTE
    world.refcounts[table] = 5  # one CPU is never two behind
    assert only(world, "R1", ERROR).live.page_count == 5


@pytest.mark.parametrize(("held", "severity"), [(None, NOTE), (True, NOTE), (False, ERROR)])
def test_the_lock_tells_whether_a_walk_explains_it(held: bool | None, severity: Severity) -> None:
    world = good()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.refcounts[table] = 6
    world.cpu("host", "gic_handle_irq")
    world.guests[0].vm_changes["mmu_lock_held"] = held
    assert place(only(world, "R1", severity)) == (table, None)


def test_a_dropped_entry_shows_as_a_count_too_high() -> None:
    world = good()
    world.freeze_counts()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] = 0
    found = only(world, "R1", NOTE)
    assert place(found) == (table, None) and (found.live.page_count, found.model.page_count) == (7, 6)


def test_each_root_page_is_counted_by_itself() -> None:
    world = good()
    root = world.guests[1].root + 3 * PAGE  # 0xC000_0000 lies in the fourth of four
    world.refcounts[root] = 2
    found = only(world, "R1", ERROR)
    assert place(found) == (root, None) and found.model.page_count == 3


def test_a_free_page() -> None:
    world = good()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.states[table] = "free"
    parent = world.guests[0].place(0x4000_0000, 2)
    found = only(world, "S3", ERROR)  # said of the entry that leads to it
    assert place(found) == parent and f"{table:#x} is free" in found.what


# --- legal history ---


def full_table(entry_size: int, dirty_bitmap: int = 0) -> World:
    """A 2M range that is held as 512 pages, backed by host pages of ``entry_size``."""
    world = good()
    guest = world.guests[0]
    for number in range(512):
        guest.map(0x4060_0000 + number * PAGE, 0x8060_0000 + number * PAGE)
    slot = guest.slots[0]
    run = Backing(slot.userspace_addr, slot.npages * PAGE, 0x8000_0000, BackingState.PRESENT, True, True, entry_size)
    guest.slots[0] = replace(slot, backing=(run,), dirty_bitmap=dirty_bitmap)
    return world


def test_pages_where_a_block_would_do() -> None:
    found = only(full_table(BLOCK), "M10", NOTE)
    assert (found.where.ipa, found.where.size, found.entries) == (0x4060_0000, BLOCK, 512)
    assert found.model.entry is not None and found.model.entry.raw == 0x0040_0000_8060_07D9  # RW, XN, a block


def test_pages_are_right_where_the_host_has_pages_or_logs() -> None:
    assert differences(full_table(PAGE)) == []
    assert differences(full_table(BLOCK, dirty_bitmap=0xFFFF_0000_1234_0000)) == []


def test_pages_with_different_permissions_stay_pages() -> None:
    world = full_table(BLOCK)
    table, index = world.guests[0].place(0x4060_7000, 3)
    world.pages[table][index] &= ~WRITE
    assert differences(world) == []


# --- which kernel ---


def test_another_generation_than_the_kernel() -> None:
    world = good("7.3")
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] |= 1 << 53
    assert [d.finding.check for d in differences(world)] == ["M5"]
    found = [d for one in compared(world, "6.12") for d in one.differences]
    assert [(d.finding.check, place(d)) for d in found] == [("S5", (table, index))]
    with pytest.raises(BadInput, match=r"6\.13"):
        code_of(world.capture().host, "6.13")


def test_device_attributes_are_what_the_table_says() -> None:
    # DDI 0487 D8.6.2: MemAttr 0b0001 is Device-nGnRE; kernel.md 1.7: a device page ends in 0x7C7 with XN.
    assert (DEVICE | READ | WRITE | INNER | AF | 3) == 0x7C7 and GICV & XN and HVA
