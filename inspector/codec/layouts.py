"""The field tables: where every bit of every kind of entry lives, for each regime, granule, level and format.

`rules` says which kind a value is, `layout` which fields it has.  Both are tables, evaluated by the scalar decoder
here and by the numpy decoder in `inspector.codec.bulk`.  Sources: DDI 0487 D8.3 (descriptors), D8.4 (permissions),
D8.6 (memory attributes), and the kernel's ``hyp/pgtable.c``, ``kvm_pgtable.h`` and ``pgtable-{hwdef,prot}.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from inspector.codec.bits import Field, Layout, Part, bits, mask
from inspector.codec.formats import Format, InvalidForm, Kind, Regime
from inspector.codec.geometry import LAST_LEVEL, Geometry

VALID = 1 << 0
TYPE = 1 << 1
LINUX_PROT_NONE = 1 << 58
"""PTE_PROT_NONE up to 6.1."""
LINUX_PMD_PRESENT_INVALID = 1 << 59
"""PMD_PRESENT_INVALID up to 6.1."""
LINUX_PRESENT_INVALID = 1 << 11
"""PTE_PRESENT_INVALID, which is PTE_NG, from 6.12 on."""

TYPE_LOCKED = 1
"""``KVM_INVALID_PTE_TYPE_LOCKED`` (7.3), in bits [63:60] of an invalid entry."""
TYPE_DONATION = 2
"""``KVM_HOST_INVALID_PTE_TYPE_DONATION`` (7.3)."""
TYPE_POISONED = 3
"""``KVM_GUEST_INVALID_PTE_TYPE_POISONED`` (7.3)."""
DONATED_TO_GUEST = 2
"""``PKVM_ID_GUEST`` (7.3): a donation to a guest carries the VM's handle and the gfn."""


@dataclass(frozen=True)
class Rule:
    """An entry is of ``kind`` when ``(raw & mask) == value``, or ``!=`` with ``negate``; the first to hold wins."""

    mask: int
    value: int
    kind: Kind
    negate: bool = False


def _invalid_rules(fmt: Format) -> tuple[Rule, ...]:
    """Rules for entries with bit 0 clear, tried when no rule for valid ones held.  The last one always holds."""
    rest = Rule(0, 0, Kind.INVALID)
    if fmt.regime is Regime.LINUX_STAGE1:
        return (Rule(mask(63, 0), 0, Kind.ANNOTATED, negate=True), rest)
    if fmt.regime is Regime.HYP_STAGE1:
        return (rest,)
    owner = Rule(mask(9, 2), 0, Kind.ANNOTATED, negate=True)
    if fmt.invalid is InvalidForm.OWNER:
        return (owner, rest)
    if fmt.invalid is InvalidForm.LOCKED_BIT10:
        return (Rule(1 << 10, 1 << 10, Kind.LOCKED), owner, rest)
    if fmt.invalid is InvalidForm.TYPED:
        return (
            Rule(mask(63, 60), TYPE_LOCKED << 60, Kind.LOCKED),
            Rule(mask(63, 60), 0, Kind.ANNOTATED, negate=True),
            rest,
        )
    return (rest,)


def _present_invalid_rules(level: int, geometry: Geometry, fmt: Format) -> tuple[Rule, ...]:
    """Linux entries that are present and not valid (``pte_present_invalid``, ``pmd_trans_huge``)."""
    if fmt.regime is not Regime.LINUX_STAGE1 or level not in geometry.arch_block_levels:
        return ()
    kind = Kind.PAGE if level == LAST_LEVEL else Kind.BLOCK
    type_bit = 0 if level == LAST_LEVEL else TYPE
    if fmt.linux_612:
        marks: tuple[int, ...] = (LINUX_PRESENT_INVALID,)
    elif level == LAST_LEVEL:
        marks = (LINUX_PROT_NONE,)
    else:
        marks = (LINUX_PROT_NONE, LINUX_PMD_PRESENT_INVALID)
    return tuple(Rule(VALID | type_bit | mark, mark, kind) for mark in marks)


@lru_cache(maxsize=1024)
def rules(level: int, geometry: Geometry, fmt: Format) -> tuple[Rule, ...]:
    """The rules that classify an entry at ``level``, in the order they are tried; the last one always holds.

    A rule for a leaf tests for equality and is exact by itself: a value that satisfies it satisfies no earlier one of
    another kind.  DDI 0487 D8.3 and AArch64.BlockDescSupported.
    """
    if not -1 <= level <= LAST_LEVEL:
        raise ValueError(f"there is no level {level}")
    both = VALID | TYPE
    if level == LAST_LEVEL:
        valid: tuple[Rule, ...] = (Rule(both, both, Kind.PAGE), Rule(both, VALID, Kind.RESERVED))
    else:
        block = Kind.BLOCK if level in geometry.arch_block_levels else Kind.RESERVED
        valid = (Rule(both, both, Kind.TABLE), Rule(both, VALID, block))
    return valid + _present_invalid_rules(level, geometry, fmt) + _invalid_rules(fmt)


def first(which: tuple[Rule, ...], raw: int) -> Kind:
    """The kind that the first rule to hold gives."""
    for rule in which:
        if ((raw & rule.mask) == rule.value) is not rule.negate:
            return rule.kind
    raise AssertionError("the last rule always holds")


def classify(raw: int, level: int, geometry: Geometry, fmt: Format) -> Kind:
    """The kind of a 64-bit entry at ``level``."""
    return first(rules(level, geometry, fmt), raw)


# ---------------------------------------------------------------------------------------------------------------
# Attribute fields.  A row is a field and the condition under which it is there.

Condition = Callable[[Geometry, Format], bool]


def _always(_geometry: Geometry, _fmt: Format) -> bool:
    return True


def _if(flag: str, value: bool = True) -> Condition:
    """The format has ``flag`` at this value; of ``lpa2``, the geometry."""
    return lambda geometry, fmt: getattr(geometry if flag == "lpa2" else fmt, flag) is value


_NO_LPA2 = _if("lpa2", False)
"""With DS=1 bits [9:8] are address bits (DDI 0487 D8.3)."""

Rows = tuple[tuple[Field, Condition], ...]

_TYPE_BITS: Rows = (
    (bits("valid", 0, source="DDI 0487 D8.3"), _always),
    (bits("type", 1, source="DDI 0487 D8.3"), _always),
)

_STAGE2_LEAF: Rows = (
    *_TYPE_BITS,
    (bits("memattr", 5, 2, "DDI 0487 D8.6; KVM_PTE_LEAF_ATTR_LO_S2_MEMATTR"), _always),
    (bits("s2ap", 7, 6, "DDI 0487 D8.4; KVM_PTE_LEAF_ATTR_LO_S2_S2AP_R, _W"), _always),
    (bits("sh", 9, 8, "DDI 0487 D8.6; KVM_PTE_LEAF_ATTR_LO_S2_SH"), _NO_LPA2),
    (bits("af", 10, source="DDI 0487 D8.5; KVM_PTE_LEAF_ATTR_LO_S2_AF"), _always),
    (bits("fnxs", 11, source="DDI 0487 D8.3, FEAT_XS"), _always),
    (bits("dbm", 51, source="DDI 0487 D8.5"), _always),
    (bits("contiguous", 52, source="DDI 0487 D8.7"), _always),
    (bits("xn", 54, 53, "DDI 0487 D8.4, FEAT_XNX; KVM_PTE_LEAF_ATTR_HI_S2_XN, 7.3"), _if("xnx")),
    (bits("xn", 54, source="DDI 0487 D8.4; KVM_PTE_LEAF_ATTR_HI_S2_XN"), _if("xnx", False)),
    (bits("sw", 58, 55, "DDI 0487 D8.3: for software; KVM_PTE_LEAF_ATTR_HI_SW"), _always),
    (bits("pbha", 62, 59, "DDI 0487 D8.3, FEAT_HPDS2"), _always),
)

_STAGE1_LEAF: Rows = (
    *_TYPE_BITS,
    (bits("attrindx", 4, 2, "DDI 0487 D8.6"), _always),
    (bits("ns", 5, source="DDI 0487 D8.3"), _always),
    (bits("ap", 7, 6, "DDI 0487 D8.4: AP[2:1]"), _always),
    (bits("sh", 9, 8, "DDI 0487 D8.6"), _NO_LPA2),
    (bits("af", 10, source="DDI 0487 D8.5"), _always),
    (bits("ng", 11, source="DDI 0487 D8.3; PTE_NG, which on an invalid Linux entry is PRESENT_INVALID"), _always),
    (bits("gp", 50, source="DDI 0487 D8.4, FEAT_BTI"), _always),
    (bits("dbm", 51, source="DDI 0487 D8.5; PTE_WRITE"), _always),
    (bits("contiguous", 52, source="DDI 0487 D8.7"), _always),
)

_HYP_LEAF: Rows = (
    *_STAGE1_LEAF,
    (bits("pxn", 53, source="DDI 0487 D8.4; KVM_PTE_LEAF_ATTR_HI_S1_PXN"), _if("hvhe")),
    (bits("uxn", 54, source="DDI 0487 D8.4; KVM_PTE_LEAF_ATTR_HI_S1_UXN"), _if("hvhe")),
    (bits("xn", 54, source="DDI 0487 D8.4; KVM_PTE_LEAF_ATTR_HI_S1_XN"), _if("hvhe", False)),
    (bits("sw", 58, 55, "DDI 0487 D8.3: for software; KVM_PTE_LEAF_ATTR_HI_SW"), _always),
    (bits("pbha", 62, 59, "DDI 0487 D8.3, FEAT_HPDS2"), _always),
)

_LINUX_LEAF: Rows = (
    *_STAGE1_LEAF,
    (bits("pxn", 53, source="DDI 0487 D8.4; PTE_PXN"), _always),
    (bits("uxn", 54, source="DDI 0487 D8.4; PTE_UXN"), _always),
    (bits("dirty", 55, source="PTE_DIRTY"), _always),
    (bits("special", 56, source="PTE_SPECIAL"), _always),
    (bits("devmap", 57, source="PTE_DEVMAP, up to 6.12"), _always),
    (bits("prot_none", 58, source="PTE_PROT_NONE, up to 6.1"), _if("linux_612", False)),
    (bits("pmd_present_invalid", 59, source="PMD_PRESENT_INVALID, up to 6.1"), _if("linux_612", False)),
    (bits("pbha", 62, 60, "DDI 0487 D8.3, FEAT_HPDS2 (bit 59 is Linux's)"), _if("linux_612", False)),
    (bits("uffd_wp", 58, source="PTE_UFFD_WP"), _if("linux_612")),
    (bits("poindex", 62, 60, "DDI 0487 D8.4, FEAT_S1POE; PTE_PO_IDX_MASK"), _if("linux_612")),
)

_STAGE2_TABLE: Rows = (
    *_TYPE_BITS,
    (bits("ignored_lo", 11, 2, "DDI 0487 D8.3: IGNORED"), _NO_LPA2),
    (Field("ignored_lo", (Part(7, 2, 2), Part(11, 10, 10)), "DDI 0487 D8.3: IGNORED"), _if("lpa2")),
    (bits("ignored_hi", 58, 51, "DDI 0487 D8.3: IGNORED"), _always),
)

_STAGE1_TABLE: Rows = (
    *_STAGE2_TABLE,
    (bits("pxn_table", 59, source="DDI 0487 D8.4; PMD_TABLE_PXN"), _always),
    (bits("uxn_table", 60, source="DDI 0487 D8.4; PMD_TABLE_UXN, XNTable at EL2"), _always),
    (bits("ap_table", 62, 61, "DDI 0487 D8.4"), _always),
    (bits("ns_table", 63, source="DDI 0487 D8.3"), _always),
)

_ATTRIBUTES: dict[tuple[Regime, bool], Rows] = {
    (Regime.STAGE2, True): _STAGE2_LEAF,
    (Regime.STAGE2, False): _STAGE2_TABLE,
    (Regime.HYP_STAGE1, True): _HYP_LEAF,
    (Regime.HYP_STAGE1, False): _STAGE1_TABLE,
    (Regime.LINUX_STAGE1, True): _LINUX_LEAF,
    (Regime.LINUX_STAGE1, False): _STAGE1_TABLE,
}

_OWNER = bits("owner", 9, 2, "KVM_INVALID_PTE_OWNER_MASK")
_ANNOTATION_TYPE = bits("annotation_type", 63, 60, "KVM_INVALID_PTE_TYPE_MASK")
_TYPED = (bits("annotation", 59, 1, "KVM_INVALID_PTE_ANNOT_MASK"), _ANNOTATION_TYPE)

_INVALID_FIELDS: dict[tuple[InvalidForm, Kind], tuple[Field, ...]] = {
    (InvalidForm.STALE, Kind.INVALID): (bits("stale", 63, 1, "5.10 kvm_set_invalid_pte"),),
    (InvalidForm.OWNER, Kind.ANNOTATED): (_OWNER,),
    (InvalidForm.LOCKED_BIT10, Kind.ANNOTATED): (_OWNER,),
    (InvalidForm.LOCKED_BIT10, Kind.LOCKED): (_OWNER, bits("locked", 10, source="KVM_INVALID_PTE_LOCKED")),
    (InvalidForm.TYPED, Kind.LOCKED): _TYPED,
    (InvalidForm.TYPED, Kind.ANNOTATED): _TYPED,
}

_DONOR = bits("owner", 3, 1, "KVM_HOST_DONATION_PTE_OWNER_MASK")
_DONATION = (_DONOR, bits("metadata", 59, 4, "KVM_HOST_DONATION_PTE_EXTRA_MASK"), _ANNOTATION_TYPE)
_DONATION_TO_GUEST = (
    _DONOR,
    bits("handle", 19, 4, "7.3 pkvm: handle of the owning VM"),
    bits("gfn", 59, 20, "7.3 pkvm: frame in the owning VM"),
    _ANNOTATION_TYPE,
)

_SWAP_OLD = (
    bits("exclusive", 2, source="PTE_SWP_EXCLUSIVE"),
    bits("swap_type", 7, 3, "__SWP_TYPE_SHIFT, 6.1"),
    bits("swap_offset", 57, 8, "__SWP_OFFSET_SHIFT, 6.1"),
)

_SWAP_NEW = (
    bits("exclusive", 2, source="PTE_SWP_EXCLUSIVE"),
    bits("uffd_wp", 3, source="PTE_SWP_UFFD_WP"),
    bits("swap_type", 10, 6, "__SWP_TYPE_SHIFT, 6.12"),
    bits("swap_offset", 61, 12, "__SWP_OFFSET_SHIFT, 6.12"),
)


def _address_fields(kind: Kind, level: int, geometry: Geometry) -> list[Field]:
    """Where the output address (or next-level table address) is, and the address bits a block must keep zero.

    DDI 0487 D8.3, the Table, Block and Page descriptor figures for each granule and for DS=1.
    """
    low = geometry.level_shift(level) if kind is Kind.BLOCK else geometry.granule_shift
    parts = [Part(49 if geometry.lpa2 else 47, low, low)]
    if geometry.lpa2:
        parts.append(Part(9, 8, 50))
    if geometry.granule_shift == 16:
        parts.append(Part(15, 12, 48))
    fields = [Field("output_address", tuple(parts), "DDI 0487 D8.3; kvm_pte_to_phys")]
    if kind is Kind.BLOCK:
        fields.append(bits("nt", 16, source="DDI 0487 D8.3, FEAT_BBM"))
        res0 = [Part(low - 1, 17, 17)]
        if geometry.granule_shift != 16:
            res0.append(Part(15, 12, 12))
        fields.append(Field("oa_res0", tuple(res0), "DDI 0487 D8.3: RES0 below the block's address"))
    return fields


def variant(kind: Kind, fmt: Format, annotation_type: int, owner: int) -> str:
    """Which of several layouts an annotation of 7.3 has: told by its type, then by its owner."""
    if fmt.regime is Regime.STAGE2 and fmt.invalid is InvalidForm.TYPED and kind is Kind.ANNOTATED:
        if annotation_type == TYPE_DONATION:
            return "guest" if owner == DONATED_TO_GUEST else "donation"
        return "other"
    return ""


@lru_cache(maxsize=4096)
def layout(kind: Kind, level: int, geometry: Geometry, fmt: Format, variant: str = "") -> Layout:
    """The fields of an entry of ``kind`` at ``level``; ``variant`` as from `variant`.

    Raises ValueError for a kind that the level does not have.
    """
    possible = {Kind.PAGE: level == LAST_LEVEL, Kind.TABLE: level < LAST_LEVEL}
    possible[Kind.BLOCK] = level < LAST_LEVEL and level in geometry.arch_block_levels
    if not possible.get(kind, True):
        raise ValueError(f"there is no {kind.value} at level {level} with this geometry")
    if kind.is_leaf or kind is Kind.TABLE:
        rows = _ATTRIBUTES[fmt.regime, kind.is_leaf]
        attributes = [field for field, present in rows if present(geometry, fmt)]
        return Layout(attributes + _address_fields(kind, level, geometry))
    valid, type_bit = (field for field, _ in _TYPE_BITS)
    if kind is Kind.RESERVED:
        return Layout((valid, type_bit))
    if fmt.regime is Regime.LINUX_STAGE1 and kind is Kind.ANNOTATED:
        return Layout((valid, *(_SWAP_NEW if fmt.linux_612 else _SWAP_OLD)))
    if fmt.regime is not Regime.STAGE2:
        return Layout((valid,))
    if variant == "donation":
        return Layout((valid, *_DONATION))
    if variant == "guest":
        return Layout((valid, *_DONATION_TO_GUEST))
    return Layout((valid, *_INVALID_FIELDS.get((fmt.invalid, kind), ())))
