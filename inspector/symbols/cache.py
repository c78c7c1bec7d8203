"""A file of named byte sections, written once and then read whole: what is slow to find in a kernel.

A cache is only ever a copy of what can be found again: a missing, foreign, cut or altered file counts as
absent. Nothing in it is executed or unpickled.  Layout: magic, CRC-32 of the rest, length of a JSON header,
the header (``meta`` and the place of each section), the sections, each 8-byte aligned.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAGIC = b"S2SYMS\x03\n"  # the digit changes with the layout, or the meaning, of anything in the file
_HEAD = struct.Struct("<8sII")


@dataclass(frozen=True)
class CachedFile:
    """What a cache file holds."""

    meta: Mapping[str, Any]
    sections: Mapping[str, memoryview] = field(repr=False)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/kvm-stage2-inspector/symbols``, by default under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path("~/.cache").expanduser()
    return root / "kvm-stage2-inspector" / "symbols"


def load(path: Path) -> CachedFile | None:
    """The file's content, or ``None`` when there is none to trust."""
    try:
        data = path.read_bytes()
        magic, checksum, length = _HEAD.unpack_from(data)
        if magic != _MAGIC or zlib.crc32(memoryview(data)[_HEAD.size - 4 :]) != checksum:
            return None
        header = json.loads(data[_HEAD.size : _HEAD.size + length])
        base = _up(_HEAD.size + length)
        view = memoryview(data)
        sections = {}
        for name, (offset, size) in header["sections"].items():
            sections[name] = view[base + offset : base + offset + size]
        return CachedFile(header["meta"], sections)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def store(path: Path, meta: Mapping[str, Any], sections: Mapping[str, bytes]) -> None:
    """Write the file in one step (several writers at once are safe); failing to is not an error.

    Section arrays are little-endian, and read back through native views: a big-endian machine keeps no cache.
    """
    if sys.byteorder != "little":
        return
    places, offset = {}, 0
    for name, content in sections.items():
        places[name] = (offset, len(content))
        offset = _up(offset + len(content))
    header = json.dumps({"meta": dict(meta), "sections": places}).encode()
    body = bytearray(struct.pack("<I", len(header)) + header)
    body.extend(bytes(_up(_HEAD.size + len(header)) - _HEAD.size - len(header)))
    for content in sections.values():
        body.extend(content)
        body.extend(bytes(_up(len(content)) - len(content)))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + struct.pack("<I", zlib.crc32(body)))
                file.write(body)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _up(value: int) -> int:
    return (value + 7) & ~7
