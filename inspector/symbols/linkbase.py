"""The link-time address of an Image's first byte, which no header gives.

Three independent witnesses, tried in this order; every answer is a multiple of 2 MiB plus the header's
``text_offset`` (KIMAGE_VADDR is 2 MiB aligned: arch/arm64/include/asm/memory.h; TEXT_OFFSET is 0 since 5.8):

1. ``kallsyms_relative_base``, where the linker stored it in place (RELR kernels and non-relocatable ones);
2. the kernel's own relocations (.rela.dyn): each names a word inside the image that the linker left 0 or set to the
   addend, which only the right base makes true of (nearly) every one: kernels of vendors have strays among 100,000;
3. pointers in the data: the base at which most of them meet a symbol's exact start.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.symbols.kallsyms import Kallsyms

_STEP = 2 << 20
_RELATIVE = struct.pack("<Q", 0x403)  # r_info: R_AARCH64_RELATIVE, no symbol
_RELA = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<u8")])
_SHORTEST_RUN = 64
_LARGEST = 1 << 28  # no kernel reaches so far: a branch from one end of its text to the other reaches 128 MiB
_KERNEL_VA = 0xFFF0_0000_0000_0000  # the upper half with 52-bit virtual addresses


@dataclass(frozen=True)
class LinkBase:
    """``text``: link-time address of byte 0 of the Image; ``relative_base``: what kallsyms offsets count
    from; ``strays`` of ``relocations`` do not agree with ``text``.
    """

    text: int
    relative_base: int
    strays: int = 0
    relocations: int = 0


def find_link_base(data: bytes, text_offset: int, symbols: Kallsyms) -> LinkBase | None:
    """The link base of the unpacked Image ``data``, or ``None`` when no witness is conclusive."""
    stored = symbols.relative_base
    if stored is not None and stored >= _KERNEL_VA:
        return LinkBase(_aligned(stored, text_offset), stored)
    relocations = _relocations(data)
    found = _from_relocations(data, text_offset, relocations) if len(relocations) else None
    if found is not None:
        text, strays = found
        if stored is None:
            return LinkBase(text, text, strays, len(relocations))
        addends = relocations["addend"][relocations["offset"] == np.uint64(text + symbols.base_position)]
        if len(addends):
            return LinkBase(text, int(addends[0]), strays, len(relocations))
    base = _from_pointers(data, text_offset, symbols) if stored is None else None
    return None if base is None else LinkBase(base, base)


def _aligned(address: int, text_offset: int) -> int:
    """The highest possible link base at or below ``address``."""
    return (address - text_offset) // _STEP * _STEP + text_offset


def _relocations(data: bytes) -> NDArray[np.void]:
    """The first long run of R_AARCH64_RELATIVE entries (Elf64_Rela)."""
    at = data.find(_RELATIVE)
    while at >= 0:
        end = at
        if at % 8 == 0 and at >= 8:
            while data[end : end + 8] == _RELATIVE:
                end += _RELA.itemsize
            count = (min(end - 8, len(data)) - (at - 8)) // _RELA.itemsize  # the last may be cut off
            if count >= _SHORTEST_RUN:
                return np.frombuffer(data, _RELA, count, at - 8)
        at = data.find(_RELATIVE, max(end, at + 1))
    return np.empty(0, _RELA)


def _from_relocations(data: bytes, text_offset: int, relocations: NDArray[np.void]) -> tuple[int, int] | None:
    """The base with which nearly all relocations agree, and how many do not; ``None`` when no base is far the best."""
    stored = np.frombuffer(data, np.uint8)
    middle = int(np.sort(relocations["offset"])[len(relocations) // 2])
    scores = []
    base = _aligned(middle, text_offset)
    while base >= 0 and base + len(data) > middle:
        place = relocations["offset"] - np.uint64(base)  # wraps around below the base
        inside = place <= np.uint64(len(data) - 8)
        words = stored[place[inside][:, None] + np.arange(8, dtype=np.uint64)].view("<u8").ravel()
        good = (words == 0) | (words == relocations["addend"][inside])
        scores.append((len(relocations) - int(good.sum()), base))
        base -= _STEP
    (misses, best), *others = sorted(scores)
    few, many = len(relocations) // 50, len(relocations) // 4  # measured on 5.10 and 6.1: none, and two thirds
    return (best, misses) if misses <= few and all(more > many for more, _ in others) else None


def _from_pointers(data: bytes, text_offset: int, symbols: Kallsyms) -> int | None:
    words = np.frombuffer(data, "<u8", count=len(data) // 8)
    pointers = np.unique(words[(words >= _KERNEL_VA) & (words < 0xFFFF_FFFF_0000_0000)])
    if not len(pointers):
        return None
    offsets = np.array([offset for offset in symbols.offsets if 0 <= offset < _LARGEST], "i8")
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
