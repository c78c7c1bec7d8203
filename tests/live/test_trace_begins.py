"""A trace that begins when VMs have been running for a while: it takes over their tables, and holds what comes."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from inspector.capture.take import take
from inspector.inject.catalogue import FAULTS
from inspector.inject.perform import inject
from inspector.snapshot import Scope
from inspector.symbols import open_symbols
from inspector.target.connect import attached
from inspector.trace.follow import Beginning, Following, begin, read_plan, scan_of
from tests.live.machine import Machine
from tests.live.test_trace import inspect

pytestmark = pytest.mark.live

FAULT = FAULTS["late-tlbi"]
"""A block that is broken for dirty logging: its TLBI comes too late."""


def beginning(machine: Machine) -> Beginning:
    """From now on."""
    header, symbols = read_plan(machine.run_dir), open_symbols(image=machine.image)
    scan = scan_of(machine.run_dir, header)
    with attached(machine.gdb_socket) as target:
        found = begin(machine.run_dir, header, scan, lambda: take(target, symbols, scope=Scope.WALK))
    assert found is not None
    return found


def test_tables_made_before_are_followed_and_a_fault_in_one_is_found(tmp_path: Path) -> None:
    with Machine.start(options=["--trace"]) as machine:
        machine.command("run log step=1")
        trace = tmp_path / "run.s2trace"
        # Write protection of a slot that is mapped, by the exerciser itself, while the trace goes on.
        send = (
            f"import sys; from fixtures import console; list(console.command({machine.console_socket!r}, 'next', 60))"
        )
        done = machine.run(
            *(sys.executable, "-m", "inspector", "trace", "-o", str(trace), "--json"),
            *("--", sys.executable, "-c", send),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert (document["verdict"], document["not_followed"]) == ("clean", {})
        assert document["tables_taken_over"] >= 13
        assert document["tables_made"] == 0
        assert document["held_against_model"] == document["operations"] > 0
        assert document["operations_by_name"]["wrprotect"]

        again = json.loads(inspect("replay", trace, "--json").stdout)
        assert again["held_against_model"] == document["held_against_model"]
        assert (again["tables_taken_over"], again["verdict"]) == (document["tables_taken_over"], "clean")
        then = json.loads(inspect("replay", trace, "--until", "1", "--json").stdout)
        assert len(then["tables"]) == document["tables_taken_over"]

        following = Following(machine.run_dir, read_plan(machine.run_dir), beginning=beginning(machine))
        work = threading.Thread(target=machine.command, args=("next",))
        injected = inject(FAULT, machine.gdb_socket, machine.image, None, 30, lambda text: None, work.start)
        work.join(60)
        assert injected.done
        following.go(None, 0.5, lambda: True, lambda text: None)
        judge = following.end().judge
        found = {(broken.violation.rule, broken.table) for broken in judge.broken}
        assert FAULT.owner in {rule for rule, _ in found}
        assert {table for _, table in found} <= set(range(1, document["tables_taken_over"] + 1)), "made before"
