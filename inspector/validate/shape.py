"""What an operation does, without addresses: so that one kernel's operations can be compared with another's.

A shape is the list of an operation's events with every address left out, every entry reduced to what it is and its
attributes, and what repeats folded: two kernels that do the same to a table have the same shapes, whatever their pages.
Of addresses there is only whether an invalidation by IPA, and a page or block that is mapped, is of what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inspector import events as ev
from inspector.events import RawEvent
from inspector.protocol.facts import operation_name

Shape = tuple[str, ...]
_LOCKS: Final = {0x400, 1 << 60}
"""KVM_INVALID_PTE_LOCKED: bit 10 from 6.2, type 1 from 7.1 (inspector/generations)."""
_LOWER: Final = 0xFFC
_UPPER: Final = 0xFFF << 52
_SH: Final = 3 << 8
"""With LPA2 these two are address."""
_DS: Final = 32
_LONGEST: Final = 16
"""Events in a piece that may repeat."""
_EAGAIN: Final = -11
_PAGE: Final = 1 << 12
"""The smallest, and the unit of an IPA in a TLBI."""
_OUTPUT: Final = 0x0000_FFFF_FFFF_F000
"""Of an entry, below 48 bits: with LPA2, or 64K pages and 52 bits, its lowest bits are elsewhere, for all alike."""


@dataclass(frozen=True)
class Example:
    """Where a shape was seen first: the operation's number in the trace, its call, and how often it was."""

    operation: int
    call: str
    times: int = 1


@dataclass
class _Operation:
    number: int
    name: str
    call: str
    ipas: range
    pages: range
    tokens: list[str] = field(default_factory=list)
    lost: bool = False


def shapes(events: Iterable[tuple[int, RawEvent]]) -> dict[tuple[str, int], dict[Shape, Example]]:
    """By operation and return value; what lost a race to another CPU is left out, since races come as they come."""
    found: dict[tuple[str, int], dict[Shape, Example]] = {}
    running: dict[int, _Operation] = {}
    tables: set[int] = set()
    number, lpa2 = 0, False
    for lane, raw in events:
        kind = raw[0]
        if kind == ev.CALL:
            number += 1
            lpa2 = lpa2 or bool(_word(raw[2], "vtcr") >> _DS & 1)
            asked = _asked(raw[2], "addr"), _asked(raw[2], "phys")
            running[lane] = _Operation(number, operation_name(raw[1]), f"{raw[1]} {raw[2]}", *asked)
        elif lane not in running:
            continue
        elif kind == ev.RET:
            done = running.pop(lane)
            if not done.lost and raw[1] != _EAGAIN:
                _count(found.setdefault((done.name, _returned(done.name, raw[1])), {}), done)
        else:
            if kind == ev.ALLOC:
                tables.add(raw[1])
            elif kind == ev.FREE:
                tables.discard(raw[1])
            running[lane].lost |= kind == ev.CASFAIL
            running[lane].tokens.extend(_tokens(raw, running[lane], tables, lpa2))
    return found


def _returned(name: str, value: int) -> int:
    """Of what returns an entry, whether it did."""
    return int(bool(value)) if name in ("mkyoung", "mkold") else value


def _count(shapes_of: dict[Shape, Example], done: _Operation) -> None:
    shape = folded(done.tokens)
    before = shapes_of.get(shape)
    if before is None:
        shapes_of[shape] = Example(done.number, done.call)
    else:
        shapes_of[shape] = Example(before.operation, before.call, before.times + 1)


def _word(arguments: Any, name: str) -> int:
    for word in str(arguments).split(","):
        if word.startswith(name + "="):
            return int(word.partition("=")[2], 0)
    return 0


def _asked(arguments: Any, name: str) -> range:
    """The pages from there on that an operation is about; nothing where it does not say."""
    if f"{name}=" not in str(arguments):
        return range(0)
    start = _word(arguments, name) & ~(_PAGE - 1)
    return range(start, start + max(_word(arguments, "size"), _PAGE))


def _tokens(raw: RawEvent, running: _Operation, tables: set[int], lpa2: bool) -> Iterator[str]:
    kind = raw[0]
    if kind == ev.STORE:
        _, _, old, new, release, cas = raw
        how = " release" if release else " cmpxchg" if cas else ""
        entry = _entry(new, tables, lpa2)
        # What an entry is made from; a change of attributes keeps what is there, and is asked for no page.
        other = entry[0] in "pb" and running.pages and new & _OUTPUT not in running.pages
        yield f"store {_entry(old, tables, lpa2)} -> {entry}{how}{' of another page' if other else ''}"
    elif kind == ev.TLBI:
        level = "" if raw[3] is None else f" level {raw[3]}"
        other = raw[1].startswith("ipas2") and raw[2] is not None and running.ipas and raw[2] not in running.ipas
        yield f"tlbi {raw[1]}{level}{' of another IPA' if other else ''}"
    elif kind == ev.PUT:
        yield "put"
    elif kind == ev.CACHE:
        yield f"clean {raw[1]}, {raw[3]} bytes"
    elif kind == ev.BARRIER:
        yield f"barrier {raw[1]}"
    elif kind in (ev.GET, ev.ALLOC, ev.FREE, ev.ALLOC_EXACT, ev.FREE_EXACT, ev.ALLOCFAIL, ev.DEFER):
        yield ev.EVENT_TYPES[kind][0].replace("_", " ")
    elif kind == ev.SYSREG:
        yield f"write {raw[2]}"


def _entry(value: int, tables: set[int], lpa2: bool) -> str:
    if not value & 1:
        return "0" if not value else "locked" if value in _LOCKS else f"invalid {value:#x}"
    if value & 3 == 3 and value & _OUTPUT in tables:
        return "table"
    attributes = value & (_LOWER | _UPPER) & ~(_SH if lpa2 else 0)
    return f"{'page' if value & 2 else 'block'}:{attributes:#x}"


def folded(tokens: list[str]) -> Shape:
    """Pieces that follow one another again and again are there once, in brackets with a plus."""
    for length in range(1, _LONGEST + 1):
        if len(tokens) < 2 * length:
            break
        tokens = _fold(tokens, length)
    return tuple(tokens)


def _fold(tokens: list[str], length: int) -> list[str]:
    out: list[str] = []
    at = 0
    while at < len(tokens):
        piece = tokens[at : at + length]
        after = at + length
        while len(piece) == length and tokens[after : after + length] == piece:
            after += length
        if after > at + length:
            out += _bracketed(piece)
            at = after
        else:
            out.append(tokens[at])
            at += 1
    return out


def _bracketed(piece: list[str]) -> list[str]:
    if len(piece) == 1:
        return [piece[0] if piece[0].startswith("[") else f"[{piece[0]}]+"]
    return [f"[{piece[0]}", *piece[1:-1], f"{piece[-1]}]+"]


Shapes = Mapping[tuple[str, int], Mapping[Shape, Example]]
