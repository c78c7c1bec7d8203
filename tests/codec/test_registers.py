"""Registers: values a kernel or QEMU showed, taken apart and put together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.codec import (
    REGISTERS,
    Vttbr,
    decode_register,
    describe_register,
    doubts,
    encode_register,
    register_layout,
    table_address,
    vmid_bits,
    vttbr,
)


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
    texts = {row.name: row.describe(found[row.name]) for row in REGISTERS["vtcr_el2"].fields}
    assert (texts["PS"], texts["TG0"], texts["SH0"]) == ("48 bits", "4K", "inner shareable")


def test_vttbr_of_a_running_guest() -> None:
    assert Vttbr.decode(0x0001_0000_4830_4001) == Vttbr(vmid=1, baddr=0x4830_4000, cnp=True)
    assert vttbr(0x4830_4000, 1, True) == 0x0001_0000_4830_4001


def test_vttbr_with_52_bit_addresses() -> None:
    # phys_to_ttbr with CONFIG_ARM64_PA_BITS_52: (pa | pa >> 46) & [47:2]
    pa = 0xA_1234_5678_0000
    value = vttbr(pa, 0xFFFF, False)
    assert value == 0xFFFF << 48 | 0x1234_5678_0000 | 0xA << 2
    assert value & ((1 << 48) - 1) == (pa | pa >> 46) & ((1 << 48) - 4)
    assert Vttbr.decode(value) == Vttbr(0xFFFF, pa, False)
    assert table_address(value) == pa


@settings(deadline=None)
@given(baddr=st.integers(0, (1 << 46) - 1), vmid=st.integers(0, (1 << 16) - 1), cnp=st.booleans())
def test_vttbr_round_trip(baddr: int, vmid: int, cnp: bool) -> None:
    assert Vttbr.decode(vttbr(baddr << 6, vmid, cnp)) == Vttbr(vmid, baddr << 6, cnp)


def test_addresses_that_do_not_fit() -> None:
    for baddr in (1 << 52, 0x1020):
        with pytest.raises(ValueError, match="not 64-byte aligned or above 52 bits"):
            vttbr(baddr, 1, False)
    with pytest.raises(ValueError, match="VMID"):
        vttbr(0x1000, 1 << 16, False)


def test_vmid_size() -> None:
    # VTCR_EL2 of running kernels: -cpu max has 16-bit VMIDs, cortex-a57 8-bit ones.
    assert (vmid_bits(0x802D_3558), vmid_bits(0x8024_3558)) == (16, 8)


# Public reports (Xen's boot log prints the first), and what DDI 0487 D24.2 and D8.2 make of them.
SAID = [
    ("vtcr_el2", 0x8002_3558, "40-bit IPA, 4K granule, 40-bit PA, starts at level 1 with 2 root tables"),
    ("VTCR_EL2", 0x1_802E_3558, "40-bit IPA, 4K granule, 52-bit PA, LPA2, starts at level 1 with 2 root tables"),
    ("vtcr_el2", 0x8002_3518, "no table has this shape"),  # SL0=0 starts at level 2, which reaches 34 bits
    ("vttbr_el2", 0x0003_0000_4830_4001, "VMID 3, root 0x48304000, CnP"),
    ("vttbr_el2", 0x1234_5678_0028, "VMID 0, root 0xa123456780000"),
    ("hpfar_el2", 0x479_2000, "IPA 0x479200000"),
    ("hpfar_el2", 0x81_A500, "IPA 0x81a50000"),
    ("hpfar_el2", 0x80_0800, "IPA 0x80080000"),
    ("hpfar_el2", 0x8000_0FFF_FFFF_FFF0, "IPA 0xffffffffff000, in the non-secure IPA space"),
    # An oops prints of these: DABT (current EL), level 1 translation fault, WnR = 1; IABT, level 3 permission fault
    ("esr_el1", 0x9600_0045, "data abort from the same exception level: translation fault, level 1, on a write"),
    ("esr_el1", 0x8600_000F, "instruction abort from the same exception level: permission fault, level 3"),
    (
        "esr_el2",
        0x93C0_8006,
        "data abort from a lower exception level: translation fault, level 2, on a read of 8 bytes into X0",
    ),
    (
        "esr_el2",
        0x9383_0047,
        "data abort from a lower exception level: translation fault, level 3, on a write of 4 bytes from W3",
    ),
    (
        "esr_el2",
        0x9200_00CD,
        "data abort from a lower exception level: permission fault, level 1, on a write, during a stage-1 walk",
    ),
    (
        "esr_el2",
        0x9300_0007 | 31 << 16 | 1 << 21 | 1 << 14,
        "data abort from a lower exception level: translation fault, level 3, on a read of 1 byte into WZR, "
        "sign-extended, acquire or release",
    ),
    (
        "esr_el2",
        0x9200_0000 | 1 << 8 | 0x2B,
        "data abort from a lower exception level: translation fault, level -1, by a cache maintenance or address "
        "translation instruction",
    ),
    (
        "esr_el2",
        0x8200_0410,
        "instruction abort from a lower exception level: synchronous external abort, FAR is not valid",
    ),
    ("esr_el2", 0x5A00_0001, "HVC from AArch64: HVC #0x1"),
    ("esr_el1", 0x5600_0000, "SVC from AArch64: SVC #0x0"),
    ("esr_el1", 0xF200_0800, "BRK from AArch64: BRK #0x800"),  # BUG_BRK_IMM
    ("esr_el2", 0x0600_0001, "trapped WFE"),
    # mrs x2, ctr_el0: S3_3_C0_C0_1; msr sctlr_el1, x0: S3_0_C1_C0_0
    ("esr_el2", 0x6232_C041, "trapped MSR, MRS or system instruction: MRS X2, S3_3_C0_C0_1"),
    ("esr_el2", 0x6230_0400, "trapped MSR, MRS or system instruction: MSR S3_0_C1_C0_0, X0"),
    ("esr_el2", 0xBE00_0011, "SError"),
    ("hcr_el2", 1, ""),
]


@pytest.mark.parametrize(("name", "value", "said"), SAID)
def test_a_value_in_words(name: str, value: int, said: str) -> None:
    assert describe_register(name, value) == said
    assert (doubts(name, value) == []) is (said != "no table has this shape")


# DDI 0487 D24.2 VTCR_EL2, D8.2: RES1, reserved encodings, start levels that cannot resolve T0SZ.
DOUBTED = [
    ("vtcr_el2", 0x8000_0000, ["T0SZ=0 gives 64 input address bits, more than 52"]),
    ("vtcr_el2", 0x8_0008_0F22, ["bit 31 is clear, but RES1", "TL1 [35] is set: it is RES0 without FEAT_THE"]),
    ("vtcr_el2", 0x8002_3558 | 3 << 14, ["TG0=3 is reserved"]),
    ("vtcr_el2", 0x8007_3558, ["PS=7 is reserved"]),
    (
        "vtcr_el2",
        0x8006_3558,
        ["PS=6 counts as 48 bits without DS=1 (or a 64K granule)"],
    ),
    ("vtcr_el2", 0x8002_1558, ["SH0=1 is reserved"]),
    ("vtcr_el2", 0x8002_7558 | 0xC0, ["SL0=3 is reserved for a 64K granule"]),
    ("vtcr_el2", 0x8002_B558 | 0xC0, ["SL0=3 is reserved for a 16K granule without DS=1"]),
    ("vtcr_el2", 0x3_8006_3558, ["SL2=1 with SL0=1 is reserved for a 4K granule"]),
    ("vtcr_el2", 0x2_8002_3558, ["SL2=1 is RES0 but for a 4K granule with DS=1"]),
    ("vtcr_el2", 0x1_8002_7558, ["DS=1 with a 64K granule: it is RES0 there"]),
    (
        "vtcr_el2",
        0x8002_3518,
        ["start level 2 cannot resolve 40 input address bits: with this granule it takes 22 to 34"],
    ),
    ("vtcr_el2", 0x8005_358C, ["T0SZ=12 gives 52 input address bits, which need DS=1 with this granule"]),
    ("vtcr_el2", 0x8012_3558, ["bit 20 is set, but RES0"]),
    ("vttbr_el2", 0x0003_0000_4830_4001, []),
    ("tcr_el2", 0x8084_3510, []),  # nVHE, cortex-a57
    ("tcr_el2", 0x8004_3510, ["bit 23 is clear, but RES1"]),
    ("esr_el2", 0xD800_0000, ["EC=0x36 is not assigned"]),
    ("esr_el2", 0x9200_003F, ["DFSC=0x3f is reserved"]),
    ("esr_el2", 0x8200_0021, ["IFSC=0x21 is reserved"]),
    ("hpfar_el2", 0xF, ["bits 0, 1, 2, 3 are set, but RES0"]),
]


@pytest.mark.parametrize(("name", "value", "said"), DOUBTED)
def test_what_no_cpu_has_is_doubted(name: str, value: int, said: list[str]) -> None:
    assert doubts(name, value) == said


def test_layout_under_e2h() -> None:
    # TCR_EL2 and CPTR_EL2 of a VHE host (6.12, -cpu max) have TCR_EL1's and CPACR_EL1's layouts.
    found = decode_register("tcr_el2", 0x0950_01F6_B54C_350C, e2h=True)
    named = {name: found[name] for name in ("T0SZ", "T1SZ", "TG1", "IPS", "DS", "A1", "AS", "res")}
    assert named == {"T0SZ": 12, "T1SZ": 12, "TG1": 2, "IPS": 6, "DS": 1, "A1": 1, "AS": 1, "res": 0}
    assert doubts("tcr_el2", 0x0950_01F6_B54C_350C, e2h=True) == []
    assert doubts("tcr_el2", 0x0950_01F6_B54C_350C) != []
    assert decode_register("cptr_el2", 0x33_0000, e2h=True)["FPEN"] == 3
    assert decode_register("ttbr0_el2", 5 << 48, e2h=True)["ASID"] == 5
    assert decode_register("ttbr0_el2", 5 << 48)["res"] == 5 << 48
    for name in ("hcr_el2", "vtcr_el2", "esr_el2", "hpfar_el2"):
        assert register_layout(name, e2h=True) is register_layout(name)
    assert register_layout("TCR_EL12") is register_layout("tcr_el1")
    assert describe_register("ESR_EL12", 0x5600_0000) == "SVC from AArch64: SVC #0x0"


def test_hcr_bits_that_matter() -> None:
    found = decode_register("hcr_el2", 1 | 1 << 27 | 1 << 34 | 1 << 46)
    assert [name for name, value in found.items() if value] == ["VM", "TGE", "E2H", "FWB"]


def test_bits_without_a_name_are_kept() -> None:
    found = decode_register("vtcr_el2", 1 << 63 | 1 << 20)
    assert found["res"] == 1 << 63 | 1 << 20
    assert encode_register("vtcr_el2", found) == 1 << 63 | 1 << 20


def test_bad_names_and_values() -> None:
    with pytest.raises(ValueError, match="unknown register 'sctlr_el9'; known: cptr_el2"):
        decode_register("sctlr_el9", 0)
    with pytest.raises(ValueError, match="64-bit"):
        decode_register("hcr_el2", 1 << 64)
    with pytest.raises(ValueError, match="T0SZ"):
        encode_register("vtcr_el2", {"T0SZ": 64})
    with pytest.raises(ValueError, match="no field 'T9SZ'"):
        encode_register("vtcr_el2", {"T9SZ": 1})
