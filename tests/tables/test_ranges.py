"""Merged ranges against leaves merged one by one, and the way back from a PA."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Geometry
from inspector.tables import Range, RangeTable, Tree, entries, merged_ranges, reverse, walk, walk_tree
from tests.codec.pseudocode import Params
from tests.tables import reference
from tests.tables.build import Builder

FOUR_K = Geometry.for_ipa(40)


def _walk(built: Builder) -> Tree:
    return walk_tree(built.read_many, built.root, built.geometry, built.format)


def _rows(ranges: RangeTable) -> list[tuple[int, int, int, int, int, int]]:
    return [(r.ia, r.size, r.pa, r.level, r.attrs.raw, r.leaves) for r in ranges]


def _params(geometry: Geometry) -> Params:
    return Params(geometry.granule_shift, geometry.lpa2, geometry.ia_bits, geometry.start_level, geometry.pa_bits)


def test_contiguous_pages_merge_across_tables() -> None:
    built = Builder(FOUR_K)
    for n in range(1200):
        built.map(0x4000_0000 + (n << 12), 0x8000_0000 + (n << 12))
    first = built.get(built.entry(0x4000_0000, 3))
    assert _rows(merged_ranges(_walk(built))) == [(0x4000_0000, 1200 << 12, 0x8000_0000, 3, first, 1200)]


def test_a_missing_table_cuts_a_range() -> None:
    """The tables before and after the hole follow each other in memory order, not in input address."""
    built = Builder(FOUR_K)
    for n in [*range(512), *range(1024, 1536)]:
        built.map(0x4000_0000 + (n << 12), 0x8000_0000 + ((n if n < 512 else n - 512) << 12))
    assert [(r.ia, r.leaves) for r in merged_ranges(_walk(built))] == [(0x4000_0000, 512), (0x4040_0000, 512)]


@pytest.mark.parametrize(
    "attributes",
    [{"af": 0}, {"s2ap": 1}, {"xn": 1}, {"memattr": 1}, {"sh": 2}, {"sw": 1}, {"contiguous": 1}, {"res": 1 << 63}],
    ids=lambda attributes: next(iter(attributes)),
)
def test_any_other_attribute_cuts_a_range(attributes: dict[str, int]) -> None:
    built = Builder(FOUR_K)
    for n in range(8):
        built.map(0x4000_0000 + (n << 12), 0x8000_0000 + (n << 12), **(attributes if n in (3, 4) else {}))
    assert [(r.ia, r.leaves) for r in merged_ranges(_walk(built))] == [
        (0x4000_0000, 3),
        (0x4000_3000, 2),
        (0x4000_5000, 3),
    ]


def test_levels_do_not_merge() -> None:
    built = Builder(FOUR_K)
    for n in range(512):
        built.map(0x4000_0000 + (n << 12), 0x8000_0000 + (n << 12))
    built.map(0x4020_0000, 0x8020_0000, level=2)
    built.map(0x4040_0000, 0x8040_0000, level=2)
    assert [(r.ia, r.size, r.level, r.leaves) for r in merged_ranges(_walk(built))] == [
        (0x4000_0000, 2 << 20, 3, 512),
        (0x4020_0000, 4 << 20, 2, 2),
    ]


def test_one_page_mapped_many_times_does_not_merge() -> None:
    built = Builder(FOUR_K)
    for n in range(4):
        built.map(0x4000_0000 + (n << 12), 0x8000_0000)
    assert [r.leaves for r in merged_ranges(_walk(built))] == [1, 1, 1, 1]


def test_an_address_in_two_parts_merges_where_it_carries() -> None:
    """64K and LPA2 keep the top address bits elsewhere: contiguous memory, entries that differ by more than a page."""
    for geometry, boundary in ((Geometry.for_ipa(52, 16, 52), 1 << 48), (Geometry.for_ipa(52, 12, 52, True), 1 << 50)):
        built = Builder(geometry)
        size = geometry.granule
        for n in range(6):
            built.map(0x4000_0000 + n * size, boundary - 3 * size + n * size)
        assert [(r.ia, r.pa, r.leaves) for r in merged_ranges(_walk(built))] == [(0x4000_0000, boundary - 3 * size, 6)]


def test_a_carry_out_of_the_address_does_not_merge() -> None:
    """The last page of the address field and the word after it differ by one page, and by bit 48."""
    built = Builder(FOUR_K)
    raw = built.map(0x4000_0000, (1 << 48) - 0x1000)
    built.put(built.entry(0x4000_1000, 3), raw + 0x1000)
    built.put(built.entry(0x4000_2000, 3), raw + 0x2000)
    found = merged_ranges(_walk(built))
    assert [(r.ia, r.pa, r.leaves, r.attrs.res) for r in found] == [
        (0x4000_0000, (1 << 48) - 0x1000, 1, 0),
        (0x4000_1000, 0, 2, 1 << 48),
    ]


def test_the_size_of_a_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One table at a time, carries in some, so that what was found in one must outlive the next."""
    monkeypatch.setattr(walk, "CHUNK_BYTES", 4096)
    built = Builder(FOUR_K)
    for n in range(0, 3 * 512, 5):
        raw = built.map(0x4000_0000 + (n << 12), (1 << 48) - 0x1000 if n % 512 < 256 else n << 12)
        built.put(built.entry(0x4000_1000 + (n << 12), 3), (raw + 0x1000) & ((1 << 64) - 1))
    frozen = {pa: bytes(page) for pa, page in built.pages.items()}
    params = _params(FOUR_K)
    expected = reference.merged(reference.leaves(frozen, built.root, params), params)
    assert len(expected) > 3 * 100
    assert _rows(merged_ranges(_walk(built))) == expected


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1 << 32))
def test_ranges_are_the_leaves_merged_one_by_one(seed: int) -> None:
    source = random.Random(seed)
    granule = source.choice([12, 14, 16])
    lpa2 = granule != 16 and source.random() < 0.4
    wide = lpa2 or granule == 16
    geometry = Geometry.for_ipa(
        source.choice([32, 36, 40, 42, 44, 48, 52] if wide else [32, 36, 40, 42, 44, 48]),
        granule,
        52 if wide else 48,
        lpa2,
    )
    built = Builder(geometry)
    size = geometry.granule
    for _ in range(source.randrange(1, 12)):
        long = (geometry.entries // 2, geometry.entries + 3) if granule == 12 else (60,)
        run = source.choice([1, 2, 7, *long])
        ia = source.randrange((1 << min(geometry.ia_bits, 34)) // size) * size
        pa = source.choice([0x8000_0000, source.getrandbits(geometry.pa_bits - 1)]) & -size
        attributes = {"af": source.randrange(2), "s2ap": source.choice([1, 3])}
        for n in range(run):
            at = ia + n * size
            if at >> geometry.ia_bits or (pa + n * size) >> geometry.pa_bits:
                break
            built.map(at, pa + n * size, **attributes)
    for _ in range(source.randrange(4)):
        block = geometry.block_size(2)
        ia = source.randrange((1 << min(geometry.ia_bits, 34)) // block) * block
        if not built.get(built.entry(ia, 2)):
            built.map(ia, 0x1_0000_0000 & -block, level=2)
    tree = _walk(built)
    assert tree.problems == ()
    frozen = {pa: bytes(page) for pa, page in built.pages.items()}
    params = _params(geometry)
    assert _rows(merged_ranges(tree)) == reference.merged(reference.leaves(frozen, built.root, params), params)
    slow = [(leaf.ia, leaf.level, leaf.raw) for leaf in reference.leaves(frozen, built.root, params)]
    assert [(e.ia, e.level, e.descriptor.raw) for e in entries(tree) if e.descriptor.kind.is_leaf] == slow


def test_a_range_table_is_a_sequence() -> None:
    built = Builder(FOUR_K)
    for n in range(3000):
        built.map(0x4000_0000 + (n << 13), 0x8000_0000 + (n << 12))
    table = merged_ranges(_walk(built))
    rows = list(table)
    assert len(table) == len(rows) == 3000
    assert all(isinstance(row, Range) for row in rows[:3])
    assert (table[0], table[-1], table[1500]) == (rows[0], rows[-1], rows[1500])
    assert list(table[10:20]) == rows[10:20]
    assert table == rows and table[1:] != rows
    assert rows[5] in table
    assert list(table.where(table.ia == rows[7].ia)) == [rows[7]]
    with pytest.raises(IndexError):
        table[3000]


def test_reverse() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    built.map(0x4000_1000, 0x8000_1000)
    built.map(0x9000_0000, 0x8000_0000)
    built.map(0x4020_0000, 0x8020_0000, level=2)
    built.map(0x80_0000_0000, 0x8000_0000, level=1)
    tree = _walk(built)
    found = reverse(tree, 0x8000_0010)
    assert [(ia, entry.level) for ia, entry in found] == [
        (0x4000_0010, 3),
        (0x9000_0010, 3),
        (0x80_0000_0010, 1),
    ]
    assert [built.get(entry.pa) for _, entry in found] == [entry.descriptor.raw for _, entry in found]
    inside = reverse(tree, 0x8021_2345, 2)
    assert [(ia, entry.ia, entry.level) for ia, entry in inside] == [
        (0x4021_2345, 0x4020_0000, 2),
        (0x80_0021_2345, 0x80_0000_0000, 1),
    ]
    assert [ia for ia, _ in reverse(tree, 0x8000_0FFF, 2)] == [0x4000_0FFF, 0x4000_1000, 0x9000_0FFF, 0x80_0000_0FFF]
    assert reverse(tree, 0x7FFF_F000, 0x1000) == []
    assert reverse(tree, 0x4000_0000) == []


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1 << 32))
def test_reverse_undoes_the_mapping(seed: int) -> None:
    source = random.Random(seed)
    built = Builder(FOUR_K)
    for _ in range(60):
        built.map(source.randrange(1 << 20) << 12, 0x8000_0000 + (source.randrange(40) << 12))
    tree = _walk(built)
    frozen = {pa: bytes(page) for pa, page in built.pages.items()}
    params = _params(FOUR_K)
    leaves = list(reference.leaves(frozen, built.root, params))
    for frame in range(40):
        pa = 0x8000_0000 + (frame << 12)
        assert [ia for ia, _ in reverse(tree, pa)] == [leaf.ia for leaf in leaves if leaf.oa == pa]
