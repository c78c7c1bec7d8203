"""Bit fields as data: a named field, possibly scattered over the word, and a layout made of them.

Everything that knows where a bit lives is a `Field` in a `Layout`; the scalar decoder, the encoder and the numpy bulk
decoder are all driven by the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

WORD = (1 << 64) - 1
"""All bits of a descriptor or register."""

RES = "res"
"""Key under which a decoder keeps the bits that have no name, in place (not shifted)."""


def mask(hi: int, lo: int) -> int:
    """The word with bits ``[hi:lo]`` set, both ends included."""
    return ((1 << (hi - lo + 1)) - 1) << lo


@dataclass(frozen=True)
class Part:
    """Bits ``[hi:lo]`` of the word hold bits ``[at + hi - lo : at]`` of the field's value."""

    hi: int
    lo: int
    at: int = 0

    @property
    def mask(self) -> int:
        """The bits of the word that this part occupies."""
        return mask(self.hi, self.lo)


@dataclass(frozen=True)
class Field:
    """A named field: its parts, and where the Arm ARM (or the kernel) defines it."""

    name: str
    parts: tuple[Part, ...]
    source: str = ""

    @cached_property
    def mask(self) -> int:
        """The bits of the word that the field occupies."""
        result = 0
        for part in self.parts:
            result |= part.mask
        return result

    @cached_property
    def value_mask(self) -> int:
        """The bits that the field's value can have."""
        result = 0
        for part in self.parts:
            result |= part.mask >> part.lo << part.at
        return result

    def get(self, word: int) -> int:
        """The field's value in ``word``."""
        value = 0
        for mask, lo, at in self._moves:
            value |= (word & mask) >> lo << at
        return value

    @cached_property
    def _moves(self) -> tuple[tuple[int, int, int], ...]:
        return tuple((part.mask, part.lo, part.at) for part in self.parts)

    def put(self, value: int) -> int:
        """The word that holds ``value`` in this field and zero elsewhere; ValueError if it does not fit."""
        if value < 0 or value & ~self.value_mask:
            raise ValueError(f"{value:#x} does not fit field {self.name} (possible bits: {self.value_mask:#x})")
        word = 0
        for part in self.parts:
            word |= (value >> part.at << part.lo) & part.mask
        return word


def bits(name: str, hi: int, lo: int | None = None, source: str = "") -> Field:
    """A field of contiguous bits ``[hi:lo]`` (one bit when ``lo`` is left out)."""
    return Field(name, (Part(hi, hi if lo is None else lo),), source)


class Layout:
    """Fields that do not overlap; whatever they leave over is ``res``."""

    def __init__(self, fields: Iterable[Field]) -> None:
        self.fields: tuple[Field, ...] = tuple(fields)
        self.by_name: Mapping[str, Field] = {field.name: field for field in self.fields}
        named = 0
        for field in self.fields:
            if named & field.mask:
                raise ValueError(f"field {field.name} overlaps another one")
            named |= field.mask
        if len(self.by_name) != len(self.fields):
            raise ValueError("two fields share a name")
        self.unnamed: int = WORD & ~named

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def decode(self, word: int) -> dict[str, int]:
        """Every field by name, in the order of the table, then ``res``: the unnamed bits in place."""
        values = {field.name: field.get(word) for field in self.fields}
        values[RES] = word & self.unnamed
        return values

    def encode(self, values: Mapping[str, int]) -> int:
        """The word with these field values (absent: 0); ValueError on an unknown name or a value that does not fit."""
        word = 0
        for name, value in values.items():
            if name == RES:
                if value < 0 or value & ~self.unnamed:
                    raise ValueError(f"res {value:#x} has bits that belong to named fields")
                word |= value
            elif name in self.by_name:
                word |= self.by_name[name].put(value)
            else:
                raise ValueError(f"no field {name!r} here; there are: {', '.join(self.by_name)}, {RES}")
        return word
