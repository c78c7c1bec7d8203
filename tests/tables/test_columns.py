"""The columns of a tree against its entries one by one; intervals and runs against sets and loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.codec import Geometry, Kind
from inspector.tables import entries, walk_tree
from inspector.tables.columns import columns_of
from inspector.tables.intervals import Intervals, runs
from tests.tables.build import Builder


@pytest.mark.parametrize(
    "geometry",
    [Geometry.for_ipa(40), Geometry.for_ipa(48), Geometry.for_ipa(40, 16), Geometry.for_ipa(52, 12, 52, True)],
)
def test_columns_are_the_entries(geometry: Geometry) -> None:
    built = Builder(geometry)
    page, block = geometry.granule, geometry.block_size(2)
    for n in (0, 1, 2, 7, 300):
        built.map(3 * block + n * page, 0x8000_0000 + n * page, **({"xn": 1} if n == 2 else {}))
    built.map(5 * block, 8 * block, level=2)
    built.put(built.entry(3 * block + 9 * page, 3), 0x400)
    tree = walk_tree(built.read_many, built.root, geometry, built.format)
    columns = columns_of(tree)
    ours = [
        (pa, index, level, ia, columns.decoded(n))
        for n, (pa, index, level, ia) in enumerate(
            zip(*(c.tolist() for c in (columns.table_pa, columns.index, columns.level, columns.ia)), strict=True)
        )
    ]
    theirs = [(e.table_pa, e.index, e.level, e.ia, e.descriptor) for e in entries(tree)]
    assert sorted(ours, key=lambda e: e[:2]) == sorted(theirs, key=lambda e: e[:2]) and len(ours) > 7
    for n, (_, _, level, _, found) in enumerate(ours):
        pattern = columns.patterns[columns.pattern[n]]
        assert (pattern.kind, pattern.level, pattern.permissions) == (found.kind, level, found.permissions)
        assert columns.size[n] == geometry.block_size(level)
        assert columns.leaf[n] == found.kind.is_leaf and columns.table[n] == (found.kind is Kind.TABLE)
        if found.output_address is not None:
            assert (columns.output if found.kind.is_leaf else columns.child)[n] == found.output_address
    for table in tree.tables:
        (row,) = np.flatnonzero((columns.page_pa == table.pa) & (columns.page_level == table.level))
        parent = columns.page_parent[row]
        assert (None if parent < 0 else columns.page_pa[parent]) == table.parent_pa


_RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@given(_RANGES, st.integers(0, 60), st.integers(1, 9))
def test_a_union_is_the_union(ranges: list[tuple[int, int]], start: int, size: int) -> None:
    everything = {n for low, high in ranges for n in range(low, high)}
    found = Intervals.of(ranges)
    pairs = list(zip(found.start.tolist(), found.end.tolist(), strict=True))
    assert {n for low, high in pairs for n in range(low, high)} == everything
    assert all(a[1] < b[0] for a, b in itertools.pairwise(pairs)) and all(low < high for low, high in pairs)
    one, bytes_ = np.array([start], np.uint64), np.array([size], np.uint64)
    mine = set(range(start, start + size))
    assert found.contain(one, bytes_)[0] == (mine <= everything) == found.has(start, start + size)
    assert found.touch(one, bytes_)[0] == bool(mine & everything)
    at = found.holding(one)[0]
    assert (at >= 0) == (start in everything) and (at < 0 or pairs[at][0] <= start < pairs[at][1])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(1, 2)), max_size=12))
def test_runs_go_on(rows: list[tuple[int, int, int]]) -> None:
    values, label, step = (np.array([row[n] for row in rows], dtype=np.int64) for n in range(3))
    expected: list[list[int]] = []
    for n in range(len(rows)):
        if n and rows[n - 1][0] + rows[n - 1][2] == rows[n][0] and rows[n - 1][1] == rows[n][1]:
            expected[-1].append(n)
        else:
            expected.append([n])
    start, end = runs((values, step), (label, 0))
    assert [list(range(a, b)) for a, b in zip(start.tolist(), end.tolist(), strict=True)] == expected
