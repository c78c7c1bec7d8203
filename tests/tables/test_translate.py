"""One translation, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Format, Geometry, InvalidForm, Kind, Regime
from inspector.tables import Translation, translate
from tests.codec.pseudocode import Params, entry_address
from tests.codec.strategies import stage2_geometries
from tests.tables.build import FWB, ROOT, Builder

FOUR_K = Geometry.for_ipa(40)


def _translate(built: Builder, ia: int) -> Translation:
    return translate(built.read, built.root, built.geometry, built.format, ia)


def test_page_through_the_second_root() -> None:
    built = Builder(FOUR_K)
    raw = built.map(0x80_4000_1000, 0x8000_0000)
    found = _translate(built, 0x80_4000_1234)
    assert found.pa == 0x8000_0234
    assert found.verdict.startswith("mapped: page at PA 0x80000234")
    assert "RWX" in found.verdict and "normal" in found.verdict
    steps = [(step.level, step.root_page, step.index) for step in found.steps]
    assert steps == [(1, 1, 1), (2, None, 0), (3, None, 1)]
    assert found.steps[0].table_pa == ROOT + 0x1000
    assert found.steps[0].entry_pa == ROOT + 0x1008
    assert [step.descriptor.kind for step in found.steps] == [Kind.TABLE, Kind.TABLE, Kind.PAGE]
    assert found.steps[-1].descriptor.raw == raw
    for step in found.steps:
        assert step.entry_pa == step.table_pa + 8 * step.index
        assert built.get(step.entry_pa) == step.descriptor.raw


def test_block() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000, level=1)
    found = _translate(built, 0x7FFF_FFFF)
    assert (found.pa, len(found.steps)) == (0xBFFF_FFFF, 1)
    assert found.verdict.startswith("mapped: block at PA 0xbfffffff (level 1")


def test_not_mapped() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000)
    found = _translate(built, 0x4020_0000)
    assert (found.pa, found.verdict) == (None, "not mapped: invalid entry at level 2")
    outside = _translate(built, 1 << 40)
    assert (outside.pa, outside.steps) == (None, ())
    assert outside.verdict == "not mapped: outside the 40-bit input address space"


def test_reserved() -> None:
    built = Builder(FOUR_K)
    built.put(built.entry(0x4000_0000, 3), 0x8000_07D9)
    found = _translate(built, 0x4000_0000)
    assert (found.pa, found.verdict) == (None, "reserved encoding at level 3: translation fault")


def test_annotated_and_locked() -> None:
    built = Builder(FOUR_K, Format(Regime.STAGE2, invalid=InvalidForm.LOCKED_BIT10))
    built.put(built.entry(0x4000_0000, 3), 0x4)
    built.put(built.entry(0x4000_1000, 3), 0x400)
    annotated = _translate(built, 0x4000_0000).verdict
    assert annotated == "not mapped: annotated (owner annotation: hyp) owner=0x1 at level 3"
    assert _translate(built, 0x4000_1000).verdict.startswith("not mapped: locked")


def test_access_flag_clear_is_said() -> None:
    built = Builder(FOUR_K)
    built.map(0x4000_0000, 0x8000_0000, af=0)
    found = _translate(built, 0x4000_0000)
    assert found.pa == 0x8000_0000
    assert found.verdict.endswith("access flag clear")


def test_unreadable_table() -> None:
    built = Builder(FOUR_K)
    built.put(built.entry(0x4000_0000, 1), 0x9_0000_0003)
    found = _translate(built, 0x4000_0000)
    assert (found.pa, len(found.steps)) == (None, 1)
    assert found.verdict == "unreadable: level-2 table at PA 0x900000000: not RAM"


def test_other_exceptions_go_through() -> None:
    def read(pa: int, size: int) -> bytes:
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        translate(read, ROOT, FOUR_K, FWB, 0)


def test_address_size_fault() -> None:
    built = Builder(Geometry.for_ipa(40, pa_bits=40))
    built.map(0x4000_0000, 0x100_0000_0000)
    found = _translate(built, 0x4000_0000)
    assert (found.pa, len(found.steps)) == (None, 3)
    assert found.verdict == "address size fault at level 3: PA 0x10000000000 has more than 40 bits"


def test_present_invalid_linux_page() -> None:
    fmt = Format(Regime.LINUX_STAGE1, linux_612=True)
    built = Builder(Geometry.for_stage1(48), fmt)
    built.put(built.entry(0xFFFF_1234_5000, 3), 0x8000_0000 | 1 << 11 | 2)
    found = _translate(built, 0xFFFF_1234_5678)
    assert found.pa == 0x8000_0678
    assert found.verdict.startswith("present but not valid: page at PA 0x80000678")
    # The same entry through the sign-extended address of an upper half.
    assert _translate(built, 0xFFFF_FFFF_1234_5678).pa == 0x8000_0678
    assert "outside" in _translate(built, 0x0001_FFFF_1234_5678).verdict


@settings(deadline=None, max_examples=100)
@given(geometry=stage2_geometries(), frame=st.integers(0, (1 << 40) - 1), offset=st.integers(0, (1 << 12) - 1))
def test_every_shape(geometry: Geometry, frame: int, offset: int) -> None:
    """Map a page under any geometry; every step reads where the pseudocode says, and the page is found."""
    ia = (frame << geometry.granule_shift) % (1 << geometry.ia_bits)
    built = Builder(geometry)
    built.map(ia, 0x8000_0000)
    found = _translate(built, ia + offset)
    assert found.pa == 0x8000_0000 + offset
    params = Params(geometry.granule_shift, geometry.lpa2, geometry.ia_bits, geometry.start_level, geometry.pa_bits)
    table = built.root
    for step in found.steps:
        assert step.entry_pa == entry_address(params, table, step.level, ia)
        table = step.descriptor.output_address or 0
    assert [step.level for step in found.steps] == list(geometry.levels)
