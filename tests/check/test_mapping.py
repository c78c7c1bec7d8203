"""S7, S8, M1, M2, M4: leaves against memslots, the host's own memory, and the VMM's page tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.snapshot import Backing, BackingState, Mmu, MmuKind
from tests.check.build import (
    AF,
    BLOCK,
    GIB,
    GICV,
    HVA,
    IMAGE,
    PAGE,
    RW,
    RWX,
    TYPE,
    VALID,
    WRITE,
    XN,
    ZERO_PAGE,
    Guest,
    World,
    good_world,
)
from tests.check.judge import ERROR, NOTE, at, only, silent, verdict

# S7


def test_a_leaf_outside_of_every_slot() -> None:
    world = good_world()
    table, index = world.guests[0].map(0x4200_0000, 0x8200_0000)
    finding = only(world, "S7")
    at(finding, vm="vm0", ipa=0x4200_0000, size=PAGE, level=3, table_pa=table, index=index)


def test_a_block_that_reaches_out_of_its_slot() -> None:
    world = good_world()
    guest = world.guests[1]
    guest.slots[0] = replace(guest.slots[0], npages=guest.slots[0].npages - 1, base_gfn=0xC000_1)
    guest.slots[0] = replace(guest.slots[0], userspace_addr=guest.slots[0].userspace_addr + PAGE)
    finding = only(world, "S7")
    at(finding, vm="vm1", ipa=0xC000_0000, size=BLOCK, level=2)


@pytest.mark.parametrize(
    ("attributes", "pa", "check"),
    [
        (GICV, 0x0804_0000, None),
        (GICV & ~XN, 0x0804_0000, "M5"),  # executable
        (GICV & ~AF, 0x0804_0000, "M8"),
        (GICV & ~(3 << 8), 0x0804_0000, "M7"),
        (RW, 0x0804_0000, "S7"),  # not device memory
        (GICV, 0x8804_0000, "S7"),  # RAM
    ],
)
def test_the_only_leaf_that_needs_no_slot_is_a_device(attributes: int, pa: int, check: str | None) -> None:
    world = good_world()
    table, index = world.guests[2].map(0x0804_0000, pa, attributes)
    if check is None:
        silent(world)
    else:
        at(only(world, check), vm="vm2", ipa=0x0804_0000, table_pa=table, index=index)


def test_an_entry_that_no_ipa_reaches() -> None:
    """36 bits from level 1: 64 entries of the root are used, the others belong to no address."""
    world = World()
    guest = world.guest(vmid=1, ia_bits=36)
    guest.slot(0x4000_0000, BLOCK, 0x8000_0000)
    guest.map(0x4000_0000, 0x8000_0000)
    silent(world)
    world.freeze_counts()
    world.pages[guest.root][64] = 0x8000_0000 | RW | VALID
    at(only(world, "S7"), table_pa=guest.root, index=64, level=1, ipa=1 << 36)
    world.pages[guest.root][64] = 0
    world.pages[guest.root][63] = 0x8000_0000 | RW | VALID
    assert {f.check for f in verdict(world)} == {"S7", "R1"}  # reached, so counted, and in no slot


def test_a_slot_that_is_being_deleted_still_counts() -> None:
    world = good_world()
    guest = world.guests[2]
    guest.slots[0] = replace(guest.slots[0], flags=1 << 16)
    silent(world)


def test_a_leaf_across_two_touching_slots_is_inside() -> None:
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, 4 * PAGE, 0x8000_0000)
    guest.slot(0x4000_4000, 4 * PAGE, 0x8000_4000)
    for number in range(8):
        guest.map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    silent(world)


def shadow_of(guest: Guest) -> Mmu:
    """A shadow MMU with one leaf that no slot of the VM would allow."""
    own = guest.mmu()
    root = guest.world.new_table(2)
    keep, guest.root = guest.root, root
    guest.map(0x1_0000_0000, 0x8000_5000, RW | 1 << 55)
    guest.root = keep
    return replace(
        own, address=own.address + 0x1000, kind=MmuKind.SHADOW, vmid=9, vmid_raw=0x1_0009, pgd_phys=root, pgd_pa=root
    )


def test_a_shadow_table_is_not_held_to_the_slots() -> None:
    """Its input addresses are the nested guest's, and its software bits the level of the guest's own mapping."""
    world = good_world()
    world.guests[0].more_mmus.append(shadow_of(world.guests[0]))
    silent(world)


# S8


@pytest.mark.parametrize(
    ("pa", "what"),
    [
        (IMAGE[0], "kernel's image"),
        (IMAGE[1] - PAGE, "kernel's image"),
        (0x4400_0000, "struct kvm of vm0"),
        (0x4401_2000, "struct kvm of vm1"),
    ],
)
def test_a_leaf_on_memory_of_the_host(pa: int, what: str) -> None:
    world = good_world()
    guest = world.guests[2]
    guest.slot(0x9000_0000, PAGE, pa)
    table, index = guest.map(0x9000_0000, pa)
    finding = only(world, "S8")
    at(finding, vm="vm2", ipa=0x9000_0000, table_pa=table, index=index)
    assert what in finding.actual


@pytest.mark.parametrize("pa", [IMAGE[0] - PAGE, IMAGE[1], 0x4400_3000])
def test_a_leaf_beside_memory_of_the_host(pa: int) -> None:
    world = good_world()
    world.guests[2].slot(0x9000_0000, PAGE, pa)
    world.guests[2].map(0x9000_0000, pa)
    silent(world)


@pytest.mark.parametrize(("attributes", "legal"), [(RW & ~WRITE, True), (RW, False)])
def test_the_zero_page_may_be_read(attributes: int, legal: bool) -> None:
    """A guest's read of untouched anonymous memory maps the zero page, which lies in the image; never a write."""
    world = good_world()
    world.guests[2].slot(0x9000_0000, PAGE, ZERO_PAGE)
    world.guests[2].map(0x9000_0000, ZERO_PAGE, attributes)
    if legal:
        silent(world)
    else:
        at(only(world, "S8"), vm="vm2", ipa=0x9000_0000)


@pytest.mark.parametrize(("owner", "level"), [(0, 1), (0, 3), (1, 2), (2, 0), (2, 3)])
def test_a_table_mapped_into_a_guest(owner: int, level: int) -> None:
    world = good_world()
    ipa = (0x4000_0000, 0xC020_7000, 0x4000_1000)[owner]
    pa, _ = world.guests[owner].place(ipa, level)
    world.guests[2].slot(0x9000_0000, PAGE, pa)
    table, index = world.guests[2].map(0x9000_0000, pa)
    finding = only(world, "S8")
    at(finding, vm="vm2", ipa=0x9000_0000, table_pa=table, index=index)
    assert f"level-{level} table" in finding.actual and f"vm{owner}" in finding.actual


def test_a_block_over_a_table() -> None:
    world = good_world()
    base = world.next_table - world.next_table % BLOCK
    world.guests[1].slot(0x8000_0000, BLOCK, base)
    world.guests[1].map(0x8000_0000, base, RWX, level=2)
    at(only(world, "S8"), vm="vm1", size=BLOCK, ipa=0x8000_0000)


# M1


def moved(world: World, guest: int, slot: int, runs: tuple[Backing, ...]) -> None:
    """Give a slot another backing."""
    slots = world.guests[guest].slots
    slots[slot] = replace(slots[slot], backing=runs)


def runs_of(world: World, guest: int = 0, slot: int = 0) -> tuple[int, Backing]:
    found = world.guests[guest].slots[slot]
    return found.userspace_addr, found.backing[0]


def test_a_leaf_on_another_page_than_the_vmms() -> None:
    world = good_world()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] = 0x8000_A000 | RW | VALID | TYPE
    finding = only(world, "M1")
    at(finding, vm="vm0", ipa=0x4000_1000, size=PAGE, level=3, table_pa=table, index=index)
    assert "0x80001000" in finding.expected and "0x8000a000" in finding.actual


def test_one_page_of_a_block_was_replaced() -> None:
    """Every 4K page of a block is compared: here the seventh has another page behind it (copy-on-write)."""
    world = good_world()
    hva, run = runs_of(world)
    page = hva + 0x20_0000 + 7 * PAGE
    end = hva + run.size
    moved(
        world,
        0,
        0,
        (
            replace(run, size=page - hva),
            Backing(page, PAGE, 0xBBBB_B000, BackingState.PRESENT, True, True, PAGE),
            Backing(page + PAGE, end - page - PAGE, 0x8020_8000, BackingState.PRESENT, True, True, PAGE),
        ),
    )
    finding = only(world, "M1")
    at(finding, vm="vm0", ipa=0x4020_7000, size=PAGE, level=2)
    assert "0xbbbbb000" in finding.expected and "0x80207000" in finding.actual


@pytest.mark.parametrize("state", [BackingState.NONE, BackingState.SWAP])
def test_a_leaf_without_backing(state: BackingState) -> None:
    world = good_world()
    hva, run = runs_of(world)
    moved(
        world,
        0,
        0,
        (
            Backing(hva, PAGE, None, state),
            replace(run, hva=hva + PAGE, size=run.size - PAGE, pa=0x8000_1000),
        ),
    )
    finding = only(world, "M4")
    at(finding, ipa=0x4000_0000, size=PAGE)
    assert "use-after-free" in finding.why


def test_a_gap_in_the_backing_is_no_backing() -> None:
    world = good_world()
    hva, run = runs_of(world)
    moved(world, 0, 0, (replace(run, hva=hva + PAGE, size=run.size - PAGE, pa=0x8000_1000),))
    at(only(world, "M4"), ipa=0x4000_0000, size=PAGE)


@pytest.mark.parametrize(("state", "check"), [(BackingState.NONE, "M4"), (BackingState.PRESENT, "M1")])
def test_a_stale_leaf_while_an_invalidation_is_in_progress(state: BackingState, check: str) -> None:
    world = good_world()
    hva, run = runs_of(world)
    pa = 0xAAAA_0000 if state is BackingState.PRESENT else None
    moved(
        world,
        0,
        0,
        (Backing(hva, PAGE, pa, state, True, True), replace(run, hva=hva + PAGE, size=run.size - PAGE, pa=0x8000_1000)),
    )
    only(world, check, ERROR)
    world.guests[0].vm_changes["invalidating"] = True
    only(world, check, NOTE)


def test_a_protnone_page_still_backs() -> None:
    world = good_world()
    _, run = runs_of(world)
    moved(world, 0, 0, (replace(run, readable=False, writable=False),))
    silent(world)


@pytest.mark.parametrize("kind", ["absent", "unreadable"])
def test_backing_that_is_not_known_is_said(kind: str) -> None:
    world = good_world()
    _, run = runs_of(world)
    moved(world, 0, 0, () if kind == "absent" else (replace(run, pa=None, state=BackingState.UNREADABLE),))
    finding = only(world, "M1", NOTE)
    at(finding, vm="vm0")
    assert "slot 0" in finding.expected


def test_a_guest_memfd_slot_is_not_judged_by_its_hva() -> None:
    world = good_world()
    guest = world.guests[2]
    guest.slots[0] = replace(guest.slots[0], flags=1 << 2, backing=())
    silent(world)


def test_wrong_leaves_that_follow_each_other_are_one_finding() -> None:
    world = good_world()
    _, run = runs_of(world)
    moved(world, 0, 0, (replace(run, pa=0x9000_0000),))
    findings = verdict(world)
    assert {f.check for f in findings} == {"M1"}
    first = next(f for f in findings if f.where.ipa == 0x4000_0000)
    at(first, size=4 * PAGE, level=3)
    assert {(f.where.ipa, f.where.size) for f in findings} == {
        (0x4000_0000, 4 * PAGE),
        (0x4000_5000, PAGE),
        (0x4012_C000, PAGE),
        (0x4020_0000, 2 * BLOCK),
    }


def test_many_wrong_ranges_are_cut_with_a_count() -> None:
    world = World()
    guest = world.guest(vmid=1)
    slot = guest.slot(0x4000_0000, BLOCK, 0x8000_0000)
    for number in range(512):
        guest.map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    runs = tuple(
        Backing(HVA + n * PAGE, PAGE, 0x9000_0000 + (511 - n) * PAGE, BackingState.PRESENT, True, True)
        for n in range(512)
    )
    guest.slots[0] = replace(slot, backing=runs)
    findings = verdict(world)
    assert len(findings) == 64 and {f.check for f in findings} == {"M1"}
    assert "448 more" in findings[-1].actual


PAGES = 64


@st.composite
def mappings(draw: st.DrawFn) -> tuple[list[int | None], list[int | None]]:
    """For each of `PAGES` pages: the frame that the guest has (``None``: no leaf), and the one behind it."""
    frame = st.none() | st.integers(0, 6)
    guest = draw(st.lists(frame, min_size=PAGES, max_size=PAGES))
    behind = [draw(st.sampled_from([g, g, g, draw(frame)])) for g in guest]
    return guest, behind


@settings(max_examples=60, deadline=None)
@given(mappings())
def test_the_pages_that_differ_are_exactly_the_ones_reported(both: tuple[list[int | None], list[int | None]]) -> None:
    """Against the definition itself: page by page, the leaf's frame is the frame behind it."""
    mapped, behind = both
    world = World()
    guest = world.guest(vmid=1)
    slot = guest.slot(0x4000_0000, PAGES * PAGE, 0x8000_0000)
    runs = []
    for number in range(PAGES):
        frame = mapped[number]
        if frame is not None:
            guest.map(0x4000_0000 + number * PAGE, 0x8000_0000 + frame * PAGE)
        back = behind[number]
        pa = None if back is None else 0x8000_0000 + back * PAGE
        runs.append(
            Backing(
                HVA + number * PAGE, PAGE, pa, BackingState.NONE if pa is None else BackingState.PRESENT, True, True
            )
        )
    guest.slots[0] = replace(slot, backing=tuple(runs))
    wrong = {n for n in range(PAGES) if mapped[n] is not None and mapped[n] != behind[n]}
    reported: set[int] = set()
    for finding in verdict(world):
        assert finding.check in ("M1", "M4") and finding.where.ipa is not None and finding.where.size is not None
        first = (finding.where.ipa - 0x4000_0000) // PAGE
        reported |= set(range(first, first + finding.where.size // PAGE))
    assert reported == wrong


def test_a_1g_block_over_fragmented_backing_is_compared_everywhere() -> None:
    world = World()
    guest = world.guest(vmid=1)
    slot = guest.slot(0x8000_0000, GIB, 0xC000_0000)
    guest.map(0x8000_0000, 0xC000_0000, RW, level=1)
    count = GIB // PAGE
    good = 0xC000_0000 + np.arange(count) * PAGE
    runs = [
        Backing(HVA + n * PAGE, PAGE, int(pa), BackingState.PRESENT, True, True) for n, pa in enumerate(good.tolist())
    ]
    guest.slots[0] = replace(slot, backing=tuple(runs))
    silent(world)
    runs[count - 1] = replace(runs[count - 1], pa=0x4500_0000)
    guest.slots[0] = replace(slot, backing=tuple(runs))
    at(only(world, "M1"), ipa=0x8000_0000 + GIB - PAGE, size=PAGE, level=1)


# M2


def test_a_block_where_hva_and_ipa_disagree() -> None:
    """The slot's memory is contiguous and big enough, but 64K off: KVM maps pages there, never a block."""
    world = World()
    guest = world.guest(vmid=1)
    slot = guest.slot(0x4000_0000, 4 * BLOCK, 0x8000_0000)
    guest.slots[0] = replace(
        slot,
        userspace_addr=slot.userspace_addr + 16 * PAGE,
        backing=(replace(slot.backing[0], hva=slot.userspace_addr + 16 * PAGE),),
    )
    guest.map(0x4000_0000, 0x8000_0000)
    silent(world)
    table, index = guest.map(0x4020_0000, 0x8020_0000, RWX, level=2)
    at(only(world, "M2"), ipa=0x4020_0000, size=BLOCK, level=2, table_pa=table, index=index)


@pytest.mark.parametrize("where", [0x4000_0000, 0x4020_0000])
def test_a_block_across_two_slots(where: int) -> None:
    """Both slots together hold the block, its memory is one piece, and still no slot supports it."""
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, BLOCK + BLOCK // 2, 0x8000_0000)
    second = guest.slot(0x4030_0000, BLOCK // 2, 0x8030_0000)
    hva = guest.slots[0].userspace_addr + 0x30_0000
    guest.slots[1] = replace(second, userspace_addr=hva, backing=(replace(second.backing[0], hva=hva),))
    guest.map(where, 0x8000_0000 + where - 0x4000_0000, RWX, level=2)
    if where == 0x4000_0000:
        silent(world)
    else:
        at(only(world, "M2"), ipa=where, size=BLOCK, level=2)


def test_a_moved_leaf_that_hits_a_table_is_only_s8s() -> None:
    world = good_world()
    world.guests[0].map(0x4000_1000, world.guests[1].root)
    at(only(world, "S8"), vm="vm0", ipa=0x4000_1000)
