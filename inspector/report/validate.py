"""The verdict on a kernel that was booted (`inspector validate`): JSON and JUnit; text and KTAP are crosscheck's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree as Xml

from inspector.crosscheck.verdict import Verdict
from inspector.findings import ExitCode
from inspector.printable import printable
from inspector.report.crosscheck import PartOfVerdict, Word, parts_of, word_of
from inspector.report.document import Document


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
