"""The verdict on a workload whose machine ended, or did not: the shell's own functions, on folders of machines."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "fixtures" / "setup"
_LOST = "the machine ended before its workload did"


@contextmanager
def machine(folder: Path, *, lives: bool) -> Iterator[None]:
    """Such a folder as run_qemu.sh makes: a machine is known by the process whose command line names its stub."""
    (folder / "console.log").write_text('S2X {"event":"workload_started","name":"random"}\n')
    name = folder if lives else folder / "another"
    process = subprocess.Popen(["sh", "-c", "read x", f"path={name}/gdb.sock"], stdin=subprocess.PIPE)
    try:
        (folder / "pid").write_text(f"{process.pid}")
        yield
    finally:
        process.communicate()


@pytest.mark.parametrize(
    ("traced", "lives", "code", "said"),
    [
        (0, False, 3, _LOST),  # what was followed is clean, and not all of it
        (1, False, 0, None),  # a finding stands whatever came after
        (125, False, 3, _LOST),  # it ended before it did anything that could be followed
        (125, True, 0, None),  # nothing could be followed, and why was said
        (130, False, 0, None),
        (3, True, 0, None),
    ],
)
def test_a_workload_without_an_end(tmp_path: Path, traced: int, lives: bool, code: int, said: str | None) -> None:
    script = "set -eEuo pipefail; for f in ui machine workload; do . $0/$f.sh; done; workload_verdict $1 $2"
    with machine(tmp_path, lives=lives):
        done = subprocess.run(
            ["bash", "-c", script, SETUP, tmp_path, str(traced)], capture_output=True, text=True, check=False
        )
    assert done.returncode == code, done.stderr
    assert (_LOST in done.stderr) == (said is not None), done.stderr
