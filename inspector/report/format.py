"""How single values look, columns, foreign text, and colour: the same in every command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from inspector.printable import printable

_UNITS = "BKMGTPE"

Lines = Iterator[str]


def address(value: int | None) -> str:
    """``0x40001000``; ``-`` for ``None``."""
    return "-" if value is None else f"{value:#x}"


def raw(value: int) -> str:
    """A descriptor or register: sixteen hex digits."""
    return f"{value:#018x}"


def size(value: int) -> str:
    """Bytes in the largest unit that divides them: ``4K``, ``2M``, ``1G``, ``12K``, ``1536M``; else ``513B``."""
    unit = 0
    while value and not value % 1024 and unit < len(_UNITS) - 1:
        value //= 1024
        unit += 1
    return f"{value}{_UNITS[unit]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 table``, ``3 tables``."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def fields(values: Iterable[tuple[str, int]]) -> str:
    """``valid=1 type=1 memattr=0x6``: small values in decimal."""
    return " ".join(f"{name}={value}" if value < 10 else f"{name}={value:#x}" for name, value in values)


_SGR = {"": "0", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True)
class Painter:
    """Puts colour on text, or leaves it alone; and makes lines fit for a terminal.

    A painted text carries a mark that nobody else can know, so that what looks like a colour in a foreign string is
    shown, and not obeyed.
    """

    color: bool = False
    mark: str = field(default_factory=lambda: os.urandom(8).hex())

    def __call__(self, text: str, style: str) -> str:
        if not self.color or not text:
            return text
        return f"\x1b{self.mark}{style}\x1b{text}\x1b{self.mark}\x1b"

    def finished(self, line: str) -> str:
        """The line as it goes out: foreign characters shown, painted text in colour."""
        if self.mark not in line:
            return printable(line)
        parts = re.split(f"\x1b{self.mark}([a-z ]*)\x1b", line)
        parts[::2] = map(printable, parts[::2])
        parts[1::2] = [f"\x1b[{';'.join(_SGR[word] for word in style.split(' '))}m" for style in parts[1::2]]
        return "".join(parts)


PLAIN = Painter()


def columns(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Iterable[int] = (),
    indent: str = "",
    paint: Painter = PLAIN,
) -> list[str]:
    """Lines of a table: as wide as its cells, never cut or wrapped; no line ends in a space.

    ``right`` are the numbers of the columns aligned to the right.
    """
    cells = list(zip(*rows, strict=True))
    return list(long_columns(head, cells, right=right, indent=indent, paint=paint)) if rows else []


def long_columns(
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    *,
    right: Iterable[int] = (),
    indent: str = "",
    paint: Painter = PLAIN,
) -> Iterator[str]:
    """As `columns`, for tables of many rows: ``cells`` is column by column, lines come as they are asked for."""
    to_right = set(right)
    padded: list[Iterator[str]] = []
    names = []
    for number, (name, column) in enumerate(zip(head, cells, strict=True)):
        width = max(len(name), max(map(len, column)))
        if number in to_right:
            padded.append(map(str.rjust, column, repeat(width)))
            names.append(name.rjust(width))
        elif number == len(head) - 1:
            padded.append(iter(column))
            names.append(name)
        else:
            padded.append(map(str.ljust, column, repeat(width)))
            names.append(name.ljust(width))
    if any(head):
        yield paint((indent + "  ".join(names)).rstrip(), "bold")
    for row in zip(*padded, strict=True):
        yield (indent + "  ".join(row)).rstrip()
