"""A running kernel broken through gdb, and found by the rule that owns the fault; the machine runs on unmarked."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from fixtures import console
from inspector.inject.catalogue import FAULTS
from inspector.inject.perform import inject
from inspector.trace.follow import Following, read_plan
from tests.live.machine import Machine
from tests.live.poke import qmp
from tests.live.test_trace import inspect

pytestmark = pytest.mark.live


def send(machine: Machine, line: str) -> None:
    for _ in console.command(machine.console_socket, line, 60):
        pass


def rules(machine: Machine) -> set[str]:
    following = Following(machine.run_dir, read_plan(machine.run_dir))
    following.go(None, 0.5, lambda: True, lambda text: None)
    judge = following.end().judge
    return {broken.violation.rule for broken in judge.broken} | ({"model"} if judge.differing else set())


@pytest.mark.parametrize("name", ["late-tlbi", "plain-link", "no-put"])
def test_a_fault_is_found_and_leaves_nothing_else(name: str) -> None:
    fault = FAULTS[name]
    with Machine.start(scenario="none", options=["--trace"]) as machine:
        send(machine, f"run {fault.workload}")
        assert rules(machine) == set(), "clean before"
        work = threading.Thread(target=send, args=(machine, f"run {fault.workload}"))
        done = inject(fault, machine.gdb_socket, machine.image, None, 30, lambda text: None, work.start)
        work.join(60)
        assert done.done
        assert fault.owner in rules(machine)
        # The same place is passed again, with nobody attached: a breakpoint that is left would stop the machine.
        send(machine, f"run {fault.workload}")
        with qmp(machine) as client:
            assert client.running()


def test_one_that_is_not_reached_is_said_so() -> None:
    with Machine.start(scenario="none", options=["--trace"]) as machine:
        done = inspect(
            "--connect", machine.gdb_socket, "--image", machine.image, "inject", "no-put", "--for", "1", "--json"
        )
        assert done.returncode == 125, done.stderr
        assert "writes to the target" in done.stderr
        assert json.loads(done.stdout)["done"] is False
        send(machine, "run one")
        assert rules(machine) == set()


def test_the_matrix_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    """Faults of contexts, which no table shows, in machines of their own; again, from the file alone."""
    kernel = os.environ["INSPECTOR_DEFAULT_KERNEL"]
    for names, mode, rule in ((["no-vcpu-flush", "no-log-flush"], (), ["V4", "B8"]), (["no-tlbi"], ("nvhe",), ["B2"])):
        arguments: list[str | Path] = ["inject", "--matrix", *names, "--kernel", kernel, "-o", tmp_path / "cells"]
        arguments += ["--json", *(("--mode", *mode) if mode else ())]
        done = inspect(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        document = json.loads(done.stdout)
        assert [(cell["verdict"], cell["owner"]) for cell in document["cells"]] == [("found", each) for each in rule]
        again = inspect(*arguments)
        assert (again.returncode, json.loads(again.stdout)) == (0, document)
