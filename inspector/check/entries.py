"""All entries of a tree as arrays, and attributes grouped by pattern: what lets a check judge 262,144 leaves at once.

Attribute bits of a real table take a handful of values.  Entries are grouped by (level, all bits but the address), each
group is decoded once by the codec, and a rule about attributes is asked once a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.codec import Descriptor, Format, Geometry, Kind, decode
from inspector.tables import Table, Tree
from inspector.tables.walk import reachable

U64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]


def address_mask(geometry: Geometry) -> int:
    """The descriptor bits that are address in every encoding of this granule: [47 or 49:granule shift].

    DDI 0487 D8.3.1; the further address bits of a 52-bit encoding stay in the pattern and are resolved by the codec.
    """
    top = 50 if geometry.lpa2 else 48
    return (1 << top) - (1 << geometry.granule_shift)


@dataclass(frozen=True)
class Entries:
    """Every non-zero entry of some tables that an input address reaches; one array element an entry.

    ``pattern`` indexes `patterns`: a descriptor with the common address bits zero.
    """

    geometry: Geometry
    raw: U64
    level: NDArray[np.int8]
    ia: U64
    table_pa: U64
    index: NDArray[np.int32]
    pattern: NDArray[np.int64]
    patterns: tuple[Descriptor, ...]

    def matching(self, rule: Callable[[Descriptor], bool]) -> Mask:
        """Where the entry's pattern satisfies ``rule``."""
        verdicts = np.fromiter((rule(p) for p in self.patterns), dtype=bool, count=len(self.patterns))
        mask: Mask = verdicts[self.pattern] if len(self.patterns) else np.zeros(0, dtype=bool)
        return mask

    @cached_property
    def size(self) -> U64:
        """Bytes covered by each entry."""
        shifts = np.array([self.geometry.level_shift(level) for level in range(-1, 4)], dtype=np.uint64)
        sizes: U64 = np.uint64(1) << shifts[self.level.astype(np.int64) + 1]
        return sizes

    @cached_property
    def leaf(self) -> Mask:
        """Where the entry is a block or a page."""
        return self.matching(lambda d: d.kind in (Kind.BLOCK, Kind.PAGE))

    @cached_property
    def address_bits(self) -> U64:
        """The common address bits of the raw descriptor, as they stand."""
        bits: U64 = self.raw & np.uint64(address_mask(self.geometry))
        return bits

    @cached_property
    def output(self) -> U64:
        """Output addresses of leaves, rounded down to the size of the leaf (meaningless for other entries)."""
        high = np.array([p.output_address or 0 for p in self.patterns] or [0], dtype=np.uint64)
        address: U64 = (self.address_bits & ~(self.size - np.uint64(1))) | high[self.pattern]
        return address


def _patterns(
    raw: U64, level: NDArray[np.int8], geometry: Geometry, fmt: Format
) -> tuple[NDArray[np.int64], tuple[Descriptor, ...]]:
    bits = raw & np.uint64(~address_mask(geometry) & (1 << 64) - 1)
    pattern = np.zeros(len(raw), dtype=np.int64)
    found: list[Descriptor] = []
    for one in np.unique(level):
        here = level == one
        values, inverse = np.unique(bits[here], return_inverse=True)
        pattern[here] = inverse.reshape(-1) + len(found)
        found += [decode(int(value), int(one), geometry, fmt) for value in values]
    return pattern, tuple(found)


def entries_of(tree: Tree, tables: Sequence[Table]) -> Entries:
    """The non-zero reachable entries of ``tables``, which are some of ``tree``'s, as arrays."""
    geometry = tree.geometry
    raws, levels, ias, pas, indexes = [], [], [], [], []
    for table in tables:
        words = np.frombuffer(table.raw, dtype="<u8")[: reachable(geometry, table.level)]
        at = np.flatnonzero(words)
        raws.append(words[at].astype(np.uint64))
        indexes.append(at.astype(np.int32))
        levels.append(np.full(len(at), table.level, dtype=np.int8))
        pas.append(np.full(len(at), table.pa, dtype=np.uint64))
        shift = np.uint64(geometry.level_shift(table.level))
        ias.append(np.uint64(table.ia) + (at.astype(np.uint64) << shift))

    def joined(parts: list[NDArray[np.uint64]]) -> U64:
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)

    raw = joined(raws)
    level = np.concatenate(levels) if levels else np.zeros(0, dtype=np.int8)
    index: NDArray[np.int32] = np.concatenate(indexes) if indexes else np.zeros(0, dtype=np.int32)
    pattern, patterns = _patterns(raw, level, geometry, tree.format)
    return Entries(geometry, raw, level, joined(ias), joined(pas), index, pattern, patterns)
