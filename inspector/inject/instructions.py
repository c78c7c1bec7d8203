"""Kinds of instructions that a fault looks for in a function (DDI 0487 C4.1)."""

from __future__ import annotations

import enum
from typing import Final

ZR: Final = 31
"""The number of XZR, or of SP as a base."""


class At(enum.Enum):
    """A function's entry, or instructions of a kind: value and mask of the word."""

    ENTRY = (0, 0)
    DSB = (0xD503309F, 0xFFFFF0FF)
    TLBI = (0xD5088000, 0xFFF8F000)
    ISB = (0xD50330DF, 0xFFFFF0FF)
    VTTBR = (0xD51C2100, 0xFFFFFFE0)
    HCR = (0xD51C1100, 0xFFFFFFE0)
    STLR = (0xC89FFC00, 0xFFFFFC00)
    CAS = (0xC8A07C00, 0xFFA07C00)
    STR = (0xF9000000, 0xFFC00000)
    """Of 64 bits, at an offset; not to the stack, where no entry is."""
    CLEAR = (0xF900001F, 0xFFFFFC1F)
    """``STR XZR, [Xn]``: an entry becomes 0."""

    def matches(self, word: int) -> bool:
        """Is an instruction of this kind."""
        value, mask = self.value
        to_stack = self in (At.STR, At.CLEAR) and base(word) == ZR
        # A guest's context is no 0.
        gives_up = self is At.VTTBR and target(word) == ZR
        return mask != 0 and word & mask == value and not to_stack and not gives_up


def target(word: int) -> int:
    """Rt: what is stored, or operated by."""
    return word & 31


def base(word: int) -> int:
    """Rn: where it is stored."""
    return word >> 5 & 31


def is_plain_store(word: int) -> bool:
    """``STR Xt, [Xn]`` of two registers that can hold anything."""
    offset = word >> 10 & 0xFFF
    return At.STR.matches(word) and not offset and target(word) != ZR and target(word) != base(word)
