"""The codec's field tables against the Arm ARM, transcribed by hand in ``arm_arm``."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from inspector.codec import REGISTERS, Format, Geometry, Kind, Regime, decode_register, encode_register
from inspector.codec.layouts import layout
from inspector.codec.syndrome import fault
from tests.codec import arm_arm, pseudocode
from tests.codec.strategies import words

FIELD_OF = {
    "Valid": "valid",
    "Type": "type",
    "MemAttr[3:0]": "memattr",
    "S2AP[1:0]": "s2ap",
    "SH[1:0]": "sh",
    "AF": "af",
    "FnXS": "fnxs",
    "DBM": "dbm",
    "Contiguous": "contiguous",
    "XN[1:0]": "xn",
    "XN": "xn",
    "Reserved for software use": "sw",
    "PBHA": "pbha",
    "AttrIndx[2:0]": "attrindx",
    "NS": "ns",
    "AP[2:1]": "ap",
    "nG": "ng",
    "GP": "gp",
    "PXN": "pxn",
    "UXN or XN": "uxn",
    "nT": "nt",
    "PXNTable": "pxn_table",
    "UXNTable or XNTable": "uxn_table",
    "APTable[1:0]": "ap_table",
    "NSTable": "ns_table",
}

FOUR_K = Geometry.for_ipa(40)
STAGE2 = Format(Regime.STAGE2, xnx=True)
HVHE = Format(Regime.HYP_STAGE1, hvhe=True)
LINUX = Format(Regime.LINUX_STAGE1, linux_612=True)


def _positions(kind: Kind, level: int, fmt: Format) -> dict[str, set[int]]:
    table = layout(kind, level, FOUR_K, fmt)
    return {field.name: {bit for bit in range(64) if field.mask >> bit & 1} for field in table}


def _expected(rows: tuple[arm_arm.Row, ...]) -> dict[str, set[int]]:
    return {FIELD_OF[name]: set(range(lo, hi + 1)) for name, hi, lo, _ in rows}


def test_stage2_page_has_exactly_the_arm_fields() -> None:
    expected = _expected(arm_arm.STAGE2_LEAF) | {"output_address": set(range(12, 48))}
    assert _positions(Kind.PAGE, 3, STAGE2) == expected


def test_stage2_block_adds_nt_and_what_must_be_zero() -> None:
    found = _positions(Kind.BLOCK, 2, STAGE2)
    below = found.pop("oa_res0")
    expected = _expected(arm_arm.STAGE2_LEAF + arm_arm.BLOCK_ONLY) | {"output_address": set(range(21, 48))}
    assert found == expected
    assert below == set(range(12, 21)) - {16}


def test_one_bit_xn() -> None:
    name, hi, lo, _ = arm_arm.STAGE2_XN_WITHOUT_XNX
    found = _positions(Kind.PAGE, 3, Format(Regime.STAGE2))
    assert found[FIELD_OF[name]] == set(range(lo, hi + 1))
    assert layout(Kind.PAGE, 3, FOUR_K, Format(Regime.STAGE2)).unnamed >> 53 & 1


def test_hvhe_hyp_page_has_exactly_the_stage1_fields() -> None:
    expected = _expected(arm_arm.STAGE1_LEAF) | {"output_address": set(range(12, 48))}
    assert _positions(Kind.PAGE, 3, HVHE) == expected


def test_hyp_page_has_one_xn_and_no_pxn() -> None:
    expected = _expected(arm_arm.STAGE1_LEAF) | {"output_address": set(range(12, 48))}
    del expected["pxn"]
    expected["xn"] = expected.pop("uxn")
    assert _positions(Kind.PAGE, 3, Format(Regime.HYP_STAGE1)) == expected


def test_linux_page_has_the_arm_fields_and_linux_names_for_the_software_bits() -> None:
    found = _positions(Kind.PAGE, 3, LINUX)
    hardware = _expected(arm_arm.STAGE1_LEAF)
    software = hardware.pop("sw")
    del hardware["pbha"]  # bits [62:60] are the overlay index there, see the next test
    for name, bits in hardware.items():
        assert found[name] == bits, name
    names = ("dirty", "special", "devmap", "uffd_wp")
    assert set.union(*(found[name] for name in names)) == software
    # pgtable-prot.h, 6.12: PTE_DIRTY, PTE_SPECIAL, PTE_DEVMAP, PTE_UFFD_WP
    assert [found[name] for name in names] == [{55}, {56}, {57}, {58}]


def test_overlay_index() -> None:
    # DDI 0487 D8.4, FEAT_S1POE: POIndex[2:0]; pgtable-hwdef.h PTE_PO_IDX_MASK = GENMASK(62, 60)
    assert _positions(Kind.PAGE, 3, LINUX)["poindex"] == {60, 61, 62}


@pytest.mark.parametrize("fmt", [HVHE, LINUX], ids=["hyp", "linux"])
def test_stage1_table_attributes(fmt: Format) -> None:
    found = _positions(Kind.TABLE, 1, fmt)
    for name, bits in _expected(arm_arm.STAGE1_TABLE).items():
        assert found[name] == bits
    assert found["output_address"] == set(range(12, 48))


def test_stage2_table_has_no_attributes() -> None:
    # D8.3: bits [58:51] and [11:2] IGNORED, the rest RES0
    found = _positions(Kind.TABLE, 1, STAGE2)
    assert found == {
        "valid": {0},
        "type": {1},
        "output_address": set(range(12, 48)),
        "ignored_lo": set(range(2, 12)),
        "ignored_hi": set(range(51, 59)),
    }


def _geometry(granule: int, ds: bool) -> Geometry:
    return Geometry.for_ipa(40, granule, 52 if ds or granule == 16 else 48, ds)


def _check_address(
    segments: arm_arm.Segments, kind: Kind, level: int, geometry: Geometry, fmt: Format, word: int
) -> None:
    field = layout(kind, level, geometry, fmt).by_name["output_address"]
    expected = sum(pseudocode.bit_slice(word, hi, lo) << at for hi, lo, at in segments)
    assert field.get(word) == expected
    assert field.mask == sum(((1 << (hi + 1)) - (1 << lo)) for hi, lo, _ in segments)


@pytest.mark.parametrize("fmt", [STAGE2, HVHE, LINUX], ids=["stage2", "hyp", "linux"])
@pytest.mark.parametrize(("granule", "ds"), arm_arm.PAGE_ADDRESS)
@settings(deadline=None, max_examples=30)
@given(word=words())
def test_page_and_table_addresses(fmt: Format, granule: int, ds: bool, word: int) -> None:
    segments = arm_arm.PAGE_ADDRESS[granule, ds]
    _check_address(segments, Kind.PAGE, 3, _geometry(granule, ds), fmt, word)
    _check_address(segments, Kind.TABLE, 2, _geometry(granule, ds), fmt, word)


@pytest.mark.parametrize("fmt", [STAGE2, HVHE, LINUX], ids=["stage2", "hyp", "linux"])
@pytest.mark.parametrize(("granule", "ds", "level"), arm_arm.BLOCK_ADDRESS)
@settings(deadline=None, max_examples=30)
@given(word=words())
def test_block_addresses(fmt: Format, granule: int, ds: bool, level: int, word: int) -> None:
    segments = arm_arm.BLOCK_ADDRESS[granule, ds, level]
    _check_address(segments, Kind.BLOCK, level, _geometry(granule, ds), fmt, word)


@pytest.mark.parametrize(("granule", "ds"), arm_arm.PAGE_ADDRESS)
def test_levels_with_blocks_are_the_listed_ones(granule: int, ds: bool) -> None:
    listed = {level for g, d, level in arm_arm.BLOCK_ADDRESS if (g, d) == (granule, ds)}
    assert _geometry(granule, ds).arch_block_levels == listed | {3}


def test_sh_gives_way_to_the_address_with_ds() -> None:
    with_ds = layout(Kind.PAGE, 3, _geometry(12, True), STAGE2)
    assert "sh" not in with_ds.by_name
    assert with_ds.by_name["output_address"].mask & 0x300 == 0x300


@pytest.mark.parametrize("name", arm_arm.REGISTERS)
def test_register_has_exactly_the_arm_fields(name: str) -> None:
    found = [(row.name, row.hi, row.lo) for row in REGISTERS[name].rows(0)]
    assert found == [(field, hi, lo) for field, hi, lo, _ in arm_arm.REGISTERS[name]]
    assert REGISTERS[name].res1 == sum(1 << bit for bit in arm_arm.RES1.get(name, ()))


def test_every_register_is_transcribed() -> None:
    assert set(REGISTERS) - {"tcr_el2_e2h", "esr_el1", "esr_el2"} == set(arm_arm.REGISTERS)
    assert [*REGISTERS["tcr_el2_e2h"].rows(0)] == [*REGISTERS["tcr_el1"].rows(0)]
    assert REGISTERS["esr_el1"] is REGISTERS["esr_el2"]


def _esr_rows(exception_class: int) -> tuple[arm_arm.Row, ...]:
    return next((rows for classes, rows in arm_arm.ESR.values() if exception_class in classes), arm_arm.ESR_OTHER)


@pytest.mark.parametrize("exception_class", range(64))
def test_syndrome_has_exactly_the_arm_fields_of_its_class(exception_class: int) -> None:
    found = [(row.name, row.hi, row.lo) for row in REGISTERS["esr_el2"].rows(exception_class << 26)]
    assert found == [(field, hi, lo) for field, hi, lo, _ in _esr_rows(exception_class)]


def test_fault_status_codes() -> None:
    data = {int(line[:6], 2): line[7:] for line in arm_arm.FAULT_STATUS.split("\n") if line}
    fetch = {code: text for code, text in data.items() if code not in (0b010001, 0b100001, 0b110100, 0b110101)}
    for exception_class, expected in ((0x20, fetch), (0x21, fetch), (0x24, data), (0x25, data)):
        found = {code: fault(exception_class << 26 | code) for code in range(64)}
        assert {code: str(one) for code, one in found.items() if one is not None} == expected
    assert fault(0x16 << 26 | 5) is None


@settings(deadline=None)
@given(word=words())
def test_register_values_are_the_bits_and_nothing_is_lost(word: int) -> None:
    tables = {**arm_arm.REGISTERS, "esr_el2": _esr_rows(pseudocode.bit_slice(word, 31, 26))}
    for name, rows in tables.items():
        values = decode_register(name, word)
        for field, hi, lo, _ in rows:
            assert values[field] == pseudocode.bit_slice(word, hi, lo)
        assert encode_register(name, values) == word
