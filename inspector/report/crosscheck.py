"""The verdict on a kernel's page-table code (`inspector crosscheck`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from inspector.crosscheck.verdict import Verdict
from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.document import Document, Record
from inspector.report.format import Lines, Painter

_WORDS: dict[ExitCode, Literal["clean", "findings", "not tested"]] = {
    ExitCode.CLEAN: "clean",
    ExitCode.FINDINGS: "findings",
    ExitCode.UNTESTABLE: "not tested",
}
_COLOURS = {"clean": "green", "findings": "red", "not tested": "yellow"}


class PartOfVerdict(Record, frozen=True):
    """One thing that was tried."""

    name: str
    verdict: Literal["clean", "findings", "not tested"]
    summary: str
    lines: Sequence[str]
    figures: Mapping[str, int | float | str]


class Crosscheck(Document, frozen=True, kw_only=True):
    """`inspector crosscheck`."""

    command: Literal["crosscheck"] = "crosscheck"
    built: Sequence[str]
    verdict: Literal["clean", "findings", "not tested"]
    parts: Sequence[PartOfVerdict]


def document(verdict: Verdict) -> Crosscheck:
    """`inspector crosscheck`."""
    return Crosscheck(
        built=verdict.built,
        verdict=_WORDS[verdict.code],
        parts=[
            PartOfVerdict(part.name, _WORDS[part.code], part.summary, part.lines, part.figures)
            for part in verdict.parts
        ],
    )


def lines(paint: Painter, verdict: Verdict) -> Lines:
    """Plain text that can be pasted into a mail."""
    yield from map(printable, verdict.built)
    for part in verdict.parts:
        yield ""
        word = _WORDS[part.code]
        yield f"{paint(word.upper(), _COLOURS[word])}  {part.name}: {printable(part.summary)}"
        yield from (f"    {printable(line)}" for line in part.lines)
