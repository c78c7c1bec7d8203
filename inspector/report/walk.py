"""The translation of one guest address, level by level (`inspector walk`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from inspector.backing import BackingRuns
from inspector.capture.selection import translate_by_guest
from inspector.capture.view import TableView, View
from inspector.codec import Kind
from inspector.report.decode import Fields, Leaf, parts
from inspector.report.document import Document, Hex, Level, Number, Raw, Record, hex_or_null, hexed, table_name
from inspector.report.format import Lines, Painter, address, fields, raw
from inspector.report.memslots import flags_text
from inspector.snapshot import Backing, BackingState, Capture, Memslot, MmuKind, Vm
from inspector.tables import Translation


class StepFacts(Record, frozen=True):
    """One level: the entry that was used, and where it is."""

    level: Level
    root_page: Annotated[Number | None, Meta(description="Which of the concatenated root tables.")]
    table_pa: Hex
    index: Number
    entry_pa: Hex
    raw: Raw
    kind: Kind
    pa: Hex | None
    fields: Fields
    text: str
    leaf: Leaf | UnsetType = UNSET


class SlotOfAddress(Record, frozen=True):
    """The slot that an IPA is in, and what the VMM's own page tables have there."""

    slot: Number
    hva: Hex
    pa: Hex | None
    state: BackingState | None


class GuestWalk(Record, frozen=True):
    """The guest hypervisor's own translation of an address of its guest (L2): what a shadow table was made of.

    Table addresses, and the result, are addresses of the hypervisor (L1).
    """

    vttbr: Raw
    vtcr: Raw
    root: Hex
    l1: Annotated[Hex | None, Meta(description="The address of L1.")]
    verdict: str
    steps: Sequence[StepFacts]


class Walk(Document, frozen=True, kw_only=True):
    """`inspector walk`."""

    command: Literal["walk"] = "walk"
    vm: Annotated[str | None, Meta(description="`null`: a table of the host's own.")]
    pid: Number | None
    vmm: str | None
    regime: str
    root: Hex
    ipa: Annotated[Hex, Meta(description="Of `hyp stage-1` a virtual address.")]
    pa: Hex | None
    verdict: str
    backing: SlotOfAddress | None
    steps: Sequence[StepFacts]
    guest: Annotated[
        GuestWalk | UnsetType | None,
        Meta(description="`--shadow`: `null` where L1's HCR_EL2.VM is clear; `backing` is then, and with it, L1's."),
    ] = UNSET


def _slot_of(capture: Capture, vm: Vm, ipa: int) -> tuple[Memslot, int, Backing | None, int | None] | None:
    """The slot of ``ipa``, its HVA, the run of the VMM's pages there, and the PA in it; ``None`` when in no slot."""
    page = capture.host.page_size
    for slot in vm.memslots:
        offset = ipa - slot.base_gfn * page
        if 0 <= offset < slot.npages * page:
            hva = slot.userspace_addr + offset
            run = BackingRuns.of(slot.backing).at(hva)
            return slot, hva, run, None if run is None or run.pa is None else run.pa + hva - run.hva
    return None


def _steps(translation: Translation) -> list[StepFacts]:
    return [
        StepFacts(
            step.level, step.root_page, hexed(step.table_pa), step.index, hexed(step.entry_pa), *parts(step.descriptor)
        )
        for step in translation.steps
    ]


def _guest(view: View, ia: int) -> GuestWalk | UnsetType | None:
    if not isinstance(view, TableView) or view.mmu.kind is MmuKind.VM:
        return UNSET
    found = translate_by_guest(view, ia)
    if found is None:
        return None
    guest, theirs = found
    mmu = view.mmu
    return GuestWalk(
        raw(mmu.nested_vttbr or 0),
        raw(mmu.nested_vtcr or 0),
        hexed(guest.root_pa),
        hex_or_null(theirs.pa),
        theirs.verdict,
        _steps(theirs),
    )


def document(view: View, translation: Translation) -> Walk:
    """`inspector walk`."""
    return Walk(
        **table_name(view),
        ipa=hexed(translation.ia),
        pa=hex_or_null(translation.pa),
        verdict=translation.verdict,
        backing=_backing(view, translation.ia),
        steps=_steps(translation),
        guest=_guest(view, translation.ia),
    )


def _l1(view: TableView, ia: int) -> int | None:
    """The address of the VM behind ``ia``: itself, or what the guest hypervisor makes of it."""
    if view.mmu.kind is MmuKind.VM or view.mmu.nested_stage2 is False:
        return ia
    found = translate_by_guest(view, ia)
    return None if found is None else found[1].pa


def _backing(view: View, ipa: int) -> SlotOfAddress | None:
    l1 = _l1(view, ipa) if isinstance(view, TableView) else None
    found = None if l1 is None or not isinstance(view, TableView) else _slot_of(view.capture, view.vm, l1)
    if found is None:
        return None
    slot, hva, run, pa = found
    return SlotOfAddress(slot.id, hexed(hva), hex_or_null(pa), run.state if run else None)


def _translation(paint: Painter, view: View, translation: Translation, margin: str = "  ", out: str = "PA") -> Lines:
    """Every level, and what comes of it; ``out`` is what the table's outputs are called."""

    def said(text: str) -> str:
        return text.replace("PA 0x", f"{out} 0x")

    yield f"{margin}{view.shape}"
    for step in translation.steps:
        if step.root_page is not None:
            number = f"{step.root_page} of {view.geometry.root_pages}"
            yield f"{margin}root page {number} at {address(step.table_pa)} (root {address(view.root_pa)})"
        yield (
            f"{margin}L{step.level} {address(step.table_pa)}[{step.index}] at {address(step.entry_pa)} => "
            f"{paint(raw(step.descriptor.raw), 'cyan')}  {said(step.descriptor.describe())}"
        )
        yield f"{margin}   {fields(step.descriptor.fields.items())}"
    yield margin + paint(said(translation.verdict), "green" if translation.pa is not None else "red")


def lines(paint: Painter, view: View, translation: Translation) -> Lines:
    """The translation, as crash's ``vtop`` shows it, and what the VMM has at that address."""
    yield paint(view.title, "bold") + f": {view.addresses} {address(translation.ia)}"
    yield from _translation(paint, view, translation)
    if not isinstance(view, TableView):
        return
    if view.mmu.kind is MmuKind.SHADOW:
        theirs = translate_by_guest(view, translation.ia)
        if theirs is not None:
            yield f"  made of {theirs[0].title}; addresses are L1's:"
            yield from _translation(paint, *theirs, margin="    ", out="L1 IPA")
        elif view.mmu.nested_stage2 is False:
            yield "  L1's HCR_EL2.VM is clear: the address is one of L1's"
        else:
            yield "  made of no table of L1's that KVM would walk"
    l1 = _l1(view, translation.ia)
    if l1 is None:
        return
    nested = f"L1 IPA {address(l1)}, " if view.mmu.kind is MmuKind.SHADOW else ""
    found = _slot_of(view.capture, view.vm, l1)
    if found is None:
        yield f"  {nested}in no memslot"
        return
    slot, hva, run, pa = found
    yield f"  {nested}slot {slot.id} ({flags_text(slot.flags)}): HVA {address(hva)}"
    if run is not None:
        same = ", the same page" if pa == translation.pa else ", NOT the page that the guest has"
        what = run.state if pa is None else f"PA {address(pa)}{'' if translation.pa is None else same}"
        yield f"  the VMM's page tables: {what}"
