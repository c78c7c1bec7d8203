"""Signals as exceptions, so that ``finally`` runs; and a shelter in which they wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process ended by this signal."""
        return 128 + self.signum


def _raise(signum: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Interrupted` in the main thread; elsewhere it does nothing.

    A signal that was ignored (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in _ENDING:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN and handler is not None:
            before[number] = handler
            signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP wait until the end: for putting things back without being cut short.

    Handlers are exchanged rather than signals blocked: a blocked signal is taken by any other thread of the
    process, and Python then still runs the handler in the main thread.  Whoever uses this sees to it that the
    inside takes seconds at most.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {}
    for number in _ALL:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN and handler is not None:
            before[number] = handler
            signal.signal(number, lambda signum, frame: arrived.append(signum))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for signum in arrived[:1]:
            signal.raise_signal(signum)
