"""Findings (`inspector check`) and the catalogue of rules (`inspector check --list`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.capture.view import not_judged
from inspector.check.catalogue import Invariant, Unseen
from inspector.findings import Finding, Severity, Where
from inspector.report.document import Bytes, Document, Hex, Level, Number, Raw, Record, record
from inspector.report.format import Lines, Painter, address, count, raw, size
from inspector.snapshot import Capture, OwnKind


class Place(Record, frozen=True):
    """What a finding is about; parts that do not apply are `null`."""

    vm: str | None
    regime: str | None
    ipa: Hex | None
    size: Bytes | None
    level: Level | None
    table_pa: Hex | None
    index: Number | None
    raw: Raw | None


class FindingFacts(Record, frozen=True):
    """One disagreement between what is and what must be."""

    check: Annotated[str, Meta(description="The rule's id in `check --list`.")]
    severity: Severity
    where: Place
    expected: str
    actual: str
    why: Annotated[str, Meta(description="Why it matters; of a note, what explains it.")]
    function: Annotated[str | None, Meta(description="The kernel function responsible.")]


class NotJudged(Record, frozen=True):
    """A table that could not be judged."""

    table: str
    reason: str


class Check(Document, frozen=True, kw_only=True):
    """`inspector check`."""

    command: Literal["check"] = "check"
    checked: Annotated[Sequence[str], Meta(description="The ids of the rules that were held.")]
    vms: Annotated[Number, Meta(description="How many.")]
    errors: Number
    notes: Number
    findings: Sequence[FindingFacts]
    not_judged: Sequence[NotJudged]


class RuleFacts(Record, frozen=True):
    """A rule."""

    id: str
    statement: str
    source: str


class NotShown(RuleFacts, frozen=True):
    """A rule, or a part of one, that no single instant can show."""

    reason: str


class CheckList(Document, frozen=True, kw_only=True):
    """`inspector check --list`."""

    command: Literal["check"] = "check"
    catalogue: Sequence[RuleFacts]
    not_shown: Sequence[NotShown]


SEVERITY_STYLE = {Severity.ERROR: "bold red", Severity.NOTE: "yellow"}


def document(found: Sequence[Finding], checked: Mapping[str, str], capture: Capture) -> Check:
    """`inspector check`."""
    errors = sum(one.severity is Severity.ERROR for one in found)
    return Check(
        checked=list(checked),
        vms=len(capture.vms),
        errors=errors,
        notes=len(found) - errors,
        findings=[record(FindingFacts, one, where=record(Place, one.where)) for one in found],
        not_judged=[NotJudged(table, reason) for table, reason in not_judged(capture)],
    )


def _where(place: Where) -> str:
    """A place in words, largest part first."""
    parts = [part for part in (place.vm, place.regime) if part]
    if place.ipa is not None:
        kind = "VA" if place.regime == OwnKind.HYP else "IPA"
        parts.append(f"{kind} {address(place.ipa)}" + (f" ({size(place.size)})" if place.size else ""))
    if place.level is not None:
        parts.append(f"level {place.level}")
    if place.table_pa is not None:
        parts.append(f"table {address(place.table_pa)}" + (f"[{place.index}]" if place.index is not None else ""))
    if place.raw is not None:
        parts.append(raw(place.raw))
    return ", ".join(parts) or "host"


def lines(paint: Painter, found: Sequence[Finding], checked: Mapping[str, str], capture: Capture) -> Lines:
    """Every finding with its reasons, then the verdict.  ``checked`` are the ids that ran, with their statements."""
    for one in found:
        yield paint(f"{one.severity.value} {one.check}", SEVERITY_STYLE[one.severity]) + f" {_where(one.where)}"
        yield f"  expected  {one.expected}"
        yield f"  actual    {one.actual}"
        yield f"  why       {one.why}" + (f" [{one.function}]" if one.function else "")
    for table, reason in not_judged(capture):
        yield f"not judged: {table}: {reason}"
    errors = sum(one.severity is Severity.ERROR for one in found)
    what = f"{count(len(capture.vms), 'VM')}, {count(len(checked), 'check')} ({', '.join(checked)})"
    verdict = f"{count(errors, 'error')}, {count(len(found) - errors, 'note')} in {what}"
    yield paint(verdict, "bold red" if errors else "bold green")


# --- the catalogue ---


def list_document(invariants: Sequence[Invariant], unseen: Sequence[Unseen]) -> CheckList:
    """`inspector check --list`; ``unseen`` are the rules that no single instant can show."""
    return CheckList(
        catalogue=[record(RuleFacts, one) for one in invariants], not_shown=[record(NotShown, one) for one in unseen]
    )


def list_lines(paint: Painter, invariants: Sequence[Invariant], unseen: Sequence[Unseen]) -> Lines:
    """Every rule and its source; then what one instant cannot show, and why."""
    for one in invariants:
        yield paint(f"{one.id:3}", "bold") + f"  {one.statement}"
        yield f"     source: {one.source}"
    if unseen:
        yield "What one instant cannot show:"
    for rule in unseen:
        yield paint(f"{rule.id:3}", "bold") + f"  {rule.statement}"
        yield f"     source: {rule.source}"
        yield f"     not shown: {rule.reason}"
