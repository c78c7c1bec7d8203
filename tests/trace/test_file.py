"""A trace file gives back what was written, and of a file that is cut at any byte what was there."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from inspector.events import ALLOC, GET, STORE, TLBI, RawEvent
from inspector.findings import BadInput
from inspector.trace.file import MAGIC, Trace, Writer, packed_capture
from tests.check.build import good_world

HEADER = {"generation": "6.12", "text": "\x1b[2J from a guest"}
EVENTS: list[tuple[int, RawEvent]] = [
    (number % 3, event)
    for number in range(40)
    for event in (
        (ALLOC, 0x40000000 + number * 4096),
        (GET, 0x40000000),
        (STORE, 0x40000000 + 8 * number, 0, number, 1, 0),
        (TLBI, "ipas2e1is", number << 12, None, None),
    )
]


def written() -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, HEADER)
    for number, (lane, raw) in enumerate(EVENTS):
        writer.add(lane, raw)
        if number % 50 == 49:
            writer.flush()
    writer.flush()
    return stream.getvalue()


def read(path: Path, data: bytes) -> tuple[Trace, list[tuple[int, RawEvent]]]:
    path.write_bytes(data)
    trace = Trace(path)
    return trace, list(trace.events())


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    trace, events = read(tmp_path / "t", written())
    assert (trace.header, events, trace.cut) == (HEADER, EVENTS, False)


def test_cut_at_any_byte_it_is_read_up_to_there(tmp_path: Path) -> None:
    """Never another event than was written, never fewer than a shorter file has, and more with nearly every byte."""
    data, before = written(), 0
    seen: set[int] = set()
    for end in range(len(data) + 1):
        try:
            trace, events = read(tmp_path / "t", data[:end])
        except BadInput:
            assert not seen, "once the header is there, it stays readable"
            continue
        assert events == EVENTS[: len(events)]
        assert len(events) >= before
        assert trace.cut or len(events) in (0, 50, 100, 150, 160)
        before = len(events)
        seen.add(before)
    assert before == len(EVENTS)
    assert len(seen) > len(EVENTS) / 4


@pytest.mark.parametrize(
    "data", [b"", b"ELF", MAGIC, MAGIC + b"S2BK" + b"\xff" * 8, written()[: len(MAGIC) + 20]], ids=range(5)
)
def test_what_is_no_trace(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadInput):
        read(tmp_path / "t", data)


def test_a_changed_byte_ends_it(tmp_path: Path) -> None:
    """What comes after a block that is not what was written is not guessed at."""
    data = bytearray(written())
    data[-20] ^= 1
    trace, events = read(tmp_path / "t", bytes(data))
    assert trace.cut
    assert events == EVENTS[:150]


def test_the_capture_it_begins_with_is_in_it(tmp_path: Path) -> None:
    """Cut in its midst nothing is there to begin with, and no event either."""
    capture = good_world().capture()
    packed = packed_capture(capture)
    stream = io.BytesIO()
    header = {**HEADER, "capture": len(packed)}
    writer = Writer(stream, header, capture=packed)
    begins = len(stream.getvalue())
    for lane, raw in EVENTS:
        writer.add(lane, raw)
    writer.flush()
    trace, events = read(tmp_path / "t", stream.getvalue())
    assert (trace.capture, events, trace.cut) == (capture, EVENTS, False)
    for end in (begins, begins + 20):
        trace, events = read(tmp_path / "t", stream.getvalue()[:end])
        assert (trace.capture, events) == (capture, [])
    for end in (begins - 1, begins - len(packed) // 2, begins - len(packed)):
        trace, events = read(tmp_path / "t", stream.getvalue()[:end])
        assert (trace.capture, events, trace.cut) == (None, [], True)
