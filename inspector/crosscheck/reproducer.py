"""A script that shows a difference, as a text file small enough for a mail, and reading it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inspector.crosscheck.layout import folded
from inspector.findings import BadInput
from inspector.model.operations import ScriptError, parse_operation
from inspector.model.session import Setup, parse_setup
from inspector.printable import SHORT, printable

MODEL, BASELINE = "model against kernel", "baseline against patched"
SANITIZERS, INTERLEAVINGS = "sanitizers", "interleavings"
"""The parts of a verdict that a reproducer may belong to; the model's when the file does not say."""

_PART = "part: "
_LETTERS = "ABC"
_MOST = 1 << 20
"""Bytes of a file that are read."""


@dataclass(frozen=True)
class Reproducer:
    """``lines`` are the script, its ``machine`` line first; ``part`` says what is to be compared.

    ``together`` are operations that run at the same time after it, of the part `INTERLEAVINGS` (``A: map …``).
    """

    part: str
    lines: tuple[str, ...]
    together: tuple[str, ...] = ()

    @property
    def setup(self) -> Setup:
        """The machine."""
        return parse_setup(self.lines[0])


def text_of(part: str, about: Sequence[str], script: Sequence[str]) -> str:
    """The file: comment lines that say what it is, then the script, in the grammar of ``inspector model``."""
    head = ["inspector crosscheck --replay FILE TREE runs this again", f"{_PART}{part}", *about]
    comments = [line for text in head for line in folded(text, "# ", "#   ")]
    return "\n".join([*comments, *script, ""])


def write(file: Path, text: str) -> None:
    """Raises `BadInput` when it cannot be written."""
    try:
        file.write_text(text)
    except OSError as error:
        raise BadInput(
            f"the reproducer {file} cannot be written: {error.strerror}; name another file with --reproducer"
        ) from None


def read(file: Path) -> Reproducer:
    """What `write` wrote, or any script on one machine.  Raises `BadInput`."""
    shown = printable(str(file), SHORT)
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MOST + 1)
        if len(raw) > _MOST:
            raise BadInput(f"{shown} is no reproducer: it is longer than {_MOST} bytes")
        text = raw.decode()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadInput(f"the reproducer {shown} cannot be read: {why}") from None
    part = MODEL
    script: list[str] = []
    together: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        body, _, note = line.partition("#")
        if not body.strip() and note.strip().startswith(_PART):
            part = note.strip().removeprefix(_PART).strip()
        letter, colon, operation = body.strip().partition(": ")
        if colon and letter in _LETTERS and part == INTERLEAVINGS:
            together.append(_checked(operation.strip(), number, shown, first=False))
        elif body.strip():
            script.append(_checked(body.strip(), number, shown, first=not script))
    if part not in (MODEL, BASELINE, SANITIZERS, INTERLEAVINGS):
        raise BadInput(f"{shown}: this version cannot replay the part '{printable(part, SHORT)}'")
    if part == INTERLEAVINGS and not 2 <= len(together) <= len(_LETTERS):
        raise BadInput(f"{shown}: two or three operations must meet, in lines that begin with A:, B: and C:")
    if not script:
        raise BadInput(f"{shown} is no reproducer: there is no script in it")
    return Reproducer(part, tuple(script), tuple(together))


def _checked(line: str, number: int, shown: str, *, first: bool) -> str:
    machine = line.split()[0] == "machine"
    try:
        if machine != first:
            raise ScriptError("a reproducer has one machine, in the first line of its script")
        (parse_setup if machine else parse_operation)(line)
    except (ScriptError, ValueError) as error:
        raise BadInput(f"{shown}, line {number}: {error}") from None
    return line
