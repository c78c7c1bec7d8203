"""Files that work needs, known by their content: each is brought to a machine once, whatever it is called there."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inspector.findings import BadInput


@dataclass(frozen=True)
class Remote:
    """What work on a cluster needs: ``files`` by their SHA-256, brought to each machine that has them not yet.

    ``end`` ends what a worker is at when nobody waits for it any longer.
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    end: Callable[[], None] | None = None


def digest_of(path: Path) -> str:
    """SHA-256 of what a file holds.  Raises `BadInput` when it cannot be read."""
    try:
        facts = path.stat()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    return _digest(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime: int) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None


def here() -> Path:
    """Where this machine has them: ``artefacts`` in the cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "kvm-stage2-inspector" / "artefacts"


def place_of(digest: str) -> Path:
    """The file of that content on this machine."""
    return here() / digest


def missing(digests: Iterable[str]) -> list[str]:
    """Those that this machine has not."""
    return [digest for digest in digests if not place_of(digest).is_file()]


def put(digest: str, contents: bytes) -> None:
    """Whole, or not at all; not twice.  Raises `BadInput` when it is not what it should be."""
    if hashlib.sha256(contents).hexdigest() != digest:
        raise BadInput("a file did not arrive as it was sent: its SHA-256 is another")
    folder = here()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as stream:
        stream.write(contents)
    Path(stream.name).rename(place_of(digest))
