"""What backs guest memory: Linux stage-1 tables made by hand, in both generations of present-but-invalid entries.

Bits as in DDI 0487 D8.3 and arch/arm64/include/asm/pgtable-{hwdef,prot}.h, 6.1 and 6.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from inspector.codec import Format, Geometry, Regime
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.vmm import read_runs
from inspector.snapshot import Backing, BackingState
from inspector.target.api import RamRange, UnreadableMemory

PAGE, BLOCK, TABLE = 4096, 2 << 20, 0b11
USER_RW = 0b11 | 1 << 6 | 3 << 8 | 1 << 10 | 1 << 11 | 1 << 51 | 1 << 53 | 1 << 54
USER_RO = USER_RW & ~(1 << 51) | 1 << 7
ROOT = 0x4000_0000
HVA = 0xFFFF_8000_0000  # level-0 index 511, level-1 index 510, level-2 index 0


class Ram:
    """RAM as a dict of pages; what is not in it is zero, what is outside the range cannot be read."""

    name = "dict"
    why_not_faster = None
    ram = (RamRange(0x4000_0000, 0x8000_0000, "ram"),)

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def put(self, table: int, index: int, value: int) -> None:
        page = self.pages.setdefault(table, bytearray(PAGE))
        page[8 * index : 8 * index + 8] = value.to_bytes(8, "little")

    def read(self, pa: int, size: int) -> bytes:
        if not 0x4000_0000 <= pa <= 0x8000_0000 - size:
            raise UnreadableMemory(pa, size)
        return bytes(self.pages.get(pa & -PAGE, bytes(PAGE)))[pa % PAGE :][:size]

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return [self.read(pa, size) for pa, size in requests]


def tree(level3: dict[int, int], level2: dict[int, int] | None = None) -> Ram:
    """A tree with one table a level: ``level3`` under entry 0 of the level-2 table, more entries in ``level2``."""
    ram = Ram()
    ram.put(ROOT, 511, ROOT + PAGE | TABLE)
    ram.put(ROOT + PAGE, 510, ROOT + 2 * PAGE | TABLE)
    ram.put(ROOT + 2 * PAGE, 0, ROOT + 3 * PAGE | TABLE)
    for index, raw in level3.items():
        ram.put(ROOT + 3 * PAGE, index, raw)
    for index, raw in (level2 or {}).items():
        ram.put(ROOT + 2 * PAGE, index, raw)
    return ram


def runs(ram: Ram, start: int, size: int, *, new: bool = False) -> list[Backing]:
    geometry = Geometry.for_stage1(48)
    space: Any = SimpleNamespace(geometry=geometry, memory=StoppedMemory(ram))
    (found,) = read_runs(space, ROOT, Format(regime=Regime.LINUX_STAGE1, linux_612=new), [(start, start + size)])
    return list(found)


def test_neighbours_merge_and_holes_are_named() -> None:
    ram = tree({0: 0x5000_0000 | USER_RW, 1: 0x5000_1000 | USER_RW, 3: 0x5000_2000 | USER_RW})
    assert runs(ram, HVA, 5 * PAGE) == [
        Backing(HVA, 2 * PAGE, 0x5000_0000, BackingState.PRESENT, True, True, PAGE),
        Backing(HVA + 2 * PAGE, PAGE, None, BackingState.NONE),
        Backing(HVA + 3 * PAGE, PAGE, 0x5000_2000, BackingState.PRESENT, True, True, PAGE),
        Backing(HVA + 4 * PAGE, PAGE, None, BackingState.NONE),
    ]


def test_read_only_does_not_merge_with_writable() -> None:
    ram = tree({0: 0x5000_0000 | USER_RW, 1: 0x5000_1000 | USER_RO})
    assert [(run.pa, run.writable) for run in runs(ram, HVA, 2 * PAGE)] == [(0x5000_0000, True), (0x5000_1000, False)]


def test_a_block_is_clipped_to_the_range() -> None:
    ram = tree({}, {1: 0x6000_0000 | USER_RW & ~0b10})
    assert runs(ram, HVA + BLOCK + 3 * PAGE, 2 * PAGE) == [
        Backing(HVA + BLOCK + 3 * PAGE, 2 * PAGE, 0x6000_3000, BackingState.PRESENT, True, True, BLOCK)
    ]


@pytest.mark.parametrize(("new", "mark"), [(False, 1 << 58), (True, 1 << 11)], ids=["6.1", "6.12"])
def test_prot_none_still_names_its_page(new: bool, mark: int) -> None:
    ram = tree({0: 0x5000_0000 | mark | 1 << 7})
    (run,) = runs(ram, HVA, PAGE, new=new)
    assert (run.state, run.pa, run.readable) == ("present", 0x5000_0000, False)


@pytest.mark.parametrize("new", [False, True], ids=["6.1", "6.12"])
def test_a_swap_entry_backs_nothing(new: bool) -> None:
    swap = 5 << 6 | 0x1234 << 12  # type and offset of pte_to_swp_entry; valid, PROT_NONE and present-invalid clear
    (run,) = runs(tree({0: swap}), HVA, PAGE, new=new)
    assert (run.state, run.pa) == ("swap", None)


@pytest.mark.parametrize("bit", [56, 57], ids=["PTE_SPECIAL", "PTE_DEVMAP"])
def test_what_is_mapped_by_frame_number_is_told_apart(bit: int) -> None:
    ram = tree({0: 0x5000_0000 | USER_RW, 1: 0x5000_1000 | USER_RW | 1 << bit})
    assert [(run.pa, run.special) for run in runs(ram, HVA, 2 * PAGE)] == [(0x5000_0000, False), (0x5000_1000, True)]


def test_an_unreadable_table_is_told_from_a_hole() -> None:
    ram = tree({}, {0: 0x9_0000_0000 | TABLE})
    (run,) = runs(ram, HVA, 4 * PAGE)
    assert (run.hva, run.size, run.state) == (HVA, 4 * PAGE, "unreadable")


def test_52_bit_addresses_start_a_level_higher() -> None:
    """With LPA2 the root is at level -1, and bits [9:8] of every entry are PA[51:50] (DDI 0487 D8.3)."""
    ram = Ram()
    for level, index in ((0, 0), (1, 511), (2, 510), (3, 0)):
        ram.put(ROOT + level * PAGE, index, ROOT + (level + 1) * PAGE | TABLE)
    ram.put(ROOT + 4 * PAGE, 0, 0x5000_0000 | USER_RW & ~0x300)
    geometry = Geometry.for_stage1(52, pa_bits=52, lpa2=True)
    space: Any = SimpleNamespace(geometry=geometry, memory=StoppedMemory(ram))
    fmt = Format(regime=Regime.LINUX_STAGE1, linux_612=True)
    (found,) = read_runs(space, ROOT, fmt, [(HVA, HVA + PAGE)])
    assert found == [Backing(HVA, PAGE, 0x5000_0000, BackingState.PRESENT, True, True, PAGE)]


def test_two_mappings_may_share_a_table() -> None:
    """huge_pmd_share: two mappings of one hugetlb file, a GiB apart, through one level-2 table."""
    ram = tree({}, {1: 0x6000_0000 | USER_RW & ~0b10})
    ram.put(ROOT + PAGE, 511, ROOT + 2 * PAGE | TABLE)
    space: Any = SimpleNamespace(geometry=Geometry.for_stage1(48), memory=StoppedMemory(ram))
    starts = [HVA + BLOCK, HVA + (1 << 30) + BLOCK]
    found = read_runs(space, ROOT, Format(regime=Regime.LINUX_STAGE1), [(at, at + BLOCK) for at in starts])
    assert [list(runs) for runs in found] == [
        [Backing(at, BLOCK, 0x6000_0000, BackingState.PRESENT, True, True, BLOCK)] for at in starts
    ]
