"""How fast schedules are run, and a whole verdict on a patch.

Prints figures (``pytest -s``); asserts that the work was done, never how long it took.  The limits that the figures are
held against: 20,000 schedules a second of two one-page maps, on one core; 30 seconds for a verdict, builds included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inspector.crosscheck.differ import KernelSide
from inspector.crosscheck.interleave.engine import Engine
from inspector.crosscheck.interleave.pairs import racing
from inspector.crosscheck.interleave.part import interleave, setups
from inspector.findings import ExitCode
from inspector.generations import GENERATIONS
from inspector.model.operations import Operation
from tests.crosscheck import kernels

pytestmark = pytest.mark.harness

LABELS = [label for label in kernels.labels() if GENERATIONS[label].shared_walks]
BOUND = 4
SCHEDULES_A_SECOND = 20_000
SECONDS = 30
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("label", LABELS)
def test_schedules_of_two_one_page_maps(label: str) -> None:
    """Every shared access a point of choice, four preemptions: engine and checks in C, ends not looked at."""
    setup = next(setups(label, ["4k"]))
    side = KernelSide(setup, kernels.kernel(label), every_access=True)
    maps = [operation for name, operation in racing(setup).items() if name.startswith("map")][:2]
    try:
        side.apply(Operation("init"))
        with Engine(side.harness, [side.packed(one) for one in maps], setup.behaviours, bound=BOUND) as engine:
            started = time.perf_counter()
            schedules = engine.exhaust()
            took = time.perf_counter() - started
            assert engine.distinct > 1
    finally:
        side.close()
    assert schedules > 1_000
    rate = schedules / took
    print(f"\nschedules {label}: {rate:,.0f} a second of {schedules:,}, {rate / SCHEDULES_A_SECOND:.2f} of the limit")


@pytest.mark.parametrize("label", LABELS[-1:])
def test_all_meetings_with_every_check(label: str) -> None:
    """What a verdict runs: ends checked, the protocol and the model on each schedule that ends unlike all before."""
    kernels.kernel(label).library(every_access=True)
    started = time.perf_counter()
    part = interleave(kernels.kernel(label), machines=1)
    took = time.perf_counter() - started
    assert part.code is ExitCode.CLEAN
    print(f"\nmeetings {label}: {int(part.figures['schedules']) / took:,.0f} schedules a second, everything checked")


def test_a_verdict_on_a_patch(tmp_path: Path) -> None:
    """6.12, tables of 4K pages, the default budget, nothing built before: as a user runs it."""
    patch = tmp_path / "rename.patch"
    tree = tmp_path / "linux"
    for name, text in kernels.tree("6.12").text.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    file = next(name for name in kernels.tree("6.12").text if name.endswith("hyp/pgtable.c"))
    new = tmp_path / "new.c"
    new.write_text(kernels.tree("6.12").text[file].replace("stage2_unmap_put_pte", "stage2_drop_pte"))
    command = ["diff", "-u", "--label", f"a/{file}", "--label", f"b/{file}", str(tree / file), str(new)]
    patch.write_text(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "inspector", "crosscheck", tree, "--patch", patch, "--granule", "4k"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "INSPECTOR_HARNESS_BUILD": str(tmp_path / "builds")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - started
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"\nverdict on a patch to 6.12: {took:.1f} s, {took / SECONDS:.2f} of the limit, builds included")
