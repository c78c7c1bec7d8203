"""What work on a cluster needs beside its function: files, word of what happened, an end; on real Dask workers."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inspector.jobs import files
from inspector.jobs.files import Remote
from inspector.jobs.spread import spread


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and two workers of one thread, each a process with a cache of its own user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
        with importlib.import_module("distributed").LocalCluster(**settings) as found:
            yield found.scheduler_address


def _contents(digest: str, number: int) -> tuple[int, bytes]:
    time.sleep(0.1)
    return number, files.place_of(digest).read_bytes()


def test_a_file_goes_to_each_worker_once(cluster: str, tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(os.urandom(1 << 20))
    digest = files.digest_of(path)
    told: list[str] = []

    def go() -> list[Any]:
        remote = Remote({digest: path})
        work = spread(partial(_contents, digest), range(6), scheduler=cluster, tell=told.append, remote=remote)
        return list(work)

    assert go() == [(number, path.read_bytes()) for number in range(6)]
    # The two have one cache here: whoever looks second may find what the first was sent.
    assert 1 <= sum("gets Image, 1.0 MiB" in line for line in told) <= 2
    told.clear()
    assert go() == [(number, path.read_bytes()) for number in range(6)]
    assert not any("gets" in line for line in told)


def _late(number: int) -> int:
    time.sleep(3 if number == 0 else 0)
    return number


def test_a_result_is_heard_before_its_turn(cluster: str) -> None:
    heard: list[tuple[int, int]] = []
    results = list(spread(_late, range(4), scheduler=cluster, arrived=lambda *each: heard.append(each)))
    assert results == [0, 1, 2, 3]
    assert sorted(heard) == [(number, number) for number in range(4)]
    assert heard[-1] == (0, 0)


def _die_once(marks: Path, number: int) -> int:
    mark = marks / str(number)
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.5)
    return number


def test_a_lost_worker_is_told_and_its_work_done_again(cluster: str, tmp_path: Path) -> None:
    told: list[str] = []
    results = list(spread(partial(_die_once, tmp_path), range(4), scheduler=cluster, tell=told.append))
    assert results == [0, 1, 2, 3]
    assert [line for line in told if line.endswith("is lost, what it was at is done again")], told


def _wait(marks: Path, number: int) -> int:
    (marks / f"began-{number}").touch()
    end = time.monotonic() + 60
    while time.monotonic() < end and not (marks / "end").exists():
        time.sleep(0.05)
    (marks / f"ended-{number}").touch()
    return number


def _end(marks: Path) -> None:
    (marks / "end").touch()


def test_what_nobody_waits_for_is_ended(cluster: str, tmp_path: Path) -> None:
    """Its end is told to the workers that are at it; what had not begun never does."""

    def give_up(_: str) -> None:
        if (tmp_path / "began-0").exists():
            raise KeyboardInterrupt

    remote = Remote(end=partial(_end, tmp_path))
    work = spread(partial(_wait, tmp_path), range(8), scheduler=cluster, remote=remote)
    began = time.monotonic()
    with closing(work), pytest.raises(KeyboardInterrupt):
        # As a signal does: while a result is waited for.
        signal.signal(signal.SIGALRM, lambda *_: give_up(""))
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        try:
            next(work)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    while len(list(tmp_path.glob("ended-*"))) < len(list(tmp_path.glob("began-*"))):
        assert time.monotonic() < began + 30
        time.sleep(0.05)
    assert len(list(tmp_path.glob("began-*"))) <= 2
