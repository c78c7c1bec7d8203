"""Where a trace begins in what the probe writes: one instant, of which a capture is taken too.

While the machine stands still, every record of what was done before is in front of the probe's last mark (probe.c).
What was under way at that instant is known by its entry, wherever in the records that is: the assembler reads on from
the first such entry, and tells nothing of all this but how it was left.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from inspector.events import ALLOC, CALL, FREE, RET, RawEvent
from inspector.findings import BadInput, Untestable
from inspector.trace.assemble import Assembler
from inspector.trace.functions import FUNCTIONS, Role
from inspector.trace.plan import EXIT, Plan
from inspector.trace.raw import HEAD, MARK, MOST_WORDS, BadRecord, Reader, RecordKind

_TRACKED: Final = (Role.OPERATION, Role.INIT, Role.VTCR, Role.SECTION, Role.FLUSH, Role.HYP_FLUSH)
_WORD: Final = struct.Struct("<Q")
_PIECE: Final = 1 << 20


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
            stream.seek(max(0, end - HEAD.size))
            last = stream.read(HEAD.size)
    except OSError as error:
        raise BadInput(f"the probe's records cannot be read: {error.strerror}") from None
    if end and not _is_mark(last):
        raise Untestable(
            "the probe has not written out all that it saw when the machine was stopped: a trace cannot begin in its "
            "midst; --since start takes all of it"
        )
    return end


def _is_mark(head: bytes) -> bool:
    kind, _, words, number = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0, 0, 0)
    return bool(kind == RecordKind.MARK and not words and number == MARK)


@dataclass
class Scan:
    """The functions that are being run after so many bytes of the records: ``open``, by stack, the outermost first, are
    (stack pointer, where its entry stands).  ``first`` is where the CPU's registers and the first store are told."""

    plan: Plan
    offset: int = 0
    open: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        functions = (FUNCTIONS[name] for name in self.plan.functions)
        self._tracked = {number for number, each in enumerate(functions) if each.role in _TRACKED and each.ends}

    def go(self, records: Path, stack_mask: int) -> None:
        """As far as there are whole records.  Raises `BadInput`, `BadRecord`."""
        try:
            with records.open("rb") as stream:
                size = stream.seek(0, 2)
                if size > self.offset:
                    with mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as data:
                        self._go(data, size, stack_mask)
        except OSError as error:
            raise BadInput(f"the probe's records cannot be read: {error.strerror}") from None

    def _go(self, data: mmap.mmap, size: int, stack_mask: int) -> None:
        at, unpack, tracked = self.offset, HEAD.unpack_from, self._tracked
        while at + HEAD.size <= size:
            kind, _, words, number = unpack(data, at)
            if words > MOST_WORDS or not 0 < kind <= RecordKind.MARK:
                raise BadRecord(f"a record of kind {kind} with {words} words")
            end = at + HEAD.size + 8 * words
            if end > size:
                break
            if kind == RecordKind.PROBE:
                if number % EXIT in tracked:
                    self._probed(number, _WORD.unpack_from(data, end - 8)[0], at, stack_mask)
            elif kind in (RecordKind.STORE, RecordKind.REGISTERS) and kind not in self.first:
                self.first[kind] = at
            at = end
        self.offset = at

    def _probed(self, number: int, stack: int, at: int, stack_mask: int) -> None:
        calls = self.open.setdefault(stack & stack_mask, [])
        # The stack grows down: what was entered no higher than this has ended, with it or in a way that was not seen.
        while calls and calls[-1][0] <= stack:
            calls.pop()
        if number < EXIT:
            calls.append((stack, at))
        elif not calls:
            del self.open[stack & stack_mask]

    @property
    def oldest(self) -> int:
        """Where the first entry stands of all that is being run."""
        return min((at for calls in self.open.values() for _, at in calls), default=self.offset)


def cut_at(records: Path, end: int, scan: Scan, assembler: Assembler) -> Cut:
    """The cut at ``end``, with what was under way there, by a new ``assembler``; ``scan`` may have come as far before.

    Raises `BadInput` when the records cannot be read, `BadRecord` when they make no sense.
    """
    scan.go(records, assembler.stack_mask)
    for at in sorted(scan.first.values()):
        for record in Reader().take(_read(records, at, at + HEAD.size + 8 * MOST_WORDS)):
            for _ in assembler.take(record):
                pass
            break
    assembler.forget()
    open_lanes: dict[int, list[RawEvent]] = {}
    for lane, raw in _told(assembler, records, scan.oldest, end):
        if raw[0] == CALL:
            open_lanes[lane] = [raw]
        elif raw[0] == RET:
            open_lanes.pop(lane, None)
        elif lane in open_lanes and raw[0] in (ALLOC, FREE):
            open_lanes[lane].append(raw)
    assembler.outside.clear()
    return Cut(end, assembler, list(assembler.under_way(_private(open_lanes))))


def _read(records: Path, at: int, end: int) -> bytes:
    try:
        with records.open("rb") as stream:
            stream.seek(at)
            return stream.read(end - at)
    except OSError as error:
        raise BadInput(f"the probe's records cannot be read: {error.strerror}") from None


def _told(assembler: Assembler, records: Path, at: int, end: int) -> Iterator[tuple[int, RawEvent]]:
    reader = Reader()
    for low in range(at, end, _PIECE):
        for record in reader.take(_read(records, low, min(low + _PIECE, end))):
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
