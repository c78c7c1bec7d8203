"""Work in chunks on a Dask cluster (`dask.distributed`, the extra ``cluster``), with the results in order.

Dask does a lost worker's work again by itself.  A worker runs one chunk at a time, however many threads it has: the
compiled kernel code has one state a process.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import inspector
from inspector.findings import BadInput, TargetLost, Untestable
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

_ONE_AT_A_TIME = threading.Lock()


def spread_over(
    address: str, function: Callable[[C], R], chunks: Iterable[C], tell: Callable[[str], None]
) -> Iterator[R]:
    """As `inspector.crosscheck.scale.spread`, over the workers of the scheduler at ``address`` (``tcp://host:8786``).

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
    payload, mark = zlib.compress(pickle.dumps(function)), fingerprint()
    coming = iter(chunks)
    pending: deque[Any] = deque()
    with _client(distributed, address) as client:
        tell(f"{address}: {len(client.nthreads())} workers")
        try:
            while True:
                room = AHEAD * max(1, sum(client.nthreads().values())) - len(pending)
                for _, chunk in zip(range(room), coming, strict=False):
                    pending.append(client.submit(_run, payload, mark, chunk, pure=False))
                if not pending:
                    return
                yield _result(distributed, client, pending.popleft(), address, tell)
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
            client.cancel(list(pending), force=True)


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


def _result(distributed: Any, client: Any, future: Any, address: str, tell: Callable[[str], None]) -> Any:
    """What a chunk came to.

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


def _run(payload: bytes, mark: str, chunk: Any) -> Any:
    """On a worker: one chunk."""
    if fingerprint() != mark:
        raise BadInput("a worker of the cluster has another version of this package: install the same everywhere")
    with _ONE_AT_A_TIME:
        return _function(payload)(chunk)


@functools.lru_cache(maxsize=4)
def _function(payload: bytes) -> Callable[[Any], Any]:
    """Unpickled once a process, so that what it loads (compiled libraries) is loaded once."""
    found: Callable[[Any], Any] = pickle.loads(zlib.decompress(payload))
    return found


@functools.cache
def fingerprint() -> str:
    """Of this package's code, Python and C: the same seeds give the same operations only with the same code."""
    root = Path(inspector.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".c", ".h", ".S"):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
