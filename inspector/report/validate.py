"""The verdict on a kernel that was booted (`inspector validate`): text, JSON and JUnit; KTAP is crosscheck's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree as Xml

from inspector.crosscheck.layout import folded
from inspector.crosscheck.verdict import WIDTH, Verdict
from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.crosscheck import PartOfVerdict, Word, parts_of, word_of
from inspector.report.crosscheck import lines as lines_of_parts
from inspector.report.document import Document
from inspector.report.format import Lines, Painter


class Validate(Document, frozen=True, kw_only=True):
    """`inspector validate`."""

    command: Literal["validate"] = "validate"
    kernels: Sequence[str]
    verdict: Word
    parts: Sequence[PartOfVerdict]
    interrupted: bool


def document(verdict: Verdict) -> Validate:
    """`inspector validate`."""
    return Validate(
        kernels=verdict.built, verdict=word_of(verdict), parts=parts_of(verdict), interrupted=verdict.interrupted
    )


def lines(paint: Painter, verdict: Verdict) -> Lines:
    """Plain text that can be pasted into a mail; at its end, of a kernel in which nothing was found, a trailer."""
    yield from lines_of_parts(paint, verdict)
    if verdict.code is ExitCode.CLEAN:
        yield from _trailer(verdict)


def _trailer(verdict: Verdict) -> Lines:
    """A Tested-by line with what ran (Documentation/process/submitting-patches.rst); the name is the reader's."""
    held = {name.partition(": ")[0]: part for part in verdict.parts if (name := part.name).endswith(": model")}
    if not held:
        return
    modes = ", ".join(map(printable, held))
    operations = sum(int(part.figures.get("held", 0)) for part in held.values())
    tables = sum(part.name.endswith(": tables") for part in verdict.parts)
    said = f"KVM/arm64 stage-2 under QEMU ({modes}): {operations:,} operations kept the"
    said += f" invalidation protocol and did what the model does, all tables checked {tables} times"
    yield ""
    yield from folded(f"[{said}]", "", "", WIDTH)
    yield "Tested-by: NAME <ADDRESS>"


def junit(verdict: Verdict) -> str:
    """A test case a part: findings are failures, what could not be tested is skipped."""
    codes = [part.code for part in verdict.parts]
    suite = Xml.Element(
        "testsuite",
        name="inspector validate",
        tests=str(len(codes)),
        failures=str(codes.count(ExitCode.FINDINGS)),
        skipped=str(codes.count(ExitCode.UNTESTABLE)),
        errors="0",
    )
    for part in verdict.parts:
        configuration, _, name = part.name.partition(": ")
        case = Xml.SubElement(suite, "testcase", classname=printable(configuration), name=printable(name or part.name))
        text = "\n".join(map(printable, (part.summary, *part.lines)))
        if part.code is ExitCode.FINDINGS:
            Xml.SubElement(case, "failure", message=printable(part.summary)).text = text
        elif part.code is ExitCode.UNTESTABLE:
            Xml.SubElement(case, "skipped", message=printable(part.summary)).text = text
        else:
            Xml.SubElement(case, "system-out").text = text
    Xml.indent(suite)
    return Xml.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
