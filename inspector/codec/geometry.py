"""The shape of a translation table: granule, address sizes, start level, concatenated roots.

All of it is arithmetic on `granule_shift`, `ia_bits` and `start_level`; nothing here reads memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.codec.registers import PS_BITS, TG0_SHIFT, decode_register, encode_register

LAST_LEVEL = 3
MAX_ROOT_PAGES = 16
"""Concatenated tables at the start level, at most (DDI 0487 D8.2)."""

VTCR_FIXED = {"RES1": 1, "SH0": 3, "ORGN0": 1, "IRGN0": 1}
"""Inner shareable, write-back walks, and the bit that is always one: what every `kvm_get_vtcr` writes."""


GRANULES = {"4k": 12, "16k": 14, "64k": 16}
"""log2 of the granule by the name it goes by."""


def levels_of(granule_shift: int, lpa2: bool, stage2: bool = True) -> range:
    """The levels that tables of this granule can have (DDI 0487 D8.2): the first is the lowest there is.

    4K has levels 0 to 3, and -1 with DS=1; 16K has 1 to 3, and 0 with DS=1 (stage 1 always); 64K has 1 to 3.
    """
    first = 1 if granule_shift == 16 else 0
    if granule_shift == 12 and lpa2:
        first = -1
    elif granule_shift == 14 and stage2 and not lpa2:
        first = 1
    return range(first, LAST_LEVEL + 1)


def _start_level(granule_shift: int, sl0: int, sl2: int, ds: bool) -> int | None:
    """VTCR_EL2.SL0 and SL2 to start level (AArch64.S2StartLevel); ``None`` when reserved."""
    if granule_shift == 12:
        if ds and sl2:
            return None if sl0 else -1
        return (2, 1, 0, 3)[sl0]
    return LAST_LEVEL - sl0 if LAST_LEVEL - sl0 in levels_of(granule_shift, ds) else None


def _read_vtcr(vtcr: int) -> tuple[Geometry | None, list[str]]:
    """The shape that a VTCR_EL2 describes, or why there is no such shape, a sentence for each reason."""
    fields = decode_register("vtcr_el2", vtcr)
    tg0, ps, sl0, sl2 = (fields[name] for name in ("TG0", "PS", "SL0", "SL2"))
    problems = []
    if ps >= len(PS_BITS):
        problems.append(f"PS={ps} is reserved")
    granule_shift = TG0_SHIFT.get(tg0)
    ia_bits = 64 - fields["T0SZ"]
    if ia_bits > 52:
        problems.append(f"T0SZ={fields['T0SZ']} gives {ia_bits} input address bits, more than 52")
    if granule_shift is None:
        return None, [*problems, f"TG0={tg0} is reserved"]
    lpa2 = bool(fields["DS"]) and granule_shift != 16
    start = _start_level(granule_shift, sl0, sl2, lpa2)
    if 48 < ia_bits <= 52 and not lpa2 and granule_shift != 16:
        problems.append(f"T0SZ={fields['T0SZ']} gives {ia_bits} input address bits, which need DS=1 with this granule")
    if start is None:
        with_sl2 = f"SL2={sl2} with " if lpa2 and sl2 else ""
        without_ds = "" if lpa2 else " without DS=1" if granule_shift == 14 else ""
        problems.append(f"{with_sl2}SL0={sl0} is reserved for a {_granule(granule_shift)} granule{without_ds}")
        return None, problems
    stride = granule_shift - 3
    smallest = (LAST_LEVEL - start) * stride + granule_shift + 1
    if ia_bits <= 52 and not smallest <= ia_bits <= smallest + stride + 3:
        problems.append(
            f"start level {start} cannot resolve {ia_bits} input address bits: with this granule it takes "
            f"{smallest} to {smallest + stride + 3}"
        )
    if problems:
        return None, problems
    root_pages = 1 << max(0, ia_bits - (smallest + stride - 1))
    return Geometry(granule_shift, ia_bits, start, root_pages, PS_BITS[ps], lpa2), []


def vtcr_problems(vtcr: int) -> list[str]:
    """Why no table has the shape that this VTCR_EL2 describes, a sentence for each reason; empty when one has.

    TG0=3, PS=7, reserved SL0 and SL2, a start level that cannot resolve T0SZ with at most 16 concatenated tables
    (AArch64.S2InconsistentSL), more than 52 bits, and more than 48 without DS=1 or the 64K granule.
    """
    return _read_vtcr(vtcr)[1]


def _granule(shift: int) -> str:
    return f"{1 << shift - 10}K"


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

    def describe(self, addresses: str = "IPA") -> str:
        """``40-bit IPA, 4K granule, 40-bit PA, starts at level 1 with 2 root tables``; of stage 1 ``VA`` goes in."""
        lpa2 = ", LPA2" if self.lpa2 else ""
        roots = f"{self.root_pages} root table{'' if self.root_pages == 1 else 's'}"
        return (
            f"{self.ia_bits}-bit {addresses}, {_granule(self.granule_shift)} granule, {self.pa_bits}-bit PA{lpa2}, "
            f"starts at level {self.start_level} with {roots}"
        )

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

        Raises ValueError, with the first of `vtcr_problems`, where there is none.
        """
        geometry, problems = _read_vtcr(vtcr)
        if geometry is None:
            raise ValueError(f"VTCR_EL2: {problems[0]}")
        return geometry

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

    def to_vtcr(self, *, vmid16: bool, ha: bool) -> int:
        """The VTCR_EL2 that ``kvm_get_vtcr`` computes for this shape.

        ``vmid16`` sets VS, ``ha`` sets HA (5.10, 5.15: always; 6.1 on: CONFIG_ARM64_HW_AFDBM).  DS is ``lpa2``.
        Raises ValueError when start level or output size has no encoding.
        """
        if self.pa_bits not in PS_BITS:
            raise ValueError(f"no PS encoding for {self.pa_bits} output address bits")
        starts = {
            _start_level(self.granule_shift, sl0, sl2, self.lpa2): (sl0, sl2)
            for sl2 in (1, 0)
            for sl0 in (3, 2, 1, 0)
            if not sl2 or self.lpa2
        }
        if self.start_level not in starts:
            raise ValueError(f"no SL0 encoding for start level {self.start_level} with this granule")
        sl0, sl2 = starts[self.start_level]
        return encode_register(
            "vtcr_el2",
            {
                **VTCR_FIXED,
                "T0SZ": 64 - self.ia_bits,
                "SL0": sl0,
                "SL2": sl2,
                "TG0": {shift: value for value, shift in TG0_SHIFT.items()}[self.granule_shift],
                "PS": PS_BITS.index(self.pa_bits),
                "VS": int(vmid16),
                "HA": int(ha),
                "DS": int(self.lpa2),
            },
        )


def entry_geometry(level: int, granule: str, lpa2: bool, stage2: bool = True) -> Geometry:
    """The largest tree of this granule, for an entry of which only its level is known.

    ValueError, with a sentence for people, when there is no such level.
    """
    shift = GRANULES[granule]
    levels = levels_of(shift, lpa2, stage2)
    if level not in levels:
        lower = "" if lpa2 or levels == levels_of(shift, True) else f", and {levels[0] - 1} with --lpa2"
        raise ValueError(f"there is no level {level}: a {granule.upper()} granule has levels {levels[0]} to 3{lower}")
    bits = 52 if lpa2 or granule == "64k" else 48
    return Geometry.for_ipa(bits if lpa2 else 48, shift, bits, lpa2)
