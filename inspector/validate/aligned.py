"""Two traces operation by operation, in their order: what is the same but for where pages lie, and what is not.

`inspector.validate.compare` asks which ways operations go; this asks whether the machine did the same from beginning to
end, which it does where its time is counted in instructions and its entropy is fixed (run_qemu.sh --deterministic).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Final

from inspector import events as ev
from inspector.events import RawEvent, format_raw

_PLACE: Final = re.compile(r"\b(pa|page|pgt|mc|head|phys|va|vcpu|old|new|value)=0x([0-9a-f]+)")
"""Where something lies in the host: an IPA is the guest's, and is the same or is not."""
_PAGE: Final = 12
_ADDRESS: Final = 0x0000_FFFF_FFFF_F000
"""Of an entry or of VTTBR_EL2; the bits around it are what it says."""
_WHOLE: Final = frozenset({"pgt", "mc", "head", "va", "vcpu"})
"""Kernel virtual addresses: all of it is place."""
_SMALL: Final = 1 << 32
"""A value that is returned and larger is an entry (mkyoung)."""
_MOST: Final = 4000
"""Operations on each side that are aligned by search, after what the traces begin and end alike with."""


@dataclass(frozen=True)
class Operation:
    """``form`` is what it did, with a mark for every place; ``places`` are those, in their order."""

    number: int
    call: str
    form: tuple[str, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """``same`` operations are in both, one for one; those of ``first`` and ``second`` have no partner.

    ``displaced`` are in both too, but before or after others than there: what waits for time, as RCU does.  ``moved``
    have a partner that does the same to other places than what went before says: renamed, they are not the same.
    """

    same: int
    first: Sequence[Operation]
    second: Sequence[Operation]
    displaced: Sequence[Operation]
    moved: Sequence[Operation]

    @property
    def is_identical(self) -> bool:
        """Nothing is left over."""
        return not self.first and not self.second and not self.displaced and not self.moved

    @property
    def share(self) -> float:
        """The part of all operations that is the same, of the longer trace; 1 where there is none at all."""
        rest = max(len(self.first), len(self.second)) + len(self.displaced) + len(self.moved)
        return self.same / (self.same + rest) if self.same + rest else 1.0


@dataclass
class _Running:
    number: int
    call: str
    form: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def operations(events: Iterable[tuple[int, RawEvent]]) -> Iterator[Operation]:
    """Each when it returns, its events as they came; which process asked, and by which functions, is left out."""
    running: dict[int, _Running] = {}
    number = 0
    for lane, raw in events:
        if raw[0] == ev.CALL:
            number += 1
            running[lane] = _Running(number, format_raw(raw))
        if lane not in running:
            continue
        form, places = _told(raw)
        running[lane].form.append(form)
        running[lane].places += places
        if raw[0] == ev.RET:
            done = running.pop(lane)
            yield Operation(done.number, done.call, tuple(done.form), tuple(done.places))


def _told(raw: RawEvent) -> tuple[str, list[int]]:
    places: list[int] = []

    def marked(match: re.Match[str]) -> str:
        value = int(match[2], 16)
        if match[1] in _WHOLE:
            places.append(value)
            return f"{match[1]}=*"
        if value & _ADDRESS:
            places.append((value & _ADDRESS) >> _PAGE)
        return f"{match[1]}=*{value & ~_ADDRESS:#x}"

    if raw[0] == ev.RET and raw[1] > _SMALL:
        return f"ret value=*{raw[1] & ~_ADDRESS:#x}", [(raw[1] & _ADDRESS) >> _PAGE]
    text = format_raw(raw)
    if raw[0] == ev.CALL:
        text = ",".join(word for word in text.split(",") if not word.startswith(("in=", "by=")))
    return _PLACE.sub(marked, text), places


def align(first: Sequence[Operation], second: Sequence[Operation]) -> Alignment:
    """By what they do, in order; then whether one renaming of places, each to one, holds for all of it."""
    pairs = list(_pairs([each.form for each in first], [each.form for each in second]))
    names: dict[int, int] = {}
    back: dict[int, int] = {}
    moved = []
    for one, other in pairs:
        renamed = list(zip(first[one].places, second[other].places, strict=True))
        if not all(names.setdefault(a, b) == b and back.setdefault(b, a) == a for a, b in renamed):
            moved.append(second[other])
            # A page is given back and taken again: what it is from here on is another's.
            for a, b in renamed:
                names[a], back[b] = b, a
    mine, theirs = {one for one, _ in pairs}, {other for _, other in pairs}
    waiting: dict[tuple[str, ...], list[int]] = {}
    for at, each in enumerate(second):
        if at not in theirs:
            waiting.setdefault(each.form, []).append(at)
    left, displaced = [], []
    for at, each in enumerate(first):
        if at in mine:
            continue
        alike = waiting.get(each.form, [])
        partner = next((other for other in alike if _fits(each, second[other], names)), None)
        if partner is None:
            left.append(each)
        else:
            alike.remove(partner)
            displaced.append(second[partner])
    over = sorted(at for alike in waiting.values() for at in alike)
    return Alignment(len(pairs) - len(moved), left, [second[at] for at in over], displaced, moved)


def _fits(one: Operation, other: Operation, names: Mapping[int, int]) -> bool:
    return all(names.get(a, b) == b for a, b in zip(one.places, other.places, strict=True))


def _pairs(first: Sequence[tuple[str, ...]], second: Sequence[tuple[str, ...]]) -> Iterator[tuple[int, int]]:
    """Which of ``second`` each of ``first`` is: what both begin and end with, and the longest runs between."""
    start, end = 0, 0
    shorter = min(len(first), len(second))
    while start < shorter and first[start] == second[start]:
        start += 1
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    yield from ((at, at) for at in range(start))
    here, there = first[start : len(first) - end], second[start : len(second) - end]
    matcher = SequenceMatcher(None, here[:_MOST], there[:_MOST], autojunk=False)
    for block in matcher.get_matching_blocks():
        yield from ((start + block.a + at, start + block.b + at) for at in range(block.size))
    yield from ((len(first) - end + at, len(second) - end + at) for at in range(end))
