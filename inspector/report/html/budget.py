"""What fits into a page: shares of a budget, and ranges folded until they fit, with what was folded said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from inspector.codec.bulk import Flat, Words
from inspector.report.leaves import by_pattern
from inspector.tables import RangeTable
from inspector.tables.intervals import runs

MIXED = -1
"""A pattern, a PA: what was folded has several."""


def shares(wanted: Sequence[int], total: int) -> list[int]:
    """How much of ``total`` each gets: all that it wants, as long as that is no more than an even share of the rest."""
    got = [0] * len(wanted)
    left = total
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for done, at in enumerate(order):
        got[at] = min(wanted[at], left // (len(wanted) - done))
        left -= got[at]
    return got


@dataclass(frozen=True)
class Drawn:
    """Ranges as they are drawn, in order of address: ``size`` from the first byte to the last, of which ``mapped`` are.

    ``pattern`` is an index into what `by_pattern` was asked, or `MIXED`; ``pa`` a PA or `MIXED`; ``ranges`` how many
    merged ranges each stands for; ``how`` says in a sentence what was folded, and is empty when nothing was.
    """

    ia: Words
    size: Words
    level: Flat
    pa: Flat
    pattern: Flat
    leaves: Words
    raw: Words
    mapped: Words
    ranges: Flat
    how: str = ""


def drawn(found: RangeTable, which: Flat, most: int) -> Drawn:
    """``found``, whose patterns are ``which``, in at most ``most`` pieces (more only where levels alone are more)."""
    whole = Drawn(
        found.ia,
        found.size,
        found.level.astype(np.intp),
        found.pa.astype(np.int64),
        which,
        found.leaves,
        found.raw,
        found.size,
        np.ones(len(found), dtype=np.intp),
    )
    if len(found) <= most:
        return whole
    start, end = runs((found.ia, found.size), (whole.level, 0), (which, 0))
    folded = _folded(whole, start, end)
    if len(start) <= most:
        how = "neighbours that differ in PA alone"
    else:
        shift = found.geometry.granule_shift
        folded = _at(folded, np.lexsort((folded.ia, folded.level)))
        while len(folded.ia) > max(most, 4) and shift < found.geometry.ia_bits:
            # What is folded already begins in the same smaller piece, so it may be folded further.
            shift += 1
            start, end = runs((folded.ia >> np.uint64(shift), 0), (folded.level, 0))
            folded = _folded(folded, start, end)
        folded = _at(folded, np.argsort(folded.ia, kind="stable"))
        how = f"those of one level that begin within the same 2^{shift} bytes, holes between them included"
    return replace(folded, how=f"{len(found):,} ranges are drawn as {len(folded.ia):,}: {how} are drawn as one")


_COLUMNS = ("ia", "size", "level", "pa", "pattern", "leaves", "raw", "mapped", "ranges")


def _at(found: Drawn, order: Flat) -> Drawn:
    return Drawn(*(getattr(found, name)[order] for name in _COLUMNS))


def _folded(found: Drawn, start: Flat, end: Flat) -> Drawn:
    """One piece for each ``[start, end)``."""
    last = end - 1

    def total(column: Words) -> Words:
        return np.add.reduceat(column, start)

    same = np.minimum.reduceat(found.pattern, start) == np.maximum.reduceat(found.pattern, start)
    return Drawn(
        found.ia[start],
        found.ia[last] + found.size[last] - found.ia[start],
        found.level[start],
        np.where(end - start > 1, MIXED, found.pa[start]),
        np.where(same, found.pattern[start], MIXED),
        total(found.leaves),
        found.raw[start],
        total(found.mapped),
        np.add.reduceat(found.ranges, start),
    )


__all__ = ["MIXED", "Drawn", "by_pattern", "drawn", "shares"]
