"""How a test asks for the verdict on a world."""

from __future__ import annotations

from typing import Any

from inspector.check import run_checks
from inspector.findings import Finding, Severity
from inspector.snapshot import Capture
from tests.check.build import World

ERROR, NOTE = Severity.ERROR, Severity.NOTE


def verdict(subject: World | Capture) -> list[Finding]:
    """All findings of all checks."""
    return run_checks(subject.capture() if isinstance(subject, World) else subject)


def only(subject: World | Capture, check: str, severity: Severity = ERROR) -> Finding:
    """The one finding there is, of ``check``; anything else fails the test."""
    found = verdict(subject)
    assert [(f.check, f.severity) for f in found] == [(check, severity)], "\n".join(map(str, found))
    return found[0]


def silent(subject: World | Capture) -> None:
    """Nothing is found, not even a note."""
    found = verdict(subject)
    assert not found, "\n".join(map(str, found))


def at(finding: Finding, **place: Any) -> None:
    """The finding's place has these values."""
    assert {name: getattr(finding.where, name) for name in place} == place
