"""The shape of a translation table: granule, address sizes, start level, concatenated roots.

All of it is arithmetic on `granule_shift`, `ia_bits` and `start_level`; nothing here reads memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.codec.bits import mask

LAST_LEVEL = 3
MAX_ROOT_PAGES = 16
"""Concatenated tables at the start level, at most (DDI 0487 D8.2)."""

PS_BITS = (32, 36, 40, 42, 44, 48, 52)
"""PARange, VTCR_EL2.PS, TCR_ELx.(I)PS: output address bits by field value (DDI 0487 D24.2; 7 needs FEAT_D128)."""

TG0_SHIFT = {0: 12, 1: 16, 2: 14}
"""VTCR_EL2.TG0 and TCR_ELx.TG0 to granule shift; 3 is reserved (TG1 is encoded differently)."""

TG1_SHIFT = {1: 14, 2: 12, 3: 16}
"""TCR_ELx.TG1 to granule shift; 0 is reserved."""

VTCR_FIXED = 1 << 31 | 3 << 12 | 1 << 10 | 1 << 8
"""RES1, SH0 inner shareable, ORGN0 and IRGN0 write-back: what every `kvm_get_vtcr` writes."""


def _get(word: int, hi: int, lo: int) -> int:
    return (word & mask(hi, lo)) >> lo


def _start_level_from_sl(granule_shift: int, sl0: int, sl2: int, ds: bool) -> int:
    """VTCR_EL2.SL0 and SL2 to start level (DDI 0487 D24.2 VTCR_EL2, AArch64.S2StartLevel); ValueError if reserved."""
    if granule_shift == 12:
        if ds and sl2:
            if sl0 != 0:
                raise ValueError(f"VTCR_EL2: SL2=1 with SL0={sl0} is reserved for a 4K granule")
            return -1
        return (2, 1, 0, 3)[sl0]
    if granule_shift == 16 and sl0 == 3:
        raise ValueError("VTCR_EL2: SL0=3 is reserved for a 64K granule")
    if granule_shift == 14 and sl0 == 3 and not ds:
        raise ValueError("VTCR_EL2: SL0=3 (start level 0) with a 16K granule needs DS=1")
    return 3 - sl0


@dataclass(frozen=True)
class Geometry:
    """Shape of one tree.

    ``granule_shift`` is 12, 14 or 16; ``ia_bits`` the bits of the input address (IPA or VA); ``start_level`` -1 to 3;
    ``root_pages`` the tables concatenated at the start level (1 to 16; stage 2 only); ``pa_bits`` the bits of an
    output address; ``lpa2`` whether descriptors have the 52-bit format of DS=1 (4K and 16K only).
    """

    granule_shift: int
    ia_bits: int
    start_level: int
    root_pages: int
    pa_bits: int
    lpa2: bool

    @property
    def granule(self) -> int:
        """Bytes of a page and of a table page."""
        return 1 << self.granule_shift

    @property
    def stride(self) -> int:
        """Input address bits that one level resolves: 9, 11 or 13."""
        return self.granule_shift - 3

    @property
    def entries(self) -> int:
        """Entries of a table page: 512, 2048 or 8192."""
        return 1 << self.stride

    @property
    def root_entries(self) -> int:
        """Entries of one root page that the input address can reach; fewer than ``entries`` for a small root."""
        return min(self.entries, max(1, 1 << max(0, self.ia_bits - self.level_shift(self.start_level))))

    @property
    def levels(self) -> range:
        """The levels from the start level to 3."""
        return range(self.start_level, LAST_LEVEL + 1)

    def level_shift(self, level: int) -> int:
        """log2 of the bytes covered by one entry at ``level`` (``ARM64_HW_PGTABLE_LEVEL_SHIFT``)."""
        return self.stride * (4 - level) + 3

    def block_size(self, level: int) -> int:
        """Bytes covered by one entry at ``level``."""
        return 1 << self.level_shift(level)

    def _bounded(self, ia: int) -> int:
        return ia & ((1 << self.ia_bits) - 1)

    def root_index(self, ia: int) -> int:
        """Which of the concatenated root pages translates ``ia`` (``kvm_pgd_page_idx``)."""
        return self._bounded(ia) >> self.level_shift(self.start_level - 1)

    def index(self, level: int, ia: int) -> int:
        """The index of the entry for ``ia`` in its table page at ``level``."""
        return (self._bounded(ia) >> self.level_shift(level)) & (self.entries - 1)

    @property
    def block_levels(self) -> frozenset[int]:
        """The levels at which KVM makes leaves (``KVM_PGTABLE_MIN_BLOCK_LEVEL`` to 3, all releases)."""
        return frozenset({1, 2, 3} if self.granule_shift == 12 else {2, 3})

    @property
    def arch_block_levels(self) -> frozenset[int]:
        """The levels at which the architecture has leaves (DDI 0487 D8.3: Block and Page descriptors).

        4K: 1, 2, 3, and 0 with DS=1.  16K: 2, 3, and 1 with DS=1.  64K: 2, 3, and 1 with 52-bit output addresses.
        """
        smallest = 1 if self.granule_shift == 12 else 2
        if self.lpa2 or (self.granule_shift == 16 and self.pa_bits == 52):
            smallest -= 1
        return frozenset(range(smallest, LAST_LEVEL + 1))

    @classmethod
    def from_vtcr(cls, vtcr: int) -> Geometry:
        """The shape that a VTCR_EL2 value describes.

        Raises ValueError where the architecture calls the value reserved or inconsistent: TG0=3, PS=7, a start level
        that cannot resolve T0SZ with at most 16 concatenated tables (AArch64.S2InconsistentSL), more than 48 bits
        without DS=1 or the 64K granule.
        """
        tg0 = _get(vtcr, 15, 14)
        if tg0 not in TG0_SHIFT:
            raise ValueError("VTCR_EL2: TG0=3 is reserved")
        granule_shift = TG0_SHIFT[tg0]
        ps = _get(vtcr, 18, 16)
        if ps >= len(PS_BITS):
            raise ValueError(f"VTCR_EL2: PS={ps} is reserved")
        lpa2 = bool(_get(vtcr, 32, 32)) and granule_shift != 16
        ia_bits = 64 - _get(vtcr, 5, 0)
        start_level = _start_level_from_sl(granule_shift, _get(vtcr, 7, 6), _get(vtcr, 33, 33), lpa2)
        if ia_bits > 52:
            raise ValueError(f"VTCR_EL2: T0SZ gives {ia_bits} input address bits, more than 52")
        if ia_bits > 48 and not lpa2 and granule_shift != 16:
            raise ValueError(f"VTCR_EL2: {ia_bits} input address bits need DS=1 with this granule")
        stride = granule_shift - 3
        smallest = (LAST_LEVEL - start_level) * stride + granule_shift + 1
        if not smallest <= ia_bits <= smallest + stride - 1 + 4:
            raise ValueError(
                f"VTCR_EL2: start level {start_level} cannot resolve {ia_bits} input address bits: "
                f"with this granule it takes {smallest} to {smallest + stride + 3}"
            )
        root_pages = 1 << max(0, ia_bits - (smallest + stride - 1))
        return cls(granule_shift, ia_bits, start_level, root_pages, PS_BITS[ps], lpa2)

    @classmethod
    def for_ipa(cls, ia_bits: int, granule_shift: int = 12, pa_bits: int = 48, lpa2: bool = False) -> Geometry:
        """What KVM chooses for an IPA size (``kvm_get_vtcr``, ``stage2_pgtable_levels``, ``kvm_pgd_pages``).

        At least two levels, and concatenation wherever up to 16 root tables save a level.
        """
        if granule_shift not in (12, 14, 16):
            raise ValueError(f"no granule of 1 << {granule_shift} bytes")
        stride = granule_shift - 3
        levels = max(2, (ia_bits - 8) // stride)
        start_level = 4 - levels
        root_pages = max(1, ((1 << ia_bits) - 1 >> (stride * (4 - (start_level - 1)) + 3)) + 1)
        return cls(granule_shift, ia_bits, start_level, root_pages, pa_bits, lpa2 and granule_shift != 16)

    @classmethod
    def for_stage1(cls, va_bits: int, granule_shift: int = 12, pa_bits: int = 48, lpa2: bool = False) -> Geometry:
        """A stage-1 tree for ``va_bits``: one root, the fewest levels (``ARM64_HW_PGTABLE_LEVELS``)."""
        if granule_shift not in (12, 14, 16):
            raise ValueError(f"no granule of 1 << {granule_shift} bytes")
        levels = (va_bits - 4) // (granule_shift - 3)
        return cls(granule_shift, va_bits, 4 - levels, 1, pa_bits, lpa2 and granule_shift != 16)

    @classmethod
    def from_tcr(cls, tcr: int, upper: bool = False) -> Geometry:
        """The shape that TCR_EL1 (or TCR_EL2 with E2H=1) gives to TTBR0's tree, or to TTBR1's with ``upper``.

        Raises ValueError on reserved values.
        """
        ips = _get(tcr, 34, 32)
        if ips >= len(PS_BITS):
            raise ValueError(f"TCR: IPS={ips} is reserved")
        if upper:
            va_bits, tg, shifts = 64 - _get(tcr, 21, 16), _get(tcr, 31, 30), TG1_SHIFT
        else:
            va_bits, tg, shifts = 64 - _get(tcr, 5, 0), _get(tcr, 15, 14), TG0_SHIFT
        if tg not in shifts:
            raise ValueError(f"TCR: TG{int(upper)}={tg} is reserved")
        return cls._stage1(va_bits, shifts[tg], PS_BITS[ips], bool(_get(tcr, 59, 59)))

    @classmethod
    def from_tcr_el2(cls, tcr: int) -> Geometry:
        """The shape that TCR_EL2 with E2H=0 gives to the EL2 stage 1.  Raises ValueError on reserved values."""
        ps, tg = _get(tcr, 18, 16), _get(tcr, 15, 14)
        if ps >= len(PS_BITS):
            raise ValueError(f"TCR_EL2: PS={ps} is reserved")
        if tg not in TG0_SHIFT:
            raise ValueError(f"TCR_EL2: TG0={tg} is reserved")
        return cls._stage1(64 - _get(tcr, 5, 0), TG0_SHIFT[tg], PS_BITS[ps], bool(_get(tcr, 32, 32)))

    @classmethod
    def _stage1(cls, va_bits: int, granule_shift: int, pa_bits: int, ds: bool) -> Geometry:
        if not 16 <= va_bits <= 52:
            raise ValueError(f"TCR: {va_bits} bits of virtual address are outside 16..52")
        return cls.for_stage1(va_bits, granule_shift, pa_bits, ds)

    def to_vtcr(self, *, vmid16: bool, ha: bool) -> int:
        """The VTCR_EL2 that ``kvm_get_vtcr`` computes for this shape.

        ``vmid16`` sets VS, ``ha`` sets HA (5.10, 5.15: always; 6.1 on: CONFIG_ARM64_HW_AFDBM).  DS is ``lpa2``.
        Raises ValueError when start level or output size has no encoding.
        """
        if self.pa_bits not in PS_BITS:
            raise ValueError(f"no PS encoding for {self.pa_bits} output address bits")
        base = 2 if self.granule_shift == 12 else 3
        sl0 = base - self.start_level
        sl2 = 0
        if self.granule_shift == 12 and self.start_level in (-1, 3):
            sl0, sl2 = (0, 1) if self.start_level == -1 else (3, 0)
        if not 0 <= sl0 <= 3:
            raise ValueError(f"no SL0 encoding for start level {self.start_level} with this granule")
        tg0 = {shift: value for value, shift in TG0_SHIFT.items()}[self.granule_shift]
        return (
            VTCR_FIXED
            | (64 - self.ia_bits)
            | sl0 << 6
            | tg0 << 14
            | PS_BITS.index(self.pa_bits) << 16
            | int(vmid16) << 19
            | int(ha) << 21
            | int(self.lpa2) << 32
            | sl2 << 33
        )
