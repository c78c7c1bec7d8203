"""P1 to P4: who owns what under pKVM, by the host's stage 2, EL2's stage 1 and the hypervisor's own records.

The hypervisor's state of a page is in ``struct hyp_page`` (6.18, 7.3), and up to 6.12 in software bits [56:55] of EL2's
leaf of it in the half that maps memory (kernel.md 12.2); where the structure has the host's state alone, the
hypervisor's is not judged; private mappings (fixmap, stacks, vectors, devices) are not
judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice

import numpy as np

from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.own import Own, linear
from inspector.check.places import where_entry, where_view
from inspector.codec import Descriptor, InvalidForm, Kind, decode
from inspector.codec.bulk import Flags, Flat, Words
from inspector.findings import Finding, Where
from inspector.snapshot import Share

_HANDLES = range(0x1000, 0x1000 + 255)
"""``HANDLE_OFFSET`` and ``KVM_MAX_PVMS`` (nvhe/pkvm.c, asm/kvm_pkvm.h)."""
_FFA_OR_GUEST = 2
_EL2 = 2  # PSTATE.EL, M[3:2]
_MOST = 1 << 18
"""Pages of one entry that are looked at: a block of 1G."""
_DONATION = 2


@dataclass(frozen=True, eq=False)
class Hosts:
    """The host's stage 2 beside EL2's stage 1."""

    host: Own
    hyp: Own

    @cached_property
    def _entries(self) -> tuple[Words, Words, Flat]:
        """The entries that are no table pointers, by address: first address, last, position."""
        columns = self.host.columns
        at = np.flatnonzero(~self.host.table)
        at = at[np.argsort(columns.ia[at], kind="stable")]
        starts = columns.ia[at]
        return starts, starts + (columns.size[at] - np.uint64(1)), at

    def entry(self, pa: int) -> int | None:
        """The position of the host's entry for the page at ``pa``; ``None``: nothing there, and the host owns it."""
        starts, lasts, at = self._entries
        found = int(np.searchsorted(starts, np.uint64(pa), "right")) - 1
        return int(at[found]) if found >= 0 and int(lasts[found]) >= pa else None

    def descriptor(self, pa: int) -> Descriptor | None:
        at = self.entry(pa)
        return None if at is None else self.host.columns.decoded(at)

    def where(self, pa: int) -> Where:
        """The place of the host's entry for ``pa``."""
        at = self.entry(pa)
        if at is None:
            return where_view(self.host.view, ipa=pa, size=self.host.columns.geometry.granule)
        return where_entry(self.host.view, self.host.columns, at)

    def pages(self, start: int, size: int) -> Iterator[int]:
        """The pages of RAM in a range, as far as a host's tables go page by page."""
        granule = self.hyp.columns.geometry.granule
        parts = (
            range(max(start, low), min(start + size, high), granule) for low, high in self.hyp.view.capture.host.ram
        )
        return islice(chain.from_iterable(parts), _MOST)

    @property
    def in_entries(self) -> bool:
        """Page states are in software bits of the tables' entries."""
        return self.hyp.view.table.states_in_entries

    @cached_property
    def states(self) -> Mapping[int, tuple[Share, Share]]:
        """The states (host's, hypervisor's) of every page that is not just the host's, by PA."""
        granule = self.hyp.columns.geometry.granule
        recorded = self.hyp.view.table.states
        if recorded is not None:
            return {
                pa: (_share(run.host), _share(run.hyp)) for run in recorded for pa in range(run.start, run.end, granule)
            }
        found: dict[int, tuple[Share, Share]] = {}
        for pa, state in self._leaf_states():
            found[pa] = self.host_state(pa), state
        columns = self.host.columns
        shared = self.host.leaf & (columns.raw >> np.uint64(55) & np.uint64(3) != 0)
        for pa in columns.output[shared].tolist():
            found.setdefault(pa, (self.host_state(pa), Share.NOPAGE))
        return found

    def _leaf_states(self) -> Iterator[tuple[int, Share]]:
        """By software bits: each page of EL2's half for memory."""
        columns, chosen = self.hyp.columns, linear(self.hyp)
        if chosen is None:
            return
        some = columns.at(np.flatnonzero(chosen))
        for pa, size, raw in zip(some.output.tolist(), some.size.tolist(), some.raw.tolist(), strict=True):
            for page in self.pages(pa, size):
                yield page, Share(raw >> 55 & 3)

    def host_state(self, pa: int) -> Share:
        """The host's state of a page by its entry (kernel.md 12.2)."""
        found = self.descriptor(pa)
        if found is None or not found.raw:
            return Share.OWNED
        return Share(found.sw & 3) if found.valid else Share.NOPAGE


def _share(state: int) -> Share:
    """A state of ``struct hyp_page``; what is none of the three of a page that is there is ``NOPAGE``."""
    return Share(state) if state < Share.NOPAGE else Share.NOPAGE


def _in_transition(context: Context) -> str | None:
    """Why what contradicts may pass: pages change hands at EL2 alone, which is not interrupted."""
    for cpu in context.capture.host.cpus:
        if cpu.registers.get("cpsr", 0) >> 2 & 3 == _EL2:
            return f"legal while a page changes hands: CPU {cpu.index} is at EL2"
    return None


def _both(context: Context) -> Iterator[Hosts]:
    """Where the states of pages are known: a kernel that has them in hyp_vmemmap, unread, tells nothing."""
    if context.hyp and context.host_stage2:
        table = context.hyp[0].view.table
        if table.states is not None or table.states_in_entries:
            yield Hosts(context.host_stage2[0], context.hyp[0])


def _pages(wrong: list[int], granule: int) -> Iterator[tuple[int, str]]:
    """Runs of wrong pages: the first, and how many there are, in words."""
    start = 0
    for number, pa in enumerate(wrong):
        if number + 1 == len(wrong) or wrong[number + 1] != pa + granule:
            count = number + 1 - start
            yield wrong[start], f" ({count} pages)" if count > 1 else ""
            start = number + 1


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
    "the kernel knows, and what the hypervisor has for its own the host has not.",
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
                excuse=_in_transition(context),
            )
    for both in _both(context):
        if both.in_entries:
            continue  # the host's entry is its record: P4 has what contradicts it
        granule = both.hyp.columns.geometry.granule
        wrong = [pa for pa, (host, hyp) in both.states.items() if hyp is Share.OWNED and host is not Share.NOPAGE]
        for pa, many in _pages(wrong, granule):
            host, hyp = both.states[pa]
            said = f"page {pa:#x}{many}: {host.name} by the host, {hyp.name} by the hypervisor (hyp_vmemmap)"
            yield rule.error(both.where(pa), "one owner", said, excuse=_in_transition(context))
        columns = both.host.columns
        mine = both.host.where(lambda d: d.kind is Kind.ANNOTATED)
        lost = [
            pa
            for start, size in zip(columns.ia[mine].tolist(), columns.size[mine].tolist(), strict=True)
            for pa in both.pages(start, size)
            if both.states.get(pa, (Share.OWNED, Share.NOPAGE))[0] is not Share.NOPAGE
        ]
        for pa, many in _pages(lost, granule):
            said = f"page {pa:#x}{many} is the host's in hyp_vmemmap, and annotated in its table"
            yield rule.error(both.where(pa), "one owner", said, excuse=_in_transition(context))


# --- P2: shares ---


_COUNTERPART = {Share.SHARED_BORROWED: Share.SHARED_OWNED, Share.SHARED_OWNED: Share.SHARED_BORROWED}


@invariant(
    "P2",
    "What the hypervisor borrows the host has shared, and what it shares the host borrows.",
    "__pkvm_host_share_hyp, __pkvm_host_unshare_hyp; fix_host_ownership_walker",
    function="__pkvm_host_share_hyp",
    why="one side uses a page that the other may give away",
)
def shares(rule: Judge, context: Context) -> Iterator[Finding]:
    for both in _both(context):
        granule = both.hyp.columns.geometry.granule
        wrong = [pa for pa, (host, hyp) in both.states.items() if hyp in _COUNTERPART and host is not _COUNTERPART[hyp]]
        for pa, many in _pages(wrong, granule):
            host, hyp = both.states[pa]
            said = f"{host.name} by the host, {hyp.name} by the hypervisor{many}"
            yield rule.error(
                both.where(pa),
                f"page {pa:#x} {_COUNTERPART[hyp].name} by the host",
                said,
                excuse=_in_transition(context),
            )


# --- P4: what the host must not reach ---


@invariant(
    "P4",
    "No page of the hypervisor's own (its data, its pool, the table pages of its stage 1 and of the host's stage 2) is "
    "valid in the host's stage 2; its text may be, read-only (6.18+).",
    "nvhe/setup.c: fix_host_ownership_walker; __pkvm_host_donate_hyp",
    function="host_stage2_set_owner_locked",
    why="the host, which is not trusted, reads or writes the hypervisor's memory",
)
def hidden(rule: Judge, context: Context) -> Iterator[Finding]:
    for both in _both(context):
        granule = both.hyp.columns.geometry.granule
        owned = {pa: "the hypervisor's" for pa, (_, hyp) in both.states.items() if hyp is Share.OWNED}
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
        for pa, many in _pages(wrong, granule):
            found = both.descriptor(pa)
            state = "nothing, so that the host's access maps it" if found is None else f"{found.raw:#018x}"
            said = f"page {pa:#x}{many}: {state}"
            yield rule.error(both.where(pa), f"an annotation: it is {owned[pa]}", said, excuse=_in_transition(context))
