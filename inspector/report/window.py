"""Which part of a table a `dump` shows: windows in IPA and PA, and the small language of ``--filter``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from inspector.codec import Descriptor, Execute, Geometry, Kind
from inspector.findings import BadInput
from inspector.numbers import parse_number
from inspector.report.leaves import ByPattern, by_pattern
from inspector.tables import RangeTable

_LAST = (1 << 64) - 1

FILTER_HELP = (
    "terms joined by commas, all of which must hold; '!' before a term negates it: r, w, x, ro, af, sw, normal, nc, "
    "device, page, block, level=N (-1 to 3), size=4K|2M|1G"
)


@dataclass(frozen=True)
class Interval:
    """Addresses ``[start, end)``."""

    start: int = 0
    end: int = 1 << 64

    def meets(self, start: int, size: int) -> bool:
        return start < self.end and self.start < start + size


EVERYTHING = Interval()


def parse_interval(text: str) -> Interval:
    """``A-B`` (B not included), or ``A+SIZE``.  Raises `BadInput`."""
    for separator in ("+", "-"):
        first, found, second = text.partition(separator)
        if found:
            start, other = parse_number(first, "address"), parse_number(second, "address")
            interval = Interval(start, start + other if separator == "+" else other)
            if interval.end <= interval.start:
                raise BadInput(f"the range '{text}' is empty: write START-END with END above START, or START+SIZE")
            return interval
    raise BadInput(f"'{text}' is not a range: write START-END or START+SIZE, as in 0x40000000-0x40200000")


Rule = Callable[[Descriptor], bool]

_TERMS: dict[str, Rule] = {
    "r": lambda d: d.readable,
    "w": lambda d: d.writable,
    "x": lambda d: d.executable is not Execute.NEVER,
    "ro": lambda d: d.readable and not d.writable,
    "af": lambda d: d.af,
    "sw": lambda d: d.sw != 0,
    "normal": lambda d: d.memory_type == "normal",
    "nc": lambda d: d.memory_type == "normal-nc",
    "device": lambda d: d.memory_type.startswith("device"),
    "page": lambda d: d.kind is Kind.PAGE,
    "block": lambda d: d.kind is Kind.BLOCK,
}


def _term(text: str) -> Rule:
    if text.startswith("!"):
        inner = _term(text[1:].strip())
        return lambda d: not inner(d)
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals and name in _TERMS:
        return _TERMS[name]
    if name == "level" and re.fullmatch(r"-1|[0-3]", value):
        return lambda d: d.level == int(value)
    if name == "size" and equals:
        wanted = parse_number(value, "size")
        return lambda d: d.size == wanted
    raise BadInput(f"'{text}' is not a filter: use {FILTER_HELP}")


def parse_filter(text: str) -> Rule:
    """A ``--filter`` expression as a question to a leaf.  Raises `BadInput`."""
    rules = [_term(part.strip().lower()) for part in text.split(",") if part.strip()]
    if not rules:
        raise BadInput(f"the filter is empty: use {FILTER_HELP}")
    return lambda d: all(rule(d) for rule in rules)


@dataclass(frozen=True)
class Window:
    """What of a table is shown: leaves that meet both intervals and satisfy the rule."""

    ipa: Interval = EVERYTHING
    pa: Interval = EVERYTHING
    rule: Rule | None = None

    @property
    def whole(self) -> bool:
        """True when everything is shown."""
        return self.ipa == EVERYTHING and self.pa == EVERYTHING and self.rule is None

    def remembering(self, geometry: Geometry) -> Window:
        """The same window, whose rule is asked once for each pattern of attributes."""
        return self if self.rule is None else replace(self, rule=ByPattern(geometry, self.rule))

    def accepts_leaf(self, ipa: int, leaf: Descriptor) -> bool:
        """Whether one leaf at ``ipa`` is shown."""
        return (
            self.ipa.meets(ipa, leaf.size)
            and self.pa.meets(leaf.output_address or 0, leaf.size)
            and (self.rule is None or self.rule(leaf))
        )

    def of(self, found: RangeTable) -> RangeTable:
        """The leaves of ``found`` inside the window, as ranges: whole leaves, never parts."""
        if self.whole:
            return found
        chosen = np.ones(len(found), dtype=bool)
        if self.rule is not None:
            verdicts, which = by_pattern(found, self.rule)
            chosen = np.array(verdicts, dtype=bool)[which]
        leaf = found.size // found.leaves
        first, last = np.zeros(len(found), dtype=np.uint64), found.leaves.copy()
        for window, base in ((self.ipa, found.ia), (self.pa, found.pa)):
            if window.start:
                start = np.uint64(min(window.start, _LAST))
                first = np.maximum(first, np.where(start > base, (start - base) // leaf, 0).astype(np.uint64))
            if window.end <= _LAST:
                end = np.uint64(window.end)
                inside = np.where(end > base, (end - base + leaf - np.uint64(1)) // leaf, 0).astype(np.uint64)
                last = np.minimum(last, inside)
        rows = np.flatnonzero(chosen & (first < last))
        skipped, count = first[rows] * leaf[rows], last[rows] - first[rows]
        return RangeTable(
            found.geometry,
            found.format,
            found.ia[rows] + skipped,
            count * leaf[rows],
            found.pa[rows] + skipped,
            found.level[rows],
            found.raw[rows] + skipped,  # runs are cut where the address would carry out of its field
            count,
        )
