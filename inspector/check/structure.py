"""S3 to S6 and S9: the tree is a tree, and every entry is one that KVM writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from inspector.capture.view import TableView
from inspector.check.catalogue import invariant
from inspector.check.context import Context, Span, error, error_or_note, many, note, spans, where_view
from inspector.check.entries import Entries, Mask, address_mask
from inspector.check.ownership import Pointer
from inspector.codec import InvalidForm, Kind
from inspector.findings import Finding, Where
from inspector.snapshot import PageState

_LINK = "stage2_map_walk_leaf"
_MAKE = "stage2_map_walker_try_leaf"
_ATTR = "stage2_set_prot_attr"
_BREAK = "stage2_try_break_pte"


# --- S3: table pointers ---


@invariant(
    "S3",
    "Every table pointer names an allocated page of RAM inside the output size that no other entry, of this or any "
    "other VM, points to: the tables form a tree.",
    "DDI 0487 D8.3.1; kvm_pgtable walkers, kvm_s2_mm_ops.zalloc_page",
)
def table_pointers(context: Context) -> Iterator[Finding]:
    first: dict[int, Pointer] = {}
    for pointer in context.pointers:
        earlier = first.setdefault(pointer.child, pointer)
        if pointer.at is not None:
            wrong = _wrong_pointer(context, pointer, earlier)
            if wrong is not None:
                where = _entry_where(pointer.view, pointer.entries, pointer.at)
                yield error("S3", where, wrong[0], wrong[1], wrong[2], wrong[3])
        elif earlier is not pointer and pointer.child == pointer.view.root_pa:
            yield error(
                "S3",
                where_view(pointer.view, table_pa=pointer.child),
                "a root of its own",
                f"{pointer.child:#x} is also {earlier.place()}",
                "two guests on one table see each other's memory",
                "kvm_init_stage2_mmu",
            )
    for view in context.views:
        for problem in view.tree.problems:
            if problem.kind == "limit":
                where = where_view(
                    view,
                    ipa=problem.ia,
                    level=problem.level,
                    table_pa=problem.table_pa,
                    index=problem.index,
                    raw=problem.raw,
                )
                yield note("S3", where, "a table that is read", problem.detail, "the subtree is not shown or judged")


def _wrong_pointer(context: Context, pointer: Pointer, earlier: Pointer) -> tuple[str, str, str, str] | None:
    """(expected, actual, why, function) when ``pointer`` is wrong: the first reason that applies."""
    geometry, pa = pointer.view.geometry, pointer.child
    if pa >> geometry.pa_bits:
        return (
            f"a table below {1 << geometry.pa_bits:#x}",
            f"{pa:#x}",
            "the address exceeds VTCR_EL2.PS: the CPU takes an address size fault",
            _LINK,
        )
    if not context.is_ram(pa, geometry.granule):
        return (
            "a table in RAM",
            f"{pa:#x} is not RAM",
            "the CPU reads something that is no table, and takes an external abort or worse",
            _LINK,
        )
    if earlier is not pointer:
        place = earlier.place()
        return (
            "a table with exactly one parent",
            f"{pa:#x} is also {'' if earlier.at is None else 'at '}{place}",
            "an edit through one parent changes the other, and freeing one leaves the other dangling",
            _LINK,
        )
    reason = context.capture.unreadable.get(pa)
    if reason is None and pa not in context.capture.pages:
        reason = "it cannot be read"
    if reason is not None:
        return "a table that can be read", f"{pa:#x}: {reason}", "the subtree below it is not shown or judged", _LINK
    info = context.capture.page_info.get(pa)
    if info is not None and info.state is not PageState.USED:
        return (
            "an allocated page",
            f"{pa:#x} is {info.state} (reference count {info.refcount})",
            "the page may be given to somebody else while the CPU still walks it",
            "stage2_unmap_walker",
        )
    return None


def _entry_where(view: TableView, entries: Entries, at: int) -> Where:
    return where_view(
        view,
        ipa=int(entries.ia[at]),
        size=int(entries.size[at]),
        level=int(entries.level[at]),
        table_pa=int(entries.table_pa[at]),
        index=int(entries.index[at]),
        raw=int(entries.raw[at]),
    )


# --- S4: encodings ---


def _described(entries: Entries, span: Span) -> str:
    raw, pattern = span.where.raw or 0, entries.patterns[entries.pattern[span.first]]
    return f"{raw:#018x}, a {pattern.kind.value} at level {span.where.level}{many(span.count)}"


@invariant(
    "S4",
    "Valid entries are encoded as KVM makes them: level-3 entries have the type bit, blocks stand at the levels KVM "
    "uses (4K: 1 and 2; 16K, 64K: 2), a block's address is a multiple of its size, and no output exceeds VTCR_EL2.PS.",
    "DDI 0487 D8.3.1; kvm_level_supports_block_mapping, kvm_init_valid_leaf_pte",
)
def encodings(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, entries, geometry = owned.view, owned.entries, owned.view.geometry
        for span in spans(view, entries, entries.matching(lambda d: d.kind is Kind.RESERVED)):
            expected = "the type bit (1) set" if span.where.level == 3 else "no block at this level"
            yield error(
                "S4",
                span.where,
                expected,
                _described(entries, span),
                "the encoding is reserved: the CPU takes a translation fault, and KVM takes it for a leaf",
                _MAKE,
            )
        odd_level = entries.leaf & entries.matching(lambda d, g=geometry: d.level not in g.block_levels)  # type: ignore[misc]
        for span in spans(view, entries, odd_level):
            yield error(
                "S4",
                span.where,
                f"blocks at levels {_levels(geometry.block_levels)} only",
                _described(entries, span),
                "the architecture allows it here, and KVM never makes it",
                "kvm_block_mapping_supported",
            )
        # Bit 16 of a block is nT, which is S5's.
        low = entries.address_bits & (entries.size - np.uint64(1)) & np.uint64(~(1 << _NT) & (1 << 64) - 1)
        for span in spans(view, entries, entries.leaf & (low != 0)):
            yield error(
                "S4",
                span.where,
                f"an address that is a multiple of {span.where.size or 0:#x}"
                if span.count == 1
                else "addresses that are multiples of the block's size",
                f"{span.where.raw or 0:#018x}: bits {int(low[span.first]):#x} inside the block{many(span.count)}",
                "the bits are RES0 in a block: the CPU ignores them or does not",
                _MAKE,
            )
        beyond = entries.leaf & (entries.output >= np.uint64(1 << geometry.pa_bits))
        for span in spans(view, entries, beyond):
            yield error(
                "S4",
                span.where,
                f"an output address below {1 << geometry.pa_bits:#x}",
                f"{int(entries.output[span.first]):#x}{many(span.count)}",
                "the address exceeds VTCR_EL2.PS: the CPU takes an address size fault",
                _MAKE,
            )


def _levels(levels: frozenset[int]) -> str:
    return ", ".join(str(level) for level in sorted(levels - {3}))


# --- S5: bits that must be zero ---

#: Bits of a valid leaf that no KVM writes (kernel.md 1.3, 19.3; DDI 0487 D8.3.1-2, stage 2 leaf attributes).
_LEAF_ZERO = {11: "FnXS", 50: "", 51: "DBM", 52: "Contiguous", 59: "PBHA", 60: "PBHA", 61: "PBHA", 62: "PBHA", 63: ""}
_NT = 16


def _leaf_zero(context: Context, view: TableView) -> dict[int, str]:
    """Bits that must be zero in a leaf of ``view``, with their names."""
    zero = dict(_LEAF_ZERO)
    if not view.format.xnx:
        zero[53] = "XN[0], without FEAT_XNX" if context.code.behaviours.two_bit_xn else ""
    if not view.geometry.lpa2:
        zero |= {48: "", 49: ""}
    if view.geometry.granule_shift == 14:
        zero |= {12: "", 13: ""}
    return zero


def _table_zero(view: TableView) -> dict[int, str]:
    """Bits that must be zero in a table entry: all but the two type bits and the address (``kvm_init_table_pte``)."""
    used = 3 | (3 << 8 if view.geometry.lpa2 else 0) | (0xF << 12 if view.geometry.granule_shift == 16 else 0)
    used |= address_mask(view.geometry)
    return {bit: "" for bit in range(64) if not used >> bit & 1}


def _set_bits(raw: int, zero: Mapping[int, str]) -> str:
    """The bits of ``zero`` that are set in ``raw``, in words."""
    return ", ".join(f"{bit} ({name})" if name else f"{bit}" for bit, name in sorted(zero.items()) if raw >> bit & 1)


@invariant(
    "S5",
    "Reserved and ignored bits that KVM does not use are zero: 11, 50 to 52, 59 to 63 of a leaf, 53 unless XN has two "
    "bits, and all but the address of a table (the software bits [58:55] of a leaf are M9's).",
    "DDI 0487 D8.3.1-2; stage2_set_prot_attr, kvm_init_table_pte",
)
def zero_bits(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        leaf_zero, table_zero = _leaf_zero(context, view), _table_zero(view)
        wrong = [
            _set_bits(p.raw, table_zero if p.kind is Kind.TABLE else leaf_zero if p.kind.is_leaf else {})
            for p in entries.patterns
        ]
        flags = np.array([bool(text) for text in wrong] or [False])
        for span in spans(view, entries, flags[entries.pattern]):
            yield _zero_finding(span, wrong[entries.pattern[span.first]])
        # nT lies inside the address field of a block, so no pattern holds it.
        block = entries.matching(lambda d: d.kind is Kind.BLOCK)
        for span in spans(view, entries, block & ((entries.raw >> np.uint64(_NT) & np.uint64(1)) != 0)):
            yield _zero_finding(span, f"{_NT} (nT)")


def _zero_finding(span: Span, which: str) -> Finding:
    return error(
        "S5",
        span.where,
        "zero in the bits that KVM does not use",
        f"{span.where.raw or 0:#018x}: set: {which}{many(span.count)}",
        "KVM never sets them: the entry was written by something else, or by a KVM that does more",
        _ATTR,
    )


# --- S6: invalid entries ---

_GUEST_POISONED = 3


@invariant(
    "S6",
    "An invalid entry of a guest's table has a form that this kernel generation writes: anything (5.10), else zero; "
    "LOCKED (bit 10 from 6.2, type 1 from 7.1) only while a walk is in progress; under pKVM also annotations.",
    "kvm_set_invalid_pte, stage2_try_break_pte, enum kvm_invalid_pte_type",
)
def invalid_entries(context: Context) -> Iterator[Finding]:
    form = context.code.behaviours.invalid
    if form is InvalidForm.STALE:
        return
    locked = context.code.behaviours.locked_value
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        invalid = (entries.raw & np.uint64(1)) == 0
        is_locked = invalid & (entries.raw == np.uint64(locked)) if locked else np.zeros_like(invalid)
        walkers = context.walk_in_progress(view.vm)
        for span in spans(view, entries, is_locked):
            excuse = None
            if walkers is not None:
                excuse = f"a walk may have been in progress ({walkers}): it replaces the mark before it ends"
            yield error_or_note(
                "S6",
                span.where,
                "no LOCKED entry once a walk has ended",
                f"{span.where.raw or 0:#018x}, LOCKED{many(span.count)}",
                "no CPU is inside a walk: every fault on it returns -EAGAIN for ever",
                _BREAK,
                excuse,
            )
        other = invalid & ~is_locked & ~_allowed_annotation(context, entries)
        for span in spans(view, entries, other):
            yield error(
                "S6",
                span.where,
                "zero",
                f"{span.where.raw or 0:#018x}{many(span.count)}",
                "this kernel clears the whole entry when it unmaps, so something else wrote it",
                "kvm_clear_pte",
            )


def _allowed_annotation(context: Context, entries: Entries) -> Mask:
    """Where an invalid entry is an annotation that pKVM puts into a guest's table (from 7.1: type POISONED)."""
    if not context.protected or context.code.behaviours.invalid is not InvalidForm.TYPED:
        return np.zeros(len(entries.raw), dtype=bool)
    poisoned: Mask = (entries.raw >> np.uint64(60)) == np.uint64(_GUEST_POISONED)
    return poisoned


# --- S9: empty tables ---


@invariant(
    "S9",
    "No table but a root is empty: the unmap of its last entry frees it (an empty one is a note, since a map that "
    "failed half-way leaves one).",
    "stage2_unmap_walker, kvm_pgtable_stage2_map",
)
def empty_tables(context: Context) -> Iterator[Finding]:
    valid_only = context.code.behaviours.invalid is InvalidForm.STALE
    for owned in context.owned:
        view = owned.view
        roots = set(view.root_pages())
        for table in (view.tree.tables[number] for number in owned.tables.values()):
            words = np.frombuffer(table.raw, dtype="<u8")
            if table.pa in roots or bool((words & np.uint64(1) if valid_only else words).any()):
                continue
            yield note(
                "S9",
                where_view(view, ipa=table.ia, level=table.level, table_pa=table.pa),
                "a table with entries",
                "an empty table",
                "legal after a map that failed half-way, or while an unmap is in progress",
                "stage2_unmap_walker",
            )
