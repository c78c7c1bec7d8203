"""Walking whole trees: order, bulk reads, and every way in which a table can be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Format, Geometry, Kind, Regime
from inspector.tables import Problem, ProblemKind, Table, Tree, entries, merged_ranges, reader_of, translate, walk_tree
from inspector.tables.intervals import Intervals
from tests.tables.build import FWB, ROOT, Builder, NotRam

FOUR_K = Geometry.for_ipa(40)


def _walk(built: Builder, **options: Any) -> Tree:
    return walk_tree(built.read_many, built.root, built.geometry, built.format, **options)


def _kinds(tree: Tree) -> list[str]:
    return [problem.kind for problem in tree.problems]


def test_empty_tree() -> None:
    tree = _walk(Builder(FOUR_K))
    assert [(table.pa, table.level, table.ia) for table in tree.tables] == [(ROOT, 1, 0), (ROOT + 0x1000, 1, 1 << 39)]
    assert tree.problems == ()
    assert list(entries(tree)) == []
    assert len(list(entries(tree, nonzero=False))) == 1024
    assert len(merged_ranges(tree)) == 0


def test_walk_order_and_parents() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    built.map(0x40_0000_0000, 0x8000_1000)
    built.map(0x4020_0000, 0x8020_0000, level=2)
    built.map(0x80_4000_0000, 0x8000_2000)
    tree = _walk(built)
    assert tree.problems == ()
    found = [(entry.level, entry.ia, entry.descriptor.kind) for entry in entries(tree)]
    # A table entry, all below it, then its neighbour: the order of __kvm_pgtable_walk.
    assert found == [
        (1, 0x4000_0000, Kind.TABLE),
        (2, 0x4000_0000, Kind.TABLE),
        (3, 0x4000_0000, Kind.PAGE),
        (2, 0x4020_0000, Kind.BLOCK),
        (1, 0x40_0000_0000, Kind.TABLE),
        (2, 0x40_0000_0000, Kind.TABLE),
        (3, 0x40_0000_0000, Kind.PAGE),
        (1, 0x80_4000_0000, Kind.TABLE),
        (2, 0x80_4000_0000, Kind.TABLE),
        (3, 0x80_4000_0000, Kind.PAGE),
    ]
    below = [(table.level, table.ia) for table in tree.tables]
    assert below == [
        (1, 0),
        (2, 0x4000_0000),
        (3, 0x4000_0000),
        (2, 0x40_0000_0000),
        (3, 0x40_0000_0000),
        (1, 0x80_0000_0000),
        (2, 0x80_4000_0000),
        (3, 0x80_4000_0000),
    ]
    for entry in entries(tree):
        assert built.get(entry.pa) == entry.descriptor.raw
    for table in tree.tables:
        if table.parent_pa is not None:
            assert table.parent_index is not None
            assert built.get(table.parent_pa + 8 * table.parent_index) == table.pa | 3


def test_one_bulk_read_a_level() -> None:
    built = Builder(FOUR_K)
    for n in range(40):
        built.map(n << 30, 0x8000_0000 + (n << 12))
    _walk(built)
    assert built.reads == [2, 40, 40]


def test_unreadable_table_is_a_problem_and_the_rest_is_walked() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    built.map(0x8000_0000, 0x8000_1000)
    lost = built.entry(0xC000_0000, 1)
    built.put(lost, 0x9_0000_0003)
    tree = _walk(built)
    index = 3
    assert tree.problems == (
        Problem(ProblemKind.UNREADABLE, ROOT, index, 1, 0xC000_0000, 0x9_0000_0003, tree.problems[0].detail),
    )
    assert "0x900000000" in tree.problems[0].detail
    assert [entry.ia for entry in merged_ranges(tree)] == [0x4000_0000, 0x8000_0000]


def test_unreadable_root() -> None:
    built = Builder(FOUR_K)
    built.map(0x80_0000_0000, 0x8000_0000)
    del built.pages[ROOT]
    tree = _walk(built)
    assert [(problem.kind, problem.table_pa, problem.index, problem.raw) for problem in tree.problems] == [
        ("unreadable", ROOT, None, None)
    ]
    assert [found.ia for found in merged_ranges(tree)] == [0x80_0000_0000]
    assert _kinds(walk_tree(reader_of({}), ROOT, FOUR_K, FWB)) == ["unreadable", "unreadable"]


def test_short_answers_are_unreadable() -> None:
    def read_many(requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        return [bytes(size - 1) for _, size in requests]

    assert _kinds(walk_tree(read_many, ROOT, FOUR_K, FWB)) == ["unreadable", "unreadable"]


def test_a_broken_reader_is_not_taken_for_data() -> None:
    with pytest.raises(ValueError, match="answered 1 of 2"):
        walk_tree(lambda requests: [bytes(4096)], ROOT, FOUR_K, FWB)

    def gone(requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        walk_tree(gone, ROOT, FOUR_K, FWB)


def test_loop_to_the_root() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    built.put(built.entry(0x4020_0000, 2), ROOT | 3)
    tree = _walk(built)
    level2 = next(table for table in tree.tables if table.level == 2)
    assert [(p.kind, p.table_pa, p.index, p.level, p.ia) for p in tree.problems] == [
        ("loop", level2.pa, 1, 2, 0x4020_0000)
    ]
    assert "level-1" in tree.problems[0].detail
    assert len(merged_ranges(tree)) == 1


def test_entry_that_points_at_its_own_table() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    pa = built.entry(0x4020_0000, 2)
    built.put(pa, pa & ~0xFFF | 3)
    assert [(p.kind, p.level, p.index) for p in _walk(built).problems] == [("loop", 2, 1)]


def test_shared_child_is_walked_once_and_reported_for_every_other_parent() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    child = built.get(built.entry(0x4000_0000, 2))
    for ia in (0x4020_0000, 0x4040_0000, 0x8000_0000):
        built.put(built.entry(ia, 2), child)
    tree = _walk(built)
    assert [(p.kind, p.level, p.ia, p.raw) for p in tree.problems] == [
        ("shared", 2, 0x4020_0000, child),
        ("shared", 2, 0x4040_0000, child),
        ("shared", 2, 0x8000_0000, child),
    ]
    first = next(table for table in tree.tables if table.level == 2)
    assert f"entry 0 of the table at PA {first.pa:#x}" in tree.problems[0].detail
    assert len([table for table in tree.tables if table.level == 3]) == 1
    assert [found.ia for found in merged_ranges(tree)] == [0x4000_0000]


def test_page_used_at_two_levels() -> None:
    """Not a loop: another branch's level-2 table, used as a level-3 one too."""
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    built.map(0x8000_0000, 0x8000_1000)
    other = built.get(built.entry(0x8000_0000, 1)) & ~0xFFF
    built.put(built.entry(0x4020_0000, 2), other | 3)
    tree = _walk(built)
    shared = [problem for problem in tree.problems if problem.kind == "shared"]
    assert [(p.level, p.ia) for p in shared] == [(2, 0x4020_0000)]
    assert "also a level-2 table" in shared[0].detail
    # What the hardware does with it: its table entries are pages there.
    assert {(table.pa, table.level) for table in tree.tables} >= {(other, 2), (other, 3)}


def test_reserved_encodings() -> None:
    built = Builder(Geometry.for_ipa(48))
    built.map(0x4000_0000, 0x8000_0000)
    built.put(built.entry(0x4000_1000, 3), 0x8000_17D9)
    built.put(built.entry(0x80_0000_0000, 0), 0x80_0000_07D9)
    tree = _walk(built)
    assert [(p.kind, p.level, p.index, p.ia, p.raw) for p in tree.problems] == [
        ("reserved", 3, 1, 0x4000_1000, 0x8000_17D9),
        ("reserved", 0, 1, 0x80_0000_0000, 0x80_0000_07D9),
    ]
    assert "type bit 0" in tree.problems[0].detail
    assert "block at level 0" in tree.problems[1].detail
    assert [found.leaves for found in merged_ranges(tree)] == [1]


def test_level_zero_block_is_one_with_lpa2() -> None:
    built = Builder(Geometry.for_ipa(52, 12, 52, True))
    built.map(0x80_0000_0000, 0x100_0000_0000, level=0)
    tree = _walk(built)
    assert tree.problems == ()
    found = merged_ranges(tree)[0]
    assert (found.ia, found.pa, found.level, found.size) == (0x80_0000_0000, 0x100_0000_0000, 0, 1 << 39)


def test_misaligned_block() -> None:
    built = Builder(FOUR_K)
    raw = built.map(0x4020_0000, 0x8020_0000, level=2) | 0x3000
    built.put(built.entry(0x4020_0000, 2), raw)
    tree = _walk(built)
    assert [(p.kind, p.level, p.raw) for p in tree.problems] == [("misaligned", 2, raw)]
    assert "0x3000" in tree.problems[0].detail
    assert merged_ranges(tree)[0].pa == 0x8020_0000


def test_addresses_beyond_the_output_size() -> None:
    built = Builder(Geometry.for_ipa(40, pa_bits=40))
    page = built.map(0x4000_0000, 0x100_0000_0000)
    block = built.map(0x4020_0000, 0x100_0020_0000, level=2)
    built.put(built.entry(0x8000_0000, 1), 0x200_0000_0003)
    tree = _walk(built)
    assert [(p.kind, p.level, p.raw) for p in tree.problems] == [
        ("beyond-pa", 3, page),
        ("beyond-pa", 2, block),
        ("beyond-pa", 1, 0x200_0000_0003),
    ]
    assert built.reads == [2, 1, 1]
    # An invalid entry with the same bits is none of that.
    built.put(built.entry(0x4000_0000, 3), page & ~1)
    built.put(built.entry(0x4020_0000, 2), block & ~1)
    built.put(built.entry(0x8000_0000, 1), 0x200_0000_0002)
    assert _walk(built).problems == ()


def test_what_is_wrong_inside_a_run_of_pages() -> None:
    """Neighbours that differ by one page each: only some of them are wrong, and each of those is reported."""
    built = Builder(Geometry.for_ipa(40, pa_bits=40))
    limit = 1 << 40
    for n in range(700):
        built.map(0x4000_0000 + (n << 12), limit - (600 << 12) + (n << 12))
    wrong = [(p.kind, p.ia, p.raw) for p in _walk(built).problems]
    assert wrong == [
        ("beyond-pa", 0x4000_0000 + (n << 12), built.get(built.entry(0x4000_0000 + (n << 12), 3)))
        for n in range(600, 700)
    ]
    # Type bit 0 at level 3, a whole run of it.
    for n in range(100, 300):
        at = built.entry(0x4000_0000 + (n << 12), 3)
        built.put(at, built.get(at) & ~2)
    tree = _walk(built)
    assert [(p.kind, p.ia) for p in tree.problems if p.kind == "reserved"] == [
        ("reserved", 0x4000_0000 + (n << 12)) for n in range(100, 300)
    ]
    assert _kinds(tree).count("beyond-pa") == 100
    assert [(r.ia, r.leaves) for r in merged_ranges(tree)] == [
        (0x4000_0000, 100),
        (0x4000_0000 + (300 << 12), 400),
    ]


def test_entries_that_no_address_reaches() -> None:
    built = Builder(Geometry.for_ipa(44))
    built.map((1 << 44) - 0x1000, 0x8000_0000)
    built.put(ROOT + 8 * 32, 0x1234_5003)
    tree = _walk(built)
    assert [(p.kind, p.table_pa, p.index, p.level, p.ia, p.raw) for p in tree.problems] == [
        ("beyond-ia", ROOT, 32, 0, 1 << 44, 0x1234_5003)
    ]
    assert [entry.ia for entry in entries(tree)][-1] == (1 << 44) - 0x1000
    assert len(list(entries(tree, nonzero=False))) == 32 + 3 * 512


def test_limit() -> None:
    built = Builder(FOUR_K)
    for n in range(10):
        built.map(n << 21, 0x8000_0000 + (n << 12))
    tree = _walk(built, max_bytes=8 * 4096)
    assert _kinds(tree) == ["limit"] * 5
    assert len(tree.tables) == 8
    assert len(merged_ranges(tree)) == 5
    assert _kinds(_walk(built, max_bytes=0)) == ["limit", "limit"]


def _noise(source: np.random.Generator, targets: list[int], size: int, density: float) -> bytes:
    """A page of entries: some zero, most pointing at one of ``targets`` or anywhere, some any word at all."""
    count = size // 8
    word = source.choice(np.array(targets, dtype=np.uint64), count)
    far = source.integers(0, 1 << 48, count, dtype=np.uint64) & np.uint64((1 << 64) - size)
    word = np.where(source.random(count) < 0.3, far, word) | source.integers(0, 16, count, dtype=np.uint64)
    anything = source.integers(0, (1 << 64) - 1, count, dtype=np.uint64)
    word = np.where(source.random(count) < 0.1, anything, word)
    return np.where(source.random(count) < density, word, np.uint64(0)).astype("<u8").tobytes()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1 << 32),
    granule=st.sampled_from([12, 14]),
    density=st.sampled_from([0.02, 0.3, 1.0]),
    lpa2=st.booleans(),
)
def test_any_data_ends(seed: int, granule: int, density: float, lpa2: bool) -> None:
    """Pages of noise that point at each other: every page is read at most once a level, and nothing is raised."""
    source = np.random.default_rng(seed)
    geometry = Geometry.for_ipa(42, granule, lpa2=lpa2)
    size = geometry.granule
    some = [ROOT + n * size for n in range(geometry.root_pages + 5)]
    pages = {pa: _noise(source, some, size, density) for pa in some}
    asked: list[int] = []
    inner = reader_of(pages)

    def read_many(requests: Sequence[tuple[int, int]]) -> Sequence[bytes | None]:
        assert len({pa for pa, _ in requests}) == len(requests)
        asked.append(len(requests))
        return inner(requests)

    tree = walk_tree(read_many, ROOT, geometry, FWB)
    assert len(asked) <= 4 - geometry.start_level
    assert len({(table.pa, table.level) for table in tree.tables}) == len(tree.tables)
    merged_ranges(tree)
    for entry in islice(entries(tree), 500):
        assert entry.descriptor.describe()
    places = [(p.kind, p.table_pa, p.index, p.level) for p in tree.problems]
    assert len(set(places)) == len(places)


def test_upper_half_of_a_linux_kernel() -> None:
    """TTBR1's tree of a 16K, 48-bit kernel: a root of two entries that lies inside a page of other data."""
    geometry = Geometry.for_stage1(48, 14)
    fmt = Format(Regime.LINUX_STAGE1, linux_612=True)
    root, level1 = 0x4000_0080, 0x4001_0000
    page = bytearray(b"\xff" * geometry.granule)
    page[0x80:0x90] = (0).to_bytes(8, "little") + (level1 | 3).to_bytes(8, "little")
    pages = {0x4000_0000: bytes(page), level1: bytes(geometry.granule)}
    base = (1 << 64) - (1 << 48)
    tree = walk_tree(reader_of(pages), root, geometry, fmt, ia_base=base)
    assert tree.problems == ()
    assert [(table.pa, table.ia, len(table.raw)) for table in tree.tables] == [
        (root, base, 16),
        (level1, 0xFFFF_8000_0000_0000, geometry.granule),
    ]


def test_linux_five_level_root() -> None:
    """Level -1 (52-bit VA, LPA2): 16 entries, the upper half through the last ones."""
    geometry = Geometry.for_stage1(52, 12, 52, True)
    fmt = Format(Regime.LINUX_STAGE1, linux_612=True)
    base = (1 << 64) - (1 << 52)
    chain = [0x4000_0000 + n * 0x1000 for n in range(5)]
    pages = {pa: bytearray(4096) for pa in chain}
    va = 0xFFFF_8000_1234_5000
    for level, (table, child) in enumerate(zip(chain, [*chain[1:], 0xA_8000_0000_0000], strict=True), start=-1):
        raw = (child & 0x3_FFFF_FFFF_F000) | (child >> 50) << 8 | 0x403
        at = 8 * ((va >> (39 - 9 * level)) & (0xF if level == -1 else 0x1FF))
        pages[table][at : at + 8] = raw.to_bytes(8, "little")
    frozen = {pa: bytes(page) for pa, page in pages.items()}
    tree = walk_tree(reader_of(frozen), chain[0], geometry, fmt, ia_base=base)
    assert tree.problems == ()
    assert [(found.ia, found.pa, found.level) for found in merged_ranges(tree)] == [(va, 0xA_8000_0000_0000, 3)]

    def read(pa: int, size: int) -> bytes:
        found = reader_of(frozen)([(pa, size)])[0]
        if found is None:
            raise NotRam
        return found

    assert translate(read, chain[0], geometry, fmt, va + 0x123).pa == 0xA_8000_0000_0123


def test_tables_are_made_once() -> None:
    tree = _walk(Builder(FOUR_K))
    assert tree.tables is tree.tables
    assert all(isinstance(table, Table) for table in tree.tables)


def test_only_what_translates_the_wanted_addresses_is_read() -> None:
    """Two level-2 tables and three level-3 tables, of which one range of 2 MiB needs a single way down."""
    built = Builder(Geometry.for_ipa(39))
    for ia in (0, 2 << 20, 1 << 30):
        built.map(ia, 0x8000_0000 + ia, 3)
    wanted = Intervals.of([(2 << 20, (2 << 20) + 4096)])
    assert [(table.level, table.ia) for table in _walk(built, within=wanted).tables] == [(1, 0), (2, 0), (3, 2 << 20)]
