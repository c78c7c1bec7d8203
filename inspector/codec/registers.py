"""System registers as field tables.

Names are the Arm ARM's, positions are those of DDI 0487 D24.2 (general system control registers).  ``tcr_el2_e2h`` is
TCR_EL2 as it reads with HCR_EL2.E2H=1, where it has TCR_EL1's layout; with E2H=1 ``ttbr0_el2`` also carries an ASID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inspector.codec.bits import RES, WORD, Layout, bits


@dataclass(frozen=True)
class RegisterField:
    """A field ``[hi:lo]`` of a register: its name, what it says, and what its values mean (as far as listed)."""

    name: str
    hi: int
    lo: int
    meaning: str = ""
    values: Mapping[int, str] = field(default_factory=dict)

    def describe(self, value: int) -> str:
        """The value in words, e.g. ``48 bits``; empty when the value has none."""
        return self.values.get(value, "")


_PS = {0: "32 bits", 1: "36 bits", 2: "40 bits", 3: "42 bits", 4: "44 bits", 5: "48 bits", 6: "52 bits", 7: "56 bits"}
_TG0 = {0: "4K", 1: "64K", 2: "16K"}
_TG1 = {1: "16K", 2: "4K", 3: "64K"}
_SH = {0: "non-shareable", 2: "outer shareable", 3: "inner shareable"}
_RGN = {0: "non-cacheable", 1: "write-back write-allocate", 2: "write-through", 3: "write-back no write-allocate"}
_HAFDBS = {0: "none", 1: "access flag", 2: "access flag and dirty state", 3: "and table access flag", 4: "and HDBSS"}
_TGRAN4 = {0: "supported", 1: "supported, 52 bits", 15: "not supported"}
_TGRAN16 = {0: "not supported", 1: "supported", 2: "supported, 52 bits"}
_TGRAN64 = {0: "supported", 15: "not supported"}
_TGRAN4_2 = {0: "as stage 1", 1: "not supported", 2: "supported", 3: "supported, 52 bits"}
_TGRAN64_2 = {0: "as stage 1", 1: "not supported", 2: "supported"}


def _f(
    name: str, hi: int, lo: int | None = None, meaning: str = "", values: Mapping[int, str] | None = None
) -> RegisterField:
    return RegisterField(name, hi, hi if lo is None else lo, meaning, values or {})


_TCR_EL1 = (
    _f("T0SZ", 5, 0, "TTBR0 region: 64 minus VA bits"),
    _f("EPD0", 7, meaning="no walks through TTBR0"),
    _f("IRGN0", 9, 8, "inner cacheability of TTBR0 walks", _RGN),
    _f("ORGN0", 11, 10, "outer cacheability of TTBR0 walks", _RGN),
    _f("SH0", 13, 12, "shareability of TTBR0 walks", _SH),
    _f("TG0", 15, 14, "TTBR0 granule", _TG0),
    _f("T1SZ", 21, 16, "TTBR1 region: 64 minus VA bits"),
    _f("A1", 22, meaning="ASID from TTBR1"),
    _f("EPD1", 23, meaning="no walks through TTBR1"),
    _f("IRGN1", 25, 24, "inner cacheability of TTBR1 walks", _RGN),
    _f("ORGN1", 27, 26, "outer cacheability of TTBR1 walks", _RGN),
    _f("SH1", 29, 28, "shareability of TTBR1 walks", _SH),
    _f("TG1", 31, 30, "TTBR1 granule", _TG1),
    _f("IPS", 34, 32, "output address size", _PS),
    _f("AS", 36, meaning="16-bit ASID"),
    _f("TBI0", 37, meaning="top byte ignored, TTBR0"),
    _f("TBI1", 38, meaning="top byte ignored, TTBR1"),
    _f("HA", 39, meaning="hardware access flag"),
    _f("HD", 40, meaning="hardware dirty state"),
    _f("HPD0", 41, meaning="no hierarchical permissions, TTBR0"),
    _f("HPD1", 42, meaning="no hierarchical permissions, TTBR1"),
    _f("HWU059", 43),
    _f("HWU060", 44),
    _f("HWU061", 45),
    _f("HWU062", 46),
    _f("HWU159", 47),
    _f("HWU160", 48),
    _f("HWU161", 49),
    _f("HWU162", 50),
    _f("TBID0", 51),
    _f("TBID1", 52),
    _f("NFD0", 53),
    _f("NFD1", 54),
    _f("E0PD0", 55),
    _f("E0PD1", 56),
    _f("TCMA0", 57),
    _f("TCMA1", 58),
    _f("DS", 59, meaning="52-bit descriptors (LPA2)"),
    _f("MTX0", 60),
    _f("MTX1", 61),
)

_TTBR_ASID = (
    _f("CnP", 0, meaning="common not private"),
    _f("BADDR", 47, 1, "table base address bits [47:1]"),
    _f("ASID", 63, 48),
)

REGISTERS: Mapping[str, tuple[RegisterField, ...]] = {
    "vttbr_el2": (
        _f("CnP", 0, meaning="common not private"),
        _f("BADDR", 47, 1, "table base address bits [47:1]; with a 52-bit PA, [5:2] hold its bits [51:48]"),
        _f("VMID", 63, 48),
    ),
    "vtcr_el2": (
        _f("T0SZ", 5, 0, "64 minus IPA bits"),
        _f("SL0", 7, 6, "start level"),
        _f("IRGN0", 9, 8, "inner cacheability of walks", _RGN),
        _f("ORGN0", 11, 10, "outer cacheability of walks", _RGN),
        _f("SH0", 13, 12, "shareability of walks", _SH),
        _f("TG0", 15, 14, "granule", _TG0),
        _f("PS", 18, 16, "output address size", _PS),
        _f("VS", 19, meaning="16-bit VMID"),
        _f("HA", 21, meaning="hardware access flag"),
        _f("HD", 22, meaning="hardware dirty state"),
        _f("HWU59", 25),
        _f("HWU60", 26),
        _f("HWU61", 27),
        _f("HWU62", 28),
        _f("NSW", 29),
        _f("NSA", 30),
        _f("RES1", 31, meaning="always 1"),
        _f("DS", 32, meaning="52-bit descriptors (LPA2)"),
        _f("SL2", 33, meaning="start level -1 (4K, DS=1)"),
        _f("AssuredOnly", 34),
        _f("TL1", 35),
        _f("S2PIE", 36, meaning="stage-2 permission indirection"),
        _f("S2POE", 37, meaning="stage-2 permission overlay"),
        _f("D128", 38, meaning="128-bit descriptors"),
        _f("GCSH", 40),
        _f("TL0", 41),
        _f("HAFT", 44, meaning="hardware access flag in table entries"),
        _f("HDBSS", 45, meaning="hardware dirty state tracking structure"),
    ),
    "hcr_el2": (
        _f("VM", 0, meaning="stage 2 enabled"),
        _f("SWIO", 1),
        _f("PTW", 2),
        _f("FMO", 3),
        _f("IMO", 4),
        _f("AMO", 5),
        _f("VF", 6),
        _f("VI", 7),
        _f("VSE", 8),
        _f("FB", 9, meaning="TLB maintenance is broadcast"),
        _f("BSU", 11, 10, "barrier shareability upgrade"),
        _f("DC", 12, meaning="default cacheable"),
        _f("TWI", 13, meaning="trap WFI"),
        _f("TWE", 14, meaning="trap WFE"),
        _f("TID0", 15),
        _f("TID1", 16),
        _f("TID2", 17),
        _f("TID3", 18),
        _f("TSC", 19),
        _f("TIDCP", 20),
        _f("TACR", 21),
        _f("TSW", 22, meaning="trap set/way cache maintenance"),
        _f("TPCP", 23),
        _f("TPU", 24),
        _f("TTLB", 25, meaning="trap TLB maintenance"),
        _f("TVM", 26, meaning="trap virtual memory controls"),
        _f("TGE", 27, meaning="trap general exceptions: the host's EL0"),
        _f("TDZ", 28),
        _f("HCD", 29),
        _f("TRVM", 30),
        _f("RW", 31, meaning="EL1 is AArch64"),
        _f("CD", 32),
        _f("ID", 33),
        _f("E2H", 34, meaning="EL2 host (VHE)"),
        _f("TLOR", 35),
        _f("TERR", 36),
        _f("TEA", 37),
        _f("MIOCNCE", 38),
        _f("TME", 39),
        _f("APK", 40),
        _f("API", 41),
        _f("NV", 42, meaning="nested virtualisation"),
        _f("NV1", 43),
        _f("AT", 44),
        _f("NV2", 45),
        _f("FWB", 46, meaning="stage-2 forced write-back"),
        _f("FIEN", 47),
        _f("GPF", 48),
        _f("TID4", 49),
        _f("TICAB", 50),
        _f("AMVOFFEN", 51),
        _f("TOCU", 52),
        _f("EnSCXT", 53),
        _f("TTLBIS", 54),
        _f("TTLBOS", 55),
        _f("ATA", 56, meaning="allocation tag access"),
        _f("DCT", 57),
        _f("TID5", 58),
        _f("TWEDEn", 59),
        _f("TWEDEL", 63, 60),
    ),
    "tcr_el1": _TCR_EL1,
    "tcr_el2_e2h": _TCR_EL1,
    "tcr_el2": (
        _f("T0SZ", 5, 0, "64 minus VA bits"),
        _f("IRGN0", 9, 8, "inner cacheability of walks", _RGN),
        _f("ORGN0", 11, 10, "outer cacheability of walks", _RGN),
        _f("SH0", 13, 12, "shareability of walks", _SH),
        _f("TG0", 15, 14, "granule", _TG0),
        _f("PS", 18, 16, "output address size", _PS),
        _f("TBI", 20, meaning="top byte ignored"),
        _f("HA", 21, meaning="hardware access flag"),
        _f("HD", 22, meaning="hardware dirty state"),
        _f("HPD", 24, meaning="no hierarchical permissions"),
        _f("HWU59", 25),
        _f("HWU60", 26),
        _f("HWU61", 27),
        _f("HWU62", 28),
        _f("TBID", 29),
        _f("TCMA", 30),
        _f("DS", 32, meaning="52-bit descriptors (LPA2)"),
        _f("MTX", 33),
    ),
    "ttbr0_el1": _TTBR_ASID,
    "ttbr1_el1": _TTBR_ASID,
    "ttbr0_el2": _TTBR_ASID,
    "ttbr1_el2": _TTBR_ASID,
    "id_aa64mmfr0_el1": (
        _f("PARange", 3, 0, "physical address size", _PS),
        _f("ASIDBits", 7, 4, "ASID size", {0: "8 bits", 2: "16 bits"}),
        _f("BigEnd", 11, 8),
        _f("SNSMem", 15, 12),
        _f("BigEndEL0", 19, 16),
        _f("TGran16", 23, 20, "16K, stage 1", _TGRAN16),
        _f("TGran64", 27, 24, "64K, stage 1", _TGRAN64),
        _f("TGran4", 31, 28, "4K, stage 1", _TGRAN4),
        _f("TGran16_2", 35, 32, "16K, stage 2", _TGRAN4_2),
        _f("TGran64_2", 39, 36, "64K, stage 2", _TGRAN64_2),
        _f("TGran4_2", 43, 40, "4K, stage 2", _TGRAN4_2),
        _f("ExS", 47, 44),
        _f("FGT", 59, 56),
        _f("ECV", 63, 60),
    ),
    "id_aa64mmfr1_el1": (
        _f("HAFDBS", 3, 0, "hardware access flag and dirty state", _HAFDBS),
        _f("VMIDBits", 7, 4, "VMID size", {0: "8 bits", 2: "16 bits"}),
        _f("VH", 11, 8, "virtualisation host extensions"),
        _f("HPDS", 15, 12),
        _f("LO", 19, 16),
        _f("PAN", 23, 20),
        _f("SpecSEI", 27, 24),
        _f("XNX", 31, 28, "stage-2 two-bit XN"),
        _f("TWED", 35, 32),
        _f("ETS", 39, 36),
        _f("HCX", 43, 40),
        _f("AFP", 47, 44),
        _f("nTLBPA", 51, 48),
        _f("TIDCP1", 55, 52),
        _f("CMOW", 59, 56),
        _f("ECBHB", 63, 60),
    ),
    "id_aa64mmfr2_el1": (
        _f("CnP", 3, 0, "common not private translations"),
        _f("UAO", 7, 4),
        _f("LSM", 11, 8),
        _f("IESB", 15, 12),
        _f("VARange", 19, 16, "virtual address size", {0: "48 bits", 1: "52 bits (64K)", 2: "56 bits"}),
        _f("CCIDX", 23, 20),
        _f("NV", 27, 24, "nested virtualisation"),
        _f("ST", 31, 28, "small translation tables"),
        _f("AT", 35, 32),
        _f("IDS", 39, 36),
        _f("FWB", 43, 40, "stage-2 forced write-back"),
        _f("TTL", 51, 48, "TLBI level hint"),
        _f("BBM", 55, 52, "break-before-make relaxation", {0: "level 0", 1: "level 1", 2: "level 2"}),
        _f("EVT", 59, 56),
        _f("E0PD", 63, 60),
    ),
    "id_aa64isar0_el1": (
        _f("AES", 7, 4),
        _f("SHA1", 11, 8),
        _f("SHA2", 15, 12),
        _f("CRC32", 19, 16),
        _f("Atomic", 23, 20),
        _f("TME", 27, 24),
        _f("RDM", 31, 28),
        _f("SHA3", 35, 32),
        _f("SM3", 39, 36),
        _f("SM4", 43, 40),
        _f("DP", 47, 44),
        _f("FHM", 51, 48),
        _f("TS", 55, 52),
        _f("TLB", 59, 56, "TLB maintenance", {0: "none", 1: "outer shareable", 2: "outer shareable and range"}),
        _f("RNDR", 63, 60),
    ),
}
"""Every register known, by lower-case name."""

_LAYOUTS: Mapping[str, Layout] = {
    name: Layout(bits(row.name, row.hi, row.lo) for row in rows) for name, rows in REGISTERS.items()
}


def _layout(name: str) -> Layout:
    try:
        return _LAYOUTS[name.lower()]
    except KeyError:
        raise ValueError(f"unknown register {name!r}; known: {', '.join(sorted(REGISTERS))}") from None


def decode_register(name: str, value: int) -> Mapping[str, int]:
    """Every field of the register by name, then ``res``: the bits without a name, in place.

    Raises ValueError for an unknown register or a value that is not 64 bits wide.
    """
    if not 0 <= value <= WORD:
        raise ValueError(f"{value:#x} is not a 64-bit value")
    return _layout(name).decode(value)


def encode_register(name: str, fields: Mapping[str, int]) -> int:
    """The register's value; the inverse of `decode_register` (fields left out are 0).  ValueError as there."""
    return _layout(name).encode(fields)


@dataclass(frozen=True)
class Vttbr:
    """VTTBR_EL2: VMID, the PA of the (first) root table, and CnP.

    ``pa52`` says that the table address has 52 bits (CONFIG_ARM64_PA_BITS_52): [5:2] of the register hold PA[51:48].
    """

    vmid: int
    baddr: int
    cnp: bool

    @classmethod
    def decode(cls, value: int, pa52: bool = False) -> Vttbr:
        """Take a register value apart."""
        fields = decode_register("vttbr_el2", value)
        baddr = fields["BADDR"] << 1
        if pa52:
            baddr = (baddr & ~0x3F) | (baddr >> 2 & 0xF) << 48
        return cls(fields["VMID"], baddr, bool(fields["CnP"]))


def vttbr(baddr: int, vmid: int, cnp: bool, pa52: bool = False) -> int:
    """The VTTBR_EL2 that ``kvm_get_vttbr`` computes.  ``baddr`` is a PA in bytes.

    Raises ValueError when the address has bits that the register cannot hold.
    """
    address = baddr
    if pa52:
        address = (baddr & ((1 << 48) - 1)) | baddr >> 48 << 2
        if baddr & 0x3F or baddr >> 52:
            raise ValueError(f"table address {baddr:#x} is not 64-byte aligned or above 52 bits")
    elif baddr & 1 or baddr >> 48:
        raise ValueError(f"table address {baddr:#x} does not fit VTTBR_EL2 with 48-bit addresses")
    return encode_register("vttbr_el2", {"CnP": int(cnp), "BADDR": address >> 1, "VMID": vmid})


__all__ = ["REGISTERS", "RES", "RegisterField", "Vttbr", "decode_register", "encode_register", "vttbr"]
