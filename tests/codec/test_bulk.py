"""The numpy decoder agrees with the scalar one, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Format, Geometry, Kind, Regime, bulk, decode
from inspector.codec.layouts import layout
from tests.codec.strategies import LEVELS, formats, geometries, words

EXACT = (Kind.TABLE, Kind.BLOCK, Kind.PAGE, Kind.RESERVED)


@settings(deadline=None, max_examples=300)
@given(values=st.lists(words(), max_size=20), level=LEVELS, geometry=geometries(), fmt=formats())
def test_kinds(values: list[int], level: int, geometry: Geometry, fmt: Format) -> None:
    raw = np.array(values, dtype=np.uint64)
    expected = [decode(value, level, geometry, fmt).kind for value in values]
    assert [bulk.KINDS[code] for code in bulk.kinds(raw, level, geometry, fmt)] == expected
    known = bulk.summary(raw)
    for kind in EXACT:
        found = bulk.are(raw, known, bulk.exact_rules(kind, level, geometry, fmt))
        assert np.broadcast_to(found, raw.shape).tolist() == [kind is other for other in expected]


@settings(deadline=None, max_examples=300)
@given(
    values=st.lists(words(), min_size=1, max_size=20),
    kind=st.sampled_from(EXACT),
    level=st.integers(1, 3),
    geometry=geometries(),
    fmt=formats(),
)
def test_fields(values: list[int], kind: Kind, level: int, geometry: Geometry, fmt: Format) -> None:
    found = [(value, decode(value, level, geometry, fmt)) for value in values]
    same = [descriptor for _, descriptor in found if descriptor.kind is kind]
    if not same:
        return
    raw = np.array([descriptor.raw for descriptor in same], dtype=np.uint64)
    for which in same[0].layout:
        assert bulk.field(raw, which).tolist() == [descriptor.fields[which.name] for descriptor in same]


@settings(deadline=None)
@given(values=st.lists(words(), min_size=1, max_size=20))
def test_summary(values: list[int]) -> None:
    known = bulk.summary(np.array(values, dtype=np.uint64))
    for bit in range(64):
        have = [value >> bit & 1 for value in values]
        assert known.every >> bit & 1 == min(have)
        assert known.some >> bit & 1 == max(have)


WORD = (1 << 64) - 1
SEGMENTS = st.tuples(
    st.sampled_from(["zeros", "steps", "same"]),
    st.integers(1, 30),
    st.one_of(words(), st.integers(0, 40).map(lambda n: (1 << 48) - (n << 12) | 3), st.just(WORD - 0x4FFF)),
)


@settings(deadline=None, max_examples=300)
@given(segments=st.lists(SEGMENTS, min_size=1, max_size=8), level=st.integers(1, 3))
def test_runs(segments: list[tuple[str, int, int]], level: int) -> None:
    geometry, fmt = Geometry.for_ipa(40), Format(Regime.STAGE2)
    address = layout(bulk.leaf_kind(level), level, geometry, fmt).by_name["output_address"]
    step = geometry.block_size(level)
    values: list[int] = []
    for what, count, first in segments:
        stride = step if what == "steps" else 0
        values += [0 if what == "zeros" else (first + n * stride) & WORD for n in range(count)]
    raw = np.array(values, dtype=np.uint64)
    runs = bulk.find_runs(raw, geometry.level_shift(level), address)
    starts = {0, *(n for n in range(1, len(values)) if not _goes_on(values[n - 1], values[n], step))}
    if any((values[n - 1] ^ values[n]) & ~address.mask for n in range(1, len(values)) if n not in starts):
        assert runs.start.tolist() == list(range(len(values)))
    else:
        # Zeros are made one run only where there are many.
        assert {n for n in runs.start.tolist() if n == 0 or values[n - 1] or values[n]} == starts
    assert runs.count.tolist() == np.diff(runs.start, append=len(values)).tolist()
    assert runs.first.tolist() == raw[runs.start].tolist()
    assert runs.last.tolist() == raw[runs.start + runs.count - 1].tolist()


def _goes_on(before: int, after: int, step: int) -> bool:
    return (after - before) & WORD == step or before == after == 0


def test_scratch_is_not_shared_between_two_that_use_it() -> None:
    with bulk.scratch(8) as outer, bulk.scratch(8) as inner:
        outer[:], inner[:] = 1, 2
        assert outer.tolist() == [1] * 8


def test_words_are_little_endian() -> None:
    assert bulk.words(bytes(range(8))).tolist() == [0x0706_0504_0302_0100]


def test_only_exact_rules_stand_alone() -> None:
    with pytest.raises(ValueError, match="not exact"):
        bulk.exact_rules(Kind.ANNOTATED, 3, Geometry.for_ipa(40), Format(Regime.STAGE2))
