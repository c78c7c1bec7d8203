"""What fits: shares of a budget, and ranges that are folded without anything being lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.codec import Geometry, Regime
from inspector.generations import GENERATIONS
from inspector.report.html.budget import MIXED, drawn, shares
from inspector.tables import RangeTable

GEOMETRY = Geometry(12, 40, 1, 2, 48, False)
FORMAT = GENERATIONS["6.12"].format(Regime.STAGE2, fwb=True)
PAGE = 4096


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(0, 5000))
def test_shares(wanted: list[int], total: int) -> None:
    got = shares(wanted, total)
    assert all(0 <= one <= most for one, most in zip(got, wanted, strict=True))
    assert sum(got) <= total
    if sum(wanted) <= total:
        assert got == wanted
    else:  # nobody who got less than wanted got less than another
        least = min(one for one, most in zip(got, wanted, strict=True) if one < most)
        assert max(got) <= least + len(wanted)


def ranges(places: list[tuple[int, int, int]]) -> RangeTable:
    """A page each at (IPA, PA, attributes), in pages."""
    words = [np.array(column, dtype=np.uint64) for column in zip(*places, strict=True)]
    ia, pa, raw = words[0] * np.uint64(PAGE), words[1] * np.uint64(PAGE), words[2]
    one = np.ones(len(places), dtype=np.uint64)
    size = one * np.uint64(PAGE)
    return RangeTable(GEOMETRY, FORMAT, ia, size, pa, np.full(len(places), 3, dtype=np.int8), raw | pa, one)


def test_what_fits_is_as_it_is() -> None:
    found = ranges([(0, 100, 3), (1, 90, 3)])
    shown = drawn(found, np.zeros(2, dtype=np.intp), 2)
    assert shown.how == "" and shown.pa.tolist() == [100 * PAGE, 90 * PAGE] and shown.ranges.tolist() == [1, 1]


def test_neighbours_that_differ_in_pa_alone_are_one() -> None:
    found = ranges([(0, 100, 3), (1, 90, 3), (2, 80, 3), (3, 70, 7), (5, 60, 7)])
    shown = drawn(found, np.array([0, 0, 0, 1, 1]), 3)
    assert shown.ia.tolist() == [0, 3 * PAGE, 5 * PAGE]
    assert shown.size.tolist() == [3 * PAGE, PAGE, PAGE]
    assert shown.pa.tolist() == [MIXED, 70 * PAGE, 60 * PAGE]
    assert shown.pattern.tolist() == [0, 1, 1] and shown.ranges.tolist() == [3, 1, 1]
    assert "5 ranges are drawn as 3: neighbours that differ in PA alone" in shown.how


@pytest.mark.parametrize("most", [4, 10, 100])
def test_folded_further_all_is_still_covered(most: int) -> None:
    rng = np.random.default_rng(7)
    places = np.sort(rng.choice(1 << 24, 500, replace=False))
    which = rng.integers(0, 2, 500)
    found = ranges([(int(at), int(at) * 3 % 1000, 3 + 4 * int(kind)) for at, kind in zip(places, which, strict=True)])
    shown = drawn(found, which, most)
    assert 1 <= len(shown.ia) <= most
    assert int(shown.mapped.sum()) == 500 * PAGE and int(shown.leaves.sum()) == 500 and int(shown.ranges.sum()) == 500
    starts, ends = shown.ia.tolist(), (shown.ia + shown.size).tolist()
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    for ia in found.ia.tolist():
        assert any(start <= ia < end for start, end in zip(starts, ends, strict=True))
    assert f"500 ranges are drawn as {len(starts)}" in shown.how and "holes between them included" in shown.how
