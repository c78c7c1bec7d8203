"""What a trace holds, and the rules that are broken in it (`inspector trace`, `inspector replay`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.document import Document, Record
from inspector.report.format import Lines, Painter
from inspector.trace.follow import Followed
from inspector.trace.performed import PROTECTED
from inspector.trace.replay import Broken, Differing

_MOST = 20
"""Findings that are shown as text."""


class BrokenRule(Record, frozen=True):
    """A rule that an operation breaks."""

    rule: Annotated[str, Meta(description="Of docs/invariants.md.")]
    what: str
    operation: Annotated[int, Meta(description="Its number in the trace, from 1; 0: it is in no operation.")]
    table: Annotated[
        int,
        Meta(description="The table's number, in the order in which they were made, from 1; 0: it is of none."),
    ]
    call: str
    callers: Annotated[Sequence[str], Meta(description="The functions that called it, the innermost first.")]
    where: str
    state: str
    history: Sequence[str]


class DifferentOperation(Record, frozen=True):
    """An operation that the model performs otherwise."""

    what: str
    operation: Annotated[int, Meta(description="Its number in the trace, from 1.")]
    table: Annotated[int, Meta(description="The table's number, in the order in which they were made, from 1.")]
    call: str
    callers: Annotated[Sequence[str], Meta(description="The functions that called it, the innermost first.")]
    model: Annotated[Sequence[str], Meta(description="Events of the model around the first that differs.")]
    kernel: Sequence[str]


class TraceDocument(Document, frozen=True, kw_only=True):
    """`inspector trace` and `inspector replay`."""

    command: Literal["trace", "replay"]
    release: str
    generation: str
    qemu: str
    verdict: Literal["clean", "findings", "not tested"]
    seconds: float
    cut: Annotated[bool, Meta(description="The file ends in the middle of a block: it was read up to there.")]
    operations: int
    events: int
    operations_by_name: Mapping[str, int]
    returns: Annotated[Mapping[str, int], Meta(description="How often each operation returned what: 'map 0'.")]
    tables_taken_over: Annotated[
        int, Meta(description="Tables made before, which a capture told at the trace's beginning.")
    ]
    tables_made: int
    tables_freed: int
    pages_made: int
    pages_freed: int
    invalidations: Mapping[str, int]
    not_followed: Annotated[
        Mapping[str, int], Meta(description="What lay in no operation, or in one on a table that was not seen made.")
    ]
    broken: Sequence[BrokenRule]
    held_against_model: Annotated[int, Meta(description="Operations that the model performs as the kernel did.")]
    raced: Annotated[
        int, Meta(description="Operations whose walks overlapped on one table: judged by the protocol alone.")
    ]
    differing: Sequence[DifferentOperation]
    reason: Annotated[str, Meta(description="Why it was not tested; empty when it was.")]


def code_of(followed: Followed) -> ExitCode:
    """Findings, or that it could not be judged, or clean."""
    if why_not(followed):
        return ExitCode.UNTESTABLE
    return ExitCode.FINDINGS if followed.judge.broken or followed.judge.differing else ExitCode.CLEAN


def why_not(followed: Followed) -> str:
    """Why nothing is judged; empty when it is."""
    counts = followed.judge.counts
    if counts.protected:
        return PROTECTED
    if counts.hypercalls:
        return "the host called its hypervisor, and what that did was not seen: TLB invalidations cannot be judged"
    return "" if counts.operations > counts.unknown else "no operation was followed"


def judged(followed: Followed) -> Sequence[Broken]:
    return () if why_not(followed) else followed.judge.broken


def unlike(followed: Followed) -> Sequence[Differing]:
    return () if why_not(followed) else followed.judge.differing


def _different(found: Differing) -> DifferentOperation:
    told = found.difference
    return DifferentOperation(
        told.what, found.operation, found.table, found.call, found.callers, told.model, told.kernel
    )


def _not_followed(followed: Followed) -> dict[str, int]:
    counts = followed.judge.counts
    found = dict(followed.outside)
    if counts.unknown:
        found["operation on a table made before"] = counts.unknown
    if counts.under_way:
        found["operation under way when the trace began, or beside one"] = counts.under_way
    # With --vm the callbacks are told of all VMs' tables: they do not say whose they are.
    if counts.orphans and "only" not in followed.header:
        found["RCU callback of a table taken out before"] = counts.orphans
    if counts.tables_left_out:
        found["table that could not be taken over"] = counts.tables_left_out
    if counts.dropped:
        found["table whose counts were not known when the trace began"] = counts.dropped
    if counts.surplus:
        found["table page with references of others when the trace began"] = counts.surplus
    if counts.unfinished:
        found["operation that has not ended"] = counts.unfinished
    return dict(sorted(found.items()))


def _broken(broken: Broken) -> BrokenRule:
    violation = broken.violation
    return BrokenRule(
        violation.rule,
        violation.what,
        broken.operation,
        broken.table,
        broken.call,
        broken.callers,
        violation.where,
        violation.state,
        violation.history,
    )


def document(followed: Followed, command: Literal["trace", "replay"]) -> TraceDocument:
    """The whole of it."""
    counts, header = followed.judge.counts, followed.header
    words: dict[ExitCode, Literal["clean", "findings", "not tested"]] = {
        ExitCode.CLEAN: "clean",
        ExitCode.FINDINGS: "findings",
        ExitCode.UNTESTABLE: "not tested",
    }
    return TraceDocument(
        command=command,
        release=header["release"],
        generation=header["generation"],
        qemu=header.get("qemu", ""),
        verdict=words[code_of(followed)],
        seconds=round(followed.seconds, 3),
        cut=followed.cut,
        operations=counts.operations,
        events=counts.events,
        operations_by_name=dict(sorted(counts.by_name.items())),
        returns={f"{name} {ret}": number for (name, ret), number in sorted(counts.returns.items())},
        tables_taken_over=counts.tables_taken,
        tables_made=counts.tables_made,
        tables_freed=counts.tables_freed,
        pages_made=counts.pages_made,
        pages_freed=counts.pages_freed,
        invalidations=dict(sorted(counts.invalidations.items())),
        not_followed=_not_followed(followed),
        broken=[_broken(each) for each in judged(followed)],
        held_against_model=followed.judge.verdicts.held,
        raced=followed.judge.verdicts.raced,
        differing=[_different(each) for each in unlike(followed)],
        reason=why_not(followed),
    )


def lines(paint: Painter, followed: Followed, command: Literal["trace", "replay"]) -> Lines:
    """A summary, and each finding with what led to it."""
    told = document(followed, command)
    yield f"Linux {printable(told.release)}, as {told.generation}; {printable(told.qemu)}"
    yield f"{told.operations:,} operations, {told.events:,} events"
    by_name: dict[str, list[str]] = {}
    for (name, ret), number in sorted(followed.judge.counts.returns.items()):
        by_name.setdefault(name, []).append(f"{number:,} returned {ret}")
    for name, number in sorted(told.operations_by_name.items(), key=lambda item: -item[1]):
        yield f"  {name:18} {number:8,}   {', '.join(by_name.get(name, []))}".rstrip()
    taken = f"{told.tables_taken_over} taken over, " if told.tables_taken_over else ""
    yield f"tables: {taken}{told.tables_made} made, {told.tables_freed} given up"
    yield f"table pages: {told.pages_made:,} allocated, {told.pages_freed:,} freed"
    yield f"invalidations: {_listed(told.invalidations)}"
    yield f"held against the model: {_modelled(told)}"
    yield f"not followed: {_listed(told.not_followed)}"
    if told.cut:
        yield paint("the file was cut: this is what was there", "yellow")
    for broken in judged(followed)[:_MOST]:
        yield ""
        yield from _finding(paint, broken)
    if len(told.broken) > _MOST:
        yield f"... and {len(told.broken) - _MOST} more"
    for differing in unlike(followed)[:_MOST]:
        yield ""
        yield from _difference(paint, differing)
    if len(told.differing) > _MOST:
        yield f"... and {len(told.differing) - _MOST} more"
    yield ""
    colour = {"clean": "green", "findings": "red", "not tested": "yellow"}[told.verdict]
    yield paint(told.verdict.upper(), colour) + f": {told.reason or _counted(told)}"


def _counted(told: TraceDocument) -> str:
    return f"{len(told.broken)} rules broken, {len(told.differing)} operations differ from the model"


def _modelled(told: TraceDocument) -> str:
    if not told.held_against_model and not told.differing:
        return "none: stores were not seen, or what the CPU can do was not told"
    raced = f", {told.raced:,} raced with another on their table: judged by the protocol alone" if told.raced else ""
    return f"{told.held_against_model:,} operations{raced}"


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items()) or "nothing"


def _difference(paint: Painter, found: Differing) -> Iterator[str]:
    yield paint(f"table {found.table}, operation {found.operation}: {printable(found.call)}", "red")
    yield f"  {printable(found.difference.what)}"
    yield from _called_by(found.callers)
    for side, told in (("model", found.difference.model), ("kernel", found.difference.kernel)):
        yield f"  {side}:"
        yield from (f"    {printable(line)}" for line in told)


def _finding(paint: Painter, broken: Broken) -> Iterator[str]:
    # Number 0: it is not in an operation, or of no table that is known.
    places = (
        f"{what} {number}" for what, number in (("table", broken.table), ("operation", broken.operation)) if number
    )
    yield paint(": ".join((", ".join(places) or "no table", printable(broken.call))), "red")
    yield from (f"  {printable(line)}" for line in broken.violation.lines())
    yield from _called_by(broken.callers)


def _called_by(callers: Sequence[str]) -> Iterator[str]:
    if callers:
        yield f"  called by: {printable(' < '.join(callers))}"
