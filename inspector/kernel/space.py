"""Kernel virtual addresses to physical ones, by the kernel's own stage-1 tables."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from inspector.codec import Format, Geometry, Regime
from inspector.kernel.memory import StoppedMemory
from inspector.tables import translate
from inspector.target.api import UnreadableMemory

_VA_TOP = 1 << 64


def untag(va: int) -> int:
    """``va`` without a tag in its top byte, which bit 55 stands for, as the kernel's ``untagged_addr`` has it.

    With KASAN_SW_TAGS and KASAN_HW_TAGS pointers carry one (TBI: DDI 0487 D8.8); no address has a use of these bits.
    """
    return va | 0xFF << 56 if va >> 55 & 1 else va & (1 << 56) - 1


class BadPointer(Exception):
    """A kernel virtual address that the kernel's tables do not map, or map to what is not RAM."""

    def __init__(self, va: int, why: str) -> None:
        super().__init__(f"kernel address {va:#x}: {why}")
        self.va = va
        self.why = why


def stage1_geometry(va_bits: int, granule_shift: int) -> Geometry:
    """The shape of a kernel's stage-1 tree.

    52-bit addresses with 4K or 16K pages need the descriptor layout of FEAT_LPA2 (TCR_ELx.DS = 1), and Linux uses
    it exactly then (``CONFIG_ARM64_LPA2``, arch/arm64/mm/proc.S, 6.8 and later).
    """
    wide = va_bits > 48
    return Geometry.for_stage1(va_bits, granule_shift, pa_bits=52 if wide else 48, lpa2=wide and granule_shift != 16)


def pointers_in(data: bytes) -> list[int]:
    """The 8-byte pointers that ``data`` is made of, without their tags."""
    return [untag(value) for (value,) in struct.iter_unpack("<Q", data)]


@dataclass
class KernelSpace:
    """The kernel half of the virtual address space.

    ``root_pa`` is swapper_pg_dir's PA.  ``link_text`` is the link address of the Image's first byte, ``slide`` the
    KASLR displacement in bytes, ``image_pa`` where that first byte lies, ``image_size`` bytes long.
    """

    memory: StoppedMemory
    root_pa: int
    geometry: Geometry
    link_text: int
    slide: int
    image_pa: int
    image_size: int
    format: Format = field(default_factory=lambda: Format(regime=Regime.LINUX_STAGE1))
    _tlb: dict[int, int] = field(default_factory=dict)

    def runtime(self, link_va: int) -> int:
        """The run-time address of a symbol linked at ``link_va``."""
        return link_va + self.slide

    def link(self, va: int) -> int:
        """The link address of run-time image address ``va``."""
        return va - self.slide

    def in_image(self, va: int) -> bool:
        text = self.link_text + self.slide
        return text <= untag(va) < text + self.image_size

    def pa(self, va: int) -> int:
        """The PA behind kernel address ``va``; raises `BadPointer`."""
        va = untag(va)
        if self.in_image(va):
            return va - self.link_text - self.slide + self.image_pa
        page = va >> self.geometry.granule_shift
        frame = self._tlb.get(page)
        if frame is None:
            frame = self.walk(va) >> self.geometry.granule_shift
            self._tlb[page] = frame
        return (frame << self.geometry.granule_shift) | (va & (self.geometry.granule - 1))

    def walk(self, va: int) -> int:
        """As `pa`, by the tables alone."""
        if va >> self.geometry.ia_bits != (1 << (64 - self.geometry.ia_bits)) - 1:
            raise BadPointer(va, "not a kernel address")
        found = translate(self.memory.read, self.root_pa, self.geometry, self.format, va)
        if found.pa is None:
            raise BadPointer(va, found.verdict)
        return found.pa

    def read(self, va: int, size: int) -> bytes:
        """``size`` bytes at kernel address ``va``, page by page; raises `BadPointer`."""
        if not 0 <= va < _VA_TOP:
            raise BadPointer(va, "not an address")
        va = untag(va)
        granule = self.geometry.granule
        parts = []
        at = va
        try:
            while at < va + size:
                n = min(va + size - at, granule - (at & (granule - 1)))
                parts.append(self.memory.read(self.pa(at), n))
                at += n
        except UnreadableMemory as e:
            raise BadPointer(at, str(e)) from None
        return b"".join(parts)

    def u64(self, va: int) -> int:
        return int.from_bytes(self.read(va, 8), "little")

    def pointer(self, va: int) -> int:
        """The pointer at ``va``, without its tag."""
        return untag(self.u64(va))

    def pointers(self, va: int, count: int) -> list[int]:
        """``count`` pointers at ``va``, without their tags."""
        return pointers_in(self.read(va, 8 * count))

    def u32(self, va: int) -> int:
        return int.from_bytes(self.read(va, 4), "little")
