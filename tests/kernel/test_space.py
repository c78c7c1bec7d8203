"""Kernel addresses, with and without KASAN's tag in the top byte, through tables made by hand (DDI 0487 D8.3)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inspector.kernel.memory import StoppedMemory
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer, KernelSpace, stage1_geometry
from inspector.symbols.api import Member, StructType, TypeKind, TypeRef
from tests.kernel.test_vmm import PAGE, ROOT, TABLE, Ram

PLAIN = 0xFFFF_0000_07D0_2000  # indexes 0, 0, 62 and 258 of a 48-bit tree
TAGGED = 0xF0FF_0000_07D0_2000
FRAME = 0x4100_0000


@pytest.fixture
def ram() -> Ram:
    ram = Ram()
    for level, index in enumerate((0, 0, 62)):
        ram.put(ROOT + level * PAGE, index, ROOT + (level + 1) * PAGE | TABLE)
    ram.put(ROOT + 3 * PAGE, 258, FRAME | 1 << 10 | 0b11)
    return ram


@pytest.fixture
def space(ram: Ram) -> KernelSpace:
    link = 0xFFFF_8000_8000_0000
    return KernelSpace(StoppedMemory(ram), ROOT, stage1_geometry(48, 12), link, 0, 0x4800_0000, 1 << 20)


@pytest.mark.parametrize("tag", [0xFF, 0xF0, 0xFE, 0x00])
def test_a_tag_is_no_part_of_the_address(space: KernelSpace, tag: int) -> None:
    """TBI: bit 55 alone selects TTBR1 (DDI 0487 D8.8), so that all of these are one address."""
    va = PLAIN & (1 << 56) - 1 | tag << 56
    assert space.pa(va + 8) == FRAME + 8
    assert space.read(va, 4) == bytes(4)
    assert space.pa(0xFFFF_8000_8000_0010 & (1 << 56) - 1 | tag << 56) == 0x4800_0010
    assert space.in_image(0xFFFF_8000_8000_0010 & (1 << 56) - 1 | tag << 56)


@pytest.mark.parametrize("va", [0x07D0_2000, 0xFF7F_0000_07D0_2000, 0xFFFE_0000_07D0_2000, 0xFF00_0000_07D0_2000])
def test_other_addresses_are_refused(space: KernelSpace, va: int) -> None:
    with pytest.raises(BadPointer):
        space.pa(va)


def test_pointers_lose_their_tag_wherever_they_are_read(ram: Ram, space: KernelSpace) -> None:
    """A list of two nodes in one page, every pointer tagged, as KASAN_HW_TAGS leaves them."""
    pointer, number = TypeRef(TypeKind.POINTER, size=8), TypeRef(TypeKind.INT, size=8)
    members = {
        "next": Member("next", 0, TypeRef(TypeKind.STRUCT, "list_head", 16)),
        "link": Member("link", 16, pointer),
        "count": Member("count", 24, number),
    }
    symbols: Any = SimpleNamespace(
        member=lambda _, path: members[path], sizeof=lambda _: 32, struct=lambda _: StructType("node", 32, members)
    )
    kernel = HostKernel(symbols, space)
    head, first, second = 0, 0x100, 0x200
    for at, tag, following in ((head, 0xF3, first), (first, 0xF7, second), (second, 0xF5, head)):
        ram.put(FRAME, at // 8, PLAIN + following & (1 << 56) - 1 | tag << 56)
    ram.put(FRAME, (first + 16) // 8, TAGGED + 0x40)
    ram.put(FRAME, (first + 24) // 8, TAGGED)
    assert list(kernel.list_of(TAGGED, "node", "next")) == [PLAIN + first, PLAIN + second]
    node = kernel.at("node", TAGGED + first)
    assert (node.address, node.u("link"), node.u("count")) == (PLAIN + first, PLAIN + 0x40, TAGGED)
    assert space.pointers(PLAIN + first + 16, 1) == [PLAIN + 0x40]
