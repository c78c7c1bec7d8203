"""Results of cells in a folder, each written as it is there, by the content of all that it depends on."""

from __future__ import annotations

import tempfile
import zlib
from pathlib import Path

import msgspec

from inspector.findings import BadInput
from inspector.validate.cells import Result, Sent, is_whole


def load(folder: Path, cell: Sent) -> Result | None:
    """What came of it before; ``None`` where it was not done, or what is kept is damaged."""
    try:
        return msgspec.msgpack.decode(zlib.decompress((folder / _name(cell)).read_bytes()), type=Result)
    except (OSError, ValueError, zlib.error):
        return None


def store(folder: Path, cell: Sent, result: Result) -> None:
    """Unless something could not be tested, which is tried again.  Raises `BadInput` when it cannot be written."""
    if not is_whole(result):
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as stream:
            stream.write(zlib.compress(msgspec.msgpack.encode(result)))
        Path(stream.name).rename(folder / _name(cell))
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None


def make(folder: Path) -> None:
    """Raises `BadInput` when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be made: {error.strerror}") from None


def _name(cell: Sent) -> str:
    return f"{cell.key[:24]}.cell"
