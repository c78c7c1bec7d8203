"""Standard output and standard error: all that is said goes through here, and what is done when they fail.

A full disk, a limit on the size of files or a closed descriptor is one sentence and exit code 2.  A reader that has
gone (``head``) has seen enough, which is no failure.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from inspector.findings import InspectorError
from inspector.printable import printable


class OutputFailed(InspectorError):
    """Standard output does not take what is written to it."""


class _Stdout(io.FileIO):
    """Descriptor 1, with errors of ours, so that no caller has to tell this failure from another file's."""

    def write(self, data: memoryview) -> int | None:  # type: ignore[override]
        try:
            while (written := super().write(data)) is None:  # somebody made the pipe or terminal non-blocking
                select.select([], [self], [])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(f"cannot write to standard output: {error.strerror}") from None
        return written


def adopt() -> None:
    """Replace the process's streams.  A closed one gets a descriptor, lest a file or a socket take its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    # Whatever a locale cannot write is shown as an escape: an answer must not end in the middle.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdout is not None:
        old, raw = sys.stdout, _Stdout(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=old.encoding,
            errors="backslashreplace",
            line_buffering=raw.isatty(),
        )


def require_stdout() -> None:
    """Raises `OutputFailed` where there is none: before any work is done, and any machine stopped."""
    if sys.stdout is None:
        raise OutputFailed("cannot write to standard output: it is closed")


def release() -> None:
    """Let Python's own end of the streams find nothing that could fail: it would exit with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, OutputFailed, AttributeError):
            forget(stream)


def forget(stream: TextIO) -> None:
    """What is still buffered in a stream that failed goes nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def write(pieces: Iterable[str], at_once: int = 1 << 16) -> None:
    """Text on standard output."""
    pending, length = [], 0
    for piece in pieces:
        pending.append(piece)
        length += len(piece)
        if length >= at_once:
            sys.stdout.write("".join(pending))
            pending, length = [], 0
    sys.stdout.write("".join(pending))
    sys.stdout.flush()


def _remark(text: str) -> None:
    """Text on standard error.  That it cannot be said changes nothing."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def say(message: str) -> None:
    """One sentence on standard error."""
    _remark(f"inspector: {printable(' '.join(message.split()))}\n")


@contextmanager
def progress(debug: bool) -> Iterator[Callable[[str], None]]:
    """Tells on standard error what is going on: only on a terminal, and only after a second."""
    start = time.monotonic()
    width = 0
    terminal = sys.stderr.isatty()

    def tell(message: str) -> None:
        nonlocal width
        message = printable(message)
        if debug:
            _remark(f"{time.monotonic() - start:7.3f}s {message}\n")
        elif terminal and time.monotonic() - start > 1:
            _remark("\r" + message.ljust(width))
            width = len(message)

    try:
        yield tell
    finally:
        if width:
            _remark("\r" + " " * width + "\r")
