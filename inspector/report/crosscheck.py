"""The verdict on a kernel's page-table code (`inspector crosscheck`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from msgspec import Meta

from inspector.crosscheck.layout import folded
from inspector.crosscheck.verdict import WIDTH, Verdict
from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.document import Document, Record
from inspector.report.format import Lines, Painter

Word = Literal["clean", "findings", "not tested"]

_WORDS: dict[ExitCode, Word] = {
    ExitCode.CLEAN: "clean",
    ExitCode.FINDINGS: "findings",
    ExitCode.UNTESTABLE: "not tested",
}
_COLOURS = {"clean": "green", "findings": "red", "not tested": "yellow"}


class PartOfVerdict(Record, frozen=True):
    """One thing that was tried."""

    name: str
    verdict: Word
    summary: str
    lines: Sequence[str]
    figures: Mapping[str, int | float | str]
    script: Annotated[Sequence[str], Meta(description="Shows what was found: input of --replay.")]


class Crosscheck(Document, frozen=True, kw_only=True):
    """`inspector crosscheck`."""

    command: Literal["crosscheck"] = "crosscheck"
    built: Sequence[str]
    verdict: Word
    parts: Sequence[PartOfVerdict]
    interrupted: Annotated[bool, Meta(description="It was cut short; the parts are what there was by then.")]


def document(verdict: Verdict) -> Crosscheck:
    """`inspector crosscheck`."""
    return Crosscheck(
        built=verdict.built, verdict=word_of(verdict), parts=parts_of(verdict), interrupted=verdict.interrupted
    )


def parts_of(verdict: Verdict) -> list[PartOfVerdict]:
    """Each thing that was tried."""
    return [
        PartOfVerdict(part.name, _WORDS[part.code], part.summary, part.lines, part.figures, part.script)
        for part in verdict.parts
    ]


def word_of(verdict: Verdict) -> Word:
    """All of it in a word."""
    return _WORDS[replace(verdict, interrupted=False).code]


def lines(paint: Painter, verdict: Verdict) -> Lines:
    """Plain text that can be pasted into a mail."""
    for line in verdict.built:
        yield from folded(printable(line), further="    ", width=WIDTH)
    for part in verdict.parts:
        yield ""
        word = _WORDS[part.code]
        for number, line in enumerate(
            folded(f"{word.upper()}  {part.name}: {printable(part.summary)}", "", "    ", WIDTH)
        ):
            yield line if number else paint(word.upper(), _COLOURS[word]) + line.removeprefix(word.upper())
        for line in part.lines:
            text = printable(line)
            margin = " " * (len(text) - len(text.lstrip()) + 2)
            yield from (
                folded(text.lstrip(), margin, margin + "    ", WIDTH)
                if len(text) + 2 > WIDTH
                else [f"  {text}".rstrip()]
            )


def ktap(paint: Painter, verdict: Verdict) -> Lines:
    """KTAP version 1 (Documentation/dev-tools/ktap.rst): a test a part, what was found as diagnostics before it."""
    del paint
    yield "KTAP version 1"
    for line in verdict.built:
        yield f"# {printable(line)}"
    yield f"1..{len(verdict.parts)}"
    for number, part in enumerate(verdict.parts, 1):
        for line in (part.summary, *part.lines):
            yield f"# {printable(line)}".rstrip()
        result = "not ok" if part.code is ExitCode.FINDINGS else "ok"
        skipped = " # SKIP not tested" if part.code is ExitCode.UNTESTABLE else ""
        yield f"{result} {number} {printable(part.name).replace('#', '')}{skipped}"
