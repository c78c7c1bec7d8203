"""Registers: values a kernel or QEMU showed, taken apart and put together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import REGISTERS, Vttbr, decode_register, encode_register, vttbr


def test_vtcr_of_a_running_guest() -> None:
    # Debian 6.1 under QEMU 7.2 -cpu max: 40-bit IPA, start level 1, PS 48 bits, 16-bit VMID, HA
    found = decode_register("VTCR_EL2", 0x802D_3558)
    named = {name: value for name, value in found.items() if value}
    assert named == {
        "T0SZ": 24,
        "SL0": 1,
        "IRGN0": 1,
        "ORGN0": 1,
        "SH0": 3,
        "PS": 5,
        "VS": 1,
        "HA": 1,
        "RES1": 1,
    }
    texts = {row.name: row.describe(found[row.name]) for row in REGISTERS["vtcr_el2"]}
    assert (texts["PS"], texts["TG0"], texts["SH0"]) == ("48 bits", "4K", "inner shareable")


def test_vttbr_of_a_running_guest() -> None:
    assert Vttbr.decode(0x0001_0000_4830_4001) == Vttbr(vmid=1, baddr=0x4830_4000, cnp=True)
    assert vttbr(0x4830_4000, 1, True) == 0x0001_0000_4830_4001


def test_vttbr_with_52_bit_addresses() -> None:
    # phys_to_ttbr with CONFIG_ARM64_PA_BITS_52: (pa | pa >> 46) & [47:2]
    pa = 0xA_1234_5678_0000
    value = vttbr(pa, 0xFFFF, False, pa52=True)
    assert value == 0xFFFF << 48 | 0x1234_5678_0000 | 0xA << 2
    assert value & ((1 << 48) - 1) == (pa | pa >> 46) & ((1 << 48) - 4)
    assert Vttbr.decode(value, pa52=True) == Vttbr(0xFFFF, pa, False)


@settings(deadline=None)
@given(page=st.integers(0, (1 << 40) - 1), vmid=st.integers(0, (1 << 16) - 1), cnp=st.booleans(), pa52=st.booleans())
def test_vttbr_round_trip(page: int, vmid: int, cnp: bool, pa52: bool) -> None:
    baddr = page << 12 if pa52 else page << 12 & ((1 << 48) - 1)
    assert Vttbr.decode(vttbr(baddr, vmid, cnp, pa52), pa52) == Vttbr(vmid, baddr, cnp)


def test_addresses_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        vttbr(1 << 48, 1, False)
    with pytest.raises(ValueError, match="above 52 bits"):
        vttbr(1 << 52, 1, False, pa52=True)
    with pytest.raises(ValueError, match="VMID"):
        vttbr(0x1000, 1 << 16, False)


def test_hcr_bits_that_matter() -> None:
    found = decode_register("hcr_el2", 1 | 1 << 27 | 1 << 34 | 1 << 46)
    assert [name for name, value in found.items() if value] == ["VM", "TGE", "E2H", "FWB"]


def test_bits_without_a_name_are_kept() -> None:
    found = decode_register("vtcr_el2", 1 << 63 | 1 << 20)
    assert found["res"] == 1 << 63 | 1 << 20
    assert encode_register("vtcr_el2", found) == 1 << 63 | 1 << 20


def test_bad_names_and_values() -> None:
    with pytest.raises(ValueError, match="unknown register 'sctlr_el9'; known: hcr_el2"):
        decode_register("sctlr_el9", 0)
    with pytest.raises(ValueError, match="64-bit"):
        decode_register("hcr_el2", 1 << 64)
    with pytest.raises(ValueError, match="T0SZ"):
        encode_register("vtcr_el2", {"T0SZ": 64})
    with pytest.raises(ValueError, match="no field 'T9SZ'"):
        encode_register("vtcr_el2", {"T9SZ": 1})
