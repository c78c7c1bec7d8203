"""``inspector crosscheck`` as its users run it: the real program on real trees, its verdict, its exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.crosscheck.tree import PGTABLE
from tests.crosscheck import kernels
from tests.crosscheck.test_campaign import PATCHES, Patch

pytestmark = pytest.mark.harness

LABEL = "6.12"
ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--ops", "400", "--granule", "4k")


def inspector(
    folder: Path, *arguments: str | Path, code: int | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program in a folder; with ``code``, it must end with that."""
    settings = os.environ | {"PYTHONPATH": str(ROOT), "INSPECTOR_HARNESS_BUILD": str(kernels.builds())} | (env or {})
    done = subprocess.run(
        [sys.executable, "-m", "inspector", "crosscheck", *map(str, arguments)],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done


def write(folder: Path, change: Callable[[str], str] = lambda text: text) -> Path:
    """A tree with the files of the true kernel, and ``change`` made to its pgtable.c."""
    for name, text in kernels.tree(LABEL).text.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(change(text) if name == PGTABLE else text)
    return folder


def patch(name: str) -> Patch:
    """One of the faults that the campaign's tests write into a kernel."""
    return next(patch for patch in PATCHES if patch.name == name)


def events_patch() -> Patch:
    """A fault that shows in the first operation."""
    return patch("a put without its get")


def columns(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_a_true_kernel_is_clean(tmp_path: Path) -> None:
    """What was built is said, and what was compared."""
    write(tmp_path / "linux")
    said = inspector(tmp_path, "linux", *QUICK, code=0).stdout
    assert re.search(r"^linux: Linux 6\.12\.\d+", said, re.MULTILINE)
    assert "model: 6.12" in said
    assert "built: 4k" in said
    assert "stage2" not in said.split("calls:")[1].split("built:")[0]
    assert re.search(r"^CLEAN  model against kernel: [\d,]+ operations, [\d,]+ events, seed 1:\s+no", said, re.M)
    assert columns(said) <= 75
    assert not (tmp_path / "crosscheck-repro.txt").exists()


def test_a_difference_is_shown_and_can_be_replayed(tmp_path: Path) -> None:
    """Script, events of both sides, tables, the kernel's line; and a file that shows it again, in 75 columns."""
    bad = write(tmp_path / "bad", events_patch().apply)
    said = inspector(tmp_path, "bad", "--granule", "4k", code=1).stdout
    assert columns(said) <= 75
    place = re.search(r"kernel: pgtable\.c:(\d+) (\w+)", said)
    assert place is not None
    line = (bad / PGTABLE).read_text().splitlines()[int(place[1]) - 1].strip()
    assert line in said
    assert place[2] == "stage2_make_pte"
    assert re.search(r"^  > - get P0$", said, re.MULTILINE) or re.search(r"^  > get P0", said, re.MULTILINE)
    assert "Table before:" in said
    assert "Table after, kernel:" in said
    file = tmp_path / "crosscheck-repro.txt"
    assert columns(file.read_text()) <= 75
    assert len(file.read_text()) < 4000
    assert "still" in inspector(tmp_path, "bad", "--replay", file, code=1).stdout
    inspector(tmp_path, write(tmp_path / "good"), "--replay", file, code=0)


def test_json_has_the_same(tmp_path: Path) -> None:
    write(tmp_path / "bad", events_patch().apply)
    found = json.loads(inspector(tmp_path, "bad", "--json", "--granule", "4k", code=1).stdout)
    assert found["verdict"] == "findings"
    assert found["parts"][0]["script"] == [
        line for line in (tmp_path / "crosscheck-repro.txt").read_text().splitlines() if not line.startswith("#")
    ]


def test_no_functional_change_is_tested(tmp_path: Path) -> None:
    """A patch that changes nothing is clean against its baseline; a fault shows in both columns, and as the baseline's
    own where the baseline has it as well."""
    write(tmp_path / "good")
    write(tmp_path / "bad", events_patch().apply)
    write(tmp_path / "same", lambda text: text.replace("childp", "child_table"))
    said = inspector(tmp_path, "same", "--baseline", "good", *QUICK, code=0).stdout
    assert re.search(r"^CLEAN  baseline against patched: ", said, re.MULTILINE)
    said = inspector(tmp_path, "bad", "--baseline", "good", *QUICK, code=1).stdout
    assert re.search(r"^FINDINGS  baseline against patched: ", said, re.MULTILINE)
    assert re.search(r"baseline: pgtable\.c:\d+ stage2_make_pte\n\s+mm_ops->get_page\(ctx->ptep\);", said)
    assert "patched: pgtable.c" in said
    assert columns(said) <= 75
    again = tmp_path / "crosscheck-repro-2.txt"
    inspector(tmp_path, "bad", "--replay", again, code=2)
    inspector(tmp_path, "bad", "--baseline", "good", "--replay", again, code=1)
    inspector(tmp_path, "same", "--baseline", "good", "--replay", again, code=0)
