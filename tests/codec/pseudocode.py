"""The walk of DDI 0487's shared pseudocode, in its own terms: a second oracle for the codec and the table walks.

Written after AArch64.DecodeDescriptorType, AArch64.BlockDescSupported, AArch64.LeafBase, AArch64.NextTableBase,
AArch64.S2StartLevel, AArch64.S2InvalidSL, AArch64.S2InconsistentSL and AArch64.S2TTEntryAddress; it shares no code
with the package under test.  ``tg`` is the granule's address bits (TGxGranuleBits).
"""

from __future__ import annotations

from dataclasses import dataclass

FINAL_LEVEL = 3


@dataclass(frozen=True)
class Params:
    """The walk parameters that matter here (S2TTWParams)."""

    tg: int
    ds: bool
    iasize: int
    startlevel: int
    oasize: int


def bit_slice(word: int, hi: int, lo: int) -> int:
    """``word<hi:lo>``."""
    return (word // (1 << lo)) % (1 << (hi - lo + 1))


def block_supported(p: Params, level: int) -> bool:
    """AArch64.BlockDescSupported."""
    if p.tg == 12:
        return level in (1, 2) or (level == 0 and p.ds)
    if p.tg == 14:
        return level == 2 or (level == 1 and p.ds)
    return level == 2 or (level == 1 and p.oasize == 52)


def descriptor_type(p: Params, descriptor: int, level: int) -> str:
    """AArch64.DecodeDescriptorType, telling a reserved encoding from one whose valid bit is clear."""
    if bit_slice(descriptor, 0, 0) == 0:
        return "invalid"
    if bit_slice(descriptor, 1, 0) == 3:
        return "leaf" if level == FINAL_LEVEL else "table"
    return "leaf" if level != FINAL_LEVEL and block_supported(p, level) else "reserved"


def _high_bits(p: Params, descriptor: int) -> int:
    if p.tg == 16:
        return bit_slice(descriptor, 15, 12) << 48
    if p.ds:
        return (bit_slice(descriptor, 9, 8) << 50) + (bit_slice(descriptor, 49, 48) << 48)
    return 0


def leaf_base(p: Params, descriptor: int, level: int) -> int:
    """AArch64.LeafBase: the output address, aligned to the size of the leaf."""
    leafsize = p.tg + (p.tg - 3) * (FINAL_LEVEL - level)
    base = bit_slice(descriptor, 47, 0)
    return base - base % (1 << leafsize) + _high_bits(p, descriptor)


def next_table_base(p: Params, descriptor: int) -> int:
    """AArch64.NextTableBase."""
    base = bit_slice(descriptor, 47, 0)
    return base - base % (1 << p.tg) + _high_bits(p, descriptor)


def entry_address(p: Params, table: int, level: int, ia: int) -> int:
    """AArch64.S2TTEntryAddress: at the start level the concatenated tables are one, indexed by all the bits left."""
    lsb = p.tg + (p.tg - 3) * (FINAL_LEVEL - level)
    msb = p.iasize - 1 if level == p.startlevel else lsb + (p.tg - 3) - 1
    return table + 8 * bit_slice(ia, msb, lsb)


def start_level(tg: int, sl0: int, sl2: int, ds: bool) -> int | None:
    """AArch64.S2StartLevel with AArch64.S2InvalidSL; ``None`` when reserved (FEAT_TTST taken as implemented)."""
    if tg == 12:
        key = (sl2 if ds else 0, sl0)
        return {(0, 0): 2, (0, 1): 1, (0, 2): 0, (0, 3): 3, (1, 0): -1}.get(key)
    if tg == 14:
        return {0: 3, 1: 2, 2: 1, 3: 0 if ds else None}[sl0]
    return {0: 3, 1: 2, 2: 1, 3: None}[sl0]


def inconsistent(tg: int, iasize: int, startlevel: int) -> bool:
    """AArch64.S2InconsistentSL."""
    stride = tg - 3
    sl_min_iasize = (FINAL_LEVEL - startlevel) * stride + tg + 1
    sl_max_iasize = sl_min_iasize + (stride - 1) + 4
    return not sl_min_iasize <= iasize <= sl_max_iasize
