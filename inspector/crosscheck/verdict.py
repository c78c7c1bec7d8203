"""What was tried on a kernel's code, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inspector.findings import ExitCode

WIDTH = 75
"""Columns of the text: it is pasted into mails."""


@dataclass(frozen=True)
class Part:
    """One thing that was tried: the model against the kernel, baseline against patched, interleavings, coverage.

    ``code`` is what this part alone would make the command return: clean, findings, or not testable.  ``summary`` is
    one sentence without its full stop; ``lines`` are what a reader needs beyond it (at most `WIDTH` columns, though a
    line of source or of events may be longer).  ``figures`` are its numbers by name, for JSON and for notes.
    ``script`` shows what was found, operation by operation.  ``built`` are the variants of the file that it took.
    """

    name: str
    code: ExitCode
    summary: str
    lines: Sequence[str] = ()
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    script: Sequence[str] = ()
    built: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """``built`` says, a line each, what was built and what the model took it for.  ``interrupted``: it was cut short,
    and what had been found by then is in it."""

    built: Sequence[str]
    parts: Sequence[Part]
    interrupted: bool = False

    @property
    def code(self) -> ExitCode:
        """Findings outweigh what could not be tested, and that outweighs a clean part; cut short: none of these."""
        if self.interrupted:
            return ExitCode.TARGET_LOST
        codes = {part.code for part in self.parts}
        for code in (ExitCode.FINDINGS, ExitCode.UNTESTABLE):
            if code in codes:
                return code
        return ExitCode.CLEAN if codes else ExitCode.UNTESTABLE
