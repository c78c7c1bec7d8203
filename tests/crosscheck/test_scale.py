"""The split of the work changes nothing but the time, and no worker is missed or left behind."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inspector.crosscheck import campaign
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.tree import PGTABLE
from inspector.findings import BadInput, TargetLost, Untestable
from inspector.jobs import cluster as cluster_module
from inspector.jobs.spread import spread
from tests.crosscheck import kernels
from tests.crosscheck.test_campaign import PATCHES

pytestmark = pytest.mark.harness

LABEL = "6.12"


def _dask() -> Any:
    """Dask's module, without types."""
    return importlib.import_module("distributed")


def _square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # they do not finish in order
    return number * number


def _fail_at(limit: int, number: int) -> int:
    if number >= limit:
        raise BadInput(f"no {number}")
    return number


def _die(marks: Path, number: int) -> int:
    """Dies at 3 and 5, the first time (and at 7 always)."""
    mark = marks / str(number)
    if number in (3, 5, 7) and (number == 7 or not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _whoami(number: int) -> int:
    return os.getpid()


def _unpicklable(number: int) -> Any:
    return lambda: number


def _sleep(marks: Path, number: int) -> int:
    (marks / str(os.getpid())).touch()
    time.sleep(60)
    return number


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_results_come_in_order(jobs: int) -> None:
    assert list(spread(_square, range(20), jobs)) == [n * n for n in range(20)]
    assert list(spread(_square, [], jobs)) == []
    with closing(spread(_square, itertools.count(), jobs)) as endless:
        assert list(itertools.islice(endless, 5)) == [0, 1, 4, 9, 16]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_raised_is_raised_in_its_turn(jobs: int) -> None:
    results = spread(partial(_fail_at, 4), range(9), jobs)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(BadInput, match="no 4"):
        next(results)
    assert not multiprocessing.active_children()


def test_the_work_of_a_lost_worker_is_done_again(tmp_path: Path) -> None:
    told: list[str] = []
    assert list(spread(partial(_die, tmp_path), range(7), 2, tell=told.append)) == list(range(7))
    assert told == ["a worker process was lost (killed by SIGKILL): its work is done again"] * 2


def test_work_that_kills_every_worker_is_said(tmp_path: Path) -> None:
    results = spread(partial(_die, tmp_path), range(20), 2)
    with pytest.raises(Untestable, match=r"lost 2 times with the same piece of work, number 7 \(killed by SIGKILL\)"):
        list(results)
    assert not multiprocessing.active_children()


def test_a_result_that_cannot_be_sent_is_said() -> None:
    with pytest.raises(RuntimeError, match="pickle"):
        list(spread(_unpicklable, range(3), 2))


def test_chunks_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []

    def coming() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    with closing(spread(_whoami, coming(), 2)) as results:
        first = next(results)
    assert first != os.getpid()
    assert len(taken) <= 10


def _alive(pid: int) -> bool:
    """Whether it runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_program(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches every process of the group; SIGKILL one alone, which can do nothing any more."""
    program = (
        "import sys; from functools import partial; from pathlib import Path\n"
        "from tests.crosscheck.test_scale import _sleep, spread\n"
        "try: list(spread(partial(_sleep, Path(sys.argv[1])), range(9), 2))\n"
        "except KeyboardInterrupt: sys.exit(3)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], start_new_session=True, stderr=subprocess.PIPE
    )
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (3 if number is signal.SIGINT else -9)
    assert said == b""
    deadline = time.monotonic() + 60
    while any(_alive(int(mark.name)) for mark in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- the campaign ---


def _facts(outcome: campaign.Outcome) -> dict[str, Any]:
    return {name: value for name, value in vars(outcome).items() if name != "kernel"}


def _faulty() -> Kernel:
    """A kernel that leaks a table when an allocation fails: with this seed not in the first tables of a campaign."""
    patch = next(each.patch for each in PATCHES if each.name == "an unlinked table leaked on an error path")
    tree = kernels.tree(LABEL)
    text = {**tree.text, PGTABLE: patch.apply(tree.text[PGTABLE])}
    return Kernel("faulty", replace(tree, text=text), LABEL, kernels.builds())


def test_the_campaign_is_the_same_however_it_is_split() -> None:
    one = campaign.run(kernels.kernel(LABEL), 1500, 7)
    assert one.difference is None
    assert one.operations >= 1500
    for jobs in (2, 3):
        assert _facts(campaign.run(kernels.kernel(LABEL), 1500, 7, jobs=jobs)) == _facts(one)


def test_the_first_difference_is_the_same_however_it_is_split() -> None:
    one = campaign.run(_faulty(), 20_000, 4)
    assert one.difference is not None
    assert one.sequences > campaign.CHUNK
    for jobs in (2, 3):
        assert _facts(campaign.run(_faulty(), 20_000, 4, jobs=jobs)) == _facts(one)


def test_a_kernel_that_does_not_compile_is_said_by_a_worker_as_well() -> None:
    tree = kernels.tree(LABEL)
    wrong = replace(tree, text={**tree.text, PGTABLE: "no C\n"})
    with pytest.raises(Untestable, match="does not compile with the harness"):
        campaign.run(Kernel("wrong", wrong, LABEL, kernels.builds()), 1000, 1, jobs=2)


# --- a cluster ---


class _Slow:
    """A future that is done just after the look at it timed out."""

    def __init__(self, result: Callable[[], int]) -> None:
        self.looks, self._result = 0, result

    def result(self, timeout: float) -> int:
        self.looks += 1
        if self.looks == 1:
            raise TimeoutError(f"timed out after {timeout} s.")
        return self._result()

    def done(self) -> bool:
        return True


def test_a_result_that_comes_just_after_a_look_is_no_loss() -> None:
    assert cluster_module._result(_dask(), None, _Slow(lambda: 7), "tcp://host:8786", _silent) == 7


def test_a_timeout_of_the_work_itself_is_not_waited_for() -> None:
    def fails() -> int:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        cluster_module._result(_dask(), None, _Slow(fails), "tcp://host:8786", _silent)


def _silent(_: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A scheduler and two workers, each a process, on this machine."""
    settings = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with _dask().LocalCluster(**settings) as found:
        yield found


def test_a_cluster_gives_the_same(cluster: Any) -> None:
    address = cluster.scheduler_address
    assert list(spread(_square, range(20), scheduler=address)) == [n * n for n in range(20)]
    one = campaign.run(kernels.kernel(LABEL), 1500, 7)
    assert _facts(campaign.run(kernels.kernel(LABEL), 1500, 7, scheduler=address)) == _facts(one)
    with pytest.raises(BadInput, match="no 4"):
        list(spread(partial(_fail_at, 4), range(9), scheduler=address))


def test_a_cluster_does_the_work_of_a_lost_worker_again(cluster: Any, tmp_path: Path) -> None:
    assert list(spread(partial(_die, tmp_path), range(7), scheduler=cluster.scheduler_address)) == list(range(7))
    assert {mark.name for mark in tmp_path.iterdir()} == {"3", "5"}


def _kill(marks: Path, number: int) -> int:
    """Dies at 3 as often as it is tried, and leaves a mark when it does."""
    if number == 3:
        (marks / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_cluster_whose_workers_are_all_lost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only worker is killed, and nobody starts another: a sentence, after a while, and not silence for ever."""
    monkeypatch.setattr("inspector.jobs.cluster.ALONE", 2)
    told: list[str] = []
    came: list[int] = []  # what had not been fetched yet is lost with the worker
    with _dask().LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as found:
        address = found.scheduler_address
        program = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        # Where this process looks for modules, so does the worker: `_kill` is a function of this one.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        worker = subprocess.Popen(
            program, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            with closing(spread(partial(_kill, tmp_path), range(7), scheduler=address, tell=told.append)) as results:
                sentence = r"all workers of .* lost, and for 2 seconds no other .*starts one"
                with pytest.raises(TargetLost, match=sentence):
                    for number in results:
                        came.append(number)
        finally:
            worker.kill()
            assert worker.wait(timeout=60) == -signal.SIGKILL
    assert (tmp_path / "died").exists()
    assert came == [0, 1, 2][: len(came)]
    assert any("waiting for another" in text for text in told)


def test_no_cluster_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspector.jobs.cluster.PATIENCE", 1)
    with pytest.raises(TargetLost, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1: start one"):
        list(spread(_square, range(3), scheduler="tcp://127.0.0.1:1"))
    with pytest.raises(BadInput, match="'x://y' is not a scheduler's address"):
        list(spread(_square, range(3), scheduler="x://y"))


def test_without_dask_a_cluster_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BadInput, match=r"needs the Python package 'distributed'.*pip install"):
        list(spread(_square, range(3), scheduler="tcp://127.0.0.1:1"))
