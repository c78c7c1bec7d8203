"""What a machine answers, put into parts: tables that break rules, and answers that are none."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inspector import machines, report
from inspector.capture.file import load
from inspector.findings import ExitCode, Finding, Severity, Where
from inspector.validate import run

CAPTURE = next((Path(__file__).resolve().parents[2] / "fixtures/captures").glob("*.s2cap"))


def answer(findings: list[Finding]) -> str:
    """As `inspector check --json` prints it."""
    document = report.check.document(findings, {"M1": "as it must be"}, load(str(CAPTURE)))
    return msgspec.json.encode(document).decode()


def parts_of(monkeypatch: pytest.MonkeyPatch, out: str) -> tuple[str, list[tuple[Any, ...]]]:
    machine = machines.Machine("none", ())
    done = subprocess.CompletedProcess([], 0, out, "inspector: it went away")
    monkeypatch.setattr(machine, "inspect", lambda *_: done)
    parts: list[tuple[Any, ...]] = []
    return run._check(machine, lambda *told, **_: parts.append(told)), parts


def test_rules_that_tables_break_are_told_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    where = Where(vm="vm0", ipa=0x40000000, level=3)
    finding = Finding("M1", Severity.ERROR, where, expected="PA 0x1000", actual="PA 0x2000", why="it reads another's")
    problem, ((name, code, summary, lines),) = parts_of(monkeypatch, answer([finding, finding]))
    assert (problem, name, code) == ("", "tables", ExitCode.FINDINGS)
    assert summary.endswith("1 rules, 2 findings")
    assert lines[0] == "M1: PA 0x2000; expected: PA 0x1000"
    assert "vm0" in lines[1]
    assert "0x40000000" in lines[1]
    assert lines[-1] == "  and 1 more: M1 in tables"


def test_no_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, parts = parts_of(monkeypatch, "")
    assert (problem, parts) == ("its tables could not be checked: inspector: it went away", [])


def test_one_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script and what it runs; what is said is a sentence."""
    script = tmp_path / "run_qemu.sh"
    script.write_text("#!/bin/sh\ntrap 'kill $child; exit 143' TERM\nsleep 1000 &\nchild=$!\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(machines, "RUN_QEMU", script)
    monkeypatch.setattr(machines, "MOST_SECONDS", 0.5)
    done = machines.Machine("none", ()).send("run one")
    assert done.returncode
    assert machines.sentence(done) == "no answer within 0 s"
