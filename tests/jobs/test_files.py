"""Files by their content: named by it, and not taken for what they are not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.jobs import files


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_file_is_known_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(b"one")
    assert files.digest_of(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert files.digest_of(path) == hashlib.sha256(b"other").hexdigest()
    with pytest.raises(BadInput, match="cannot be read"):
        files.digest_of(tmp_path / "none")


def test_what_arrives_is_what_was_sent() -> None:
    digest = hashlib.sha256(b"one").hexdigest()
    assert files.missing([digest]) == [digest]
    with pytest.raises(BadInput, match="did not arrive as it was sent"):
        files.put(digest, b"two")
    assert files.missing([digest]) == [digest]
    files.put(digest, b"one")
    files.put(digest, b"one")
    assert files.missing([digest]) == []
    assert files.place_of(digest).read_bytes() == b"one"
    assert [path.name for path in files.here().iterdir()] == [digest]
