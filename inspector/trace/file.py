"""The trace file: a header, and the event grammar in compressed blocks; cut at any byte it is read up to there.

The file begins with `MAGIC`.  Then blocks: ``S2BK``, the length of what follows, its CRC-32 (32 bits each,
little-endian), and that many bytes: text, compressed by zlib.  The first block's text is the header, JSON; that of the
others is events in their envelopes, one a line.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from inspector.events import BadEvent, Envelope, RawEvent, Source, parse_envelope
from inspector.findings import BadInput

MAGIC: Final = b"KVM-S2TRACE 1\n"
_BLOCK: Final = struct.Struct("<4sII")
_MARK: Final = b"S2BK"
_LINES: Final = 4096
"""Events in a block."""
_MOST: Final = 1 << 26
"""Bytes of a block, packed or not."""


def block(text: str) -> bytes:
    """A block as it is in the file."""
    packed = zlib.compress(text.encode(), 6)
    return _BLOCK.pack(_MARK, len(packed), zlib.crc32(packed)) + packed


class Writer:
    """Writes a trace into an unbuffered ``stream``; `flush` puts out what there is.  Both raise ``OSError``."""

    def __init__(self, stream: IO[bytes], header: Mapping[str, Any], source: Source = Source.PLUGIN) -> None:
        self._stream = stream
        self._source = source
        self._lines: list[str] = []
        self.events = 0
        self._put(MAGIC)
        self._block(json.dumps(header, sort_keys=True))

    def add(self, lane: int, raw: RawEvent) -> None:
        """One more event."""
        self._lines.append(str(Envelope(self.events, lane, self._source, raw)))
        self.events += 1
        if len(self._lines) >= _LINES:
            self.flush()

    def flush(self) -> None:
        """Everything so far is in the file."""
        if self._lines:
            self._block("\n".join(self._lines))
            self._lines = []

    def _block(self, text: str) -> None:
        self._put(block(text))

    def _put(self, data: bytes) -> None:
        """All of it, in as many writes as it takes."""
        left = memoryview(data)
        while left:
            left = left[self._stream.write(left) :]


class Trace:
    """A trace file.  ``cut``, after `events` has come to its end: the file ends in the middle of a block."""

    def __init__(self, path: Path) -> None:
        """Raises `BadInput` when it is no trace, or has no whole header."""
        self.path = path
        self.cut = False
        header = next(self._texts(), None)
        try:
            found = json.loads(header) if header is not None else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadInput(f"{path} is no trace: its header is not there, or not whole")
        self.header: dict[str, Any] = found

    def _texts(self) -> Iterator[str]:
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise BadInput(f"the trace {self.path} cannot be read: {error.strerror}") from None
        with stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise BadInput(f"{self.path} is no trace")
            while head := stream.read(_BLOCK.size):
                text, whole = _text(head, stream)
                self.cut = not whole
                if text:
                    yield text
                if self.cut:
                    return

    def events(self) -> Iterator[tuple[int, RawEvent]]:
        """(lane, event) in order.  Raises `BadInput` for what is no event."""
        texts = self._texts()
        next(texts, None)
        for text in texts:
            try:
                for line in text.split("\n"):
                    envelope = parse_envelope(line)
                    yield envelope.cpu, envelope.event
            except BadEvent as error:
                raise BadInput(f"{self.path}: {error}") from None


def _text(head: bytes, stream: IO[bytes]) -> tuple[str, bool]:
    """A block's text, and whether it is there as a whole; of one that is cut, the lines that are."""
    if len(head) < _BLOCK.size:
        return "", False
    mark, length, crc = _BLOCK.unpack(head)
    if mark != _MARK or length > _MOST:
        return "", False
    packed = stream.read(length)
    if len(packed) == length and zlib.crc32(packed) != crc:
        return "", False
    try:
        text = zlib.decompressobj().decompress(packed, _MOST).decode(errors="replace")
    except zlib.error:
        return "", False
    if len(packed) == length:
        return text, True
    return text.rpartition("\n")[0], False
