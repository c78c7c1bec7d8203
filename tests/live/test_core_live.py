"""What /proc/kcore is: a kernel that changes under the reader.  Here QEMU's memory is read while the machine runs."""

from __future__ import annotations

import json
import time

import pytest

from inspector.capture.settled import MOVED
from inspector.capture.source import look_at_dump
from inspector.check import run_checks
from inspector.findings import Severity, TargetLost
from inspector.symbols import open_symbols
from inspector.target.api import RamRange
from inspector.target.core import CoreTarget
from inspector.target.dump import Dump
from tests.live.machine import Machine
from tests.live.poke import RAM, Ram, qmp

pytestmark = pytest.mark.live

MEMORY = 768


def test_what_changes_while_it_is_read_is_not_judged() -> None:
    judged = moved = 0
    with Machine.start(scenario="default", memory=MEMORY) as machine:
        with qmp(machine) as client:
            ram = Ram(machine, client)
            assert client.running()
        dump = Dump(ram.read, (RamRange(RAM, RAM + (MEMORY << 20), "ram"),), (), 0, (), live=True)
        symbols = open_symbols(image=machine.image)
        with machine.asking("run random seed=7 actions=4000"):
            end = time.monotonic() + 10
            while time.monotonic() < end:
                try:
                    capture = look_at_dump(CoreTarget("", dump), symbols)
                except TargetLost:  # the tables of the kernel itself were torn
                    continue
                found = [one for one in run_checks(capture) if one.severity is Severity.ERROR]
                assert not found, json.dumps([str(one) for one in found], indent=1)
                reasons = [mmu.unreadable for vm in capture.vms for mmu in vm.mmus]
                moved += reasons.count(MOVED)
                judged += reasons.count(None)
                assert any("the kernel ran" in note for note in capture.host.notes)
        ram.close()
    assert judged
    assert moved
