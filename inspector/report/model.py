"""A script run on the model (`inspector model`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.model import StepResult
from inspector.report.document import Document, Number, Record
from inspector.report.format import Lines, Painter


class StepOfScript(Record, frozen=True):
    """One line of the script, and what it did."""

    line: Number
    comment: Sequence[str]
    operation: str
    generation: str
    cross_checked: Annotated[bool, Meta(description="The generation is cross-checked against the kernel's own code.")]
    returns: str | None
    events: Sequence[str]
    table: Annotated[Sequence[str], Meta(description="As printed: table pages have names.")]


class Model(Document, frozen=True, kw_only=True):
    """`inspector model`."""

    command: Literal["model"] = "model"
    steps: Sequence[StepOfScript]


def document(steps: Sequence[StepResult]) -> Model:
    """`inspector model`."""
    return Model(
        steps=[
            StepOfScript(
                line=step.line,
                comment=step.comment,
                operation=step.text,
                generation=step.setup.generation,
                cross_checked=step.setup.behaviours.cross_checked,
                returns=step.result_text() if step.operation is not None else None,
                events=step.events,
                table=step.table,
            )
            for step in steps
        ]
    )


def lines(paint: Painter, steps: Sequence[StepResult]) -> Lines:
    """Each operation: what it returned, its events, the table afterwards."""
    for step in steps:
        for line in step.lines():
            yield paint(line, "bold") if line.startswith(f"{step.line}: ") else line
        yield ""
