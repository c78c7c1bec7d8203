"""The course of a trace as a picture (`inspector replay --html`), and the verdict of `inspector validate --html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import Struct

from inspector.findings import ExitCode
from inspector.report.crosscheck import parts_of, word_of
from inspector.report.format import PLAIN, count
from inspector.report.html.page import page
from inspector.report.story import explained_lines
from inspector.report.trace import document, judged, unlike
from inspector.trace.follow import Followed
from inspector.trace.timeline import Course, Explained, Timeline
from inspector.validate.verdict import Validated

MOST_TABLES: Final = 400
_SIGNS: Final = {"clean": "✓", "findings": "✖", "not tested": "▲"}


class PieceRow(Struct, frozen=True, array_like=True):
    """See `inspector.trace.timeline.Piece`; ``name`` is an index."""

    first: int
    table: int
    name: int
    operations: int
    failed: int
    events: int


class LifeRow(Struct, frozen=True, array_like=True):
    """A table's number, its first and its last operation (`None`: it was there at the end)."""

    number: int
    made: int
    ended: int | None


class MarkRow(Struct, frozen=True, array_like=True):
    """A finding: its operation, the number of its table, and a line."""

    operation: int
    table: int
    text: str


class CourseData(Struct, frozen=True, kw_only=True):
    """What the script draws."""

    label: str
    operations: int
    width: int
    names: Sequence[str]
    pieces: Sequence[PieceRow]
    tables: Sequence[LifeRow]
    marks: Sequence[MarkRow]


class Courses(Struct, frozen=True, kw_only=True):
    """What the script gets."""

    courses: Sequence[CourseData]


def _data(course: Course) -> CourseData:
    line: Timeline = course.timeline
    totals: Counter[str] = Counter()
    for piece in line.pieces:
        totals[piece.name] += piece.operations
    names = [name for name, _ in totals.most_common()]
    number = {name: at for at, name in enumerate(names)}
    return CourseData(
        label=course.label,
        operations=line.operations,
        width=line.width,
        names=names,
        pieces=[
            PieceRow(one.first, one.table, number[one.name], one.operations, one.failed, one.events)
            for one in line.pieces
        ],
        tables=[LifeRow(one.number, one.made, one.ended) for one in line.tables[:MOST_TABLES]],
        marks=[MarkRow(one.operation, one.table, f"{one.kind}: {one.what}") for one in course.findings],
    )


def _said(course: Course) -> list[str]:
    """What was merged or left out."""
    said = []
    if course.timeline.width > 1:
        said.append(f"operations are drawn in pieces of {course.timeline.width:,} that follow one another")
    if len(course.timeline.tables) > MOST_TABLES:
        said.append(f"of {len(course.timeline.tables):,} tables the first {MOST_TABLES} have a lane")
    if course.more:
        said.append(f"{course.more:,} more findings are not in this file")
    return said


def _explained(told: Explained) -> Iterator[str]:
    yield from explained_lines(PLAIN, told.events)
    if told.more:
        yield f"  and {told.more:,} more events: see 'inspector replay --explain'"


def _shown(courses: Sequence[Course]) -> Iterator[dict[str, Any]]:
    for course in courses:
        totals: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for piece in course.timeline.pieces:
            totals[piece.name] += piece.operations
            failed[piece.name] += piece.failed
        yield {
            "label": course.label,
            "operations": course.timeline.operations,
            "tables": len(course.timeline.tables),
            "names": [(name, number, failed[name]) for name, number in totals.most_common()],
            "said": _said(course),
            "findings": course.findings,
            "told": {number: list(_explained(told)) for number, told in course.told.items()},
        }


def validate_html(verdict: Validated) -> str:
    """The file of `inspector validate`."""
    word = word_of(verdict)
    codes = [part.code for part in verdict.parts]
    return page(
        "validate.html",
        Courses(courses=[_data(course) for course in verdict.courses]),
        title="inspector validate",
        sign=_SIGNS[word],
        verdict=f"{word}: {count(len(codes), 'part')}, {codes.count(ExitCode.FINDINGS)} with findings, "
        f"{codes.count(ExitCode.UNTESTABLE)} not tested",
        built=verdict.built,
        interrupted=verdict.interrupted,
        parts=parts_of(verdict),
        signs=_SIGNS,
        shown=list(_shown(verdict.courses)),
    )


def replay_html(followed: Followed, course: Course) -> str:
    """The file of `inspector replay`."""
    told = document(followed, "replay")
    return page(
        "replay.html",
        Courses(courses=[_data(course)]),
        title=f"stage-2 operations, Linux {told.release}",
        sign=_SIGNS[told.verdict],
        verdict=f"{told.verdict}: {told.reason}"
        if told.reason
        else f"{count(len(judged(followed)), 'rule')} broken, {len(unlike(followed))} operations differ from the model",
        told=told,
        shown=list(_shown([course])),
    )
