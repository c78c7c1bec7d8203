"""Attributes of leaves, decoded once for each pattern of bits: a table of 262,144 leaves has a handful."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from inspector.codec import Descriptor, Geometry

T = TypeVar("T")


def attribute_mask(geometry: Geometry) -> int:
    """All bits but those that are address in every encoding of this granule: [47 or 49:granule shift]."""
    top = 50 if geometry.lpa2 else 48
    return ~((1 << top) - (1 << geometry.granule_shift)) & (1 << 64) - 1


class ByPattern(Generic[T]):
    """A function of a descriptor's attributes (not of its address), computed once a pattern and level."""

    def __init__(self, geometry: Geometry, function: Callable[[Descriptor], T]) -> None:
        self._mask = attribute_mask(geometry)
        self._function = function
        self._known: dict[tuple[int, int], T] = {}

    def __call__(self, found: Descriptor) -> T:
        key = found.raw & self._mask, found.level
        try:
            return self._known[key]
        except KeyError:
            value = self._known[key] = self._function(found)
            return value
