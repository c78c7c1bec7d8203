"""Work in chunks, spread over processes of this machine or over a Dask cluster, with the results in order.

What a chunk gives depends on the chunk alone, so that the split changes nothing but the time.  Nothing here knows what
is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, TypeVar

from inspector.findings import Untestable
from inspector.jobs.files import Remote

C = TypeVar("C")
R = TypeVar("R")
Tell = Callable[[str], None]

TRIES: Final = 2
"""Workers that a chunk may cost: what kills the second one too is the chunk itself."""

AHEAD: Final = 4
"""Chunks a worker may be ahead of the first result that is not there yet."""

GRACE: Final = 2.0
"""Seconds that a worker which is no longer wanted has to end by itself: one whose walk hangs does not."""

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


def spread(
    function: Callable[[C], R],
    chunks: Iterable[C],
    jobs: int = 1,
    scheduler: str | None = None,
    tell: Tell = lambda text: None,
    arrived: Callable[[int, R], None] = lambda number, result: None,
    remote: Remote | None = None,
    grace: float = GRACE,
) -> Generator[R, None, None]:
    """``function`` of each chunk, in the order of the chunks, which may be endless: they are taken as they are needed.

    With one job and no ``scheduler`` all happens in this process; else ``function`` and the chunks are pickled, and
    what ``function`` raises is raised here when its turn comes.  The work of a worker that is lost is done again; a
    chunk that costs `TRIES` workers raises `Untestable`.  Close the generator (`contextlib.closing`) to end early: no
    process is left behind.

    ``arrived`` hears of each result, with its chunk's number, as soon as it is there, whether or not its turn has come.
    ``remote`` is what a cluster has to know beside.  ``grace``: seconds that a worker has to end by itself.
    """
    if scheduler is not None:
        from inspector.jobs.cluster import spread_over

        yield from spread_over(scheduler, function, chunks, tell, arrived, remote or Remote())
    elif jobs == 1:
        for number, chunk in enumerate(chunks):
            result = function(chunk)
            arrived(number, result)
            yield result
    else:
        yield from _over_processes(function, chunks, jobs, tell, arrived, grace)


@dataclass(frozen=True)
class _Answer(Generic[R]):
    """What a chunk came to: a result, or what was raised."""

    result: R | None
    raised: BaseException | None = None

    def take(self) -> R:
        if self.raised is not None:
            raise self.raised
        return self.result  # type: ignore[return-value]  # None only where R is


@dataclass
class _Task(Generic[C]):
    number: int
    chunk: C
    tries: int = 0


@dataclass
class _Worker(Generic[C]):
    process: BaseProcess
    pipe: Connection
    task: _Task[C] | None = None


def _over_processes(
    function: Callable[[C], R],
    chunks: Iterable[C],
    jobs: int,
    tell: Tell,
    arrived: Callable[[int, R], None],
    grace: float,
) -> Iterator[R]:
    coming = (_Task(number, chunk) for number, chunk in enumerate(chunks))
    again: deque[_Task[C]] = deque()
    answers: dict[int, _Answer[R]] = {}
    workers: list[_Worker[C]] = []
    due = 0

    def next_task() -> _Task[C] | None:
        if again:
            return again.popleft()
        return next(coming, None)

    try:
        while True:
            idle = [worker for worker in workers if worker.task is None]
            room = jobs * AHEAD - len(answers) - (len(workers) - len(idle))
            while room > 0 and (idle or len(workers) < jobs) and (task := next_task()) is not None:
                if not idle:
                    workers.append(_start(function))
                    idle.append(workers[-1])
                _give(idle.pop(), task)
                room -= 1
            if due in answers:
                yield answers.pop(due).take()
                due += 1
                continue
            busy = [worker for worker in workers if worker.task is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy])
            for worker in busy:
                if worker.pipe not in ready:
                    continue
                task = worker.task
                assert task is not None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    again.append(_lost(worker, task, tell))
                    continue
                worker.task = None
                answers[task.number] = answer
                if answer.raised is None:
                    arrived(task.number, answer.take())
    finally:
        _end(*workers, grace=grace)


def _start(function: Callable[[C], R]) -> _Worker[C]:
    """A worker that waits for its first chunk.

    A fresh interpreter: a fork would inherit libraries in whatever state they are.  Ctrl-C is for this process, which
    ends its workers itself, so they have SIGINT blocked from their first instruction.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(function, there), daemon=True)
    resource_tracker.ensure_running()  # as it starts, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return _Worker(process, here)


def _give(worker: _Worker[C], task: _Task[C]) -> None:
    worker.task = task
    with contextlib.suppress(OSError):  # it died while idle, which is found out when its answer is read
        worker.pipe.send(task.chunk)


def _lost(worker: _Worker[C], task: _Task[C], tell: Tell) -> _Task[C]:
    """What is to be done again.  Raises `Untestable` when it was tried often enough."""
    worker.process.join(GRACE)
    code = worker.process.exitcode or 0
    _end(worker)
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
    task.tries += 1
    if task.tries == TRIES:
        raise Untestable(
            f"a worker process was lost {TRIES} times with the same piece of work, number {task.number} ({how}): "
            "run it with --jobs 1 to see what happens there"
        )
    tell(f"a worker process was lost ({how}): its work is done again")
    return task


def _end(*workers: _Worker[C], grace: float = GRACE) -> None:
    """Workers are asked to end, for they may be compiling, and made to when they do not answer."""
    for worker in workers:
        worker.pipe.close()
        worker.process.terminate()
    for worker in workers:
        worker.process.join(grace)
        worker.process.kill()
        worker.process.join()
        worker.process.close()


def _work(function: Callable[[C], R], pipe: Connection) -> None:
    """A worker's life: chunks in, answers out, until the pipe is closed at the other end."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # half-built libraries are removed on the way
    # Should our parent be killed, so are we, in the middle of a chunk as well.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        try:
            chunk: Any = pipe.recv()
        except (EOFError, OSError):
            return
        answer: _Answer[R]
        try:
            answer = _Answer(function(chunk))
        except Exception as error:
            answer = _Answer(None, error)
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # what does not pickle cannot be handed over as it is
            pipe.send(_Answer(None, RuntimeError(f"{type(answer.raised or error).__name__}: {answer.raised or error}")))
