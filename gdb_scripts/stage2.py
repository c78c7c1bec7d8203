# ``source gdb_scripts/stage2.py`` in a gdb (13 or newer) that is attached to an arm64 KVM host under QEMU.
#
# Gives it the ``stage2`` commands (`gdb_scripts.commands`), or says in one sentence why not: nothing above their import
# needs more than Python 3.6.  In a gdb without Python the next line is a command, whose answer is that sentence.
python = None

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gdb  # noqa: E402

_GDB = (13,)
_PYTHON = (3, 11)
"""What ``inspector.codec`` is written in."""


def _why_not() -> str:
    """A sentence, when this gdb is not one for the commands."""
    numbers = gdb.VERSION.split("-")[0].split(".")[:2]
    if tuple(int(number) for number in numbers if number.isdigit()) < _GDB:
        return f"this is gdb {gdb.VERSION}: the stage2 commands need 13 or newer"
    if sys.version_info < _PYTHON:
        have = ".".join(map(str, sys.version_info[:2]))
        return f"the Python of this gdb is {have}: the stage2 commands need 3.11 or newer"
    return ""


def _load() -> None:
    why = _why_not()
    if why:
        gdb.write(f"{why}\n", gdb.STDERR)
        return
    here = str(Path(__file__).resolve().parents[1])
    if here not in sys.path:
        sys.path.append(here)  # last: what this gdb's Python has of its own comes first
    from gdb_scripts import commands

    commands.load()


_load()
