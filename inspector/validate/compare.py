"""What a kernel does that another does not: shapes of operations that are new, and those that are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, unified_diff

from inspector.validate.shape import Example, Shape, Shapes


@dataclass(frozen=True)
class Change:
    """An operation that returned something: ``new`` with the ``old`` shape that is nearest to it, either absent."""

    operation: str
    returned: int
    old: Shape | None
    new: Shape | None
    example: Example

    def lines(self) -> Iterator[str]:
        """What differs, with some of what stands around."""
        old, new = self.old or (), self.new or ()
        yield from list(unified_diff(list(old), list(new), lineterm="", n=2))[2:]


def changes(baselines: Sequence[Shapes], shapes: Shapes) -> list[Change]:
    """Of ``shapes`` against runs of the baseline: new is what none of them had, gone what all had.

    What a baseline does in one run and not in another is no change: the same kernel differs from itself there.
    """
    found: list[Change] = []
    keys = sorted({key for each in (*baselines, shapes) for key in each})
    for key in keys:
        known = [each.get(key, {}) for each in baselines]
        mine = shapes.get(key, {})
        new = [shape for shape in mine if not any(shape in each for each in known)]
        gone = [shape for shape in (known[0] if known else ()) if all(shape in each for each in known)]
        gone = [shape for shape in gone if shape not in mine]
        for shape in new:
            nearest = max(gone, key=lambda other: SequenceMatcher(None, other, shape).ratio(), default=None)
            if nearest is not None:
                gone.remove(nearest)
            found.append(Change(*key, nearest, shape, mine[shape]))
        found += [Change(*key, shape, None, known[0][shape]) for shape in gone]
    return found
