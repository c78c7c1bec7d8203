"""Two machines that count time in instructions do the same, operation for operation, page for page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inspector.machines import Machine
from inspector.trace.file import Trace
from inspector.trace.follow import Following, open_output, read_plan
from inspector.validate.aligned import Operation, align, operations

pytestmark = pytest.mark.live


def followed(name: str, path: Path) -> list[Operation]:
    machine = Machine(
        f"{name}-{os.getpid()}",
        ["--trace", "--deterministic", "--cpu", "max,lpa2=off", "--scenario", "backing,log,smp"],
    )
    try:
        machine.start()
        following = Following(machine.folder, read_plan(machine.folder))
        with open_output(path) as out:
            following.go(out, 0.5, machine.alive, lambda _: None)
        done = following.end()
        assert (done.judge.broken, done.judge.differing) == ([], [])
    finally:
        machine.stop()
    return list(operations(Trace(path).events()))


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    first, second = (followed(name, tmp_path / name) for name in ("first", "second"))
    assert len(first) > 100
    assert align(first, second).is_identical
    # No renaming was needed.
    assert [each.places for each in first] == [each.places for each in second]
