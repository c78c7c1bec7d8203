"""The shape of a system register's table: named fields, reserved bits, and fields that depend on another field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from inspector.codec.bits import Field, Layout, Part

RESERVED = "reserved"
"""What the table says of a value that the architecture reserves."""


@dataclass(frozen=True)
class RegisterField(Field):
    """A contiguous field of a register: what it says, and what its values mean (as far as listed).

    ``needs`` is the feature without which the field is RES0, for fields that a reader of KVM's tables has to know of:
    they change how the tables are read, and KVM sets none of them.
    """

    meaning: str = ""
    values: Mapping[int, str] = field(default_factory=dict)
    needs: str = ""

    @property
    def hi(self) -> int:
        """The field's highest bit in the register."""
        return self.parts[0].hi

    @property
    def lo(self) -> int:
        """The field's lowest bit in the register."""
        return self.parts[0].lo

    @property
    def place(self) -> str:
        """``[5:0]``, or ``[31]``."""
        return f"[{self.hi}]" if self.hi == self.lo else f"[{self.hi}:{self.lo}]"

    def describe(self, value: int) -> str:
        """The value in words, e.g. ``48 bits``; empty when the value has none."""
        return self.values.get(value, "")


def row(
    name: str,
    hi: int,
    lo: int | None = None,
    meaning: str = "",
    values: Mapping[int, str] | None = None,
    needs: str = "",
) -> RegisterField:
    """A field ``[hi:lo]`` (one bit when ``lo`` is left out)."""
    return RegisterField(name, (Part(hi, hi if lo is None else lo),), "", meaning, values or {}, needs)


def named(lo: int, names: str, width: int = 1) -> Iterator[RegisterField]:
    """Fields of ``width`` bits, one above the other from bit ``lo`` up, of which the table has the names alone."""
    for number, name in enumerate(names.split()):
        yield row(name, lo + (number + 1) * width - 1, lo + number * width)


@dataclass(frozen=True)
class Register:
    """One layout of a register.

    ``section`` is where DDI 0487 describes it.  ``res1`` are the bits that must be one.  ``when`` is the condition
    under which the register has this layout, where it has two.  The fields that ``variants`` lists are there beside
    ``fields`` when the field ``selector`` has that value, those of ``otherwise`` at any other.
    """

    fields: tuple[RegisterField, ...]
    section: str = "D24.2"
    res1: int = 0
    when: str = ""
    selector: str = ""
    variants: Mapping[int, tuple[RegisterField, ...]] = field(default_factory=dict)
    otherwise: tuple[RegisterField, ...] = ()

    @cached_property
    def _ways(self) -> Mapping[int | None, tuple[RegisterField, ...]]:
        """The fields by the selector's value, from bit 0 up; ``None``: any other value."""
        ways = [(None, self.otherwise), *self.variants.items()]
        return {key: tuple(sorted((*rows, *self.fields), key=lambda row: row.lo)) for key, rows in ways}

    @cached_property
    def _layouts(self) -> Mapping[int | None, Layout]:
        return {key: Layout(rows) for key, rows in self._ways.items()}

    def _chosen(self, choice: int) -> int | None:
        return choice if choice in self.variants else None

    def _select(self, value: int) -> int | None:
        return self._chosen(next((one.get(value) for one in self.fields if one.name == self.selector), 0))

    def rows(self, value: int) -> tuple[RegisterField, ...]:
        """The fields that the register has at this value, from bit 0 up."""
        return self._ways[self._select(value)]

    def decode(self, value: int) -> dict[str, int]:
        """Every field by name, then ``res``: the bits without a name, in place."""
        return self._layouts[self._select(value)].decode(value)

    def encode(self, values: Mapping[str, int]) -> int:
        """The inverse of `decode` (absent fields: 0).  ValueError for an unknown field or a value that does not fit."""
        return self._layouts[self._chosen(values.get(self.selector, 0))].encode(values)
