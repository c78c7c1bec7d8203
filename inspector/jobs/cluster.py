"""Work in chunks on a Dask cluster (`dask.distributed`, the extra ``cluster``), with the results in order.

Dask does a lost worker's work again by itself.  A worker runs one chunk at a time, however many threads it has: the
compiled kernel code has one state a process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import inspector
from inspector.findings import BadInput, TargetLost, Untestable
from inspector.jobs import files
from inspector.jobs.files import Remote
from inspector.printable import SHORT, printable

C = TypeVar("C")
R = TypeVar("R")

PATIENCE: Final = 10
"""Seconds until a scheduler must have answered, and until a worker must have joined it."""

ALONE: Final = 60
"""Seconds without any worker after which none is expected back: Dask starts a killed one again in some seconds."""

LOOK: Final = 1
"""Seconds between looks at the cluster while a result is waited for."""

AHEAD: Final = 2
"""Chunks handed in for each thread of the cluster."""

SENDING: Final = 600
"""Seconds that a file may take to a worker."""

_ONE_AT_A_TIME = threading.Lock()
_AT: Final[list[str]] = []
"""The token of what this worker is at."""
_ENDED: Final[set[str]] = set()


@functools.cache
def fingerprint() -> str:
    """Of this package's code, Python and C: the same seeds give the same operations only with the same code."""
    root = Path(inspector.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".c", ".h", ".S"):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class _Lacks:
    """What a worker answers that has not the files that its work needs."""

    worker: str
    digests: Sequence[str]


@dataclass
class _Pending:
    number: int
    chunk: Any
    future: Any
    heard: bool = False


@dataclass
class _Work:
    """One call of `spread_over`: what every piece of it is sent with, and what has been seen of the workers."""

    distributed: Any
    client: Any
    address: str
    function: bytes
    remote: Remote
    tell: Callable[[str], None]
    arrived: Callable[[int, Any], None]
    mark: str = field(default_factory=fingerprint)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    pending: deque[_Pending] = field(default_factory=deque)
    workers: set[str] = field(default_factory=set)
    sent: set[tuple[str, str]] = field(default_factory=set)

    def submit(self, chunk: Any) -> Any:
        digests = tuple(self.remote.files)
        return self.client.submit(_run, self.function, self.mark, self.token, digests, chunk, pure=False)

    def room(self) -> int:
        """Chunks that may be handed in."""
        threads: int = sum(self.client.nthreads().values())
        return AHEAD * max(1, threads) - len(self.pending)

    def look(self) -> None:
        """At everything while the first result is waited for: who has gone, what lacks something, what is done."""
        now = set(self.client.nthreads())
        for worker in sorted(self.workers - now):
            self.tell(f"{self.address}: the worker {worker} is lost, what it was at is done again")
        self.workers = now
        for each in self.pending:
            if not each.heard and each.future.status == "finished":
                self.hear(each, each.future.result(timeout=PATIENCE))

    def hear(self, each: _Pending, result: Any) -> bool:
        """Whether it is a result: else it was sent what it lacks, and again."""
        if isinstance(result, _Lacks):
            self._send(result)
            each.future = self.submit(each.chunk)
            return False
        if not each.heard:
            each.heard = True
            self.arrived(each.number, result)
        return True

    def _send(self, lacks: _Lacks) -> None:
        for digest in lacks.digests:
            if (lacks.worker, digest) in self.sent or lacks.worker not in self.client.nthreads():
                continue  # another piece of work said so before; or it is gone, and another worker has its turn
            self.sent.add((lacks.worker, digest))
            path = self.remote.files[digest]
            contents = path.read_bytes()
            self.tell(f"{lacks.worker} gets {path.name}, {len(contents) / (1 << 20):.1f} MiB")
            there = self.client.scatter(contents, workers=[lacks.worker])
            self.client.submit(files.put, digest, there, workers=[lacks.worker], pure=False).result(timeout=SENDING)

    def first(self) -> Any:
        """The result whose turn it is."""
        while True:
            each = self.pending[0]
            result = _result(self.distributed, self.client, each.future, self.address, self.tell, self.look)
            if self.hear(each, result):
                self.pending.popleft()
                return result

    def end(self) -> None:
        """Nobody waits for what is pending: what runs of it ends too."""
        self.client.cancel([each.future for each in self.pending], force=True)
        if self.pending and self.remote.end is not None:
            with contextlib.suppress(Exception):  # a scheduler that is gone has been told of
                self.client.run(_end, self.token, pickle.dumps(self.remote.end))


def spread_over(
    address: str,
    function: Callable[[C], R],
    chunks: Iterable[C],
    tell: Callable[[str], None],
    arrived: Callable[[int, R], None],
    remote: Remote,
) -> Iterator[R]:
    """As `inspector.jobs.spread.spread`, over the workers of the scheduler at ``address`` (``tcp://host:8786``).

    Raises `BadInput` when `distributed` is not installed or the address is none, or when the workers have another
    version of this package; `TargetLost` when the scheduler or all workers are not there, or went away.
    """
    try:
        import distributed
    except ImportError:
        raise BadInput(
            "--scheduler needs the Python package 'distributed', here and on the workers: "
            "pip install 'kvm-stage2-inspector[cluster]'"
        ) from None
    _quiet()
    coming = enumerate(chunks)
    with _client(distributed, address) as client:
        tell(f"{address}: {len(client.nthreads())} workers")
        payload = zlib.compress(pickle.dumps(function))
        work = _Work(distributed, client, address, payload, remote, tell, arrived)
        work.workers = set(client.nthreads())
        try:
            while True:
                for _, (number, chunk) in zip(range(work.room()), coming, strict=False):
                    work.pending.append(_Pending(number, chunk, work.submit(chunk)))
                if not work.pending:
                    return
                yield work.first()
        except distributed.KilledWorker:
            raise Untestable(
                f"workers of {address} were lost with one and the same piece of work: run it with --jobs 1 to see what "
                "happens there"
            ) from None
        except ModuleNotFoundError as error:
            raise BadInput(
                f"the workers of {address} lack a module ({printable(str(error), SHORT)}): install this package there"
            ) from None
        except (distributed.CancelledError, OSError, TimeoutError) as error:
            raise TargetLost(f"the Dask scheduler at {address} was lost: {printable(str(error), SHORT)}") from None
        finally:
            work.end()


def _quiet() -> None:
    """What goes wrong is said by what is raised; Dask's own loggers would print tracebacks beside it."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in ("distributed", "tornado"):
            logging.getLogger(name).disabled = True


def _client(distributed: Any, address: str) -> Any:
    """A client with at least one worker."""
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, TimeoutError):
        raise TargetLost(f"no Dask scheduler answers at {address}: start one with 'dask scheduler'") from None
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"'{printable(address, SHORT)}' is not a scheduler's address, such as tcp://host:8786 "
            f"({printable(str(error), SHORT)})"
        ) from None
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except (OSError, TimeoutError):
        client.close()
        raise TargetLost(f"the scheduler at {address} has no workers: 'dask worker {address}' starts one") from None
    return client


def _result(
    distributed: Any,
    client: Any,
    future: Any,
    address: str,
    tell: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> Any:
    """What a chunk came to; meanwhile a ``look`` each `LOOK` seconds.

    Without workers a scheduler keeps what it was given and answers nothing: raises `TargetLost` when there has been no
    worker for `ALONE` seconds.
    """
    alone: float | None = None
    while True:
        try:
            return future.result(timeout=LOOK)
        except distributed.TimeoutError:
            # Done all the same: it came just after that second, or it is the work itself that raises such an error.
            if future.done():
                return future.result(timeout=PATIENCE)
        look()
        if client.nthreads():
            alone = None
            continue
        if alone is None:
            tell(f"{address}: all workers are lost, waiting for another")
            alone = time.monotonic()
        if time.monotonic() - alone >= ALONE:
            raise TargetLost(
                f"all workers of the Dask scheduler at {address} were lost, and for {ALONE} seconds no other has "
                f"joined it: 'dask worker {address}' starts one"
            )


def _run(payload: bytes, mark: str, token: str, digests: Sequence[str], chunk: Any) -> Any:
    """On a worker: one chunk."""
    if fingerprint() != mark:
        raise BadInput("a worker of the cluster has another version of this package: install the same everywhere")
    if lacking := files.missing(digests):
        from distributed import get_worker

        return _Lacks(get_worker().address, lacking)
    with _ONE_AT_A_TIME:
        if token in _ENDED:
            raise Untestable("nobody waits for this any longer")
        _AT.append(token)
        try:
            return _function(payload)(chunk)
        finally:
            _AT.pop()


def _end(token: str, end: bytes) -> None:
    """On a worker: nobody waits any longer for what was sent with this token."""
    _ENDED.add(token)
    if token in _AT:
        pickle.loads(end)()


@functools.lru_cache(maxsize=4)
def _function(payload: bytes) -> Callable[[Any], Any]:
    """Unpickled once a process, so that what it loads (compiled libraries) is loaded once."""
    found: Callable[[Any], Any] = pickle.loads(zlib.decompress(payload))
    return found
