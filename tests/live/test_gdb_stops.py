"""The ``stage2`` commands wherever a CPU may have stopped: what they say is what the command line says of that instant.

In nVHE, because only there host, guest and hypervisor each have tables of their own; in VHE the host is at EL2
(`tests.live.test_gdb_commands`).  The command line has a gdb of its own, once the person's has let go of the machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.gdb_session import PROMPT, Session
from tests.live.machine import Machine
from tests.live.poke import qmp
from tests.live.test_gdb_commands import comparable, inspect

pytestmark = pytest.mark.live

COMMANDS = ("registers", "dump", "walk 0 --vm vm0", "check")
_HIGH = 1 << 63
_LOWER_EL_IRQ = 0x480
"""Of the vector table (DDI 0487 D1.3.1)."""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One CPU, so that it is the one that stopped."""
    with Machine.start(smp=1, append="kvm-arm.mode=nvhe") as machine:
        machine.command("spin on busy=100000 sleep_us=1000")
        yield machine


def number(gdb: Session, expression: str) -> int:
    return int(gdb(f"output/x (unsigned long){expression}"), 16)


def level(gdb: Session) -> int:
    return number(gdb, "$cpsr") >> 2 & 3


def in_host_code(gdb: Session, machine: Machine) -> None:
    """EL1, where a new guest's first page is mapped."""
    gdb("stage2 break map")
    gdb.type("continue")
    threading.Thread(target=machine.command, args=("run one",)).start()
    assert "kvm_pgtable_stage2_map(" in gdb.read_to(PROMPT)
    gdb("delete")
    assert (level(gdb), number(gdb, "$pc") & _HIGH) == (1, _HIGH)


def in_guest_code(gdb: Session, _: Machine) -> None:
    """EL1 of a guest that spins: sooner or later an interruption finds it."""
    for attempt in range(200):
        gdb.type("continue")
        gdb.read_to("Continuing.")
        time.sleep(0.05 + attempt % 7 * 0.03)  # in step with nothing
        gdb.interrupt()
        if level(gdb) == 1 and not number(gdb, "$pc") & _HIGH:
            return
    raise AssertionError("the guest never runs")


def in_a_guests_process(gdb: Session, machine: Machine) -> None:
    """EL0 of a guest: the exerciser's guests have none, so its level is written into the stopped CPU's PSTATE."""
    in_guest_code(gdb, machine)
    gdb("set var $cpsr = $cpsr & ~0xf")
    assert level(gdb) == 0


def in_the_hypervisor(gdb: Session, machine: Machine) -> None:
    """EL2, at the vector of an interrupt that ends a guest's turn."""
    in_guest_code(gdb, machine)
    gdb(f"hbreak *($VBAR_EL2 + {_LOWER_EL_IRQ})")
    gdb.type("continue")
    assert "Breakpoint" in gdb.read_to(PROMPT)
    gdb("delete")
    assert level(gdb) == 2
    assert not number(gdb, "$HCR_EL2") >> 34 & 1, "HCR_EL2.E2H: the host is elsewhere"


PLACES = (in_guest_code, in_a_guests_process, in_the_hypervisor, in_host_code)


@pytest.mark.parametrize("go", PLACES, ids=lambda go: go.__name__)
def test_commands_say_what_the_command_line_says(
    machine: Machine, go: Callable[[Session, Machine], None], tmp_path: Path
) -> None:
    capture = tmp_path / "same.s2cap"
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        go(gdb, machine)
        stopped = gdb("info registers pc cpsr")
        said = {line: gdb(f"stage2 {line}") for line in COMMANDS}
        assert gdb("info registers pc cpsr") == stopped
        pstate = gdb("output/x $cpsr")
        gdb("disconnect")
    with qmp(machine) as client:
        try:
            assert not client.running(), "the machine stands where that gdb left it"
            inspect("--connect", machine.gdb_socket, "capture", capture)
        finally:
            if go is in_a_guests_process:
                with Session() as gdb:
                    gdb.attach(machine.gdb_socket)
                    gdb(f"set var $cpsr = {int(pstate, 16) | 5:#x}")
                    gdb("disconnect")
            client("cont")
    for line, words in said.items():
        assert comparable(words) == comparable(inspect("--from", capture, *line.split())), line
