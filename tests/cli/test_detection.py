"""`inspector detection-matrix` without a machine: what it lists, and what it refuses."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from tests.cli.schema import errors
from tests.cli.test_cli import invoke, refused


def test_the_faults_are_listed() -> None:
    document = json.loads(invoke("detection-matrix", "--list", "--json").stdout)
    assert errors(document) == []
    assert len(document["faults"]) == 16
    (one,) = json.loads(invoke("detection-matrix", "no-break", "--list", "--json").stdout)["faults"]
    assert (one["owner"], one["machine"]) == ("B1", "max")
    assert "no-break" in invoke("detection-matrix", "--list").stdout


def test_what_is_refused(tmp_path: Path) -> None:
    assert "there is no fault 'x'" in refused(invoke("detection-matrix", "x"))
    both = refused(invoke("detection-matrix", "--tree", str(tmp_path), "--source", "linux-source-6.12"))
    assert "give one" in both
    gone = refused(invoke("detection-matrix", "--tree", str(tmp_path / "gone"), "-o", str(tmp_path / "m")))
    assert "gone does not exist" in gone
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written to" in refused(invoke("detection-matrix", "--tree", str(file), "-o", str(file)))


def test_two_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = refused(invoke("detection-matrix", "--tree", str(tmp_path), "-o", str(tmp_path)))
    assert "another matrix is being made" in said
