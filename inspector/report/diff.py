"""Live tables against the model's (`inspector diff`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.capture.view import not_judged
from inspector.check import Comparison, Side, Sides
from inspector.findings import Severity
from inspector.generations import KernelCode
from inspector.report.check import SEVERITY_STYLE, Place
from inspector.report.document import Document, Number, Raw, Record, TableName, record, table_name
from inspector.report.format import Lines, Painter, address, count, raw, size
from inspector.report.host import Behaviours, behaviours
from inspector.snapshot import Capture


class SideFacts(Record, frozen=True):
    """One side of a difference."""

    raw: Raw | None
    text: str | None
    page_count: Annotated[Number | None, Meta(description="Of the table that holds the entry.")]


class DifferenceFacts(Record, frozen=True):
    """Neighbouring entries, or a table page, that differ in the same way: a finding, with both sides."""

    check: Annotated[str, Meta(description="The rule, as in findings; `M10` is equality with the model itself.")]
    severity: Severity
    where: Place
    entries: Annotated[Number, Meta(description="How many differ alike; `where.size` covers them.")]
    live: SideFacts
    model: SideFacts
    what: str
    why: Annotated[str, Meta(description="Why it matters; of a note, what explains it.")]
    function: str | None


class ComparedTable(TableName, frozen=True):
    """A table and how it differs from the model's."""

    leaves: Number
    table_pages: Number
    identical: bool
    errors: Number
    notes: Number
    differences: Annotated[Sequence[DifferenceFacts], Meta(description="Errors first, at most 64.")]
    omitted: Annotated[Number, Meta(description="How many more there are.")]


class NotCompared(Record, frozen=True):
    """A table that cannot be read at all."""

    table: str
    reason: str


class Diff(Document, frozen=True, kw_only=True):
    """`inspector diff`."""

    command: Literal["diff"] = "diff"
    behaviours: Behaviours
    errors: Number
    notes: Number
    tables: Sequence[ComparedTable]
    not_compared: Sequence[NotCompared]


def _side(side: Side) -> SideFacts:
    entry = side.entry
    text = None if entry is None else entry.describe() if entry.raw else "no entry"
    return SideFacts(None if entry is None else raw(entry.raw), text, side.page_count)


def _difference(one: Sides) -> DifferenceFacts:
    sides = {"live": _side(one.live), "model": _side(one.model)}
    where = record(Place, one.where)
    return record(DifferenceFacts, one.finding, where=where, entries=one.entries, what=one.what, **sides)


def document(compared: Sequence[Comparison], kernel: KernelCode, capture: Capture) -> Diff:
    """`inspector diff`."""
    return Diff(
        behaviours=behaviours(kernel),
        errors=sum(one.errors for one in compared),
        notes=sum(one.notes for one in compared),
        tables=[
            record(
                ComparedTable,
                one,
                **table_name(one.view),
                table_pages=one.tables,
                differences=[_difference(found) for found in one.shown],
            )
            for one in compared
        ],
        not_compared=[NotCompared(table, reason) for table, reason in not_judged(capture)],
    )


def _place_text(one: Sides) -> str:
    """``level 3 table 0x48003000[5], IPA 0x40005000-0x40006000 (1 x 4K)``."""
    found = one.where
    parts = []
    if found.table_pa is not None:
        at = f"[{found.index}]" if found.index is not None else ""
        parts.append(f"level {found.level} table {address(found.table_pa)}{at}")
    if found.ipa is not None:
        if found.size:
            each = size(found.size // one.entries)
            span = f"IPA {address(found.ipa)}-{address(found.ipa + found.size)} ({one.entries} x {each})"
        else:
            span = f"IPA {address(found.ipa)}"
        parts.append(span)
    return ", ".join(parts) or "the whole table"


def _side_text(sign: str, side: Side) -> str | None:
    """``- 0x0040… page PA 0x…, page_count 6``."""
    parts = []
    if side.entry is not None:
        parts.append(f"{raw(side.entry.raw)} {side.entry.describe()}" if side.entry.raw else f"{raw(0)} no entry")
    if side.page_count is not None:
        parts.append(f"page_count {side.page_count}")
    return f"    {sign} {', '.join(parts)}" if parts else None


def lines(paint: Painter, compared: Sequence[Comparison], kernel: KernelCode, capture: Capture) -> Lines:
    """Each table: identical, or what differs; then the verdict."""
    for one in compared:
        what = f"{count(one.leaves, 'leaf', 'leaves')} in {count(one.tables, 'table')}"
        if one.identical:
            yield f"{paint(one.view.title, 'bold')}: {what}, " + paint("identical", "green")
            continue
        said = f"{count(one.errors, 'error')}, {count(one.notes, 'note')}"
        yield f"{paint(one.view.title, 'bold')}: {what}, {said}"
        for found in one.shown:
            about = found.finding
            title = paint(f"{about.severity.value} {about.check}", SEVERITY_STYLE[about.severity])
            yield f"  {title} {_place_text(found)}"
            for sign, side, color in (("-", found.live, "red"), ("+", found.model, "green")):
                line = _side_text(sign, side)
                if line is not None:
                    yield paint(line, color)
            yield f"    what  {found.what}"
            yield f"    why   {about.why}" + (f" [{about.function}]" if about.function else "")
        if one.omitted:
            yield f"  and {count(one.omitted, 'more difference')}"
    for table, reason in not_judged(capture):
        yield f"{paint(table, 'bold')}: not compared: {reason}"
    errors = sum(one.errors for one in compared)
    notes = sum(one.notes for one in compared)
    yield f"- is live, + is what the model of {kernel.text}, makes of the same mappings"
    yield "whether they are the right mappings (memslots, what backs them) is what 'inspector check' judges"
    verdict = f"{count(errors, 'error')}, {count(notes, 'note')} in {count(len(compared), 'tree')}"
    yield paint(verdict, "bold red" if errors else "bold green")
