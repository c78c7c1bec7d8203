"""System registers as field tables.

Names are the Arm ARM's, positions are those of DDI 0487 D24.2 (general system control registers).  A name in ``_e2h``
is the layout that the register has with HCR_EL2.E2H=1: TCR_EL2 then has TCR_EL1's, CPTR_EL2 has CPACR_EL1's, and
TTBR0_EL2 carries an ASID.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inspector.codec.bits import WORD, mask
from inspector.codec.syndrome import ESR
from inspector.codec.sysreg import RESERVED, Register, named, row

PS_BITS = (32, 36, 40, 42, 44, 48, 52)
"""PARange, VTCR_EL2.PS, TCR_ELx.(I)PS: output address bits by field value (DDI 0487 D24.2; 7 needs FEAT_D128)."""

TG0_SHIFT = {0: 12, 1: 16, 2: 14}
"""VTCR_EL2.TG0 and TCR_ELx.TG0 to granule shift; 3 is reserved (TG1 is encoded differently)."""

_TG1_SHIFT = {1: 14, 2: 12, 3: 16}
"""TCR_ELx.TG1 to granule shift; 0 is reserved."""


def _granules(shifts: Mapping[int, int]) -> dict[int, str]:
    return {value: f"{1 << shifts[value] - 10}K" if value in shifts else RESERVED for value in range(4)}


_PS = {value: f"{bits} bits" for value, bits in enumerate((*PS_BITS, 56))}
_TG0, _TG1 = _granules(TG0_SHIFT), _granules(_TG1_SHIFT)
_SH = {0: "non-shareable", 1: RESERVED, 2: "outer shareable", 3: "inner shareable"}
_RGN = {0: "non-cacheable", 1: "write-back write-allocate", 2: "write-through", 3: "write-back no write-allocate"}
_HAFDBS = {0: "none", 1: "access flag", 2: "access flag and dirty state", 3: "and table access flag", 4: "and HDBSS"}
_TGRAN4 = {0: "supported", 1: "supported, 52 bits", 15: "not supported"}
_TGRAN16 = {0: "not supported", 1: "supported", 2: "supported, 52 bits"}
_TGRAN64 = {0: "supported", 15: "not supported"}
_TGRAN4_2 = {0: "as stage 1", 1: "not supported", 2: "supported", 3: "supported, 52 bits"}
_TGRAN64_2 = {0: "as stage 1", 1: "not supported", 2: "supported"}


_TCR_EL1 = (
    row("T0SZ", 5, 0, "TTBR0 region: 64 minus VA bits"),
    row("EPD0", 7, meaning="no walks through TTBR0"),
    row("IRGN0", 9, 8, "inner cacheability of TTBR0 walks", _RGN),
    row("ORGN0", 11, 10, "outer cacheability of TTBR0 walks", _RGN),
    row("SH0", 13, 12, "shareability of TTBR0 walks", _SH),
    row("TG0", 15, 14, "TTBR0 granule", _TG0),
    row("T1SZ", 21, 16, "TTBR1 region: 64 minus VA bits"),
    row("A1", 22, meaning="ASID from TTBR1"),
    row("EPD1", 23, meaning="no walks through TTBR1"),
    row("IRGN1", 25, 24, "inner cacheability of TTBR1 walks", _RGN),
    row("ORGN1", 27, 26, "outer cacheability of TTBR1 walks", _RGN),
    row("SH1", 29, 28, "shareability of TTBR1 walks", _SH),
    row("TG1", 31, 30, "TTBR1 granule", _TG1),
    row("IPS", 34, 32, "output address size", _PS),
    row("AS", 36, meaning="16-bit ASID"),
    row("TBI0", 37, meaning="top byte ignored, TTBR0"),
    row("TBI1", 38, meaning="top byte ignored, TTBR1"),
    row("HA", 39, meaning="hardware access flag"),
    row("HD", 40, meaning="hardware dirty state"),
    row("HPD0", 41, meaning="no hierarchical permissions, TTBR0"),
    row("HPD1", 42, meaning="no hierarchical permissions, TTBR1"),
    *named(43, "HWU059 HWU060 HWU061 HWU062 HWU159 HWU160 HWU161 HWU162 TBID0 TBID1 NFD0 NFD1 E0PD0 E0PD1 TCMA0 TCMA1"),
    row("DS", 59, meaning="52-bit descriptors (LPA2)"),
    *named(60, "MTX0 MTX1"),
)

_TTBR = (
    row("CnP", 0, meaning="common not private"),
    row("BADDR", 47, 1, "table base address bits [47:1]; with a 52-bit PA, [5:2] hold its bits [51:48]"),
)
_TTBR_ASID = (*_TTBR, row("ASID", 63, 48))

_ENABLED = {0: "trapped", 1: "trapped at EL0 with TGE=1", 2: "trapped", 3: "not trapped"}

_E2H0, _E2H1 = "HCR_EL2.E2H=0", "HCR_EL2.E2H=1"

REGISTERS: Mapping[str, Register] = {
    "vttbr_el2": Register(
        (
            *_TTBR,
            row("VMID", 63, 48),
        ),
    ),
    "vtcr_el2": Register(
        (
            row("T0SZ", 5, 0, "64 minus IPA bits"),
            row("SL0", 7, 6, "start level"),
            row("IRGN0", 9, 8, "inner cacheability of walks", _RGN),
            row("ORGN0", 11, 10, "outer cacheability of walks", _RGN),
            row("SH0", 13, 12, "shareability of walks", _SH),
            row("TG0", 15, 14, "granule", _TG0),
            row("PS", 18, 16, "output address size", _PS),
            row("VS", 19, meaning="16-bit VMID"),
            row("HA", 21, meaning="hardware access flag"),
            row("HD", 22, meaning="hardware dirty state"),
            *named(25, "HWU59 HWU60 HWU61 HWU62"),
            row("NSW", 29, needs="FEAT_SEL2"),
            row("NSA", 30, needs="FEAT_SEL2"),
            row("RES1", 31, meaning="always 1"),
            row("DS", 32, meaning="52-bit descriptors (LPA2)"),
            row("SL2", 33, meaning="start level -1 (4K, DS=1)"),
            row("AssuredOnly", 34, needs="FEAT_THE"),
            row("TL1", 35, needs="FEAT_THE"),
            row("S2PIE", 36, meaning="stage-2 permission indirection", needs="FEAT_S2PIE"),
            row("S2POE", 37, meaning="stage-2 permission overlay", needs="FEAT_S2POE"),
            row("D128", 38, meaning="128-bit descriptors", needs="FEAT_D128"),
            row("GCSH", 40, needs="FEAT_THE"),
            row("TL0", 41, needs="FEAT_THE"),
            row("HAFT", 44, meaning="hardware access flag in table entries", needs="FEAT_HAFT"),
            row("HDBSS", 45, meaning="hardware dirty state tracking structure", needs="FEAT_HDBSS"),
        ),
        res1=1 << 31,
    ),
    "hcr_el2": Register(
        (
            row("VM", 0, meaning="stage 2 enabled"),
            *named(1, "SWIO PTW FMO IMO AMO VF VI VSE"),
            row("FB", 9, meaning="TLB maintenance is broadcast"),
            row("BSU", 11, 10, "barrier shareability upgrade"),
            row("DC", 12, meaning="default cacheable"),
            row("TWI", 13, meaning="trap WFI"),
            row("TWE", 14, meaning="trap WFE"),
            *named(15, "TID0 TID1 TID2 TID3 TSC TIDCP TACR"),
            row("TSW", 22, meaning="trap set/way cache maintenance"),
            *named(23, "TPCP TPU"),
            row("TTLB", 25, meaning="trap TLB maintenance"),
            row("TVM", 26, meaning="trap virtual memory controls"),
            row("TGE", 27, meaning="trap general exceptions: the host's EL0"),
            *named(28, "TDZ HCD TRVM"),
            row("RW", 31, meaning="EL1 is AArch64"),
            *named(32, "CD ID"),
            row("E2H", 34, meaning="EL2 host (VHE)"),
            *named(35, "TLOR TERR TEA MIOCNCE TME APK API"),
            row("NV", 42, meaning="nested virtualisation"),
            *named(43, "NV1 AT NV2"),
            row("FWB", 46, meaning="stage-2 forced write-back"),
            *named(47, "FIEN GPF TID4 TICAB AMVOFFEN TOCU EnSCXT TTLBIS TTLBOS"),
            row("ATA", 56, meaning="allocation tag access"),
            *named(57, "DCT TID5 TWEDEn"),
            row("TWEDEL", 63, 60),
        ),
    ),
    "tcr_el1": Register(_TCR_EL1),
    "tcr_el2_e2h": Register(_TCR_EL1, when=_E2H1),
    "tcr_el2": Register(
        (
            row("T0SZ", 5, 0, "64 minus VA bits"),
            row("IRGN0", 9, 8, "inner cacheability of walks", _RGN),
            row("ORGN0", 11, 10, "outer cacheability of walks", _RGN),
            row("SH0", 13, 12, "shareability of walks", _SH),
            row("TG0", 15, 14, "granule", _TG0),
            row("PS", 18, 16, "output address size", _PS),
            row("TBI", 20, meaning="top byte ignored"),
            row("HA", 21, meaning="hardware access flag"),
            row("HD", 22, meaning="hardware dirty state"),
            row("HPD", 24, meaning="no hierarchical permissions"),
            *named(25, "HWU59 HWU60 HWU61 HWU62 TBID TCMA"),
            row("DS", 32, meaning="52-bit descriptors (LPA2)"),
            row("MTX", 33),
        ),
        res1=1 << 31 | 1 << 23,
        when=_E2H0,
    ),
    "ttbr0_el1": Register(_TTBR_ASID),
    "ttbr1_el1": Register(_TTBR_ASID),
    "ttbr0_el2": Register(_TTBR, when=_E2H0),
    "ttbr0_el2_e2h": Register(_TTBR_ASID, when=_E2H1),
    "ttbr1_el2": Register(_TTBR_ASID),
    "cptr_el2": Register(
        (
            row("TZ", 8, meaning="trap SVE"),
            row("TFP", 10, meaning="trap SIMD and floating point"),
            row("TSM", 12, meaning="trap SME"),
            row("TTA", 20, meaning="trap trace registers"),
            row("TAM", 30, meaning="trap activity monitors"),
            row("TCPAC", 31, meaning="trap CPACR_EL1"),
        ),
        res1=1 << 13 | 1 << 9 | 0xFF,
        when=_E2H0,
    ),
    "cptr_el2_e2h": Register(
        (
            row("ZEN", 17, 16, "SVE", _ENABLED),
            row("FPEN", 21, 20, "SIMD and floating point", _ENABLED),
            row("SMEN", 25, 24, "SME", _ENABLED),
            row("TTA", 28, meaning="trap trace registers"),
            row("E0POE", 29, meaning="POR_EL0 at EL0"),
            row("TAM", 30, meaning="trap activity monitors"),
            row("TCPAC", 31, meaning="trap CPACR_EL1"),
        ),
        when=_E2H1,
    ),
    "esr_el1": ESR,
    "esr_el2": ESR,
    "hpfar_el2": Register(
        (row("FIPA", 47, 4, "the faulting IPA from bit 12 up"), row("NS", 63, meaning="non-secure IPA space"))
    ),
    "id_aa64mmfr0_el1": Register(
        (
            row("PARange", 3, 0, "physical address size", _PS),
            row("ASIDBits", 7, 4, "ASID size", {0: "8 bits", 2: "16 bits"}),
            *named(8, "BigEnd SNSMem BigEndEL0", 4),
            row("TGran16", 23, 20, "16K, stage 1", _TGRAN16),
            row("TGran64", 27, 24, "64K, stage 1", _TGRAN64),
            row("TGran4", 31, 28, "4K, stage 1", _TGRAN4),
            row("TGran16_2", 35, 32, "16K, stage 2", _TGRAN4_2),
            row("TGran64_2", 39, 36, "64K, stage 2", _TGRAN64_2),
            row("TGran4_2", 43, 40, "4K, stage 2", _TGRAN4_2),
            row("ExS", 47, 44),
            *named(56, "FGT ECV", 4),
        ),
    ),
    "id_aa64mmfr1_el1": Register(
        (
            row("HAFDBS", 3, 0, "hardware access flag and dirty state", _HAFDBS),
            row("VMIDBits", 7, 4, "VMID size", {0: "8 bits", 2: "16 bits"}),
            row("VH", 11, 8, "virtualisation host extensions"),
            *named(12, "HPDS LO PAN SpecSEI", 4),
            row("XNX", 31, 28, "stage-2 two-bit XN"),
            *named(32, "TWED ETS HCX AFP nTLBPA TIDCP1 CMOW ECBHB", 4),
        ),
    ),
    "id_aa64mmfr2_el1": Register(
        (
            row("CnP", 3, 0, "common not private translations"),
            *named(4, "UAO LSM IESB", 4),
            row("VARange", 19, 16, "virtual address size", {0: "48 bits", 1: "52 bits (64K)", 2: "56 bits"}),
            row("CCIDX", 23, 20),
            row("NV", 27, 24, "nested virtualisation"),
            row("ST", 31, 28, "small translation tables"),
            *named(32, "AT IDS", 4),
            row("FWB", 43, 40, "stage-2 forced write-back"),
            row("TTL", 51, 48, "TLBI level hint"),
            row("BBM", 55, 52, "break-before-make relaxation", {0: "level 0", 1: "level 1", 2: "level 2"}),
            *named(56, "EVT E0PD", 4),
        ),
    ),
    "id_aa64isar0_el1": Register(
        (
            *named(4, "AES SHA1 SHA2 CRC32 Atomic TME RDM SHA3 SM3 SM4 DP FHM TS", 4),
            row("TLB", 59, 56, "TLB maintenance", {0: "none", 1: "outer shareable", 2: "outer shareable and range"}),
            row("RNDR", 63, 60),
        ),
    ),
}
"""Every register known, by lower-case name."""


def register_key(name: str) -> str:
    """A register's name as `REGISTERS` has it: lower case, and ``_el1`` for ``_el12``, a VHE host's name for that."""
    key = name.lower()
    return key[:-1] if key.endswith("_el12") else key


def register_layout(name: str, e2h: bool = False) -> Register:
    """The table of a register, by its name in either case; ValueError for one that is not known.

    ``e2h`` is HCR_EL2.E2H, under which some registers of EL2 have another layout.
    """
    key = register_key(name)
    found = REGISTERS.get(f"{key}_e2h" if e2h else key) or REGISTERS.get(key)
    if found is None:
        raise ValueError(f"unknown register {name!r}; known: {', '.join(sorted(REGISTERS))}")
    return found


def is_known(name: str) -> bool:
    """Whether there is a table for this register."""
    return register_key(name) in REGISTERS


def decode_register(name: str, value: int, e2h: bool = False) -> Mapping[str, int]:
    """Every field of the register by name, then ``res``: the bits without a name, in place.

    ``e2h`` as in `register_layout`.  Raises ValueError for an unknown register or a value that is not 64 bits wide.
    """
    if not 0 <= value <= WORD:
        raise ValueError(f"{value:#x} is not a 64-bit value")
    return register_layout(name, e2h).decode(value)


def encode_register(name: str, fields: Mapping[str, int], e2h: bool = False) -> int:
    """The register's value; the inverse of `decode_register` (fields left out are 0).  ValueError as there."""
    return register_layout(name, e2h).encode(fields)


def has_e2h(registers: Mapping[str, int]) -> bool:
    """HCR_EL2.E2H of a CPU, by its registers' upper-case names; False where they do not show HCR_EL2."""
    return bool(decode_register("hcr_el2", registers.get("HCR_EL2", 0))["E2H"])


def table_address(register: int) -> int:
    """The PA in BADDR of VTTBR_EL2 or TTBRn_ELx.

    [5:2] hold PA[51:48] when the output size is 52 bits; otherwise a table of 64 bytes or more, as all of Linux's and
    KVM's are, has zeros there: one reading serves both (DDI 0487 D24.2 VTTBR_EL2; ``phys_to_ttbr``).
    """
    return (register & mask(47, 6)) | (register >> 2 & 0xF) << 48


@dataclass(frozen=True)
class Vttbr:
    """VTTBR_EL2: VMID, the PA of the (first) root table, and CnP."""

    vmid: int
    baddr: int
    cnp: bool

    @classmethod
    def decode(cls, value: int) -> Vttbr:
        """Take a register value apart."""
        fields = decode_register("vttbr_el2", value)
        return cls(fields["VMID"], table_address(value), bool(fields["CnP"]))


def vttbr(baddr: int, vmid: int, cnp: bool) -> int:
    """The VTTBR_EL2 that ``kvm_get_vttbr`` computes.  ``baddr`` is a PA in bytes.

    Raises ValueError when the address has bits that the register cannot hold.
    """
    if baddr & 0x3F or baddr >> 52:
        raise ValueError(f"table address {baddr:#x} is not 64-byte aligned or above 52 bits")
    address = (baddr & mask(47, 6)) | baddr >> 48 << 2
    return encode_register("vttbr_el2", {"CnP": int(cnp), "BADDR": address >> 1, "VMID": vmid})


def vmid_bits(vtcr: int) -> int:
    """The bits of a VMID that a VTCR_EL2 puts in force: 16 with VS=1, else 8."""
    return 16 if decode_register("vtcr_el2", vtcr)["VS"] else 8


def faulting_ipa(hpfar: int) -> int:
    """The IPA of the page that HPFAR_EL2 reports; the bits within the page are FAR_EL2's."""
    return decode_register("hpfar_el2", hpfar)["FIPA"] << 12
