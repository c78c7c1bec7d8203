"""What a trace costs: the same random actions with the probe and without it, and how fast they are judged.

Prints figures (``pytest -s``); asserts that the same work was done, never how long it took.
"""

from __future__ import annotations

import json
import time

import pytest

from tests.live.counting import qemu
from tests.live.machine import Event, Machine
from tests.live.test_trace import inspect

pytestmark = pytest.mark.live

SCENARIO = "random,seed=11,actions=1200"


def worked(machine: Machine) -> tuple[float, Event]:
    """Seconds from running guests to the end of the workload, and what was done."""
    started = time.perf_counter()
    machine.wait_for("workload_ended")
    took = time.perf_counter() - started
    done = dict(machine.wait_for("random"))
    return took, done


def test_a_traced_workload_against_an_untraced_one() -> None:
    options = ["--qemu", str(qemu())]
    with Machine.start(scenario=SCENARIO, options=options) as machine:
        untraced, alone = worked(machine)
    with Machine.start(scenario=SCENARIO, options=[*options, "--trace"]) as machine:
        traced, watched = worked(machine)
        assert {name: count for name, count in watched.items() if isinstance(count, int)} == {
            name: count for name, count in alone.items() if isinstance(count, int)
        }
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["differing"], document["broken"]) == (0, [], [])
    assert document["operations"] > 5000
    seconds = document["seconds"]
    print(
        f"\ntrace: the workload takes {traced:.1f} s with the probe and {untraced:.1f} s without "
        f"({traced / untraced:.2f} times); {document['operations']:,} operations, {document['events']:,} events, "
        f"judged by protocol and model at {document['operations'] / seconds:,.0f} operations/s"
    )
