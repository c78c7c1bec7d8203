"""Which entries hold a reference on their table page, and what its count must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inspector.codec.bulk import Flags, Flat
from inspector.generations import Generation
from inspector.tables.columns import Columns


@dataclass(frozen=True)
class References:
    """What the entries of a table say of the counts of its pages (kernel.md 10.1).

    ``locked`` entries hold no reference.  ``low`` and ``high`` are the least and the highest right ``page_count`` of
    each page: they differ by the invalid entries that are neither zero nor LOCKED.  The kernel's rule counts those, but
    nobody who wrote one beside the kernel took a reference; `S6` reports the entry itself, and here both numbers pass.
    """

    locked: Flags
    low: Flat
    high: Flat


def references(columns: Columns, behaviours: Generation) -> References:
    """The reference counts that a table's pages must have."""
    low = 1 + columns.per_page(columns.valid)
    if columns.valid.all():
        return References(~columns.valid, low, low)
    locked = ~columns.valid & (columns.raw == np.uint64(behaviours.locked_value))
    return References(locked, low, 1 + columns.per_page(~locked) if behaviours.counts_nonzero else low)
