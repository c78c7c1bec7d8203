"""Kernels that are built for a verdict: what run_qemu.sh says of a build, and what a verdict makes of a failed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector import machines
from inspector.findings import BadInput, ExitCode
from inspector.validate.kernels import Build
from inspector.validate.verdict import Request, validate

ERRORS = """\
[2/2] packages: all present (0.0 s)
      compiling: CC mm/a.o (3 files, 2 s)
run_qemu.sh: compiling failed: mm/a.c:1:5: error: expected ';'
mm/a.c:2:9: error: 'x' undeclared
"""


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, errors: str, out: str = "") -> None:
    """In the place of run_qemu.sh, one that says this; what it was called with is in a file beside it."""
    file = tmp_path / "run_qemu.sh"
    (tmp_path / "errors").write_text(errors)
    file.write_text(f'#!/bin/sh\necho "$*" >"$0.called"\ncat "$(dirname "$0")/errors" >&2\necho "{out}"\nexit {code}\n')
    file.chmod(0o755)
    monkeypatch.setattr(machines, "RUN_QEMU", file)


def test_the_compilers_errors_are_kept_apart_from_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(monkeypatch, tmp_path, 125, ERRORS)
    told: list[str] = []
    with pytest.raises(machines.NotBuilt) as failed:
        machines.build(["tree"], told.append)
    assert str(failed.value) == "compiling failed: mm/a.c:1:5: error: expected ';'"
    assert failed.value.errors == ("mm/a.c:2:9: error: 'x' undeclared",)
    assert told[-1] == "compiling: CC mm/a.o (3 files, 2 s)"


def test_what_is_no_tree_is_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(monkeypatch, tmp_path, 2, "run_qemu.sh: x is no kernel tree\n")
    with pytest.raises(BadInput, match="x is no kernel tree"):
        machines.build(["x"], lambda _: None)


def test_a_kernel_that_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(monkeypatch, tmp_path, 0, "[1/2] packages: all present\n", str(tmp_path))
    (tmp_path / "config").write_text("\nCONFIG_PTDUMP_STAGE2_DEBUGFS=y\n")
    kernel = Build(Path("t"), "t", [Path("a.patch")], "v6.12", "16k", True).make(lambda _: None)
    assert kernel.options() == ["--kernel", f"{tmp_path}/Image", "--vmlinux", f"{tmp_path}/vmlinux"]
    assert kernel.lists
    assert str(kernel) == "v6.12 of t with a.patch, built with 16k pages and debugging"
    called = (tmp_path / "run_qemu.sh.called").read_text().strip()
    assert called == "build t --page-size 16k --revision v6.12 --debug-kernel --patch a.patch"


def test_one_that_does_not_build_is_not_tested_and_nothing_boots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(monkeypatch, tmp_path, 125, ERRORS)
    verdict = validate(Request(Build(Path("t"), "t"), depth="quick"), lambda _: None)
    assert verdict.code is ExitCode.UNTESTABLE
    (part,) = verdict.parts
    assert part.name == "build"
    assert "mm/a.c:1:5: error" in part.summary
    assert list(part.lines) == ["mm/a.c:2:9: error: 'x' undeclared"]
