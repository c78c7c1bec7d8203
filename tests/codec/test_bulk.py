"""The numpy decoder agrees with the scalar one, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Format, Geometry, Kind, Regime, bulk, decode
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
    columns = bulk.decode(raw, kind, level, geometry, fmt)
    rows = [{name: int(column[n]) for name, column in columns.items()} for n in range(len(same))]
    assert rows == [dict(descriptor.fields) for descriptor in same]


@settings(deadline=None)
@given(values=st.lists(words(), min_size=1, max_size=20))
def test_summary(values: list[int]) -> None:
    known = bulk.summary(np.array(values, dtype=np.uint64))
    for bit in range(64):
        have = [value >> bit & 1 for value in values]
        assert known.every >> bit & 1 == min(have)
        assert known.some >> bit & 1 == max(have)


def test_words_are_little_endian() -> None:
    assert bulk.words(bytes(range(8))).tolist() == [0x0706_0504_0302_0100]


def test_only_exact_rules_stand_alone() -> None:
    with pytest.raises(ValueError, match="not exact"):
        bulk.exact_rules(Kind.ANNOTATED, 3, Geometry.for_ipa(40), Format(Regime.STAGE2))
