"""Results of cells in a folder, each written as it is there, by the content of all that it depends on."""

from __future__ import annotations

import io
import pickle
import tempfile
import zlib
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from inspector.findings import BadInput
from inspector.validate.cells import Result, Sent, is_whole


def load(folder: Path, cell: Sent) -> Result | None:
    """What came of it before; ``None`` where it was not done, or what is kept is damaged."""
    try:
        found = _OurData(io.BytesIO(zlib.decompress((folder / _name(cell)).read_bytes()))).load()
    except Exception:  # whatever bytes that are no pickle make it raise
        return None
    return found if isinstance(found, Result) else None


def _member(of: Any, name: str) -> Any:
    if isinstance(of, type) and issubclass(of, Enum):
        return of[name]
    raise pickle.UnpicklingError(f"{name} is no member of an enumeration of ours")


class _OurData(pickle.Unpickler):
    """Reads back data classes and enumerations of this package, and nothing that could do anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # how Python pickles a member of an enumeration (some releases by its value)
        found = super().find_class(module, name) if module.startswith("inspector.") else None
        if isinstance(found, type) and (is_dataclass(found) or issubclass(found, Enum)):
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is none of ours")


def store(folder: Path, cell: Sent, result: Result) -> None:
    """Unless something could not be tested, which is tried again.  Raises `BadInput` when it cannot be written."""
    if not is_whole(result):
        return
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as stream:
            stream.write(zlib.compress(pickle.dumps(result)))
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
