"""S3 to S6 and S9: the tree is a tree, and every entry is one that KVM writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from inspector.check import excuses
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context, title
from inspector.check.ownership import Owned, Pointer
from inspector.check.places import Span, where_page, where_problem
from inspector.codec import InvalidForm, Kind
from inspector.codec.bulk import Flags, Words
from inspector.findings import Finding, Severity
from inspector.snapshot import PageState
from inspector.tables import ProblemKind
from inspector.tables.columns import Columns, address_mask

# --- S3: table pointers ---


@invariant(
    "S3",
    "Every table pointer names an allocated page of RAM inside the output size that no other entry, of this or any "
    "other VM, points to: the tables form a tree.",
    "DDI 0487 D8.3.1; kvm_pgtable walkers, kvm_s2_mm_ops.zalloc_page",
    function="table",
    form=True,
)
def table_pointers(rule: Judge, context: Context) -> Iterator[Finding]:
    first: dict[int, Pointer] = {}
    for pointer in context.pointers:
        earlier = first.setdefault(pointer.child, pointer)
        if pointer.at is not None:
            yield from _wrong_pointer(rule, context, pointer, earlier)
        elif earlier is not pointer and pointer.child == pointer.owned.view.root_pa:
            yield rule.error(
                pointer.where,
                "a root of its own",
                f"{pointer.child:#x} is also {earlier.text()}",
                "two guests on one table see each other's memory",
                "kvm_init_stage2_mmu",
                other=earlier.where,
            )
    for view in context.views:
        for problem in view.tree.problems:
            if problem.kind is ProblemKind.LIMIT:
                why = "the subtree is not shown or judged"
                yield rule.note(where_problem(view, problem), "a table that is read", problem.detail, why)


def _wrong_pointer(rule: Judge, context: Context, pointer: Pointer, earlier: Pointer) -> Iterator[Finding]:
    """The first reason for which ``pointer``, of an entry, is wrong."""
    geometry, pa = pointer.owned.view.geometry, pointer.child
    reason = context.capture.unreadable.get(pa)
    info = context.capture.page_info.get(pa)
    if pa >> geometry.pa_bits:
        yield rule.error(
            pointer.where,
            f"a table below {1 << geometry.pa_bits:#x}",
            f"{pa:#x}",
            "the address exceeds VTCR_EL2.PS: the CPU takes an address size fault",
        )
    elif not context.ram.has(pa, pa + geometry.granule):
        yield rule.error(
            pointer.where,
            "a table in RAM",
            f"{pa:#x} is not RAM",
            "the CPU reads something that is not a table, and takes an external abort or worse",
        )
    elif earlier is not pointer:
        yield rule.error(
            pointer.where,
            "a table with exactly one parent",
            f"{pa:#x} is also {'' if earlier.at is None else 'at '}{earlier.text()}",
            "an edit through one parent changes the other, and freeing one leaves the other dangling",
            other=earlier.where,
        )
    elif reason is not None or pa not in context.capture.pages:
        yield rule.error(
            pointer.where,
            "a table that can be read",
            f"{pa:#x}: {reason or 'it cannot be read'}",
            "the subtree below it is not shown or judged",
        )
    elif info is not None and info.state is not PageState.USED:
        yield rule.error(
            pointer.where,
            "an allocated page",
            f"{pa:#x} is {info.state} (reference count {info.refcount})",
            "the page may be given to somebody else while the CPU still walks it",
            "put",
        )


# --- S4: encodings ---


def _below(columns: Columns) -> Words:
    """The address bits of blocks below their size."""
    found: Words = (columns.child ^ columns.output) & ~np.uint64(1 << _NT)
    return found


def _described(span: Span) -> str:
    return f"{span.raw}, a {span.pattern.kind.value} at level {span.where.level}"


@invariant(
    "S4",
    "Valid entries are encoded as KVM makes them: level-3 entries have the type bit, blocks stand at the levels KVM "
    "uses (4K: 1 and 2; 16K, 64K: 2), a block's address is a multiple of its size, and no output exceeds VTCR_EL2.PS.",
    "DDI 0487 D8.3.1; kvm_level_supports_block_mapping, kvm_init_valid_leaf_pte",
    function="leaf",
    form=True,
)
def encodings(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        geometry, columns = owned.view.geometry, owned.columns
        for span in owned.spans(lambda d: d.kind is Kind.RESERVED):
            yield rule.error(
                span,
                "the type bit (1) set" if span.where.level == 3 else "no block at this level",
                _described(span),
                "the encoding is reserved: the CPU takes a translation fault, and KVM takes it for a leaf",
            )
        levels = geometry.block_levels
        for span in owned.spans(lambda d, levels=levels: d.kind is Kind.BLOCK and d.level not in levels):  # type: ignore[misc]
            yield rule.error(
                span,
                f"blocks at levels {', '.join(str(level) for level in sorted(levels - {3}))} only",
                _described(span),
                "the architecture allows it here, and KVM never makes it",
                "kvm_block_mapping_supported",
            )
        # Bit 16 of a block is nT, which is S5's.
        block = owned.matching(lambda d: d.kind is Kind.BLOCK)
        for span in owned.spans(columns.among(block, lambda c: _below(c) != 0)):
            yield rule.error(
                span,
                f"an address that is a multiple of {span.pattern.size:#x}",
                f"{span.raw}: bits {int(_below(columns.at([span.first]))[0]):#x} inside the block",
                "the bits are RES0 in a block: the CPU ignores them or does not",
            )
        end = np.uint64(1 << geometry.pa_bits)
        for span in owned.spans(columns.among(owned.leaf, lambda c, end=end: c.output >= end)):  # type: ignore[misc]
            yield rule.error(
                span,
                f"an output address below {1 << geometry.pa_bits:#x}",
                f"{span.output:#x}",
                "the address exceeds VTCR_EL2.PS: the CPU takes an address size fault",
            )


# --- S5: bits that must be zero ---

#: Bits of a valid leaf that no KVM writes (kernel.md 1.3, 19.3; DDI 0487 D8.3.1-2, stage 2 leaf attributes).
_LEAF_ZERO = {11: "FnXS", 50: "", 51: "DBM", 52: "Contiguous", 59: "PBHA", 60: "PBHA", 61: "PBHA", 62: "PBHA", 63: ""}
_NT = 16


def _leaf_zero(context: Context, owned: Owned) -> dict[int, str]:
    """Bits that must be zero in a leaf, with their names."""
    zero = dict(_LEAF_ZERO)
    if not owned.columns.format.xnx:
        zero[53] = "XN[0], without FEAT_XNX" if context.code.behaviours.two_bit_xn else ""
    if not owned.view.geometry.lpa2:
        zero |= {48: "", 49: ""}
    if owned.view.geometry.granule_shift == 14:
        zero |= {12: "", 13: ""}
    return zero


def _table_zero(owned: Owned) -> dict[int, str]:
    """Bits that must be zero in a table entry: all but the two type bits and the address (``kvm_init_table_pte``)."""
    geometry = owned.view.geometry
    used = 3 | (3 << 8 if geometry.lpa2 else 0) | (0xF << 12 if geometry.granule_shift == 16 else 0)
    used |= address_mask(geometry)
    return {bit: "" for bit in range(64) if not used >> bit & 1}


def _set_bits(raw: int, zero: Mapping[int, str]) -> str:
    """The bits of ``zero`` that are set in ``raw``, in words."""
    return ", ".join(f"{bit} ({name})" if name else f"{bit}" for bit, name in sorted(zero.items()) if raw >> bit & 1)


@invariant(
    "S5",
    "Reserved and ignored bits that KVM does not use are zero: 11, 50 to 52, 59 to 63 of a leaf, 53 unless XN has two "
    "bits, and all but the address of a table (the software bits [58:55] of a leaf are M9's).",
    "DDI 0487 D8.3.1-2; stage2_set_prot_attr, kvm_init_table_pte",
    function="attributes",
    why="KVM never sets them: the entry was written by something else, or by a KVM that does more",
    form=True,
)
def zero_bits(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        leaf_zero, table_zero = _leaf_zero(context, owned), _table_zero(owned)

        of_leaves, of_tables = (sum(1 << bit for bit in bits) for bits in (leaf_zero, table_zero))
        wrong = owned.leaf & owned.columns.having(of_leaves)
        wrong |= owned.columns.table & owned.mine & owned.columns.having(of_tables)
        found = [
            (span, _set_bits(span.pattern.raw, table_zero if span.pattern.kind is Kind.TABLE else leaf_zero))
            for span in owned.spans(wrong)
        ]
        # nT lies inside the address field of a block, so no pattern holds it.
        nt = owned.matching(lambda d: d.kind is Kind.BLOCK) & owned.columns.having(1 << _NT)
        found += [(span, f"{_NT} (nT)") for span in owned.spans(nt)]
        for span, which in found:
            function = "table-entry" if span.pattern.kind is Kind.TABLE else None
            yield rule.error(
                span, "zero in the bits that KVM does not use", f"{span.raw}: set: {which}", function=function
            )


# --- S6: invalid entries ---

_GUEST_POISONED = 3


@invariant(
    "S6",
    "An invalid entry of a guest's table has a form that this kernel generation writes: anything (5.10), else zero; "
    "LOCKED (bit 10 from 6.2, type 1 from 7.1) only while a walk is in progress; under pKVM also annotations.",
    "kvm_set_invalid_pte, stage2_try_break_pte, enum kvm_invalid_pte_type",
    function="invalid",
    why="this kernel clears the whole entry when it unmaps, so something else wrote it",
    form=True,
    passing=True,
)
def invalid_entries(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        if owned.columns.format.invalid is InvalidForm.STALE:
            continue
        locked = context.references[title(owned.view)].locked
        for span in owned.spans(locked):
            yield rule.error(
                span,
                "no LOCKED entry once a walk has ended",
                f"{span.raw}, LOCKED",
                "no CPU is inside a walk: every fault on it returns -EAGAIN for ever",
                "locked",
                excuse=excuses.locked(context.capture.host, owned.view.vm),
            )
        for span in owned.spans(~owned.columns.valid & ~locked & ~_allowed_annotation(context, owned)):
            yield rule.error(span, "zero", span.raw)


def _allowed_annotation(context: Context, owned: Owned) -> Flags:
    """Where an invalid entry is an annotation that pKVM puts into a guest's table (from 7.1: type POISONED)."""
    if not context.protected or owned.columns.format.invalid is not InvalidForm.TYPED:
        return np.zeros(len(owned.columns.raw), dtype=bool)
    poisoned: Flags = (owned.columns.raw >> np.uint64(60)) == np.uint64(_GUEST_POISONED)
    return poisoned


# --- S9: empty tables ---

#: A map that fails half-way keeps the tables it installed (kernel.md 4.1), and nobody undoes it: ``user_mem_abort``
#: tops the memory cache up for a permission fault only when it logs (6.1, 6.12), so a block of 1G that must become
#: pages may get a table for level 2, none for level 3, and -ENOMEM.  It may stay until its range is mapped again.
_FAILED = "legal for as long as nobody maps or unmaps its range: a map that failed half-way leaves one"
_FAILED_OR_UNMAPPING = "legal after a map that failed half-way, or while a walk is in progress"


@invariant(
    "S9",
    "No table but a root is empty: the unmap of its last entry frees it (an empty one is a note, since a map that "
    "failed half-way leaves one).",
    "stage2_unmap_walker, kvm_pgtable_stage2_map",
    function="put",
    form=True,
    passing=True,
)
def empty_tables(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        columns, roots = owned.columns, np.array(owned.view.root_pages(), dtype=np.uint64)
        entries = columns.valid if columns.format.invalid is InvalidForm.STALE else None
        empty = owned.pages & (columns.per_page(entries) == 0) & ~np.isin(columns.page_pa, roots)
        for row in np.flatnonzero(empty).tolist():
            where = where_page(owned.view, columns, row)
            found = rule.note(where, "a table with entries", "a table without entries", _FAILED_OR_UNMAPPING)
            yield replace(found, lasting=(Severity.NOTE, _FAILED))
