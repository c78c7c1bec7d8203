"""Shapes of trees: what KVM computes, what the registers say, and the addresses of entries."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import Geometry
from tests.codec import pseudocode
from tests.codec.strategies import stage2_geometries

# (IPA bits, granule shift) -> start level, root pages: kvm_pgd_pages for kvm_get_vtcr's start level, all releases.
ROOTS = {
    32: {12: (2, 4), 14: (2, 1), 16: (2, 1)},
    36: {12: (1, 1), 14: (2, 1), 16: (2, 1)},
    39: {12: (1, 1), 14: (2, 8), 16: (2, 1)},
    40: {12: (1, 2), 14: (2, 16), 16: (2, 1)},
    42: {12: (1, 8), 14: (1, 1), 16: (2, 1)},
    43: {12: (1, 16), 14: (1, 1), 16: (2, 2)},
    44: {12: (0, 1), 14: (1, 1), 16: (2, 4)},
    48: {12: (0, 1), 14: (1, 2), 16: (1, 1)},
    52: {12: (0, 16), 14: (0, 1), 16: (1, 1)},
}

SHIFTS = {
    12: {0: 39, 1: 30, 2: 21, 3: 12},
    14: {0: 47, 1: 36, 2: 25, 3: 14},
    16: {1: 42, 2: 29, 3: 16},
}


@pytest.mark.parametrize("granule", [12, 14, 16])
@pytest.mark.parametrize("ia_bits", ROOTS)
def test_start_level_and_root_pages(ia_bits: int, granule: int) -> None:
    geometry = Geometry.for_ipa(ia_bits, granule, 52 if ia_bits == 52 else 48, ia_bits == 52 and granule != 16)
    assert (geometry.start_level, geometry.root_pages) == ROOTS[ia_bits][granule]


@pytest.mark.parametrize("granule", SHIFTS)
def test_level_shifts(granule: int) -> None:
    geometry = Geometry.for_ipa(40, granule)
    assert {level: geometry.level_shift(level) for level in SHIFTS[granule]} == SHIFTS[granule]
    assert geometry.granule == 1 << granule
    assert geometry.entries == {12: 512, 14: 2048, 16: 8192}[granule]


@pytest.mark.parametrize(("granule", "base"), [(12, 0x8000_3558), (14, 0x8000_B558), (16, 0x8000_7558)])
def test_base_vtcr_for_40_bits(granule: int, base: int) -> None:
    found = Geometry.for_ipa(40, granule, 32).to_vtcr(vmid16=False, ha=False)
    assert found == base


# VTCR_EL2 of a 40-bit VM read from running kernels (QEMU's CPU models; PS by the model's PARange).
MEASURED = [
    (0x802D_3558, Geometry.for_ipa(40, 12, 48), True, True),
    (0x1_802E_3558, Geometry.for_ipa(40, 12, 52, True), True, True),
    (0x1_800E_3558, Geometry.for_ipa(40, 12, 52, True), True, False),
    (0x8024_3558, Geometry.for_ipa(40, 12, 44), False, True),
    (0x802A_3558, Geometry.for_ipa(40, 12, 40), True, True),
]


@pytest.mark.parametrize(("vtcr", "geometry", "vmid16", "ha"), MEASURED)
def test_measured_vtcr_values(vtcr: int, geometry: Geometry, vmid16: bool, ha: bool) -> None:
    assert geometry.to_vtcr(vmid16=vmid16, ha=ha) == vtcr
    assert Geometry.from_vtcr(vtcr) == geometry


@settings(deadline=None, max_examples=400)
@given(geometry=stage2_geometries(), vmid16=st.booleans(), ha=st.booleans())
def test_vtcr_says_what_kvm_chose(geometry: Geometry, vmid16: bool, ha: bool) -> None:
    assert Geometry.from_vtcr(geometry.to_vtcr(vmid16=vmid16, ha=ha)) == geometry


@settings(deadline=None, max_examples=400)
@given(
    t0sz=st.integers(0, 63), sl0=st.integers(0, 3), tg0=st.integers(0, 3), ps=st.integers(0, 7), high=st.integers(0, 3)
)
def test_vtcr_is_accepted_when_the_pseudocode_accepts_it(t0sz: int, sl0: int, tg0: int, ps: int, high: int) -> None:
    vtcr = 1 << 31 | ps << 16 | tg0 << 14 | sl0 << 6 | t0sz | high << 32
    granule = {0: 12, 1: 16, 2: 14}.get(tg0)
    ia_bits, ds, sl2 = 64 - t0sz, bool(high & 1), high >> 1
    ok = granule is not None and ps <= 6
    start = None
    if ok:
        assert granule is not None
        ds = ds and granule != 16
        start = pseudocode.start_level(granule, sl0, sl2, ds)
        limit = 52 if ds or granule == 16 else 48
        ok = start is not None and ia_bits <= limit and not pseudocode.inconsistent(granule, ia_bits, start)
    if not ok:
        with pytest.raises(ValueError, match=r"^VTCR_EL2: "):
            Geometry.from_vtcr(vtcr)
        return
    geometry = Geometry.from_vtcr(vtcr)
    assert (geometry.granule_shift, geometry.ia_bits, geometry.start_level) == (granule, ia_bits, start)
    assert geometry.lpa2 is ds
    assert 1 <= geometry.root_pages <= 16


@settings(deadline=None, max_examples=400)
@given(geometry=stage2_geometries(), address=st.integers(0, (1 << 52) - 1))
def test_entry_addresses_are_those_of_the_pseudocode(geometry: Geometry, address: int) -> None:
    """Choosing a root page and an index in it is indexing the concatenated tables as one."""
    ia = address % (1 << geometry.ia_bits)
    params = pseudocode.Params(
        geometry.granule_shift, geometry.lpa2, geometry.ia_bits, geometry.start_level, geometry.pa_bits
    )
    root = 0x4000_0000
    for level in geometry.levels:
        page = root + (geometry.root_index(ia) * geometry.granule if level == geometry.start_level else 0)
        mine = page + 8 * geometry.index(level, ia)
        assert mine == pseudocode.entry_address(params, root, level, ia)
    assert 0 <= geometry.root_index(ia) < geometry.root_pages


@settings(deadline=None)
@given(geometry=stage2_geometries())
def test_roots_cover_exactly_the_input_addresses(geometry: Geometry) -> None:
    covered = geometry.root_pages * geometry.root_entries * geometry.block_size(geometry.start_level)
    assert covered == max(1 << geometry.ia_bits, geometry.block_size(geometry.start_level))
    assert geometry.root_index((1 << geometry.ia_bits) - 1) == geometry.root_pages - 1


def test_what_kvm_makes_and_what_the_architecture_has() -> None:
    four = Geometry.for_ipa(40)
    assert (set(four.block_levels), set(four.arch_block_levels)) == ({1, 2, 3}, {1, 2, 3})
    lpa2 = Geometry.for_ipa(52, 12, 52, True)
    assert (set(lpa2.block_levels), set(lpa2.arch_block_levels)) == ({1, 2, 3}, {0, 1, 2, 3})
    sixteen = Geometry.for_ipa(52, 14, 52, True)
    assert (set(sixteen.block_levels), set(sixteen.arch_block_levels)) == ({2, 3}, {1, 2, 3})
    assert Geometry.for_ipa(40, 14).arch_block_levels == {2, 3}
    big = Geometry.for_ipa(52, 16, 52)
    assert (set(big.block_levels), set(big.arch_block_levels)) == ({2, 3}, {1, 2, 3})
    assert Geometry.for_ipa(48, 16, 48).arch_block_levels == {2, 3}


# Linux's own tables: (VA bits, granule) -> start level, entries of the root (PTRS_PER_PGD).
STAGE1 = [
    (39, 12, 1, 512),
    (48, 12, 0, 512),
    (52, 12, -1, 16),
    (36, 14, 2, 2048),
    (47, 14, 1, 2048),
    (48, 14, 0, 2),
    (52, 14, 0, 32),
    (42, 16, 2, 8192),
    (48, 16, 1, 64),
    (52, 16, 1, 1024),
]


@pytest.mark.parametrize(("va_bits", "granule", "start", "entries"), STAGE1)
def test_linux_stage1_roots(va_bits: int, granule: int, start: int, entries: int) -> None:
    geometry = Geometry.for_stage1(va_bits, granule, 52, va_bits == 52)
    assert (geometry.start_level, geometry.root_entries, geometry.root_pages) == (start, entries, 1)
    top = (1 << 64) - 1
    assert geometry.root_index(top) == 0
    assert geometry.index(start, top) == entries - 1


def test_no_encoding_is_said() -> None:
    with pytest.raises(ValueError, match="output address bits"):
        Geometry(12, 40, 1, 2, 39, False).to_vtcr(vmid16=True, ha=True)
    with pytest.raises(ValueError, match="start level"):
        Geometry(14, 40, -1, 1, 48, False).to_vtcr(vmid16=True, ha=True)
    for make in (Geometry.for_ipa, Geometry.for_stage1):
        with pytest.raises(ValueError, match="granule"):
            make(40, 13)
