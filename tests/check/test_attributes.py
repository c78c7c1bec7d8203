"""M5 to M9: execution, memory type, shareability, access flag and software bits of leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inspector.snapshot import Mode
from tests.check.build import (
    AF,
    BLOCK,
    DEVICE,
    INNER,
    NORMAL_FWB,
    NORMAL_NO_FWB,
    PAGE,
    READ,
    RW,
    RWX,
    TRAITS_61,
    TRAITS_73,
    TRAITS_510,
    TRAITS_612,
    VALID,
    WRITE,
    XN,
    Guest,
    World,
    good_world,
)
from tests.check.judge import at, only, silent, verdict
from tests.check.test_mapping import shadow_of

#: MemAttr of Normal non-cacheable, with and without FWB (kernel.md 1.3; KVM writes it from 6.12).
NC = 0x5 << 2
REST = READ | WRITE | INNER | AF
DEVICE_RW, NC_RW = DEVICE | REST | XN, NC | REST | XN
BAR = 0x1000_0000
"""Where nothing is RAM."""


def device_slot(world: World, guest: int = 2, pa: int = BAR, *, special: bool = True) -> Guest:
    """A slot of 2M at IPA 0x9000_0000 whose memory the VMM maps by frame number."""
    slot = world.guests[guest].slot(0x9000_0000, BLOCK, pa)
    world.guests[guest].slots[-1] = replace(slot, backing=(replace(slot.backing[0], special=special),))
    return world.guests[guest]


# M5


@pytest.mark.parametrize("attributes", [DEVICE_RW, NC_RW])
@pytest.mark.parametrize("level", [2, 3])
def test_an_executable_device(attributes: int, level: int) -> None:
    world = good_world()
    guest = device_slot(world)
    table, index = guest.map(0x9000_0000, BAR, attributes, level)
    silent(world)
    world.pages[table][index] &= ~XN
    at(only(world, "M5"), vm="vm2", ipa=0x9000_0000, level=level, table_pa=table, index=index)


@pytest.mark.parametrize("xn", [0b01, 0b11])
def test_one_exception_level_alone_may_execute(xn: int) -> None:
    """XN[54:53] with FEAT_XNX: 01 EL0 only, 11 EL1 only (DDI 0487 D8.4.3)."""
    world = good_world(TRAITS_73)
    table, index = world.guests[0].map(0x4000_1000, 0x8000_1000, RWX | xn << 53)
    at(only(world, "M5"), vm="vm0", ipa=0x4000_1000, table_pa=table, index=index)


def test_in_a_shadow_table_it_is_the_guests_business() -> None:
    world = good_world(TRAITS_73)
    shadow = shadow_of(world.guests[0])
    world.guests[0].more_mmus.append(shadow)
    silent(world)
    leaf = next(
        (pa, at)
        for pa, words in world.pages.items()
        for at, word in enumerate(words)
        if word & VALID and word >> 55 & 1
    )
    world.pages[leaf[0]][leaf[1]] |= 0b11 << 53
    silent(world)


# M6


@pytest.mark.parametrize("value", [0x0, 0x2, 0x3, 0x4, 0x7, 0x9, 0xF])
def test_a_memory_type_that_kvm_never_writes_with_fwb(value: int) -> None:
    world = good_world()
    table, index = world.guests[0].map(0x4000_1000, 0x8000_1000, value << 2 | REST | XN)
    at(only(world, "M6"), vm="vm0", ipa=0x4000_1000, table_pa=table, index=index)


@pytest.mark.parametrize(("value", "legal"), [(NORMAL_NO_FWB, True), (NORMAL_FWB, False), (0xE << 2, False)])
def test_encodings_without_fwb(value: int, legal: bool) -> None:
    world = World()
    world.features["fwb"] = 0
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, BLOCK, 0x8000_0000)
    guest.map(0x4000_0000, 0x8000_0000, value | REST | XN)
    if legal:
        silent(world)
    else:
        only(world, "M6")


@pytest.mark.parametrize(
    ("traits", "legal"), [(TRAITS_510, False), (TRAITS_61, False), (TRAITS_612, True), (TRAITS_73, True)]
)
def test_non_cacheable_memory_came_with_6_12(traits: dict[str, bool], legal: bool) -> None:
    """In a capture that does not tell whether enum kvm_pgtable_prot has it."""
    world = good_world(traits)
    device_slot(world).map(0x9000_0000, BAR, NC_RW)
    if legal:
        silent(world)
    else:
        only(world, "M6")


def test_non_cacheable_memory_where_the_kernel_lacks_it() -> None:
    world = good_world({**TRAITS_612, "prot_normal_nc": False})
    device_slot(world).map(0x9000_0000, BAR, NC_RW)
    only(world, "M6")


@pytest.mark.parametrize("attributes", [DEVICE_RW, NC_RW])
@pytest.mark.parametrize(("special", "legal"), [(True, True), (False, False)])
def test_ram_as_a_device(attributes: int, special: bool, legal: bool) -> None:
    """Memory that the kernel left out of its map ("no-map") is a device to it; the VMM has it by frame number."""
    world = good_world()
    guest = device_slot(world, pa=0x9000_0000 + BLOCK * 8, special=special)
    table, index = guest.map(0x9000_0000, 0x9000_0000 + BLOCK * 8, attributes)
    if legal:
        silent(world)
    else:
        at(only(world, "M6"), vm="vm2", ipa=0x9000_0000, table_pa=table, index=index)


@pytest.mark.parametrize(
    ("traits", "fwb", "legal"),
    [(TRAITS_61, 1, False), (TRAITS_612, 1, False), (TRAITS_73, 1, True), (TRAITS_73, 0, False)],
)
def test_a_device_as_write_back_memory(traits: dict[str, bool], fwb: int, legal: bool) -> None:
    """Legal from 6.17, with FWB, where the VMM's own mapping is cacheable (kvm_supports_cacheable_pfnmap)."""
    world = World(traits)
    world.features["fwb"] = fwb
    world.guest(vmid=1)
    device_slot(world, 0).map(0x9000_0000, BAR, (NORMAL_FWB if fwb else NORMAL_NO_FWB) | REST | XN)
    if legal:
        silent(world)
    else:
        at(only(world, "M6"), vm="vm0", ipa=0x9000_0000)


@pytest.mark.parametrize(("second", "legal"), [(RW, False), (DEVICE_RW, True), (NC_RW, True)])
def test_one_page_with_two_cacheabilities(second: int, legal: bool) -> None:
    world = good_world(TRAITS_73)
    device_slot(world, 1).map(0x9000_0000, BAR, DEVICE_RW)
    device_slot(world, 2).map(0x9000_0000, BAR, second)
    if legal:
        silent(world)
    else:
        at(only(world, "M6"), vm="vm2", ipa=0x9000_0000)


def test_a_leaf_that_was_moved_off_ram_is_only_moved() -> None:
    world = good_world()
    world.guests[0].map(0x4000_1000, BAR, RW)
    only(world, "M1")


# M7


@pytest.mark.parametrize("value", [0, 1, 2])
@pytest.mark.parametrize("level", [2, 3])
def test_shareability(value: int, level: int) -> None:
    world = good_world()
    ipa = {2: 0x4020_0000, 3: 0x4000_1000}[level]
    table, index = world.guests[0].place(ipa, level)
    world.pages[table][index] = world.pages[table][index] & ~INNER | value << 8
    finding = only(world, "M7")
    at(finding, vm="vm0", ipa=ipa, level=level, table_pa=table, index=index)
    assert f"= {value}" in finding.actual


# M8


@pytest.mark.parametrize(("pa", "attributes", "legal"), [(BAR, DEVICE_RW, False), (0x9900_0000, RW, True)])
def test_the_access_flag(pa: int, attributes: int, legal: bool) -> None:
    """RAM is aged by the host; a device is not."""
    world = good_world()
    table, index = device_slot(world, pa=pa).map(0x9000_0000, pa, attributes & ~AF)
    if legal:
        silent(world)
    else:
        at(only(world, "M8"), vm="vm2", ipa=0x9000_0000, table_pa=table, index=index)


# M9


@pytest.mark.parametrize("bit", [55, 56, 57, 58])
def test_a_software_bit(bit: int) -> None:
    world = good_world()
    table, index = world.guests[0].map(0x4000_1000, 0x8000_1000, RW | 1 << bit)
    at(only(world, "M9"), vm="vm0", ipa=0x4000_1000, size=PAGE, table_pa=table, index=index)


@pytest.mark.parametrize(("mode", "legal"), [(Mode.VHE, False), (Mode.NVHE, False), (Mode.PROTECTED, True)])
def test_software_bits_of_protected_guests(mode: str, legal: bool) -> None:
    """5.15 to 6.12: under pKVM bits [56:55] of a guest's leaf hold its page state."""
    world = good_world(TRAITS_61)
    world.host_changes["mode"] = mode
    world.guests[0].map(0x4000_1000, 0x8000_1000, RW | 1 << 55)
    if legal:
        silent(world)
    else:
        only(world, "M9")


# one fault, one finding


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (1 << 51, "S5"),
        (1 << 55, "M9"),
        (1 << 6, "M3"),
        (1 << 3, "M6"),
        (1 << 8, "M7"),
        (1 << 13, "M1"),
        (1 << 1, "S4"),
        (1 << 0, "S6"),
    ],
)
def test_every_flipped_bit_is_one_finding(change: int, check: str) -> None:
    world = good_world()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.freeze_counts()
    world.pages[table][index] ^= change
    found: list[Any] = verdict(world)
    assert [f.check for f in found] == [check], "\n".join(map(str, found))
    at(found[0], vm="vm0", table_pa=table, index=index)


@pytest.mark.parametrize("bit", [7, 10, 54])
def test_bits_that_may_legally_differ(bit: int) -> None:
    """Write permission (write-protected), access flag (aged), execute-never (not executed yet) of a page of RAM."""
    world = good_world()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] ^= 1 << bit
    silent(world)
