"""The slow, obvious way to walk and merge, for comparison: recursion over the pseudocode of the Arm ARM.

Shares no code with `inspector.tables`, nor with the codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.codec.pseudocode import FINAL_LEVEL, Params, descriptor_type, leaf_base, next_table_base


@dataclass(frozen=True)
class Leaf:
    """A leaf as found: input address, level, raw entry, output address."""

    ia: int
    level: int
    raw: int
    oa: int


def leaves(pages: Mapping[int, bytes], root: int, p: Params) -> Iterator[Leaf]:
    """Every leaf of a tree without loops or sharing, in order of input address; missing pages are skipped."""
    yield from _table(pages, root, p, p.startlevel, 0, 1 << p.iasize)


def _table(pages: Mapping[int, bytes], table: int, p: Params, level: int, ia: int, span: int) -> Iterator[Leaf]:
    size = 1 << (p.tg + (p.tg - 3) * (FINAL_LEVEL - level))
    per_page = 1 << (p.tg - 3)
    for n in range(max(1, span // size)):
        page = pages.get(table + n // per_page * 8 * per_page)
        if page is None:
            continue
        raw = int.from_bytes(page[n % per_page * 8 : n % per_page * 8 + 8], "little")
        if raw == 0:
            continue
        kind = descriptor_type(p, raw, level)
        if kind == "leaf":
            yield Leaf(ia + n * size, level, raw, leaf_base(p, raw, level))
        elif kind == "table":
            yield from _table(pages, next_table_base(p, raw), p, level + 1, ia + n * size, size)


def address_bits(p: Params, level: int) -> int:
    """The bits of a leaf that are output address: all that LeafBase uses."""
    used = 0
    for bit in range(64):
        if leaf_base(p, 1 << bit, level):
            used |= 1 << bit
    return used


def merged(found: Iterator[Leaf], p: Params) -> list[tuple[int, int, int, int, int, int]]:
    """Leaves put together one by one: (ia, size, pa, level, first raw, leaves)."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    masks = {level: ~address_bits(p, level) for level in range(-1, FINAL_LEVEL + 1)}
    for leaf in found:
        size = 1 << (p.tg + (p.tg - 3) * (FINAL_LEVEL - leaf.level))
        if rows:
            ia, so_far, pa, level, raw, count = rows[-1]
            same = (raw ^ leaf.raw) & masks[level] == 0
            if level == leaf.level and ia + so_far == leaf.ia and pa + so_far == leaf.oa and same:
                rows[-1] = (ia, so_far + size, pa, level, raw, count + 1)
                continue
        rows.append((leaf.ia, size, leaf.oa, leaf.level, leaf.raw, 1))
    return rows
