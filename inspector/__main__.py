"""The console script: signals are looked after before anything else is imported.

A signal must never end in a traceback.  While nothing is attached there is nothing to put back; from there on
`inspector.target.connect.attached` turns them into exceptions that clean up.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAID = b"inspector: interrupted; the machine was left as it was found\n"
_INTERRUPTED = 3  # ExitCode.TARGET_LOST: nothing may be imported yet


def _at_once(signum: int, frame: FrameType | None) -> None:
    os.write(2, _SAID)
    os._exit(_INTERRUPTED)


def _answered() -> list[signal.Signals]:
    """The signals that end us; one that was ignored stays so (nohup)."""
    return [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def _handle(numbers: list[signal.Signals], handler: signal.Handlers | signal._HANDLER) -> None:
    for number in numbers:
        signal.signal(number, handler)


def _met_in_a_finaliser(what: sys.UnraisableHookArgs) -> None:
    """An interruption that arrives while Python runs a ``__del__`` goes nowhere: let it arrive again a moment later."""
    if issubclass(what.exc_type, Exception):
        sys.__unraisablehook__(what)
        return
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.01)


def main() -> None:
    """Run the command line and exit with its code (see `inspector.findings.ExitCode`)."""
    numbers = _answered()
    _handle(numbers, _at_once)
    sys.unraisablehook = _met_in_a_finaliser
    from inspector import streams
    from inspector.cli import run

    streams.adopt()
    code = _INTERRUPTED
    try:
        _handle(numbers, signal.default_int_handler)
        code = run()
    except KeyboardInterrupt:  # a second signal, while the first was being answered
        pass
    # What is left is to exit: too late to be interrupted.  One may still come while that is being said.
    while True:
        try:
            _handle([*numbers, signal.SIGALRM], signal.SIG_IGN)
            break
        except KeyboardInterrupt:
            continue
    streams.release()
    sys.exit(code)


if __name__ == "__main__":
    main()
