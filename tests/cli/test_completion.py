"""Shell completion as a shell asks for it: click's protocol, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.check.build import good_world
from tests.cli.test_cli import stored

pytestmark = pytest.mark.processes


def completed(*words: str, shell: str = "bash") -> list[str]:
    """What completes the last word, as bash gets it."""
    line = {"COMP_WORDS": " ".join(("inspector", *words)), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, **line, "_INSPECTOR_COMPLETE": f"{shell}_complete"}
    found = subprocess.run(
        [sys.executable, "-m", "inspector"], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stderr == ""
    return [row.partition(",")[2] for row in found.stdout.splitlines() if row]


def test_commands_generations_and_files() -> None:
    assert completed("me") == ["memslots"]
    assert {"6.1", "6.12", "6.18"} <= set(completed("diff", "--generation", "6."))
    assert completed("--from") == ["--from"]


@pytest.mark.parametrize("before", [True, False])
def test_vms_of_the_capture_on_the_line(tmp_path: Path, before: bool) -> None:
    path = stored(tmp_path / "x", good_world())
    words = ("--from", path, "dump") if before else ("dump", "--from", path)
    assert completed(*words, "--vm", "v") == ["vm0", "vm1", "vm2"]
    assert completed(*words, "--vm", "vm2") == ["vm2"]


def test_without_a_capture_that_can_be_read_nothing_completes(tmp_path: Path) -> None:
    assert completed("dump", "--vm", "v") == []
    assert completed("--from", str(tmp_path / "missing"), "dump", "--vm", "v") == []


def test_the_script_for_the_shell() -> None:
    environment = {**os.environ, "_INSPECTOR_COMPLETE": "bash_source"}
    found = subprocess.run([sys.executable, "-m", "inspector"], env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and "complete -o nosort -F _inspector_completion inspector" in found.stdout
