"""TLBI instructions against an assembler, and operands against the Arm ARM."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec.tlbi import (
    OPS,
    Covered,
    Operand,
    by_ipa,
    by_ipa_range,
    covered,
    decode_instruction,
    encode_instruction,
)

# What GNU as 2.40 makes of ``tlbi NAME[, x1]`` with -march=armv8.4-a.
ASSEMBLED = (
    ("vmalle1is", 0xD508_831F),
    ("vmalle1", 0xD508_871F),
    ("vmalle1os", 0xD508_811F),
    ("vae1is", 0xD508_8321),
    ("vae1", 0xD508_8721),
    ("vae1os", 0xD508_8121),
    ("aside1is", 0xD508_8341),
    ("aside1", 0xD508_8741),
    ("aside1os", 0xD508_8141),
    ("vaae1is", 0xD508_8361),
    ("vaae1", 0xD508_8761),
    ("vaae1os", 0xD508_8161),
    ("vale1is", 0xD508_83A1),
    ("vale1", 0xD508_87A1),
    ("vale1os", 0xD508_81A1),
    ("vaale1is", 0xD508_83E1),
    ("vaale1", 0xD508_87E1),
    ("vaale1os", 0xD508_81E1),
    ("rvae1is", 0xD508_8221),
    ("rvae1", 0xD508_8621),
    ("rvae1os", 0xD508_8521),
    ("rvaae1is", 0xD508_8261),
    ("rvaae1", 0xD508_8661),
    ("rvaae1os", 0xD508_8561),
    ("rvale1is", 0xD508_82A1),
    ("rvale1", 0xD508_86A1),
    ("rvale1os", 0xD508_85A1),
    ("rvaale1is", 0xD508_82E1),
    ("rvaale1", 0xD508_86E1),
    ("rvaale1os", 0xD508_85E1),
    ("alle2is", 0xD50C_831F),
    ("alle2", 0xD50C_871F),
    ("alle2os", 0xD50C_811F),
    ("vae2is", 0xD50C_8321),
    ("vae2", 0xD50C_8721),
    ("vae2os", 0xD50C_8121),
    ("alle1is", 0xD50C_839F),
    ("alle1", 0xD50C_879F),
    ("alle1os", 0xD50C_819F),
    ("vale2is", 0xD50C_83A1),
    ("vale2", 0xD50C_87A1),
    ("vale2os", 0xD50C_81A1),
    ("vmalls12e1is", 0xD50C_83DF),
    ("vmalls12e1", 0xD50C_87DF),
    ("vmalls12e1os", 0xD50C_81DF),
    ("rvae2is", 0xD50C_8221),
    ("rvae2", 0xD50C_8621),
    ("rvae2os", 0xD50C_8521),
    ("rvale2is", 0xD50C_82A1),
    ("rvale2", 0xD50C_86A1),
    ("rvale2os", 0xD50C_85A1),
    ("ipas2e1is", 0xD50C_8021),
    ("ipas2e1", 0xD50C_8421),
    ("ripas2e1is", 0xD50C_8041),
    ("ripas2e1", 0xD50C_8441),
    ("ipas2le1is", 0xD50C_80A1),
    ("ipas2le1", 0xD50C_84A1),
    ("ripas2le1is", 0xD50C_80C1),
    ("ripas2le1", 0xD50C_84C1),
    ("ipas2e1os", 0xD50C_8401),
    ("ripas2e1os", 0xD50C_8461),
    ("ipas2le1os", 0xD50C_8481),
    ("ripas2le1os", 0xD50C_84E1),
)


@pytest.mark.parametrize(("name", "word"), ASSEMBLED)
def test_instructions_are_what_the_assembler_makes(name: str, word: int) -> None:
    found = decode_instruction(word)
    assert found is not None
    op, register = found
    assert op.name == name
    assert (register == 31) is (op.operand is Operand.NONE)
    assert encode_instruction(name, register) == word


def test_every_instruction_is_checked() -> None:
    assert {name for name, _ in ASSEMBLED} == {name for name in OPS if not name.endswith("nxs")}


def test_nxs_variants_differ_in_crn_only() -> None:
    # DDI 0487 C5.5: the nXS variants are at CRn = C9
    for name, word in ASSEMBLED:
        found = decode_instruction(word | 1 << 12)
        assert found is not None
        assert found[0].name == name + "nxs"


def test_other_instructions_are_none() -> None:
    for word in (0xD503_3B9F, 0xD503_3FDF, 0xD50B_7E21, 0xD518_2100, 0, 0xFFFF_FFFF):  # dsb ish, isb, dc civac, msr
        assert decode_instruction(word) is None
    with pytest.raises(ValueError, match="unknown TLBI"):
        encode_instruction("vmalle9")


def test_what_they_invalidate() -> None:
    assert (set(OPS["ipas2e1is"].stages), OPS["ipas2e1is"].shareability) == ({2}, "is")
    assert (set(OPS["ipas2e1"].stages), OPS["ipas2e1"].shareability) == ({2}, "nsh")
    assert OPS["vmalls12e1is"].stages == {1, 2}
    assert OPS["vmalle1is"].stages == {1}
    assert OPS["vale2is"].last_level and OPS["vale2is"].regime == "EL2"


# TTL[3:0] (DDI 0487 C5.5, TLBI IPAS2E1): TG 01 4K, 10 16K, 11 64K; then the level; reserved values are no hint.
TTL = [
    (0b0000, False, None, None, 0x1000),
    (0b0011, False, None, None, 0x1000),
    (0b0100, False, None, None, 0x1000),
    (0b0100, True, 12, 0, 1 << 39),
    (0b0101, False, 12, 1, 1 << 30),
    (0b0110, False, 12, 2, 1 << 21),
    (0b0111, False, 12, 3, 1 << 12),
    (0b1000, True, None, None, 0x1000),
    (0b1001, False, None, None, 0x1000),
    (0b1001, True, 14, 1, 1 << 36),
    (0b1010, False, 14, 2, 1 << 25),
    (0b1011, False, 14, 3, 1 << 14),
    (0b1100, False, None, None, 0x1000),
    (0b1101, False, 16, 1, 1 << 42),
    (0b1110, False, 16, 2, 1 << 29),
    (0b1111, False, 16, 3, 1 << 16),
]


@pytest.mark.parametrize(("ttl", "lpa2", "granule", "level", "size"), TTL)
def test_level_hints(ttl: int, lpa2: bool, granule: int | None, level: int | None, size: int) -> None:
    ipa = 0x40_1234_5000
    found = covered(Operand.IPA, ttl << 44 | ipa >> 12, lpa2)
    assert found == Covered(ipa & -size, size, level, granule, 0)
    assert found.end == found.start + found.size


def test_by_ipa_as_the_kernel_makes_it() -> None:
    # __tlbi_level(ipas2e1is, ipa >> 12, level): TTL = TG << 2 | level in [47:44]
    assert by_ipa(0x4812_3000, 3) == 0b0111 << 44 | 0x48123
    assert by_ipa(0x4820_0000, 2, 16) == 0b1110 << 44 | 0x48200
    assert by_ipa(0x4812_3000) == 0x48123
    with pytest.raises(ValueError, match="aligned"):
        by_ipa(0x4812_3008)


@settings(deadline=None)
@given(page=st.integers(0, (1 << 40) - 1), level=st.sampled_from([None, 1, 2, 3]))
def test_by_ipa_covers_its_ipa(page: int, level: int | None) -> None:
    found = covered(Operand.IPA, by_ipa(page << 12, level))
    assert found is not None
    assert found.level == level
    assert found.start <= page << 12 < found.end


@settings(deadline=None)
@given(
    page=st.integers(0, (1 << 36) - 1),
    num=st.integers(0, 31),
    scale=st.integers(0, 3),
    granule=st.sampled_from([12, 14, 16]),
    level=st.sampled_from([None, 1, 2, 3]),
    lpa2=st.booleans(),
)
def test_ranges(page: int, num: int, scale: int, granule: int, level: int | None, lpa2: bool) -> None:
    unit = 16 if lpa2 else granule
    value = by_ipa_range(page << unit, num, scale, granule, level, lpa2)
    # DDI 0487 C5.5, TLBI RIPAS2E1: (NUM + 1) * 2^(5 * SCALE + 1) * granule bytes from BaseADDR
    size = (num + 1) * 2 ** (5 * scale + 1) * 2**granule
    assert covered(Operand.IPA_RANGE, value, lpa2) == Covered(page << unit, size, level, granule, 0)
    # The positions, one by one
    assert value >> 46 & 3 == {12: 1, 14: 2, 16: 3}[granule]
    assert (value >> 44 & 3, value >> 39 & 31, value >> 37 & 3) == (scale, num, level or 0)
    assert value & ((1 << 37) - 1) == page


def test_range_without_a_granule_covers_nothing_known() -> None:
    assert covered(Operand.IPA_RANGE, 0x1234) is None


def test_by_va_has_an_asid() -> None:
    found = covered(Operand.VA, 7 << 48 | 0b0111 << 44 | 0x12345)
    assert found == Covered(0x1234_5000, 0x1000, 3, 12, 7)
    assert covered(Operand.NONE, 0) is None
    assert covered(Operand.ASID, 7 << 48) is None


def test_ranges_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="aligned"):
        by_ipa_range(0x4812_3000, 0, 0, 12, lpa2=True)
    with pytest.raises(ValueError, match="num"):
        by_ipa_range(0x4812_3000, 32, 0)
