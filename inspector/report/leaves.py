"""Attributes of leaves, decoded once for each pattern of bits: a table of 262,144 leaves has a handful."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from inspector.codec import Descriptor, Geometry
from inspector.codec.bulk import Flat
from inspector.tables import RangeTable
from inspector.tables.columns import address_mask

T = TypeVar("T")


def by_pattern(found: RangeTable, function: Callable[[Descriptor], T]) -> tuple[list[T], Flat]:
    """What ``function`` says of each level and pattern of attributes, and which of these each range has."""
    address, shift = np.uint64(address_mask(found.geometry)), np.uint64(found.geometry.granule_shift)
    key = (found.raw & ~address) | found.level.astype(np.uint64) << shift
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return [function(found[int(at)].attrs) for at in first], which.reshape(-1)


class ByPattern(Generic[T]):
    """A function of a descriptor's attributes (not of its address), computed once a pattern and level."""

    def __init__(self, geometry: Geometry, function: Callable[[Descriptor], T]) -> None:
        self._mask = ~address_mask(geometry)
        self._function = function
        self._known: dict[tuple[int, int], T] = {}

    def __call__(self, found: Descriptor) -> T:
        key = found.raw & self._mask, found.level
        try:
            return self._known[key]
        except KeyError:
            value = self._known[key] = self._function(found)
            return value
