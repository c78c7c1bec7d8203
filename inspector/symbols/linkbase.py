"""The link-time address of an Image's first byte, which no header gives.

Three independent witnesses, tried in this order; every answer is a multiple of 2 MiB plus the header's
``text_offset`` (KIMAGE_VADDR is 2 MiB aligned: arch/arm64/include/asm/memory.h; TEXT_OFFSET is 0 since 5.8):

1. ``kallsyms_relative_base``, where the linker stored it in place (RELR kernels and non-relocatable ones);
2. the kernel's own relocations (.rela.dyn): each names a word inside the image that the linker left 0 or set
   to
   the addend, which only the right base makes true of every one of them;
3. pointers in the data: the base at which most of them meet a symbol's exact start.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from inspector.symbols.kallsyms import Kallsyms

_STEP = 2 << 20
_RELATIVE = struct.pack("<Q", 0x403)  # r_info: R_AARCH64_RELATIVE, no symbol
_RELA = struct.Struct("<QQQ")  # r_offset, r_info, r_addend
_SHORTEST_RUN = 64
_KERNEL_VA = 0xFFF0_0000_0000_0000  # the upper half with 52-bit virtual addresses


@dataclass(frozen=True)
class LinkBase:
    """``text``: link-time address of byte 0 of the Image; ``relative_base``: what kallsyms offsets count
    from.
    """

    text: int
    relative_base: int


def find_link_base(data: bytes, text_offset: int, symbols: Kallsyms) -> LinkBase | None:
    """The link base of the unpacked Image ``data``, or ``None`` when no witness is conclusive."""
    base = symbols.relative_base
    if base is not None and base >= _KERNEL_VA:
        return LinkBase(_aligned(base, text_offset), base)
    relocations = list(_relocations(data))
    if relocations:
        text = _from_relocations(data, text_offset, relocations)
        if text is not None and base is None:
            return LinkBase(text, text)
        if text is not None:
            for offset, addend in relocations:
                if offset == text + symbols.base_position:
                    return LinkBase(text, addend)
    if base is None:
        text = _from_pointers(data, text_offset, symbols)
        return None if text is None else LinkBase(text, text)
    return None


def _aligned(address: int, text_offset: int) -> int:
    """The highest possible link base at or below ``address``."""
    return (address - text_offset) // _STEP * _STEP + text_offset


def _relocations(data: bytes) -> Iterator[tuple[int, int]]:
    """(r_offset, r_addend) of the longest run of R_AARCH64_RELATIVE entries (Elf64_Rela)."""
    at = data.find(_RELATIVE)
    while at >= 0:
        end = at
        if at % 8 == 0 and at >= 8:
            while data[end : end + 8] == _RELATIVE:
                end += _RELA.size
            if (end - at) // _RELA.size >= _SHORTEST_RUN:
                for offset, _, addend in _RELA.iter_unpack(data[at - 8 : end - 8]):
                    yield offset, addend
                return
        at = data.find(_RELATIVE, max(end, at + 1))


def _from_relocations(data: bytes, text_offset: int, relocations: list[tuple[int, int]]) -> int | None:
    lowest = min(offset for offset, _ in relocations)
    highest = max(offset for offset, _ in relocations)
    fits = []
    base = _aligned(lowest, text_offset)
    while base >= 0 and base + len(data) >= highest + 8:
        if all(
            data[offset - base : offset - base + 8] in (b"\0" * 8, struct.pack("<Q", addend))
            for offset, addend in relocations
        ):
            fits.append(base)
        base -= _STEP
    return fits[0] if len(fits) == 1 else None


def _from_pointers(data: bytes, text_offset: int, symbols: Kallsyms) -> int | None:
    words = np.frombuffer(data, "<u8", count=len(data) // 8)
    pointers = np.unique(words[(words >= _KERNEL_VA) & (words < 0xFFFF_FFFF_0000_0000)])
    if not len(pointers):
        return None
    offsets = np.array([offset for offset in symbols.offsets if offset >= 0], "i8")
    size = int(offsets.max(initial=0)) + 1
    starts = np.zeros(size, np.bool_)  # by offset into the image: whether a symbol starts there
    starts[offsets] = True
    steps, counts = np.unique(pointers // np.uint64(_STEP), return_counts=True)
    centre = int(steps[counts.argmax()]) * _STEP
    scores = []
    base = _aligned(centre + _STEP, text_offset)
    while base > centre - size - _STEP:
        inside = pointers[(pointers >= base) & (pointers < base + size)] - np.uint64(base)
        scores.append((int(starts[inside].sum()), base))
        base -= _STEP
    (hits, best), *others = sorted(scores, reverse=True)
    return best if hits >= _SHORTEST_RUN and (not others or hits > 2 * others[0][0]) else None
