"""What ``stage2 break … if overlaps(…)`` costs a guest that does not touch the range, against a raw RSP loop.

The raw loop makes the same two stops an operation (at the breakpoint, and after the step over it) and decides nothing.
Goal: at least half its speed.  The time of a guest that maps nothing does not change, and is not measured.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest

from tests.benchmarks.test_bench_trace_gdb import RawLoop
from tests.live.counting import qemu
from tests.live.gdb_session import PROMPT, Session
from tests.live.machine import Machine
from tests.target.conftest import raw_connect

pytestmark = pytest.mark.live

PAGES_MB = 8
OPERATIONS = PAGES_MB * 256
GOAL = 0.5
LIMIT = 0.3
"""The same code gives 58% to 110% from run to run."""
ROUNDS, MOST_ROUNDS = 3, 8
"""More where something else on this machine got in the way."""
TOUCH = f"run big mb={PAGES_MB}"
ELSEWHERE = "0xf0000000+4K"
"""Where that guest has no memory."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Under the newest QEMU that can be had: older ones translate all code anew at each stop, which hides all else."""
    with Machine.start(scenario="none", options=["--qemu", str(qemu("--newest"))]) as machine:
        yield machine


def seconds(machine: Machine) -> float:
    before = time.perf_counter()
    machine.command(TOUCH)
    passed = time.perf_counter() - before
    machine.command("end")
    return passed


def raw_loop(machine: Machine, address: int) -> float:
    ended = threading.Event()
    with raw_connect(machine.gdb_socket) as connection:
        connection.settimeout(60)
        loop = RawLoop(connection, {address: ("enter", ["step"])})
        thread = threading.Thread(target=loop.follow, args=(ended,))
        thread.start()
        passed = seconds(machine)
        ended.set()
        connection.sendall(b"\x03")
        thread.join()
    assert OPERATIONS <= loop.stops.total() <= OPERATIONS * 1.1
    return passed


def by_gdb(machine: Machine) -> tuple[float, int]:
    """Seconds, and where the breakpoint is."""
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        address = re.search(r"Breakpoint 1 at (0x[0-9a-f]+)", gdb(f"stage2 break map if overlaps({ELSEWHERE})"))
        assert address is not None
        gdb.type("continue")
        gdb.read_to("Continuing.")
        passed = seconds(machine)
        gdb.press(b"\x03")
        assert "received signal SIGINT" in gdb.read_to(PROMPT)
        gdb("delete")
        gdb("detach")
    return passed, int(address[1], 16)


def test_cost_of_a_break_elsewhere(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    free: list[float] = []
    raw: list[float] = []
    gdb: list[float] = []
    for number in range(MOST_ROUNDS):  # in turn, so that whatever else runs disturbs all
        if number >= ROUNDS and min(raw) / min(gdb) >= GOAL:
            break
        free.append(seconds(machine))
        passed, address = by_gdb(machine)
        gdb.append(passed)
        raw.append(raw_loop(machine, address))
    ratio = min(raw) / min(gdb)
    each = 1000 * (min(gdb) - min(free)) / OPERATIONS
    with capsys.disabled():
        print(
            f"\n{OPERATIONS} operations out of range: {min(gdb):.2f} s with the break, {each:.2f} ms each; "
            f"raw RSP loop {min(raw):.2f} s; without {min(free):.2f} s: {ratio:.0%} of the raw loop (goal: {GOAL:.0%})"
        )
    assert ratio >= LIMIT
