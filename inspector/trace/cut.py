"""Where a trace begins in what the probe writes: one instant, of which a capture is taken too.

While the machine stands still, every record of what was done before is in front of the probe's last mark (probe.c).
What was under way at that instant is known from the records in front of it: the assembler reads these, and tells
nothing of them but how they left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from inspector.events import ALLOC, CALL, FREE, RET, RawEvent
from inspector.findings import BadInput, Untestable
from inspector.trace.assemble import Assembler
from inspector.trace.raw import MARK, Reader, RecordKind

_HEAD: Final = 1 << 20
"""Bytes from the beginning: the CPU's registers and the first store are told there."""
_TAIL: Final = 16 << 20
"""Bytes in front of the instant in which what is under way has begun: no walk holds a lock for as long, or it is said
that it was not followed (`Judge`)."""
_MARK: Final = MARK.to_bytes(4, "little")


@dataclass
class Cut:
    """``offset`` in the records; ``assembler`` as it is there; ``under_way`` are events that tell what had begun."""

    offset: int
    assembler: Assembler
    under_way: list[tuple[int, RawEvent]] = field(default_factory=list)


def end_of(records: Path) -> int:
    """How much is written, of a machine that stands.  Raises `BadInput`, and `Untestable` when it may not be all."""
    try:
        with records.open("rb") as stream:
            end = stream.seek(0, 2)
            stream.seek(max(0, end - 8))
            last = stream.read(8)
    except OSError as error:
        raise BadInput(f"the probe's records cannot be read: {error.strerror}") from None
    if end and not _is_mark(last):
        raise Untestable(
            "the probe has not written out all that it saw when the machine was stopped: a trace cannot begin in its "
            "midst; --since start takes all of it"
        )
    return end


def _is_mark(word: bytes) -> bool:
    return word[:1] == bytes([RecordKind.MARK]) and word[2:] == b"\0\0" + _MARK


def cut_at(records: Path, end: int, assembler: Assembler) -> Cut:
    """The cut at ``end``, with what was under way there, by a new ``assembler``.

    Raises `BadInput` when the records cannot be read, `BadRecord` when they make no sense.
    """
    open_lanes: dict[int, list[RawEvent]] = {}
    try:
        with records.open("rb") as stream:
            if end > _HEAD + _TAIL:
                _learn(assembler, stream.read(_HEAD))
                stream.seek(_first_mark(stream, end - _TAIL, end))
            for lane, raw in _told(assembler, stream, end):
                if raw[0] == CALL:
                    open_lanes[lane] = [raw]
                elif raw[0] == RET:
                    open_lanes.pop(lane, None)
                elif lane in open_lanes and raw[0] in (ALLOC, FREE):
                    open_lanes[lane].append(raw)
    except OSError as error:
        raise BadInput(f"the probe's records cannot be read: {error.strerror}") from None
    assembler.outside.clear()
    return Cut(end, assembler, list(assembler.under_way(_private(open_lanes))))


def _learn(assembler: Assembler, head: bytes) -> None:
    """What is told once, or by the first store alone."""
    for record in Reader().take(head):
        for _ in assembler.take(record):
            pass
    assembler.forget()


def _first_mark(stream: IO[bytes], low: int, end: int) -> int:
    """Where a record begins: after a mark.  Records are made of whole words."""
    low -= low % 8
    stream.seek(low)
    data = stream.read(end - low)
    at = data.find(_MARK)
    while at >= 0:
        if at % 8 == 4 and _is_mark(data[at - 4 : at + 4]):
            return low + at + 4
        at = data.find(_MARK, at + 1)
    return end


def _told(assembler: Assembler, stream: IO[bytes], end: int) -> Iterator[tuple[int, RawEvent]]:
    reader = Reader()
    while data := stream.read(min(_HEAD, end - stream.tell())):
        for record in reader.take(data):
            yield from assembler.take(record)


def _private(lanes: Mapping[int, list[RawEvent]]) -> dict[int, list[int]]:
    """The pages that each operation under way has allocated and not freed."""
    found: dict[int, list[int]] = {}
    for lane, raws in lanes.items():
        pages = dict.fromkeys(raw[1] for raw in raws if raw[0] == ALLOC)
        for raw in raws:
            if raw[0] == FREE:
                pages.pop(raw[1], None)
        found[lane] = list(pages)
    return found
