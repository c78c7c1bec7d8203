"""Field positions transcribed by hand from the Arm Architecture Reference Manual, DDI 0487 (numbering of issue K.a).

Rows are (name, high bit, low bit, section).  Nothing here is derived from the code under test, and nothing there is
derived from this.
"""

from __future__ import annotations

Row = tuple[str, int, int, str]

STAGE2_LEAF: tuple[Row, ...] = (
    ("Valid", 0, 0, "D8.3"),
    ("Type", 1, 1, "D8.3"),
    ("MemAttr[3:0]", 5, 2, "D8.3, D8.6"),
    ("S2AP[1:0]", 7, 6, "D8.3, D8.4"),
    ("SH[1:0]", 9, 8, "D8.3, D8.6; with DS=1 OA[51:50]"),
    ("AF", 10, 10, "D8.3, D8.5"),
    ("FnXS", 11, 11, "D8.3, FEAT_XS"),
    ("DBM", 51, 51, "D8.3, D8.5"),
    ("Contiguous", 52, 52, "D8.3, D8.7"),
    ("XN[1:0]", 54, 53, "D8.3, D8.4, FEAT_XNX"),
    ("Reserved for software use", 58, 55, "D8.3, D8.7"),
    ("PBHA", 62, 59, "D8.3, D8.7, FEAT_HPDS2"),
)

STAGE2_XN_WITHOUT_XNX: Row = ("XN", 54, 54, "D8.4: without FEAT_XNX bit 53 is RES0")

STAGE1_LEAF: tuple[Row, ...] = (
    ("Valid", 0, 0, "D8.3"),
    ("Type", 1, 1, "D8.3"),
    ("AttrIndx[2:0]", 4, 2, "D8.3, D8.6"),
    ("NS", 5, 5, "D8.3"),
    ("AP[2:1]", 7, 6, "D8.3, D8.4"),
    ("SH[1:0]", 9, 8, "D8.3, D8.6; with DS=1 OA[51:50]"),
    ("AF", 10, 10, "D8.3, D8.5"),
    ("nG", 11, 11, "D8.3"),
    ("GP", 50, 50, "D8.3, FEAT_BTI"),
    ("DBM", 51, 51, "D8.3, D8.5"),
    ("Contiguous", 52, 52, "D8.3, D8.7"),
    ("PXN", 53, 53, "D8.3, D8.4"),
    ("UXN or XN", 54, 54, "D8.3, D8.4"),
    ("Reserved for software use", 58, 55, "D8.3, D8.7"),
    ("PBHA", 62, 59, "D8.3, D8.7, FEAT_HPDS2"),
)

STAGE1_TABLE: tuple[Row, ...] = (
    ("PXNTable", 59, 59, "D8.3, D8.4"),
    ("UXNTable or XNTable", 60, 60, "D8.3, D8.4"),
    ("APTable[1:0]", 62, 61, "D8.3, D8.4"),
    ("NSTable", 63, 63, "D8.3"),
)

BLOCK_ONLY: tuple[Row, ...] = (("nT", 16, 16, "D8.3, FEAT_BBM"),)

# (granule shift, DS, level) -> segments (high, low, low bit of the output address held there)
Segments = tuple[tuple[int, int, int], ...]

PAGE_ADDRESS: dict[tuple[int, bool], Segments] = {
    (12, False): ((47, 12, 12),),
    (14, False): ((47, 14, 14),),
    (16, False): ((47, 16, 16), (15, 12, 48)),
    (12, True): ((49, 12, 12), (9, 8, 50)),
    (14, True): ((49, 14, 14), (9, 8, 50)),
}
"""Page descriptors, and the next-level table address of Table descriptors (D8.3)."""

BLOCK_ADDRESS: dict[tuple[int, bool, int], Segments] = {
    (12, False, 1): ((47, 30, 30),),
    (12, False, 2): ((47, 21, 21),),
    (12, True, 0): ((49, 39, 39), (9, 8, 50)),
    (12, True, 1): ((49, 30, 30), (9, 8, 50)),
    (12, True, 2): ((49, 21, 21), (9, 8, 50)),
    (14, False, 2): ((47, 25, 25),),
    (14, True, 1): ((49, 36, 36), (9, 8, 50)),
    (14, True, 2): ((49, 25, 25), (9, 8, 50)),
    (16, False, 1): ((47, 42, 42), (15, 12, 48)),
    (16, False, 2): ((47, 29, 29), (15, 12, 48)),
}
"""Block descriptors (D8.3); a level that is not listed has none.  64K level 1: with 52-bit output addresses."""

REGISTERS: dict[str, tuple[Row, ...]] = {
    "vttbr_el2": (
        ("CnP", 0, 0, "D24.2 VTTBR_EL2"),
        ("BADDR", 47, 1, "D24.2 VTTBR_EL2"),
        ("VMID", 63, 48, "D24.2 VTTBR_EL2"),
    ),
    "ttbr0_el1": (
        ("CnP", 0, 0, "D24.2 TTBR0_EL1"),
        ("BADDR", 47, 1, "D24.2 TTBR0_EL1"),
        ("ASID", 63, 48, "D24.2 TTBR0_EL1"),
    ),
    "ttbr1_el1": (
        ("CnP", 0, 0, "D24.2 TTBR1_EL1"),
        ("BADDR", 47, 1, "D24.2 TTBR1_EL1"),
        ("ASID", 63, 48, "D24.2 TTBR1_EL1"),
    ),
    "ttbr0_el2": (
        ("CnP", 0, 0, "D24.2 TTBR0_EL2"),
        ("BADDR", 47, 1, "D24.2 TTBR0_EL2"),
    ),
    "ttbr0_el2_e2h": (
        ("CnP", 0, 0, "D24.2 TTBR0_EL2"),
        ("BADDR", 47, 1, "D24.2 TTBR0_EL2"),
        ("ASID", 63, 48, "D24.2 TTBR0_EL2: E2H=1"),
    ),
    "cptr_el2": (
        ("TZ", 8, 8, "D24.2 CPTR_EL2, E2H=0"),
        ("TFP", 10, 10, "D24.2 CPTR_EL2, E2H=0"),
        ("TSM", 12, 12, "D24.2 CPTR_EL2, E2H=0"),
        ("TTA", 20, 20, "D24.2 CPTR_EL2, E2H=0"),
        ("TAM", 30, 30, "D24.2 CPTR_EL2, E2H=0"),
        ("TCPAC", 31, 31, "D24.2 CPTR_EL2, E2H=0"),
    ),
    "cptr_el2_e2h": (
        ("ZEN", 17, 16, "D24.2 CPTR_EL2, E2H=1"),
        ("FPEN", 21, 20, "D24.2 CPTR_EL2, E2H=1"),
        ("SMEN", 25, 24, "D24.2 CPTR_EL2, E2H=1"),
        ("TTA", 28, 28, "D24.2 CPTR_EL2, E2H=1"),
        ("E0POE", 29, 29, "D24.2 CPTR_EL2, E2H=1"),
        ("TAM", 30, 30, "D24.2 CPTR_EL2, E2H=1"),
        ("TCPAC", 31, 31, "D24.2 CPTR_EL2, E2H=1"),
    ),
    "hpfar_el2": (
        ("FIPA", 47, 4, "D24.2 HPFAR_EL2: IPA[55:12]; with fewer PA bits the upper ones are RES0"),
        ("NS", 63, 63, "D24.2 HPFAR_EL2"),
    ),
    "ttbr1_el2": (
        ("CnP", 0, 0, "D24.2 TTBR1_EL2"),
        ("BADDR", 47, 1, "D24.2 TTBR1_EL2"),
        ("ASID", 63, 48, "D24.2 TTBR1_EL2"),
    ),
    "vtcr_el2": (
        ("T0SZ", 5, 0, "D24.2 VTCR_EL2"),
        ("SL0", 7, 6, "D24.2 VTCR_EL2"),
        ("IRGN0", 9, 8, "D24.2 VTCR_EL2"),
        ("ORGN0", 11, 10, "D24.2 VTCR_EL2"),
        ("SH0", 13, 12, "D24.2 VTCR_EL2"),
        ("TG0", 15, 14, "D24.2 VTCR_EL2"),
        ("PS", 18, 16, "D24.2 VTCR_EL2"),
        ("VS", 19, 19, "D24.2 VTCR_EL2"),
        ("HA", 21, 21, "D24.2 VTCR_EL2"),
        ("HD", 22, 22, "D24.2 VTCR_EL2"),
        ("HWU59", 25, 25, "D24.2 VTCR_EL2"),
        ("HWU60", 26, 26, "D24.2 VTCR_EL2"),
        ("HWU61", 27, 27, "D24.2 VTCR_EL2"),
        ("HWU62", 28, 28, "D24.2 VTCR_EL2"),
        ("NSW", 29, 29, "D24.2 VTCR_EL2"),
        ("NSA", 30, 30, "D24.2 VTCR_EL2"),
        ("RES1", 31, 31, "D24.2 VTCR_EL2"),
        ("DS", 32, 32, "D24.2 VTCR_EL2"),
        ("SL2", 33, 33, "D24.2 VTCR_EL2"),
        ("AssuredOnly", 34, 34, "D24.2 VTCR_EL2"),
        ("TL1", 35, 35, "D24.2 VTCR_EL2"),
        ("S2PIE", 36, 36, "D24.2 VTCR_EL2"),
        ("S2POE", 37, 37, "D24.2 VTCR_EL2"),
        ("D128", 38, 38, "D24.2 VTCR_EL2"),
        ("GCSH", 40, 40, "D24.2 VTCR_EL2"),
        ("TL0", 41, 41, "D24.2 VTCR_EL2"),
        ("HAFT", 44, 44, "D24.2 VTCR_EL2"),
        ("HDBSS", 45, 45, "D24.2 VTCR_EL2"),
    ),
    "hcr_el2": (
        ("VM", 0, 0, "D24.2 HCR_EL2"),
        ("SWIO", 1, 1, "D24.2 HCR_EL2"),
        ("PTW", 2, 2, "D24.2 HCR_EL2"),
        ("FMO", 3, 3, "D24.2 HCR_EL2"),
        ("IMO", 4, 4, "D24.2 HCR_EL2"),
        ("AMO", 5, 5, "D24.2 HCR_EL2"),
        ("VF", 6, 6, "D24.2 HCR_EL2"),
        ("VI", 7, 7, "D24.2 HCR_EL2"),
        ("VSE", 8, 8, "D24.2 HCR_EL2"),
        ("FB", 9, 9, "D24.2 HCR_EL2"),
        ("BSU", 11, 10, "D24.2 HCR_EL2"),
        ("DC", 12, 12, "D24.2 HCR_EL2"),
        ("TWI", 13, 13, "D24.2 HCR_EL2"),
        ("TWE", 14, 14, "D24.2 HCR_EL2"),
        ("TID0", 15, 15, "D24.2 HCR_EL2"),
        ("TID1", 16, 16, "D24.2 HCR_EL2"),
        ("TID2", 17, 17, "D24.2 HCR_EL2"),
        ("TID3", 18, 18, "D24.2 HCR_EL2"),
        ("TSC", 19, 19, "D24.2 HCR_EL2"),
        ("TIDCP", 20, 20, "D24.2 HCR_EL2"),
        ("TACR", 21, 21, "D24.2 HCR_EL2"),
        ("TSW", 22, 22, "D24.2 HCR_EL2"),
        ("TPCP", 23, 23, "D24.2 HCR_EL2"),
        ("TPU", 24, 24, "D24.2 HCR_EL2"),
        ("TTLB", 25, 25, "D24.2 HCR_EL2"),
        ("TVM", 26, 26, "D24.2 HCR_EL2"),
        ("TGE", 27, 27, "D24.2 HCR_EL2"),
        ("TDZ", 28, 28, "D24.2 HCR_EL2"),
        ("HCD", 29, 29, "D24.2 HCR_EL2"),
        ("TRVM", 30, 30, "D24.2 HCR_EL2"),
        ("RW", 31, 31, "D24.2 HCR_EL2"),
        ("CD", 32, 32, "D24.2 HCR_EL2"),
        ("ID", 33, 33, "D24.2 HCR_EL2"),
        ("E2H", 34, 34, "D24.2 HCR_EL2"),
        ("TLOR", 35, 35, "D24.2 HCR_EL2"),
        ("TERR", 36, 36, "D24.2 HCR_EL2"),
        ("TEA", 37, 37, "D24.2 HCR_EL2"),
        ("MIOCNCE", 38, 38, "D24.2 HCR_EL2; RES0 in later issues"),
        ("TME", 39, 39, "D24.2 HCR_EL2; RES0 in later issues"),
        ("APK", 40, 40, "D24.2 HCR_EL2"),
        ("API", 41, 41, "D24.2 HCR_EL2"),
        ("NV", 42, 42, "D24.2 HCR_EL2"),
        ("NV1", 43, 43, "D24.2 HCR_EL2"),
        ("AT", 44, 44, "D24.2 HCR_EL2"),
        ("NV2", 45, 45, "D24.2 HCR_EL2"),
        ("FWB", 46, 46, "D24.2 HCR_EL2"),
        ("FIEN", 47, 47, "D24.2 HCR_EL2"),
        ("GPF", 48, 48, "D24.2 HCR_EL2"),
        ("TID4", 49, 49, "D24.2 HCR_EL2"),
        ("TICAB", 50, 50, "D24.2 HCR_EL2"),
        ("AMVOFFEN", 51, 51, "D24.2 HCR_EL2"),
        ("TOCU", 52, 52, "D24.2 HCR_EL2"),
        ("EnSCXT", 53, 53, "D24.2 HCR_EL2"),
        ("TTLBIS", 54, 54, "D24.2 HCR_EL2"),
        ("TTLBOS", 55, 55, "D24.2 HCR_EL2"),
        ("ATA", 56, 56, "D24.2 HCR_EL2"),
        ("DCT", 57, 57, "D24.2 HCR_EL2"),
        ("TID5", 58, 58, "D24.2 HCR_EL2"),
        ("TWEDEn", 59, 59, "D24.2 HCR_EL2"),
        ("TWEDEL", 63, 60, "D24.2 HCR_EL2"),
    ),
    "tcr_el1": (
        ("T0SZ", 5, 0, "D24.2 TCR_EL1"),
        ("EPD0", 7, 7, "D24.2 TCR_EL1"),
        ("IRGN0", 9, 8, "D24.2 TCR_EL1"),
        ("ORGN0", 11, 10, "D24.2 TCR_EL1"),
        ("SH0", 13, 12, "D24.2 TCR_EL1"),
        ("TG0", 15, 14, "D24.2 TCR_EL1"),
        ("T1SZ", 21, 16, "D24.2 TCR_EL1"),
        ("A1", 22, 22, "D24.2 TCR_EL1"),
        ("EPD1", 23, 23, "D24.2 TCR_EL1"),
        ("IRGN1", 25, 24, "D24.2 TCR_EL1"),
        ("ORGN1", 27, 26, "D24.2 TCR_EL1"),
        ("SH1", 29, 28, "D24.2 TCR_EL1"),
        ("TG1", 31, 30, "D24.2 TCR_EL1"),
        ("IPS", 34, 32, "D24.2 TCR_EL1"),
        ("AS", 36, 36, "D24.2 TCR_EL1"),
        ("TBI0", 37, 37, "D24.2 TCR_EL1"),
        ("TBI1", 38, 38, "D24.2 TCR_EL1"),
        ("HA", 39, 39, "D24.2 TCR_EL1"),
        ("HD", 40, 40, "D24.2 TCR_EL1"),
        ("HPD0", 41, 41, "D24.2 TCR_EL1"),
        ("HPD1", 42, 42, "D24.2 TCR_EL1"),
        ("HWU059", 43, 43, "D24.2 TCR_EL1"),
        ("HWU060", 44, 44, "D24.2 TCR_EL1"),
        ("HWU061", 45, 45, "D24.2 TCR_EL1"),
        ("HWU062", 46, 46, "D24.2 TCR_EL1"),
        ("HWU159", 47, 47, "D24.2 TCR_EL1"),
        ("HWU160", 48, 48, "D24.2 TCR_EL1"),
        ("HWU161", 49, 49, "D24.2 TCR_EL1"),
        ("HWU162", 50, 50, "D24.2 TCR_EL1"),
        ("TBID0", 51, 51, "D24.2 TCR_EL1"),
        ("TBID1", 52, 52, "D24.2 TCR_EL1"),
        ("NFD0", 53, 53, "D24.2 TCR_EL1"),
        ("NFD1", 54, 54, "D24.2 TCR_EL1"),
        ("E0PD0", 55, 55, "D24.2 TCR_EL1"),
        ("E0PD1", 56, 56, "D24.2 TCR_EL1"),
        ("TCMA0", 57, 57, "D24.2 TCR_EL1"),
        ("TCMA1", 58, 58, "D24.2 TCR_EL1"),
        ("DS", 59, 59, "D24.2 TCR_EL1"),
        ("MTX0", 60, 60, "D24.2 TCR_EL1"),
        ("MTX1", 61, 61, "D24.2 TCR_EL1"),
    ),
    "tcr_el2": (
        ("T0SZ", 5, 0, "D24.2 TCR_EL2, E2H=0"),
        ("IRGN0", 9, 8, "D24.2 TCR_EL2, E2H=0"),
        ("ORGN0", 11, 10, "D24.2 TCR_EL2, E2H=0"),
        ("SH0", 13, 12, "D24.2 TCR_EL2, E2H=0"),
        ("TG0", 15, 14, "D24.2 TCR_EL2, E2H=0"),
        ("PS", 18, 16, "D24.2 TCR_EL2, E2H=0"),
        ("TBI", 20, 20, "D24.2 TCR_EL2, E2H=0"),
        ("HA", 21, 21, "D24.2 TCR_EL2, E2H=0"),
        ("HD", 22, 22, "D24.2 TCR_EL2, E2H=0"),
        ("HPD", 24, 24, "D24.2 TCR_EL2, E2H=0"),
        ("HWU59", 25, 25, "D24.2 TCR_EL2, E2H=0"),
        ("HWU60", 26, 26, "D24.2 TCR_EL2, E2H=0"),
        ("HWU61", 27, 27, "D24.2 TCR_EL2, E2H=0"),
        ("HWU62", 28, 28, "D24.2 TCR_EL2, E2H=0"),
        ("TBID", 29, 29, "D24.2 TCR_EL2, E2H=0"),
        ("TCMA", 30, 30, "D24.2 TCR_EL2, E2H=0"),
        ("DS", 32, 32, "D24.2 TCR_EL2, E2H=0"),
        ("MTX", 33, 33, "D24.2 TCR_EL2, E2H=0"),
    ),
    "id_aa64mmfr0_el1": (
        ("PARange", 3, 0, "D24.2 ID_AA64MMFR0_EL1"),
        ("ASIDBits", 7, 4, "D24.2 ID_AA64MMFR0_EL1"),
        ("BigEnd", 11, 8, "D24.2 ID_AA64MMFR0_EL1"),
        ("SNSMem", 15, 12, "D24.2 ID_AA64MMFR0_EL1"),
        ("BigEndEL0", 19, 16, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran16", 23, 20, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran64", 27, 24, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran4", 31, 28, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran16_2", 35, 32, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran64_2", 39, 36, "D24.2 ID_AA64MMFR0_EL1"),
        ("TGran4_2", 43, 40, "D24.2 ID_AA64MMFR0_EL1"),
        ("ExS", 47, 44, "D24.2 ID_AA64MMFR0_EL1"),
        ("FGT", 59, 56, "D24.2 ID_AA64MMFR0_EL1"),
        ("ECV", 63, 60, "D24.2 ID_AA64MMFR0_EL1"),
    ),
    "id_aa64mmfr1_el1": (
        ("HAFDBS", 3, 0, "D24.2 ID_AA64MMFR1_EL1"),
        ("VMIDBits", 7, 4, "D24.2 ID_AA64MMFR1_EL1"),
        ("VH", 11, 8, "D24.2 ID_AA64MMFR1_EL1"),
        ("HPDS", 15, 12, "D24.2 ID_AA64MMFR1_EL1"),
        ("LO", 19, 16, "D24.2 ID_AA64MMFR1_EL1"),
        ("PAN", 23, 20, "D24.2 ID_AA64MMFR1_EL1"),
        ("SpecSEI", 27, 24, "D24.2 ID_AA64MMFR1_EL1"),
        ("XNX", 31, 28, "D24.2 ID_AA64MMFR1_EL1"),
        ("TWED", 35, 32, "D24.2 ID_AA64MMFR1_EL1"),
        ("ETS", 39, 36, "D24.2 ID_AA64MMFR1_EL1"),
        ("HCX", 43, 40, "D24.2 ID_AA64MMFR1_EL1"),
        ("AFP", 47, 44, "D24.2 ID_AA64MMFR1_EL1"),
        ("nTLBPA", 51, 48, "D24.2 ID_AA64MMFR1_EL1"),
        ("TIDCP1", 55, 52, "D24.2 ID_AA64MMFR1_EL1"),
        ("CMOW", 59, 56, "D24.2 ID_AA64MMFR1_EL1"),
        ("ECBHB", 63, 60, "D24.2 ID_AA64MMFR1_EL1"),
    ),
    "id_aa64mmfr2_el1": (
        ("CnP", 3, 0, "D24.2 ID_AA64MMFR2_EL1"),
        ("UAO", 7, 4, "D24.2 ID_AA64MMFR2_EL1"),
        ("LSM", 11, 8, "D24.2 ID_AA64MMFR2_EL1"),
        ("IESB", 15, 12, "D24.2 ID_AA64MMFR2_EL1"),
        ("VARange", 19, 16, "D24.2 ID_AA64MMFR2_EL1"),
        ("CCIDX", 23, 20, "D24.2 ID_AA64MMFR2_EL1"),
        ("NV", 27, 24, "D24.2 ID_AA64MMFR2_EL1"),
        ("ST", 31, 28, "D24.2 ID_AA64MMFR2_EL1"),
        ("AT", 35, 32, "D24.2 ID_AA64MMFR2_EL1"),
        ("IDS", 39, 36, "D24.2 ID_AA64MMFR2_EL1"),
        ("FWB", 43, 40, "D24.2 ID_AA64MMFR2_EL1"),
        ("TTL", 51, 48, "D24.2 ID_AA64MMFR2_EL1"),
        ("BBM", 55, 52, "D24.2 ID_AA64MMFR2_EL1"),
        ("EVT", 59, 56, "D24.2 ID_AA64MMFR2_EL1"),
        ("E0PD", 63, 60, "D24.2 ID_AA64MMFR2_EL1"),
    ),
    "id_aa64isar0_el1": (
        ("AES", 7, 4, "D24.2 ID_AA64ISAR0_EL1"),
        ("SHA1", 11, 8, "D24.2 ID_AA64ISAR0_EL1"),
        ("SHA2", 15, 12, "D24.2 ID_AA64ISAR0_EL1"),
        ("CRC32", 19, 16, "D24.2 ID_AA64ISAR0_EL1"),
        ("Atomic", 23, 20, "D24.2 ID_AA64ISAR0_EL1"),
        ("TME", 27, 24, "D24.2 ID_AA64ISAR0_EL1; RES0 in later issues"),
        ("RDM", 31, 28, "D24.2 ID_AA64ISAR0_EL1"),
        ("SHA3", 35, 32, "D24.2 ID_AA64ISAR0_EL1"),
        ("SM3", 39, 36, "D24.2 ID_AA64ISAR0_EL1"),
        ("SM4", 43, 40, "D24.2 ID_AA64ISAR0_EL1"),
        ("DP", 47, 44, "D24.2 ID_AA64ISAR0_EL1"),
        ("FHM", 51, 48, "D24.2 ID_AA64ISAR0_EL1"),
        ("TS", 55, 52, "D24.2 ID_AA64ISAR0_EL1"),
        ("TLB", 59, 56, "D24.2 ID_AA64ISAR0_EL1"),
        ("RNDR", 63, 60, "D24.2 ID_AA64ISAR0_EL1"),
    ),
}

RES1: dict[str, tuple[int, ...]] = {
    "vtcr_el2": (31,),
    "tcr_el2": (23, 31),
    "cptr_el2": (0, 1, 2, 3, 4, 5, 6, 7, 9, 13),
}
"""Bits that are always one; CPTR_EL2's TZ, TSM and TFP are too where the CPU lacks what they trap."""

_ISS2: Row = ("ISS2", 55, 32, "D24.2 ESR_EL2")
_IL_EC: tuple[Row, ...] = (("IL", 25, 25, "D24.2 ESR_EL2"), ("EC", 31, 26, "D24.2 ESR_EL2"))

# By exception class, from bit 0 up.
ESR: dict[str, tuple[tuple[int, ...], tuple[Row, ...]]] = {
    "an exception from an Instruction Abort": (
        (0b100000, 0b100001),
        (
            ("IFSC", 5, 0, "D24.2 ESR_EL2"),
            ("S1PTW", 7, 7, "D24.2 ESR_EL2"),
            ("EA", 9, 9, "D24.2 ESR_EL2"),
            ("FnV", 10, 10, "D24.2 ESR_EL2"),
            ("SET", 12, 11, "D24.2 ESR_EL2"),
            *_IL_EC,
            _ISS2,
        ),
    ),
    "an exception from a Data Abort": (
        (0b100100, 0b100101),
        (
            ("DFSC", 5, 0, "D24.2 ESR_EL2"),
            ("WnR", 6, 6, "D24.2 ESR_EL2"),
            ("S1PTW", 7, 7, "D24.2 ESR_EL2"),
            ("CM", 8, 8, "D24.2 ESR_EL2"),
            ("EA", 9, 9, "D24.2 ESR_EL2"),
            ("FnV", 10, 10, "D24.2 ESR_EL2"),
            ("SET", 12, 11, "D24.2 ESR_EL2"),
            ("VNCR", 13, 13, "D24.2 ESR_EL2"),
            ("AR", 14, 14, "D24.2 ESR_EL2"),
            ("SF", 15, 15, "D24.2 ESR_EL2"),
            ("SRT", 20, 16, "D24.2 ESR_EL2"),
            ("SSE", 21, 21, "D24.2 ESR_EL2"),
            ("SAS", 23, 22, "D24.2 ESR_EL2"),
            ("ISV", 24, 24, "D24.2 ESR_EL2"),
            *_IL_EC,
            ("Xs", 36, 32, "D24.2 ESR_EL2, ISS2"),
            ("DirtyBit", 37, 37, "D24.2 ESR_EL2, ISS2"),
            ("Overlay", 38, 38, "D24.2 ESR_EL2, ISS2"),
            ("AssuredOnly", 39, 39, "D24.2 ESR_EL2, ISS2"),
            ("GCS", 40, 40, "D24.2 ESR_EL2, ISS2"),
            ("TagAccess", 41, 41, "D24.2 ESR_EL2, ISS2"),
            ("TnD", 42, 42, "D24.2 ESR_EL2, ISS2"),
            ("HDBSSF", 43, 43, "D24.2 ESR_EL2, ISS2"),
        ),
    ),
    "an exception from HVC or SVC instruction execution; from SMC in AArch64 state": (
        (0b010001, 0b010010, 0b010101, 0b010110, 0b010111),
        (("imm16", 15, 0, "D24.2 ESR_EL2"), *_IL_EC, _ISS2),
    ),
    "a Breakpoint instruction": ((0b111100,), (("Comment", 15, 0, "D24.2 ESR_EL2"), *_IL_EC, _ISS2)),
    "an exception from a WF* instruction": (
        (0b000001,),
        (
            ("TI", 1, 0, "D24.2 ESR_EL2"),
            ("RV", 2, 2, "D24.2 ESR_EL2"),
            ("RN", 9, 5, "D24.2 ESR_EL2"),
            ("COND", 23, 20, "D24.2 ESR_EL2"),
            ("CV", 24, 24, "D24.2 ESR_EL2"),
            *_IL_EC,
            _ISS2,
        ),
    ),
    "an exception from MSR, MRS, or System instruction execution in AArch64 state": (
        (0b011000,),
        (
            ("Direction", 0, 0, "D24.2 ESR_EL2"),
            ("CRm", 4, 1, "D24.2 ESR_EL2"),
            ("Rt", 9, 5, "D24.2 ESR_EL2"),
            ("CRn", 13, 10, "D24.2 ESR_EL2"),
            ("Op1", 16, 14, "D24.2 ESR_EL2"),
            ("Op2", 19, 17, "D24.2 ESR_EL2"),
            ("Op0", 21, 20, "D24.2 ESR_EL2"),
            *_IL_EC,
            _ISS2,
        ),
    ),
}
ESR_OTHER: tuple[Row, ...] = (("ISS", 24, 0, "D24.2 ESR_EL2"), *_IL_EC, _ISS2)

FAULT_STATUS = """
000000 address size fault, level 0
000001 address size fault, level 1
000010 address size fault, level 2
000011 address size fault, level 3
000100 translation fault, level 0
000101 translation fault, level 1
000110 translation fault, level 2
000111 translation fault, level 3
001000 access flag fault, level 0
001001 access flag fault, level 1
001010 access flag fault, level 2
001011 access flag fault, level 3
001100 permission fault, level 0
001101 permission fault, level 1
001110 permission fault, level 2
001111 permission fault, level 3
010000 synchronous external abort
010001 synchronous tag check fault
010010 synchronous external abort on a table walk, level -2
010011 synchronous external abort on a table walk, level -1
010100 synchronous external abort on a table walk, level 0
010101 synchronous external abort on a table walk, level 1
010110 synchronous external abort on a table walk, level 2
010111 synchronous external abort on a table walk, level 3
011000 synchronous parity or ECC error
011011 synchronous parity or ECC error on a table walk, level -1
011100 synchronous parity or ECC error on a table walk, level 0
011101 synchronous parity or ECC error on a table walk, level 1
011110 synchronous parity or ECC error on a table walk, level 2
011111 synchronous parity or ECC error on a table walk, level 3
100001 alignment fault
100010 granule protection fault on a table walk, level -2
100011 granule protection fault on a table walk, level -1
100100 granule protection fault on a table walk, level 0
100101 granule protection fault on a table walk, level 1
100110 granule protection fault on a table walk, level 2
100111 granule protection fault on a table walk, level 3
101000 granule protection fault
101001 address size fault, level -1
101010 translation fault, level -2
101011 translation fault, level -1
101100 address size fault, level -2
110000 TLB conflict abort
110001 unsupported atomic hardware update fault
110100 implementation defined fault (lockdown)
110101 implementation defined fault (unsupported exclusive or atomic)
"""
"""DFSC of a Data Abort, D24.2 ESR_EL2.  IFSC has them all but the tag check, alignment and the last two."""
