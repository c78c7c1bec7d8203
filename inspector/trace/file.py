"""The trace file: a header, and the event grammar in compressed blocks; cut at any byte it is read up to there.

The file begins with `MAGIC`.  Then blocks: ``S2BK``, the length of what follows, its CRC-32 (32 bits each,
little-endian), and that many bytes: text, compressed by zlib.  The first block's text is the header, JSON; that of the
others is events in their envelopes, one a line.  A trace of tables that were made before it has the capture that it
begins with in blocks ``S2CP`` after the header: pieces of a capture file, whose length is ``capture`` in the header.
"""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

from inspector.budget import DEFAULT
from inspector.capture.file import load, save
from inspector.events import BadEvent, Envelope, RawEvent, Source, parse_envelope
from inspector.findings import BadInput
from inspector.snapshot import Capture

MAGIC: Final = b"KVM-S2TRACE 1\n"
_BLOCK: Final = struct.Struct("<4sII")
_MARK: Final = b"S2BK"
_CAPTURE: Final = b"S2CP"
_PIECE: Final = 1 << 24
"""Bytes of a capture file in a block."""
_LINES: Final = 4096
"""Events in a block."""
_MOST: Final = 1 << 26
"""Bytes of a block, packed or not."""


def block(text: str) -> bytes:
    """A block as it is in the file."""
    packed = zlib.compress(text.encode(), 6)
    return _BLOCK.pack(_MARK, len(packed), zlib.crc32(packed)) + packed


def packed_capture(capture: Capture) -> bytes:
    """The capture as a file has it.  Raises `BadInput` when there is no place for it."""
    with tempfile.TemporaryDirectory() as folder:
        save(capture, Path(folder) / "capture")
        return (Path(folder) / "capture").read_bytes()


class Writer:
    """Writes a trace into an unbuffered ``stream``; `flush` puts out what there is.  Both raise ``OSError``.

    ``capture`` is what it begins with, of which ``header`` has the length.
    """

    def __init__(
        self,
        stream: IO[bytes],
        header: Mapping[str, Any],
        source: Source = Source.PLUGIN,
        capture: bytes = b"",
    ) -> None:
        self._stream = stream
        self._source = source
        self._lines: list[str] = []
        self.events = 0
        self._put(MAGIC)
        self._block(json.dumps(header, sort_keys=True))
        for at in range(0, len(capture), _PIECE):
            piece = capture[at : at + _PIECE]
            self._put(_BLOCK.pack(_CAPTURE, len(piece), zlib.crc32(piece)) + piece)

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
    """A trace file.  ``cut``, after `events` has come to its end: the file ends in the middle of a block.

    ``capture`` is what it begins with, ``None`` where every table was seen made, and where it is cut in it.
    """

    def __init__(self, path: Path, most: int = DEFAULT) -> None:
        """Raises `BadInput` when it is no trace, or has no whole header; its capture may take ``most`` bytes."""
        self.path = path
        self.cut = False
        blocks = self._blocks()
        header = next((_text(*each)[0] for each in blocks), None)
        try:
            found = json.loads(header) if header is not None else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadInput(f"{path} is no trace: its header is not there, or not whole")
        self.header: dict[str, Any] = found
        self.capture = self._read_capture(found.get("capture"), most)

    def _read_capture(self, size: Any, most: int) -> Capture | None:
        if not isinstance(size, int) or not 0 < size <= most:
            return None
        with tempfile.NamedTemporaryFile() as file:
            blocks = self._blocks()
            next(blocks, None)
            for mark, data, whole in blocks:
                if mark != _CAPTURE or not whole:
                    break
                file.write(data)
            file.flush()
            if file.tell() != size:
                return None
            try:
                return load(file.name, most)
            except BadInput as error:
                raise BadInput(f"{self.path}: the capture that it begins with: {error}") from None

    def _blocks(self) -> Iterator[tuple[bytes, bytes, bool]]:
        """(mark, data, whether it is there as a whole) of each block, up to the first that is not."""
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise BadInput(f"the trace {self.path} cannot be read: {error.strerror}") from None
        with stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise BadInput(f"{self.path} is no trace")
            while head := stream.read(_BLOCK.size):
                mark, data, whole = _block(head, stream)
                yield mark, data, whole
                if not whole:
                    return

    def _texts(self) -> Iterator[str]:
        """Those of events."""
        blocks = self._blocks()
        next(blocks, None)
        for mark, data, whole in blocks:
            text, good = _text(mark, data, whole)
            self.cut = not good
            if text:
                yield text
            if not good:
                return

    def events(self) -> Iterator[tuple[int, RawEvent]]:
        """(lane, event) in order.  Raises `BadInput` for what is no event."""
        for text in self._texts():
            try:
                for line in text.split("\n"):
                    envelope = parse_envelope(line)
                    yield envelope.cpu, envelope.event
            except BadEvent as error:
                raise BadInput(f"{self.path}: {error}") from None


def _block(head: bytes, stream: IO[bytes]) -> tuple[bytes, bytes, bool]:
    if len(head) < _BLOCK.size:
        return b"", b"", False
    mark, length, crc = _BLOCK.unpack(head)
    if mark not in (_MARK, _CAPTURE) or length > _MOST:
        return b"", b"", False
    data = stream.read(length)
    whole = len(data) == length
    return (mark, data, whole) if not whole or zlib.crc32(data) == crc else (b"", b"", False)


def _text(mark: bytes, data: bytes, whole: bool) -> tuple[str, bool]:
    """A block's text, and whether it is there as a whole; of one that is cut, the lines that are."""
    if mark != _MARK:
        return "", whole and mark == _CAPTURE
    try:
        text = zlib.decompressobj().decompress(data, _MOST).decode(errors="replace")
    except zlib.error:
        return "", False
    return (text, True) if whole else (text.rpartition("\n")[0], False)
