"""Faults that can be injected, one that was, and which rules find them (`inspector inject`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, convert

from inspector.findings import ExitCode
from inspector.inject.catalogue import FAULTS, Fault
from inspector.inject.results import Cell, Injected
from inspector.printable import printable
from inspector.report.document import Document, Hex, Number, Record, hexed
from inspector.report.format import Lines, Painter, columns

CellVerdict = Literal["found", "missed", "silent", "false alarm", "not there", "not injected"]


class FaultFacts(Record, frozen=True):
    """A fault of the catalogue."""

    name: str
    what: str
    function: str
    owner: Annotated[str, Meta(description="A rule of docs/invariants.md, or model; empty: it is legal.")]
    unshared: Annotated[str, Meta(description="The owner where faults do not share a table (before 6.2).")]
    workload: Annotated[str, Meta(description="The exerciser's scenario that reaches it.")]


class FaultList(Document, frozen=True, kw_only=True):
    """`inspector inject --list`."""

    command: Literal["inject"]
    faults: Sequence[FaultFacts]


class InjectedFault(Document, frozen=True, kw_only=True):
    """`inspector inject FAULT`."""

    command: Literal["inject"]
    fault: str
    address: Hex
    passed: Annotated[Number, Meta(description="How often the place was reached otherwise before.")]
    done: bool


class MatrixCell(Record, frozen=True):
    """One fault in one kernel."""

    fault: str
    kernel: str
    mode: Annotated[str, Meta(description="nvhe or hvhe; empty: as the kernel chooses.")]
    verdict: CellVerdict
    found: Annotated[Sequence[str], Meta(description="Rules that were broken, and model if it does otherwise.")]
    owner: str
    seconds: float
    reason: str


class FaultMatrix(Document, frozen=True, kw_only=True):
    """`inspector inject --matrix`."""

    command: Literal["inject"]
    cells: Sequence[MatrixCell]


def _facts(fault: Fault) -> FaultFacts:
    return FaultFacts(
        fault.name, fault.what, fault.place.function, fault.owner, fault.owned_by(shared=False), fault.workload
    )


def listed() -> FaultList:
    """The catalogue."""
    return FaultList(command="inject", faults=[_facts(each) for each in FAULTS.values()])


def listed_lines(paint: Painter) -> Lines:
    """The catalogue."""
    rows = [[each.name, each.what, each.place.function, each.owner or "-", each.workload] for each in FAULTS.values()]
    yield from columns(("fault", "what is done", "in", "found by", "workload"), rows, paint=paint)


def injected(done: Injected) -> InjectedFault:
    """One fault."""
    return InjectedFault(
        command="inject", fault=done.fault, address=hexed(done.address), passed=done.passed, done=done.done
    )


def injected_lines(paint: Painter, done: Injected) -> Lines:
    """One fault."""
    if done.done:
        yield f"{done.fault}: {FAULTS[done.fault].what}, at {done.address:#x}, after {done.passed} that were let pass"
    else:
        yield paint(
            f"{done.fault}: {done.address:#x} was not reached in that way; {done.passed} were let pass", "yellow"
        )


def _cell(cell: Cell) -> MatrixCell:
    return MatrixCell(
        cell.fault,
        cell.kernel,
        cell.mode,
        convert(cell.verdict, CellVerdict),
        cell.found,
        cell.owner,
        cell.seconds,
        cell.reason,
    )


def matrix(cells: Sequence[Cell]) -> FaultMatrix:
    """Faults and what finds them."""
    return FaultMatrix(command="inject", cells=[_cell(each) for each in cells])


def matrix_lines(paint: Painter, cells: Sequence[Cell]) -> Lines:
    """Faults and what finds them."""
    rows = [
        [each.kernel or "default", each.mode or "-", each.fault, each.verdict, " ".join(each.found) or "-",
         each.owner or "-", f"{each.seconds:.1f}", printable(each.reason)]
        for each in cells
    ]  # fmt: skip
    head = ("kernel", "mode", "fault", "verdict", "found by", "owner", "s", "")
    yield from columns(head, rows, right=(6,), paint=paint)
    counts = Counter(each.verdict for each in cells)
    yield ""
    said = f"{counts['found']} of {len(cells)} found, {counts['missed']} missed, {counts['not injected']} not injected"
    more = [f"{counts[each]} {each}" for each in ("silent", "false alarm", "not there") if counts[each]]
    bad = counts["missed"] or counts["false alarm"]
    yield paint(", ".join([said, *more]), "red" if bad else "green")


def code_of(cells: Sequence[Cell]) -> ExitCode:
    """A fault that is missed is a finding about the tool; of one that could not be injected nothing is known."""
    verdicts = {each.verdict for each in cells}
    if verdicts & {"missed", "false alarm"}:
        return ExitCode.FINDINGS
    done = verdicts & {"found", "silent"} and "not injected" not in verdicts
    return ExitCode.CLEAN if done else ExitCode.UNTESTABLE
