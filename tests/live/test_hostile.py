"""A guest's VMM whose name would move the reader's cursor: every command that looks at the machine shows escapes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.machine import Machine
from tests.terminal import on_terminal, raw_in

pytestmark = pytest.mark.live

NAME = b"\x1b[7mX\x1b]0;p\x07\r\n"  # 15 bytes are all that a task's comm holds
SHOWN = r"\x1b[7mX\x1b]0;p\x07\r\n"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine.start(scenario="one") as machine:
        assert machine.command(f"comm {NAME.hex()}")[-1]["ok"]
        yield machine


def obeyed(shown: str) -> list[str]:
    """What a terminal would obey, but for the carriage returns of our own line of progress."""
    return raw_in(shown.replace("\r", ""))


@pytest.mark.parametrize(
    "command", ["info", "vms", "memslots", "registers", "dump", "dump --tree", "walk 0x40000000", "check", "diff"]
)
def test_a_name_of_the_guest(machine: Machine, command: str) -> None:
    look = [sys.executable, "-m", "inspector", "--image", str(machine.image), "--connect", machine.gdb_socket]
    for more in ((), ("--json",), ("--debug", "--memory", "gdb")):
        code, shown = on_terminal([*look, *command.split(), *more])
        assert code == 0, shown
        assert obeyed(shown) == []
        if command in ("vms", "dump") and more != ("--json",):
            assert SHOWN in shown


def test_a_capture_of_it(machine: Machine, tmp_path: Path) -> None:
    file = str(tmp_path / "x.s2cap")
    look = [sys.executable, "-m", "inspector", "--image", str(machine.image), "--connect", machine.gdb_socket]
    code, shown = on_terminal([*look, "capture", file])
    assert code == 0 and obeyed(shown) == []
    code, shown = on_terminal([sys.executable, "-m", "inspector", "--from", file, "vms", "--json"])
    assert code == 0 and json.loads(shown)["vms"][0]["vmm"] == NAME.decode()
