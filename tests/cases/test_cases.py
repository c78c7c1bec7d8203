"""Runs every case of every file in this folder; what a case is, the package says."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inspector.cli import run
from tests.cases import makers

pytestmark = pytest.mark.processes

HERE = Path(__file__).parent
CAPTURES = HERE.parents[1] / "fixtures" / "captures"
KEYS = {"id", "run", "make", "exit", "says", "never", "json", "authority", "seconds", "megabytes"}


def cases() -> Iterator[Any]:
    for path in sorted(HERE.glob("*.toml")):
        for case in tomllib.loads(path.read_text())["case"]:
            assert case.keys() <= KEYS and case["authority"], f"{path.name}: {case}"
            assert case.keys() & {"says", "json", "never"} or case.get("exit"), f"{case['id']} expects nothing"
            yield pytest.param(case, id=f"{path.stem}-{case['id']}")


def outcome(case: dict[str, Any], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``inspector`` with these arguments."""
    if not case.keys() & {"seconds", "megabytes"}:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    def limit() -> None:
        if "megabytes" in case:
            resource.setrlimit(resource.RLIMIT_AS, (case["megabytes"] << 20,) * 2)

    done = subprocess.run(
        [sys.executable, "-m", "inspector", *arguments],
        capture_output=True,
        text=True,
        timeout=case.get("seconds"),
        preexec_fn=limit,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("case", [*cases()])
def test_case(case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = getattr(makers, case["make"])(tmp_path) if "make" in case else ""
    arguments = [part.format(captures=CAPTURES, file=file) for part in shlex.split(case["run"])]
    code, out, err = outcome(case, arguments, capsys)
    said = " ".join(f"{out}\n{err}".split())
    assert code == case.get("exit", 0), said
    for text in case.get("says", ()):
        assert " ".join(text.split()) in said, said
    for text in ("internal error", "Traceback", *case.get("never", ())):
        assert text not in said
    for path, expected in case.get("json", {}).items():
        found = json.loads(out)
        for key in path.split("."):
            found = found[int(key) if isinstance(found, list) else key]
        assert found == expected, path
