"""Seeded faults, and which oracle found each in which workload (`inspector detection-matrix`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta, convert

from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.document import Document, Number, Record
from inspector.report.format import Lines, Painter, columns
from inspector.validate.detect import ORACLES, Found
from inspector.validate.detection import Cell
from inspector.validate.seeded import Seeded

SeededVerdict = Literal["found", "missed", "clean", "false alarm", "not tested"]
Oracle = Literal["protocol", "model", "tables", "listing", "console", "baseline"]
_LONGEST = 24


class FoundBy(Record, frozen=True):
    """What an oracle found first of a kind."""

    oracle: Oracle
    what: Annotated[str, Meta(description="A rule, an operation, a VM, or the first line of the kernel's report.")]
    workload: str
    seconds: Annotated[float, Meta(description="Since the first workload began.")]
    operations: Annotated[Number, Meta(description="That had been followed by then.")]


class SeededCell(Record, frozen=True):
    """One kernel in one machine."""

    fault: Annotated[str, Meta(description="Empty: the clean kernel.")]
    number: Number
    what: str
    machine: str
    owner: Annotated[str, Meta(description="A rule of docs/invariants.md, or model.")]
    verdict: SeededVerdict
    found: Sequence[FoundBy]
    operations: Number
    build_seconds: float
    seconds: float
    release: str
    reason: Annotated[str, Meta(description="What did not go as it should.")]


class DetectionMatrix(Document, frozen=True, kw_only=True):
    """`inspector detection-matrix`."""

    command: Literal["detection-matrix"]
    cells: Sequence[SeededCell]


class SeededFacts(Record, frozen=True):
    """A fault that kernels are built with."""

    name: str
    what: str
    owner: Annotated[str, Meta(description="A rule of docs/invariants.md, or model.")]
    machine: str
    releases: Annotated[Sequence[str], Meta(description="Those that it has a form for.")]


class SeededList(Document, frozen=True, kw_only=True):
    """`inspector detection-matrix --list`."""

    command: Literal["detection-matrix"]
    faults: Sequence[SeededFacts]


def listed(faults: Sequence[Seeded]) -> SeededList:
    """The faults."""
    rows = [SeededFacts(each.name, each.what, each.owner, each.machine, each.releases) for each in faults]
    return SeededList(command="detection-matrix", faults=rows)


def listed_lines(paint: Painter, faults: Sequence[Seeded]) -> Lines:
    """The faults."""
    rows = [[each.name, each.what, each.owner, each.machine, " ".join(each.releases)] for each in faults]
    yield from columns(("fault", "what it breaks", "owner", "machine", "releases"), rows, paint=paint)


def document(cells: Sequence[Cell], faults: Mapping[str, Seeded]) -> DetectionMatrix:
    """Every cell."""
    return DetectionMatrix(command="detection-matrix", cells=[_cell(each, faults) for each in cells])


def _cell(cell: Cell, faults: Mapping[str, Seeded]) -> SeededCell:
    return SeededCell(
        cell.fault,
        cell.number,
        faults[cell.fault].what if cell.fault else "nothing",
        cell.machine,
        cell.owner,
        convert(cell.verdict, SeededVerdict),
        [_found(each) for each in cell.found],
        cell.operations,
        cell.build_seconds,
        cell.seconds,
        cell.release,
        printable(cell.reason),
    )


def _found(each: Found) -> FoundBy:
    return FoundBy(convert(each.oracle, Oracle), printable(each.what), each.workload, each.seconds, each.operations)


def lines(paint: Painter, cells: Sequence[Cell], faults: Mapping[str, Seeded]) -> Lines:
    """Fault by oracle: what it found, and in which workload first; and how soon the owner did."""
    del faults
    rows = [_row(cell) for cell in cells]
    head = ("fault", "machine", "verdict", "owner", "s", "ops", *ORACLES)
    yield from columns(head, rows, right=(4, 5), paint=paint)
    yield ""
    yield from (f"{cell.fault or 'clean'}: {printable(cell.reason)}" for cell in cells if cell.reason)
    counts = Counter(cell.verdict for cell in cells)
    seeded = sum(1 for cell in cells if cell.fault)
    said = f"{counts['found']} of {seeded} faults found by their owners, {counts['missed']} missed"
    said += f"; {counts['clean']} runs of the clean kernel gave nothing, {counts['false alarm']} something"
    if counts["not tested"]:
        said += f"; {counts['not tested']} not tested"
    yield paint(said, "red" if code_of(cells) is not ExitCode.CLEAN else "green")


def _row(cell: Cell) -> list[str]:
    first = cell.first
    when = [f"{first.seconds:.1f}", str(first.operations)] if first is not None else ["-", str(cell.operations)]
    name = cell.fault or f"clean, run {cell.number}"
    return [name, cell.machine, cell.verdict, cell.owner or "-", *when, *(_by(cell, each) for each in ORACLES)]


def _by(cell: Cell, oracle: str) -> str:
    """What it found, by workload; of the console and of other kernels' operations, how many."""
    found = [each for each in cell.found if each.oracle == oracle]
    if not found:
        return "-"
    if oracle == "baseline":
        return ", ".join(dict.fromkeys(each.what for each in found))
    by: dict[str, list[str]] = {}
    for each in found:
        what = printable(each.what)
        by.setdefault(each.workload, []).append(what if len(what) <= _LONGEST else what[:_LONGEST] + "...")
    return "; ".join(f"{' '.join(what)} ({workload})" for workload, what in by.items())


def code_of(cells: Sequence[Cell]) -> ExitCode:
    """A fault that is missed, or found in the clean kernel, is a finding about the tool."""
    verdicts = {each.verdict for each in cells}
    if verdicts & {"missed", "false alarm"}:
        return ExitCode.FINDINGS
    return ExitCode.UNTESTABLE if "not tested" in verdicts or not cells else ExitCode.CLEAN
