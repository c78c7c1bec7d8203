"""P1 to P4 and P7: who owns what under pKVM, by the host's stage 2, EL2's stage 1, the tables of guests that the
hypervisor keeps, and its own records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.own import Own
from inspector.check.pkvm_guests import (
    Guest,
    Guests,
    Wrong,
    given_to_nobody,
    lost_by_guests,
    not_recorded,
    shared_with_guests,
)
from inspector.check.pkvm_host import COUNTERPART, both_tables, in_transition, runs_of_pages
from inspector.check.places import where_view
from inspector.codec import Descriptor, InvalidForm, Kind, decode
from inspector.codec.bulk import Flags
from inspector.findings import Finding
from inspector.snapshot import Share

_HANDLES = range(0x1000, 0x1000 + 255)
"""``HANDLE_OFFSET`` and ``KVM_MAX_PVMS`` (nvhe/pkvm.c, asm/kvm_pkvm.h)."""
_FFA_OR_GUEST = 2
_DONATION = 2


def _of_guests(rule: Judge, context: Context, look: Callable[[Guests], Iterator[Wrong]]) -> Iterator[Finding]:
    for both in both_tables(context):
        for wrong in look(Guests(context, both)):
            yield rule.error(wrong.where, wrong.expected, wrong.actual, excuse=in_transition(context))


# --- P3: identity ---


@invariant(
    "P3",
    "The host's stage 2 maps every address to itself.",
    "nvhe/mem_protect.c: __host_stage2_idmap",
    function="host_stage2_idmap",
    why="the host reads and writes other memory than it means to",
)
def identity(rule: Judge, context: Context) -> Iterator[Finding]:
    for own in context.host_stage2:
        for span in own.spans(own.leaf & (own.columns.output != own.columns.ia)):
            yield rule.error(span, f"PA {span.where.ipa or 0:#x}", f"PA {span.output:#x}")
        for problem in own.view.tree.problems:
            where = where_view(own.view, ipa=problem.ia, level=problem.level, table_pa=problem.table_pa)
            yield rule.error(where, "a table that the CPU can walk", problem.detail)


# --- P1: owners ---


def _unknown_owner(own: Own, d: Descriptor) -> str | None:
    """What is wrong with an entry that is neither zero nor valid."""
    if d.format.invalid is not InvalidForm.TYPED:
        if d.kind is Kind.LOCKED:
            return "LOCKED" if d.raw == 1 << 10 else f"{d.raw:#x}"
        owner = d.field("owner")
        known = (1, _FFA_OR_GUEST) if own.code.behaviours.invalid is InvalidForm.LOCKED_BIT10 else (1,)
        return None if d.raw == owner << 2 and owner in known else f"owner {owner}"
    kind, owner = d.raw >> 60, d.field("owner")
    if kind != _DONATION:
        return f"type {kind}"
    if owner == _FFA_OR_GUEST:
        return None if d.field("handle") in _HANDLES else f"a guest with the handle {d.field('handle'):#x}"
    return None if owner == 1 and not d.field("metadata") else f"owner {owner}"


def _unknown(own: Own) -> Flags:
    """The entries with an owner that nobody knows.  An annotation has no address, so that all its bits tell."""
    columns = own.columns
    at = np.flatnonzero(~columns.valid)
    values, which = np.unique(columns.raw[at], return_inverse=True)
    levels = columns.level[at]
    wrong = np.zeros(len(columns.raw), dtype=bool)
    for number, raw in enumerate(values.tolist()):
        these = at[which == number]
        level = int(levels[which == number][0])
        wrong[these] = _unknown_owner(own, decode(raw, level, columns.geometry, columns.format)) is not None
    return wrong


@invariant(
    "P1",
    "Under pKVM each page has one owner: an entry of the host's stage 2 that is neither zero nor valid names one that "
    "the kernel knows, what the hypervisor has for its own the host has not, and what a guest has for its own the "
    "host's entry says to be that guest's, at that frame.",
    "enum pkvm_component_id; host_stage2_set_owner_locked; enum pkvm_page_state",
    function="host_stage2_set_owner_locked",
    why="what nobody owns is lost to the host, and what two own is no longer protected",
)
def owners(rule: Judge, context: Context) -> Iterator[Finding]:
    for own in context.host_stage2:
        for span in own.spans(_unknown(own)):
            found = own.descriptor(span)
            yield rule.error(
                span,
                "the hypervisor, a guest or nobody",
                f"{span.raw}: {_unknown_owner(own, found)}",
                excuse=in_transition(context),
            )
    yield from _of_guests(rule, context, lost_by_guests)
    yield from _of_guests(rule, context, given_to_nobody)
    for both in both_tables(context):
        if both.in_entries:
            continue  # the host's entry is its record: P4 has what contradicts it
        granule = both.hyp.columns.geometry.granule
        wrong = [pa for pa, (host, hyp) in both.states.items() if hyp is Share.OWNED and host is not Share.NOPAGE]
        for pa, many in runs_of_pages(wrong, granule):
            host, hyp = both.states[pa]
            said = f"page {pa:#x}{many}: {host.name} by the host, {hyp.name} by the hypervisor (hyp_vmemmap)"
            yield rule.error(both.where(pa), "one owner", said, excuse=in_transition(context))
        columns = both.host.columns
        mine = both.host.where(lambda d: d.kind is Kind.ANNOTATED)
        lost = [
            pa
            for start, size in zip(columns.ia[mine].tolist(), columns.size[mine].tolist(), strict=True)
            for pa in both.pages(start, size)
            if both.states.get(pa, (Share.OWNED, Share.NOPAGE))[0] is not Share.NOPAGE
        ]
        for pa, many in runs_of_pages(lost, granule):
            said = f"page {pa:#x}{many} is the host's in hyp_vmemmap, and annotated in its table"
            yield rule.error(both.where(pa), "one owner", said, excuse=in_transition(context))


# --- P2: shares ---


@invariant(
    "P2",
    "What the hypervisor or a guest borrows the host has shared, as often as it is counted, and what they share the "
    "host borrows.",
    "__pkvm_host_share_hyp, __pkvm_host_unshare_hyp; fix_host_ownership_walker",
    function="__pkvm_host_share_hyp",
    why="one side uses a page that the other may give away",
)
def shares(rule: Judge, context: Context) -> Iterator[Finding]:
    yield from _of_guests(rule, context, shared_with_guests)
    for both in both_tables(context):
        granule = both.hyp.columns.geometry.granule
        wrong = [pa for pa, (host, hyp) in both.states.items() if hyp in COUNTERPART and host is not COUNTERPART[hyp]]
        for pa, many in runs_of_pages(wrong, granule):
            host, hyp = both.states[pa]
            said = f"{host.name} by the host, {hyp.name} by the hypervisor{many}"
            yield rule.error(
                both.where(pa),
                f"page {pa:#x} {COUNTERPART[hyp].name} by the host",
                said,
                excuse=in_transition(context),
            )


# --- P4: what the host must not reach ---


@invariant(
    "P4",
    "No page of the hypervisor's own (its data, its pool, the table pages of its stage 1, of the host's stage 2 and of "
    "guests' that it keeps) is valid in the host's stage 2; its text may be, read-only (6.18+).",
    "nvhe/setup.c: fix_host_ownership_walker; __pkvm_host_donate_hyp",
    function="host_stage2_set_owner_locked",
    why="the host, which is not trusted, reads or writes the hypervisor's memory",
)
def hidden(rule: Judge, context: Context) -> Iterator[Finding]:
    for both in both_tables(context):
        granule = both.hyp.columns.geometry.granule
        owned = {pa: "the hypervisor's" for pa, (_, hyp) in both.states.items() if hyp is Share.OWNED}
        for guest in Guests(context, both).guests:
            owned |= dict.fromkeys(guest.tables, f"a table of {guest.owned.view.title}")
        for own in (both.hyp, both.host):
            for pa, level in zip(own.columns.page_pa.tolist(), own.columns.page_level.tolist(), strict=True):
                owned[pa] = f"a level-{level} table of {own.view.regime}"
        for area in both.hyp.view.table.areas:
            if area.name in ("hyp rodata", "hyp data", "hyp bss"):
                owned |= dict.fromkeys(range(area.start, area.end, granule), area.name)
        text = both.hyp.area("hyp text")
        wrong: list[int] = []
        for pa in sorted(owned):
            found = both.descriptor(pa)
            if found is not None and not found.valid:
                continue
            in_text = text is not None and text.start <= pa < text.end and not both.in_entries
            if found is not None and in_text and not found.writable:
                continue
            wrong.append(pa)
        for pa, many in runs_of_pages(wrong, granule):
            found = both.descriptor(pa)
            state = "nothing, so that the host's access maps it" if found is None else f"{found.raw:#018x}"
            said = f"page {pa:#x}{many}: {state}"
            yield rule.error(both.where(pa), f"an annotation: it is {owned[pa]}", said, excuse=in_transition(context))


# --- P7: the host's record of guests ---


@invariant(
    "P7",
    "What the host records of a guest whose table the hypervisor keeps is what that table maps (6.18+).",
    "struct pkvm_mapping; arch/arm64/kvm/pkvm.c: pkvm_pgtable_stage2_map, __pkvm_pgtable_stage2_unshare",
    function="pkvm_pgtable_stage2_map",
    why="the host unmaps, write-protects and takes back what its record has: the rest it never will",
)
def recorded(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        if not owned.view.mmu.at_el2:
            continue
        held = owned.view.vm.mmu_lock_held is not False
        excuse = "legal in the middle of an operation: mmu_lock is held, or it is not known" if held else None
        for wrong in not_recorded(Guest(owned)):
            yield rule.error(wrong.where, wrong.expected, wrong.actual, excuse=excuse)
