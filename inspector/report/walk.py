"""The translation of one guest address, level by level (`inspector walk`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from inspector.backing import BackingRuns
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


def document(view: View, translation: Translation) -> Walk:
    """`inspector walk`."""
    return Walk(
        **table_name(view),
        ipa=hexed(translation.ia),
        pa=hex_or_null(translation.pa),
        verdict=translation.verdict,
        backing=_backing(view, translation.ia),
        steps=[
            StepFacts(
                step.level,
                step.root_page,
                hexed(step.table_pa),
                step.index,
                hexed(step.entry_pa),
                *parts(step.descriptor),
            )
            for step in translation.steps
        ],
    )


def _backing(view: View, ipa: int) -> SlotOfAddress | None:
    if not isinstance(view, TableView) or view.mmu.kind is not MmuKind.VM:
        return None
    found = _slot_of(view.capture, view.vm, ipa)
    if found is None:
        return None
    slot, hva, run, pa = found
    return SlotOfAddress(slot.id, hexed(hva), hex_or_null(pa), run.state if run else None)


def lines(paint: Painter, view: View, translation: Translation) -> Lines:
    """The translation, as crash's ``vtop`` shows it, and what the VMM has at that address."""
    yield paint(view.title, "bold") + f": {view.addresses} {address(translation.ia)}"
    yield f"  {view.shape}"
    for step in translation.steps:
        if step.root_page is not None:
            number = f"{step.root_page} of {view.geometry.root_pages}"
            yield f"  root page {number} at {address(step.table_pa)} (root {address(view.root_pa)})"
        yield (
            f"  L{step.level} {address(step.table_pa)}[{step.index}] at {address(step.entry_pa)} => "
            f"{paint(raw(step.descriptor.raw), 'cyan')}  {step.descriptor.describe()}"
        )
        yield f"     {fields(step.descriptor.fields.items())}"
    yield "  " + paint(translation.verdict, "green" if translation.pa is not None else "red")
    if not isinstance(view, TableView):
        return
    found = _slot_of(view.capture, view.vm, translation.ia)
    if found is None:
        yield "  in no memslot"
        return
    slot, hva, run, pa = found
    yield f"  slot {slot.id} ({flags_text(slot.flags)}): HVA {address(hva)}"
    if run is not None:
        same = ", the same page" if pa == translation.pa else ", NOT the page that the guest has"
        what = run.state if pa is None else f"PA {address(pa)}{'' if translation.pa is None else same}"
        yield f"  the VMM's page tables: {what}"
