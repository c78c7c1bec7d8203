"""Text for a mail: folded, and two lists side by side where they fit, one line under the other where they do not."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from inspector.crosscheck.verdict import WIDTH

_BEFORE, _AFTER = 6, 9
"""Rows shown before and after the first that differs."""


def folded(text: str, indent: str = "", further: str | None = None, width: int = WIDTH - 2) -> list[str]:
    """A line in as many as it takes; no word is cut, so that one that is too long alone is wider.

    By default two columns are left for the indentation of the part that the text stands in.
    """
    further = indent if further is None else further
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent.rstrip()]


def rows(left: Sequence[str], right: Sequence[str]) -> list[tuple[str, str]]:
    """Two lists beside each other: lines that are alike in one row, an empty text for what one side has not.

    From the first that differs on, the rest is laid out as a diff would.
    """
    alike = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    found = list(zip(left[:alike], right[:alike], strict=True))
    ours, theirs = left[alike : alike + 4 * _AFTER], right[alike : alike + 4 * _AFTER]
    for tag, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        for i in range(max(b - a, d - c)) if tag != "equal" else range(b - a):
            found.append((ours[a + i] if a + i < b else "", theirs[c + i] if c + i < d else ""))
    return found


def marked(lines: Sequence[str], at: int, indent: str = "") -> Iterator[str]:
    """A list with line ``at`` marked with ``>`` and a stretch around it; ``at`` its length marks its end."""
    start, end = max(0, at - _BEFORE), min(len(lines), at + _AFTER)
    if start:
        yield f"{indent}  ... {start} more ..."
    for number in range(start, end):
        yield from folded(lines[number], f"{indent}{'> ' if number == at else '  '}", f"{indent}      ")
    if at >= len(lines):
        yield f"{indent}> the end"
    elif len(lines) > end:
        yield f"{indent}  ... {len(lines) - end} more ..."


def beside(names: tuple[str, str], left: Sequence[str], right: Sequence[str], indent: str = "") -> Iterator[str]:
    """Two lists with the first difference marked with ``>`` and a stretch around it; in one column as a diff shows it
    (``-`` for the left side alone, ``+`` for the right) when two do not fit."""
    both = rows(left, right)
    at = next((number for number, (a, b) in enumerate(both) if a != b), len(both))
    start, end = max(0, at - _BEFORE), min(len(both), at + _AFTER)
    shown = both[start:end]
    width = max(len(names[0]), *(len(a) for a, _ in shown), 0)
    fits = len(indent) + 2 + width + 2 + max(len(names[1]), *(len(b) for _, b in shown), 0) <= WIDTH - 2
    if start:
        yield f"{indent}  ... {start} alike ..."
    if fits:
        yield f"{indent}  {names[0].ljust(width)}  {names[1]}"
        for number, (a, b) in enumerate(shown, start):
            yield f"{indent}{'> ' if number == at else '  '}{a.ljust(width)}  {b}".rstrip()
    else:
        yield f"{indent}  - {names[0]} alone   + {names[1]} alone"
        for number, (a, b) in enumerate(shown, start):
            for sign, text in ((" ", a),) if a == b else (("-", a), ("+", b)):
                if text:
                    yield from folded(f"{sign} {text}", f"{indent}{'> ' if number == at else '  '}", f"{indent}      ")
    rest = max(len(left), len(right)) - end
    if rest > 0:
        yield f"{indent}  ... {rest} more ..."
