"""What every verdict of this tool is made of: findings, their severities, and the exit codes.

Ground floor: standard library only, imports no other room.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How much a finding weighs.

    ``ERROR`` contradicts what the architecture or this kernel allows.  ``NOTE`` is odd but has a legal
    explanation, which the finding states; notes never change the exit code.
    """

    ERROR = "error"
    NOTE = "note"


class ExitCode(enum.IntEnum):
    """Exit codes of every command (``125`` is what ``git bisect run`` skips)."""

    CLEAN = 0
    FINDINGS = 1
    USAGE = 2
    TARGET_LOST = 3
    UNTESTABLE = 125


@dataclass(frozen=True)
class Where:
    """The place a finding is about; every part that does not apply is ``None``.

    ``vm`` is the VM's name in the capture (``vm0``), ``regime`` names the table (``stage-2 VMID 3``),
    ``ipa`` and ``size`` are bytes, ``table_pa`` is the PA of the table page read and ``index`` the entry in it.
    """

    vm: str | None = None
    regime: str | None = None
    ipa: int | None = None
    size: int | None = None
    level: int | None = None
    table_pa: int | None = None
    index: int | None = None
    raw: int | None = None


class History(enum.StrEnum):
    """What legal history leaves behind: notes of ``inspector diff`` alone."""

    AGED = "aged"
    SPLIT = "split"


@dataclass(frozen=True)
class Finding:
    """One disagreement between what is and what must be.

    ``check`` is the invariant's id (``S3``), ``expected`` and ``actual`` are one phrase each, ``why`` says why it
    matters, ``function`` names the kernel function responsible, where one can be named.  ``other`` is a second place
    that the finding is as much about (the other parent of a shared table); ``history`` marks what nobody needs to act
    on.  ``lasting`` marks a note about what may pass by itself: the severity and the ``why`` it has if it does not.
    """

    check: str
    severity: Severity
    where: Where
    expected: str
    actual: str
    why: str
    function: str | None = None
    other: Where | None = None
    history: History | None = None
    lasting: tuple[Severity, str] | None = None


class InspectorError(Exception):
    """A problem the user is told in one sentence; ``exit_code`` is what the command then returns."""

    exit_code: ExitCode = ExitCode.USAGE


class BadInput(InspectorError):
    """A file, an option or a value given by the user is unusable (exit 2)."""


class TargetLost(InspectorError):
    """The target could not be reached, is not what it should be, or went away (exit 3)."""

    exit_code = ExitCode.TARGET_LOST


class Untestable(InspectorError):
    """The machine is there, but has nothing that could be looked at (exit 125, which ``git bisect run`` skips)."""

    exit_code = ExitCode.UNTESTABLE
