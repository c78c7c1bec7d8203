"""The gates of `run_qemu.sh test`: the real ruff and mypy, on a small project of our own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[2] / "fixtures" / "setup"
PROJECT = '[tool.mypy]\nfiles = ["some.py"]\n[tool.ruff.lint]\nselect = ["F"]\n'
CLEAN = "def double(number: int) -> int:\n    return number * 2\n"


def gates(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "some.py").write_text(source)
    script = 'set -euo pipefail; source "$1/ui.sh"; source "$1/commands.sh"; run_gates'
    return subprocess.run(["bash", "-c", script, "-", SETUP], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("source", "gate", "shown"),
    [
        ("import os\n\n\n" + CLEAN, "ruff check", "F401"),
        (CLEAN.replace("    ", "  "), "ruff format --check", "1 file would be reformatted"),
        (CLEAN.replace("number: int", "number"), "mypy --strict", "missing a type annotation"),
    ],
    ids=["lint", "format", "types"],
)
def test_a_failed_gate_is_a_failed_run_and_is_shown(tmp_path: Path, source: str, gate: str, shown: str) -> None:
    done = gates(tmp_path, source)
    assert done.returncode == 1
    assert shown in done.stderr
    assert done.stderr.splitlines()[-1] == f"run_qemu.sh: {gate} failed; no test was run"


def test_clean_files_pass(tmp_path: Path) -> None:
    done = gates(tmp_path, CLEAN)
    assert done.returncode == 0, done.stderr
    assert "gates: ruff check, ruff format --check, mypy --strict" in done.stderr
