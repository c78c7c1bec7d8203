"""Faults that can be injected, one that was, and which rules find them (`inspector inject`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.findings import ExitCode
from inspector.inject.catalogue import FAULTS, Fault
from inspector.inject.results import Cell, Injected
from inspector.printable import printable
from inspector.report.document import Document, Hex, Number, Record, hexed
from inspector.report.format import Lines, Painter, columns


class FaultFacts(Record, frozen=True):
    """A fault of the catalogue."""

    name: str
    what: str
    function: str
    owners: Annotated[Sequence[str], Meta(description="Rules of docs/invariants.md, or model.")]
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
    verdict: Literal["found", "missed", "not injected"]
    found: Annotated[Sequence[str], Meta(description="Rules that were broken, and model if it does otherwise.")]
    owners: Sequence[str]
    seconds: float
    reason: str


class FaultMatrix(Document, frozen=True, kw_only=True):
    """`inspector inject --matrix`."""

    command: Literal["inject"]
    cells: Sequence[MatrixCell]


def _facts(fault: Fault) -> FaultFacts:
    return FaultFacts(fault.name, fault.what, fault.function, fault.owners, fault.workload)


def listed() -> FaultList:
    """The catalogue."""
    return FaultList(command="inject", faults=[_facts(each) for each in FAULTS.values()])


def listed_lines(paint: Painter) -> Lines:
    """The catalogue."""
    rows = [[each.name, each.what, each.function, " ".join(each.owners), each.workload] for each in FAULTS.values()]
    yield from columns(("fault", "what is done", "in", "found by one of", "workload"), rows, paint=paint)


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
    verdict: Literal["found", "missed", "not injected"] = "not injected"
    if cell.verdict == "found":
        verdict = "found"
    elif cell.verdict == "missed":
        verdict = "missed"
    owners = FAULTS[cell.fault].owners
    return MatrixCell(cell.fault, cell.kernel, verdict, cell.found, owners, cell.seconds, cell.reason)


def matrix(cells: Sequence[Cell]) -> FaultMatrix:
    """Faults and what finds them."""
    return FaultMatrix(command="inject", cells=[_cell(each) for each in cells])


def matrix_lines(paint: Painter, cells: Sequence[Cell]) -> Lines:
    """Faults and what finds them."""
    rows = [
        [each.kernel or "default", each.fault, each.verdict, " ".join(each.found) or "-",
         " ".join(FAULTS[each.fault].owners), f"{each.seconds:.1f}", printable(each.reason)]
        for each in cells
    ]  # fmt: skip
    yield from columns(("kernel", "fault", "verdict", "found by", "owners", "s", ""), rows, right=(5,), paint=paint)
    missed = sum(each.verdict == "missed" for each in cells)
    found = sum(each.verdict == "found" for each in cells)
    yield ""
    said = f"{found} of {len(cells)} found, {missed} missed, {len(cells) - found - missed} not injected"
    yield paint(said, "red" if missed else "green")


def code_of(cells: Sequence[Cell]) -> ExitCode:
    """A fault that is missed is a finding about the tool; of one that could not be injected nothing is known."""
    if any(each.verdict == "missed" for each in cells):
        return ExitCode.FINDINGS
    return ExitCode.CLEAN if cells and all(each.verdict == "found" for each in cells) else ExitCode.UNTESTABLE
