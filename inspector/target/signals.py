"""Signals as exceptions, so that ``finally`` runs; and a shelter in which they wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_ALL = (signal.SIGINT, *_ENDING)


class Interrupted(BaseException):
    """SIGTERM or SIGHUP arrived.  Like KeyboardInterrupt no `Exception`, so that nothing swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Inside, ``handler`` gets these signals, but for those that were ignored (nohup); only in the main thread."""
    before = {}
    for number in numbers if threading.current_thread() is threading.main_thread() else ():
        known = signal.getsignal(number)
        if known is not signal.SIG_IGN and known is not None:
            before[number] = known
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Interrupted` in the main thread; elsewhere it does nothing."""
    with _handled(_ENDING, _raise):
        yield


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP wait until the end: for putting things back without being cut short.

    Handlers are exchanged rather than signals blocked: a blocked signal is taken by any other thread of the
    process, and Python then still runs the handler in the main thread.  Whoever uses this sees to it that the
    inside takes seconds at most.
    """
    arrived: list[int] = []
    try:
        with _handled(_ALL, lambda signum, frame: arrived.append(signum)):
            yield
    finally:
        for signum in arrived[:1]:
            signal.raise_signal(signum)
