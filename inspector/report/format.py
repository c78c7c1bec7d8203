"""How single values look, columns, and colour: the same in every command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

from rich.color import ColorSystem
from rich.style import Style

_UNITS = "BKMGTPE"
#: SH[1:0] of a leaf (DDI 0487 D8.6.2).
SHAREABILITY = {0: "non", 1: "reserved", 2: "outer", 3: "inner"}


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


def count(number: int, noun: str) -> str:
    """``1 table``, ``3 tables``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fields(values: Iterable[tuple[str, int]]) -> str:
    """``valid=1 type=1 memattr=0x6``: small values in decimal."""
    return " ".join(f"{name}={value}" if value < 10 else f"{name}={value:#x}" for name, value in values)


@dataclass(frozen=True)
class Painter:
    """Puts colour on text, or leaves it alone."""

    color: bool = False

    def __call__(self, text: str, style: str) -> str:
        if not self.color or not text:
            return text
        return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


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
    if not rows:
        return []
    widths = [max(len(head[i]), *(len(row[i]) for row in rows)) for i in range(len(head))]
    to_right = set(right)
    template = indent + "  ".join(f"{{:{'>' if i in to_right else '<'}{width}}}" for i, width in enumerate(widths))
    lines = [paint(template.format(*head).rstrip(), "bold")] if any(head) else []
    lines += [template.format(*row).rstrip() for row in rows]
    return lines


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
    yield paint((indent + "  ".join(names)).rstrip(), "bold")
    for row in zip(*padded, strict=True):
        yield (indent + "  ".join(row)).rstrip()
