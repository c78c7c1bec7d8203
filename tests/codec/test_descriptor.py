"""Decoding and encoding of entries: inverse for any value, and equal to what a kernel writes."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings

from inspector.codec import Format, Geometry, InvalidForm, Kind, Regime, decode, decoder, encode
from inspector.codec.layouts import rules
from tests.codec import pseudocode
from tests.codec.strategies import LEVELS, formats, geometries, stage2_geometries, words

FOUR_K = Geometry.for_ipa(40)
FWB = Format(Regime.STAGE2, fwb=True)
NO_FWB = Format(Regime.STAGE2)


def _params(geometry: Geometry) -> pseudocode.Params:
    return pseudocode.Params(
        geometry.granule_shift, geometry.lpa2, geometry.ia_bits, geometry.start_level, geometry.pa_bits
    )


@settings(deadline=None, max_examples=300)
@given(raw=words(), level=LEVELS, geometry=geometries(), fmt=formats())
def test_any_value_decodes_and_encodes_back(raw: int, level: int, geometry: Geometry, fmt: Format) -> None:
    descriptor = decode(raw, level, geometry, fmt)
    assert encode(descriptor.kind, level, geometry, fmt, **descriptor.fields) == raw
    assert descriptor.describe()
    assert (descriptor.output_address is None) is (not descriptor.kind.is_leaf and descriptor.kind is not Kind.TABLE)
    assert decoder(level, geometry, fmt)(raw) == descriptor


@settings(deadline=None, max_examples=300)
@given(raw=words(), level=LEVELS, geometry=geometries(), fmt=formats())
def test_no_bit_is_lost(raw: int, level: int, geometry: Geometry, fmt: Format) -> None:
    """Flipping any bit changes some field, or ``res``: every bit is in exactly one of them."""
    layout = decode(raw, level, geometry, fmt).layout
    masks = [field.mask for field in layout] + [layout.unnamed]
    assert sum(masks) == (1 << 64) - 1
    joined = 0
    for mask in masks:
        joined |= mask
    assert joined == (1 << 64) - 1


@settings(deadline=None, max_examples=300)
@given(raw=words(), level=LEVELS, geometry=geometries(), fmt=formats())
def test_kind_is_what_the_pseudocode_says(raw: int, level: int, geometry: Geometry, fmt: Format) -> None:
    kind = decode(raw, level, geometry, fmt).kind
    expected = pseudocode.descriptor_type(_params(geometry), raw, level)
    if expected == "invalid":
        hardware_invalid = {Kind.INVALID, Kind.ANNOTATED, Kind.LOCKED}
        linux = {Kind.PAGE, Kind.BLOCK} if fmt.regime is Regime.LINUX_STAGE1 else set()
        assert kind in hardware_invalid | linux
    else:
        leaf = Kind.PAGE if level == 3 else Kind.BLOCK
        assert kind is {"leaf": leaf, "table": Kind.TABLE, "reserved": Kind.RESERVED}[expected]


@settings(deadline=None, max_examples=300)
@given(raw=words(), level=LEVELS, geometry=geometries(), fmt=formats())
def test_address_is_what_the_pseudocode_says(raw: int, level: int, geometry: Geometry, fmt: Format) -> None:
    descriptor = decode(raw | 1, level, geometry, fmt)
    params = _params(geometry)
    if descriptor.kind is Kind.TABLE:
        assert descriptor.output_address == pseudocode.next_table_base(params, raw | 1)
    elif descriptor.kind.is_leaf:
        assert descriptor.output_address == pseudocode.leaf_base(params, raw | 1, level)


@settings(deadline=None)
@given(raw=words(), level=LEVELS, geometry=geometries(), fmt=formats())
def test_leaf_rules_are_exact(raw: int, level: int, geometry: Geometry, fmt: Format) -> None:
    """The bulk decoder applies the rules of table, leaf and reserved entries by themselves."""
    kind = decode(raw, level, geometry, fmt).kind
    for exact in (Kind.TABLE, Kind.BLOCK, Kind.PAGE, Kind.RESERVED):
        mine = [rule for rule in rules(level, geometry, fmt) if rule.kind is exact]
        assert not any(rule.negate for rule in mine)
        assert any((raw & rule.mask) == rule.value for rule in mine) is (kind is exact)


def test_values_that_are_not_64_bits_are_refused() -> None:
    for raw in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64-bit"):
            decode(raw, 3, FOUR_K, FWB)
    for level in (-2, 4):
        with pytest.raises(ValueError, match="level"):
            decode(0, level, FOUR_K, FWB)


# ---- values a kernel writes: stage2_set_prot_attr, kvm_init_valid_leaf_pte, kvm_init_table_pte (hyp/pgtable.c) ----


def test_normal_page_with_fwb() -> None:
    raw = 0x0040_0000_4812_37DB
    found = decode(raw, 3, FOUR_K, FWB)
    assert found.kind is Kind.PAGE
    assert found.output_address == 0x4812_3000
    assert (found.readable, found.writable, found.executable) == (True, True, "-")
    assert found.permissions == "RW-"
    assert (found.memory_type, found.shareability, found.af, found.sw, found.res) == ("normal", 3, True, 0, 0)
    assert encode(Kind.PAGE, 3, FOUR_K, FWB, 0x4812_3000, memattr=6, s2ap=3, sh=3, af=1, xn=1) == raw


def test_the_same_without_fwb() -> None:
    found = decode(0x0040_0000_4812_37FF, 3, FOUR_K, NO_FWB)
    assert (found.memory_type, found.permissions) == ("normal", "RW-")
    assert decode(0x0040_0000_4812_37FF, 3, FOUR_K, FWB).memory_type == "memattr-0xf"


def test_device_page() -> None:
    raw = 0x0040_0000_0804_07C7
    assert raw & 0xFFF == 0x7C7
    for fmt in (FWB, NO_FWB):
        found = decode(raw, 3, FOUR_K, fmt)
        assert (found.memory_type, found.permissions, found.output_address) == ("device-nGnRE", "RW-", 0x0804_0000)


def test_table() -> None:
    found = decode(0x4800_1003, 1, FOUR_K, FWB)
    assert (found.kind, found.output_address, found.res) == (Kind.TABLE, 0x4800_1000, 0)
    assert not found.readable and not found.writable and found.memory_type == ""
    assert encode(Kind.TABLE, 1, FOUR_K, FWB, 0x4800_1000) == 0x4800_1003


def test_executable_read_only_block() -> None:
    raw = 0x4820_0759
    found = decode(raw, 2, FOUR_K, FWB)
    assert (found.kind, found.output_address, found.permissions) == (Kind.BLOCK, 0x4820_0000, "R-X")
    assert encode(Kind.BLOCK, 2, FOUR_K, FWB, 0x4820_0000, memattr=6, s2ap=1, sh=3, af=1) == raw


def test_two_bit_xn_none_is_the_same_bits_as_one_bit_xn() -> None:
    xnx = Format(Regime.STAGE2, fwb=True, xnx=True)
    raw = encode(Kind.PAGE, 3, FOUR_K, xnx, 0x4812_3000, memattr=6, s2ap=3, sh=3, af=1, xn=0b10)
    assert raw == 0x0040_0000_4812_37DB


@pytest.mark.parametrize(("xn", "expected"), [(0b00, "X"), (0b01, "UX"), (0b10, "-"), (0b11, "PX")])
def test_two_bit_xn(xn: int, expected: str) -> None:
    # DDI 0487 D8.4: 00 executable at EL1 and EL0, 01 at EL0 only, 10 not at all, 11 at EL1 only
    raw = 0x4812_37DB | xn << 53
    assert decode(raw, 3, FOUR_K, Format(Regime.STAGE2, xnx=True)).executable == expected
    one_bit = decode(raw, 3, FOUR_K, NO_FWB)
    assert one_bit.executable == ("-" if xn & 2 else "X")
    assert one_bit.res == (xn & 1) << 53


@pytest.mark.parametrize(
    ("memattr", "without", "with_fwb"),
    [
        (0xF, "normal", "memattr-0xf"),
        (0x6, "memattr-0x6", "normal"),
        (0x5, "normal-nc", "normal-nc"),
        (0x1, "device-nGnRE", "device-nGnRE"),
        (0x7, "memattr-0x7", "as-s1"),
        (0x0, "memattr-0x0", "memattr-0x0"),
    ],
)
def test_memory_types(memattr: int, without: str, with_fwb: str) -> None:
    # arch/arm64/include/asm/memory.h: MT_S2_*, MT_S2_FWB_*
    raw = 0x4812_3003 | memattr << 2
    assert decode(raw, 3, FOUR_K, NO_FWB).memory_type == without
    assert decode(raw, 3, FOUR_K, FWB).memory_type == with_fwb


def test_software_bits() -> None:
    for bit in range(55, 59):
        found = decode(0x4812_37DB | 1 << bit, 3, FOUR_K, FWB)
        assert (found.sw, found.res) == (1 << (bit - 55), 0)


def test_bits_without_a_name_are_kept() -> None:
    found = decode(0x4812_37DB | 1 << 63 | 1 << 50 | 1 << 48, 3, FOUR_K, FWB)
    assert found.res == 1 << 63 | 1 << 50 | 1 << 48
    assert found.output_address == 0x4812_3000


def test_misaligned_block() -> None:
    found = decode(0x4820_1759, 2, FOUR_K, FWB)
    assert (found.output_address, found.misaligned, found.field("oa_res0")) == (0x4820_0000, True, 0x1000)
    assert not decode(0x4820_0759, 2, FOUR_K, FWB).misaligned
    assert not decode(0x4821_0759, 2, FOUR_K, FWB).misaligned  # bit 16 is nT
    assert decode(0x4821_0759, 2, FOUR_K, FWB).field("nt") == 1


def test_output_address_size() -> None:
    small = Geometry.for_ipa(40, pa_bits=40)
    assert decode(0x0040_0100_4812_37DB, 3, small, FWB).beyond_pa
    assert not decode(0x0040_0080_4812_37DB, 3, small, FWB).beyond_pa
    assert not decode(0x0040_0100_4812_37DA, 3, small, FWB).beyond_pa


# ---- architecture against what KVM makes ----


def test_level_three_with_type_bit_clear_is_reserved() -> None:
    assert decode(0x4812_37D9, 3, FOUR_K, FWB).kind is Kind.RESERVED


@pytest.mark.parametrize(
    ("geometry", "level", "kind"),
    [
        (Geometry.for_ipa(48), 0, Kind.RESERVED),
        (Geometry.for_ipa(52, 12, 52, True), 0, Kind.BLOCK),
        (Geometry.for_ipa(52, 12, 52, True), -1, Kind.RESERVED),
        (Geometry.for_ipa(48, 14), 1, Kind.RESERVED),
        (Geometry.for_ipa(48, 14, 52, True), 1, Kind.BLOCK),
        (Geometry.for_ipa(52, 14, 52, True), 0, Kind.RESERVED),
        (Geometry.for_ipa(48, 16), 1, Kind.RESERVED),
        (Geometry.for_ipa(52, 16, 52), 1, Kind.BLOCK),
        (Geometry.for_ipa(40), 1, Kind.BLOCK),
    ],
)
def test_blocks_where_the_architecture_has_them(geometry: Geometry, level: int, kind: Kind) -> None:
    assert decode(0x1, level, geometry, FWB).kind is kind
    if level >= 1 and geometry.granule_shift == 12:
        assert level in geometry.block_levels
    else:
        assert level not in geometry.block_levels


def test_lpa2_page_address() -> None:
    lpa2 = Geometry.for_ipa(52, 12, 52, True)
    # kvm_phys_to_pte: bits [49:12] in place, PA[51:50] in [9:8]
    raw = 0x0040_0000_0000_04DB | 0x3_1234_5678_9000 | 0x2 << 8
    found = decode(raw, 3, lpa2, FWB)
    assert (found.output_address, found.shareability, found.res) == (0xB_1234_5678_9000, 0, 0)
    assert encode(Kind.PAGE, 3, lpa2, FWB, 0xB_1234_5678_9000, memattr=6, s2ap=3, af=1, xn=1) == raw


def test_64k_page_address() -> None:
    big = Geometry.for_ipa(52, 16, 52)
    raw = 0x1234_5678_0000 | 0xA << 12 | 0x7DB
    found = decode(raw, 3, big, FWB)
    assert (found.output_address, found.res) == (0xA_1234_5678_0000, 0)


# ---- invalid entries, per kernel generation ----

FORMS = {form: Format(Regime.STAGE2, invalid=form) for form in InvalidForm}


@pytest.mark.parametrize("form", InvalidForm)
def test_zero_is_invalid_everywhere(form: InvalidForm) -> None:
    found = decode(0, 3, FOUR_K, FORMS[form])
    assert (found.kind, found.output_address, found.describe()) == (Kind.INVALID, None, "invalid")


def test_stale_bits_of_5_10() -> None:
    found = decode(0x4812_37DA, 3, FOUR_K, FORMS[InvalidForm.STALE])
    assert (found.kind, found.res, found.field("stale")) == (Kind.INVALID, 0, 0x4812_37DA >> 1)
    assert "stale" in found.describe()


def test_owner_annotation_of_5_15_to_6_18() -> None:
    # KVM_INVALID_PTE_OWNER_MASK = GENMASK(9, 2): the hypervisor's id 1 is PTE 0x4
    for form in (InvalidForm.OWNER, InvalidForm.LOCKED_BIT10):
        found = decode(0x4, 3, FOUR_K, FORMS[form])
        assert (found.kind, found.field("owner"), found.res) == (Kind.ANNOTATED, 1, 0)
        assert "hyp" in found.describe()
        assert encode(Kind.ANNOTATED, 3, FOUR_K, FORMS[form], owner=1) == 0x4


def test_locked_of_6_6_to_6_18() -> None:
    # KVM_INVALID_PTE_LOCKED = BIT(10)
    assert decode(0x400, 2, FOUR_K, FORMS[InvalidForm.LOCKED_BIT10]).kind is Kind.LOCKED
    assert encode(Kind.LOCKED, 2, FOUR_K, FORMS[InvalidForm.LOCKED_BIT10]) == 0x400
    # Before, it is neither an annotation nor anything else that the kernel writes.
    before = decode(0x400, 2, FOUR_K, FORMS[InvalidForm.OWNER])
    assert (before.kind, before.res) == (Kind.INVALID, 0x400)
    # A valid leaf with AF, which is the same bit, is not locked.
    assert decode(0x4812_37DB, 3, FOUR_K, FORMS[InvalidForm.LOCKED_BIT10]).kind is Kind.PAGE


def test_typed_entries_of_7_3() -> None:
    fmt = FORMS[InvalidForm.TYPED]
    locked = decode(0x1000_0000_0000_0000, 3, FOUR_K, fmt)
    assert locked.kind is Kind.LOCKED
    assert encode(Kind.LOCKED, 3, FOUR_K, fmt) == 0x1000_0000_0000_0000

    hyp = decode(0x2000_0000_0000_0002, 3, FOUR_K, fmt)
    assert (hyp.kind, hyp.field("annotation_type"), hyp.field("owner")) == (Kind.ANNOTATED, 2, 1)

    guest = decode(0x2000_0080_0001_0004, 3, FOUR_K, fmt)
    fields = guest.fields
    assert (fields["owner"], fields["handle"], fields["gfn"], fields["res"]) == (2, 0x1000, 0x80000, 0)
    assert encode(Kind.ANNOTATED, 3, FOUR_K, fmt, annotation_type=2, owner=2, handle=0x1000, gfn=0x80000) == guest.raw

    poisoned = decode(0x3000_0000_0000_0000, 3, FOUR_K, fmt)
    assert (poisoned.kind, poisoned.field("annotation_type")) == (Kind.ANNOTATED, 3)
    assert "poisoned" in poisoned.describe()

    # Type 0 with anything else is nothing the kernel writes.
    odd = decode(0x400, 3, FOUR_K, fmt)
    assert (odd.kind, odd.res) == (Kind.INVALID, 0x400)


# ---- stage 1 ----


def test_hyp_stage1_leaves() -> None:
    # hyp_set_prot_attr: AP RW=1, RO=3 (hVHE: 0, 2), SH=3, AF, XN bit 54 unless executable
    hyp = Format(Regime.HYP_STAGE1)
    data = decode(0x0040_0000_4812_3743, 3, FOUR_K, hyp)
    assert (data.permissions, data.memory_type, data.output_address) == ("RW-", "attrindx-0", 0x4812_3000)
    text = decode(0x0000_0000_4812_37C3, 3, FOUR_K, hyp)
    assert text.permissions == "R-X"
    hvhe = Format(Regime.HYP_STAGE1, hvhe=True)
    assert decode(0x0060_0000_4812_3703, 3, FOUR_K, hvhe).permissions == "RW-"
    assert decode(0x0040_0000_4812_3783, 3, FOUR_K, hvhe).permissions == "R-PX"


def test_linux_stage1_leaves() -> None:
    # _PAGE_SHARED (pgtable-prot.h): AF, SH, USER, RDONLY, NG, PXN, UXN, WRITE; clean, so RDONLY is still set
    shared = 3 | 1 << 10 | 3 << 8 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 53 | 1 << 54 | 1 << 51 | 0x4812_3000
    for linux_612 in (False, True):
        found = decode(shared, 3, FOUR_K, Format(Regime.LINUX_STAGE1, linux_612=linux_612))
        assert (found.permissions, found.output_address, found.valid) == ("RW-", 0x4812_3000, True)
    read_only = shared & ~(1 << 51)
    assert decode(read_only, 3, FOUR_K, Format(Regime.LINUX_STAGE1)).permissions == "R--"


def test_linux_present_invalid_entries_name_their_page() -> None:
    old, new = Format(Regime.LINUX_STAGE1), Format(Regime.LINUX_STAGE1, linux_612=True)
    prot_none = 2 | 1 << 10 | 3 << 8 | 0x4812_3000
    for raw, fmt, other in ((prot_none | 1 << 58, old, new), (prot_none | 1 << 11, new, old)):
        found = decode(raw, 3, FOUR_K, fmt)
        assert (found.kind, found.output_address, found.valid) == (Kind.PAGE, 0x4812_3000, False)
        assert found.permissions == "---"
        # To the other generation the same bits are a swap entry.
        swapped = decode(raw, 3, FOUR_K, other)
        assert (swapped.kind, swapped.output_address) == (Kind.ANNOTATED, None)


@pytest.mark.parametrize(("bit", "linux_612"), [(58, False), (59, False), (11, True)])
def test_linux_present_invalid_blocks(bit: int, linux_612: bool) -> None:
    # pmd_mkinvalid, and PROT_NONE by pmd_modify; pmd_trans_huge needs the table bit clear
    fmt = Format(Regime.LINUX_STAGE1, linux_612=linux_612)
    block = decode(0x4820_0700 | 1 << bit, 2, FOUR_K, fmt)
    assert (block.kind, block.output_address, block.valid) == (Kind.BLOCK, 0x4820_0000, False)
    assert decode(0x4820_0700 | 1 << bit, 0, Geometry.for_stage1(48), fmt).kind is Kind.ANNOTATED


def test_linux_swap_entries() -> None:
    # __swp_entry: 6.1 type at 3, offset at 8; 6.12 type at 6, offset at 12
    old = decode(5 << 3 | 0x1234 << 8, 3, FOUR_K, Format(Regime.LINUX_STAGE1))
    assert (old.kind, old.field("swap_type"), old.field("swap_offset")) == (Kind.ANNOTATED, 5, 0x1234)
    new = decode(5 << 6 | 0x1234 << 12, 3, FOUR_K, Format(Regime.LINUX_STAGE1, linux_612=True))
    assert (new.kind, new.field("swap_type"), new.field("swap_offset")) == (Kind.ANNOTATED, 5, 0x1234)


# ---- encode refuses what would not come back ----


def test_encode_refuses_misfits() -> None:
    with pytest.raises(ValueError, match="output_address"):
        encode(Kind.BLOCK, 2, FOUR_K, FWB, 0x4810_0000)
    with pytest.raises(ValueError, match="output_address"):
        encode(Kind.PAGE, 3, FOUR_K, FWB, 1 << 48)
    with pytest.raises(ValueError, match="memattr"):
        encode(Kind.PAGE, 3, FOUR_K, FWB, memattr=16)
    with pytest.raises(ValueError, match="no field 'attrindx'"):
        encode(Kind.PAGE, 3, FOUR_K, FWB, attrindx=1)
    with pytest.raises(ValueError, match="no output address"):
        encode(Kind.INVALID, 3, FOUR_K, FWB, 0x1000)
    with pytest.raises(ValueError, match="no block at level 3"):
        encode(Kind.BLOCK, 3, FOUR_K, FWB)
    with pytest.raises(ValueError, match="no table at level 3"):
        encode(Kind.TABLE, 3, FOUR_K, FWB)
    with pytest.raises(ValueError, match="is table, not block"):
        encode(Kind.BLOCK, 2, FOUR_K, FWB, type=1)
    with pytest.raises(ValueError, match="res"):
        encode(Kind.PAGE, 3, FOUR_K, FWB, res=1 << 10)


@settings(deadline=None, max_examples=200)
@given(geometry=stage2_geometries(), word=words())
def test_leaf_addresses_survive_a_round_trip(geometry: Geometry, word: int) -> None:
    for level in sorted(geometry.block_levels):
        kind = Kind.PAGE if level == 3 else Kind.BLOCK
        address = word % (1 << min(geometry.pa_bits, 48)) & -geometry.block_size(level)
        assume(level >= geometry.start_level)
        assert decode(encode(kind, level, geometry, FWB, address), level, geometry, FWB).output_address == address
