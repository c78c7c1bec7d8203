"""Cells on a cluster, and the kernel's selftests: for minutes, so only with ``./run_qemu.sh test -m build``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.machine import REPO, process_alive

pytestmark = [pytest.mark.live, pytest.mark.build, pytest.mark.timeout(3600)]

CONFIGURATIONS = ("vhe", "nvhe", "cortex-a76", "one-cpu")
CELLS = [word for name in CONFIGURATIONS for word in ("--configuration", name)]


def kernel() -> str:
    return os.environ["INSPECTOR_DEFAULT_KERNEL"]


def validate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inspector", "validate", "--kernel", kernel(), "--quick", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler on loopback and two workers, as the documentation starts them."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "XDG_CACHE_HOME": str(folder)}
    file = folder / "scheduler.json"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    common = [sys.executable, "-m"]
    scheduler = [*common, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with subprocess.Popen([*scheduler, "--scheduler-file", str(file)], cwd=folder, **quiet) as first:
        workers: list[subprocess.Popen[bytes]] = []
        try:
            while not file.exists() or not file.read_text().endswith("}"):
                assert first.poll() is None
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            worker = [
                *common,
                "distributed.cli.dask_worker",
                address,
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
            ]
            workers += [subprocess.Popen(worker, cwd=folder, **quiet) for _ in range(2)]
            yield address, workers
        finally:
            for each in (*workers, first):
                each.kill()
                each.wait()


def without_counts(report: str) -> str:
    """Two boots of one machine differ in how many operations they do, and so where lines are folded."""
    return re.sub(r"\s+", " ", re.sub(r"[\d,]+ operations", "N operations", re.sub(r"\s+", " ", report)))


def machines_of(pid: int) -> list[str]:
    found = subprocess.run(["pgrep", "-f", f"name validate-{pid} "], capture_output=True, text=True, check=False)
    return found.stdout.split()


def test_four_cells_on_two_workers_of_which_one_is_killed(tmp_path: Path) -> None:
    """Killed while its machine runs: that ends too, and the report is that of one machine after the other."""
    with cluster(tmp_path) as (address, workers):
        options = [*CELLS, "--scheduler", address, "--resume", str(tmp_path / "cells"), "--debug"]
        command = [sys.executable, "-m", "inspector", "validate", "--kernel", kernel(), "--quick", *options]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=REPO, **pipes) as running:
            while not machines_of(workers[0].pid):
                assert running.poll() is None
                time.sleep(0.2)
            (qemu, *_) = machines_of(workers[0].pid)
            workers[0].send_signal(signal.SIGKILL)
            end = time.monotonic() + 30
            while process_alive(int(qemu)):
                assert time.monotonic() < end, "a machine outlives its worker"
                time.sleep(0.2)
            out, errors = running.communicate()
    assert running.returncode == 0, out + errors
    assert "is lost, what it was at is done again" in errors
    assert without_counts(validate(*CELLS).stdout) == without_counts(out)
    again = validate(*CELLS, "--resume", tmp_path / "cells", "--debug")
    assert again.stdout == out
    assert again.stderr.count("was done before") == len(CONFIGURATIONS)


def test_the_kernels_selftests(tmp_path: Path) -> None:
    """Those of its own release: each runs, is skipped or cannot be built, and none breaks a rule."""
    done = validate("--configuration", "vhe", "--selftests", f"linux-source-{kernel()}", "--json")
    parts = {part["name"]: part for part in json.loads(done.stdout)["parts"]}
    assert done.returncode == 0, done.stdout
    table = parts["vhe, selftests: kvm_page_table_test"]
    assert table["figures"]["operations"] > 10_000
    assert parts["vhe, selftests: model"]["figures"]["differing"] == 0
