"""The seeded faults: sixteen with their owners; and what a matrix keeps, says and returns."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from inspector import report
from inspector.findings import BadInput, ExitCode
from inspector.report.format import Painter
from inspector.validate import detection
from inspector.validate.detect import Found, Look
from inspector.validate.detection import Cell
from inspector.validate.kernels import Kernel
from inspector.validate.seeded import MACHINES, MODEL, seeded

PLAIN = Painter(False)


def cell(fault: str = "no-break", owner: str = "B1", **others: object) -> Cell:
    base = Cell(fault, 1, "max", owner, "found", (), 900, 20.0, 40.0, "6.12", "", "0")
    return replace(base, **others)  # type: ignore[arg-type]


def test_there_are_sixteen_each_with_an_owner_and_a_machine_that_are_there() -> None:
    faults = seeded()
    assert len(faults) == 16
    assert {fault.machine for fault in faults.values()} == set(MACHINES)
    assert all(fault.what and "6.12" in fault.releases for fault in faults.values())
    assert len({fault.digest for fault in faults.values()}) == 16


def test_a_file_that_is_no_fault_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there are no faults"):
        seeded(tmp_path)
    (tmp_path / "x.toml").write_text('what = "x"\nowner = "B77"\n[[form]]\nof = ["1"]\nedit = []\n')
    with pytest.raises(BadInput, match="no owner B77"):
        seeded(tmp_path)


RULE = Found("protocol", "B1", "log", 3.0, 400)
OTHER = Found("protocol", "B2", "log", 2.0, 300)
UNLIKE = Found("model", "kvm_pgtable_stage2_map", "default", 1.0, 10)


@pytest.mark.parametrize(
    ("before", "look", "verdict"),
    [
        (cell(), Look([OTHER, RULE], followed=True), "found"),
        # What its owner found counts, whatever became of the machine.
        (cell(), Look([RULE], reason="it died", followed=True), "found"),
        # That another oracle sees it is not enough.
        (cell(), Look([OTHER, UNLIKE], followed=True), "missed"),
        (cell(owner=MODEL), Look([UNLIKE], followed=True), "found"),
        (cell(), Look(reason="it did not boot"), "not tested"),
        (cell(""), Look(followed=True), "clean"),
        (cell(""), Look([UNLIKE], followed=True), "false alarm"),
        (cell(""), Look(reason="the workload failed", followed=True), "not tested"),
        (cell(""), Look(), "not tested"),
    ],
)
def test_verdicts(monkeypatch: pytest.MonkeyPatch, before: Cell, look: Look, verdict: str) -> None:
    monkeypatch.setattr(detection, "look_at", lambda *_: look)
    assert detection._looked(before, Kernel("x"), Path(), (), lambda _: None).verdict == verdict


def test_what_is_kept_is_read_again_but_for_a_line_that_was_cut(tmp_path: Path) -> None:
    done = [cell(found=(RULE,)), cell("", verdict="clean")]
    lines = [json.dumps(asdict(each)) for each in done]
    (tmp_path / "cells.jsonl").write_text("\n".join([*lines, lines[0][:40]]))
    assert detection._read(tmp_path / "cells.jsonl") == done
    (tmp_path / "cells.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="is not a file of this command's"):
        detection._read(tmp_path / "cells.jsonl")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["found", "clean"], ExitCode.CLEAN),
        (["found", "missed", "not tested"], ExitCode.FINDINGS),
        (["found", "false alarm"], ExitCode.FINDINGS),
        (["found", "not tested"], ExitCode.UNTESTABLE),
        ([], ExitCode.UNTESTABLE),
    ],
)
def test_exit_codes(verdicts: list[str], code: ExitCode) -> None:
    assert report.detection.code_of([cell(verdict=verdict) for verdict in verdicts]) is code


def test_a_row_says_which_oracle_in_which_workload_and_how_soon() -> None:
    found = (OTHER, RULE, UNLIKE, Found("baseline", "map", "", 9.0, 900))
    clean = cell("", "", verdict="clean")
    head, row, other, *_, last = report.detection.lines(PLAIN, [cell(found=found), clean], seeded())
    assert head.split()[:6] == ["fault", "machine", "verdict", "owner", "s", "ops"]
    assert row.split()[:6] == ["no-break", "max", "found", "B1", "3.0", "400"]
    assert "B2 B1 (log)" in row and "kvm_pgtable_stage2_map (default)" in row and row.endswith("map")
    assert other.startswith("clean, run 1")
    assert last.startswith("1 of 1 faults found by their owners, 0 missed; 1 runs of the clean kernel gave nothing")
