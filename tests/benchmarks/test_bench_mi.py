"""What one physical read over gdb/MI costs.

Goal: the median of a 4 KiB read is under 1.5 ms (pygdbmi's own ``write`` takes 202 ms with its default wait).  Printed,
not asserted: a wall-clock time says as much about the machine's other work as about this code.  What is asserted is a
ratio taken in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pygdbmi.gdbcontroller import GdbController

from inspector.target.connect import open_target
from inspector.target.gdb_memory import MiMemory
from inspector.target.mi import find_gdb
from tests.target.conftest import CODE, Qemu, qemu_starter

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    folder: Path = tmp_path_factory.mktemp("bench")
    with qemu_starter(folder) as start:
        yield start()


def median_ms(call: Callable[[], object], times: int) -> float:
    samples = []
    for _ in range(times):
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return statistics.median(samples) * 1000


def test_one_page_over_mi(qemu: Qemu, capsys: pytest.CaptureFixture[str]) -> None:
    with open_target(qemu.stub, memory="gdb") as machine:
        mi = MiMemory(machine.session, machine.memory.ram)
        one = median_ms(lambda: mi.read(CODE, 4096), 500)
        bulk = median_ms(lambda: machine.memory.read_many([(CODE, 4096)] * 256), 9)
        registers = median_ms(machine.cpus, 9)
    with open_target(qemu.stub, memory="process") as machine:
        process = median_ms(lambda: machine.memory.read_many([(CODE, 4096)] * 256), 99)
    controller = GdbController([find_gdb(), "-nx", "-q", "--interpreter=mi3"])
    try:
        controller.write(f"-target-select remote {qemu.stub}")
        controller.write('-interpreter-exec console "maintenance packet Qqemu.PhyMemMode:1"')
        waiting = median_ms(lambda: controller.write(f"-data-read-memory-bytes {CODE:#x} 4096"), 5)
        controller.write('-interpreter-exec console "maintenance packet Qqemu.PhyMemMode:0"')
    finally:
        controller.exit()
    with capsys.disabled():
        print(
            f"\n4 KiB over MI: median {one:.2f} ms (goal 1.5; pygdbmi's write: {waiting:.0f})"
            f"\n256 x 4 KiB: through gdb's script {bulk:.1f} ms, out of the process {process:.3f} ms"
            f"\nall registers of one CPU: {registers:.1f} ms"
        )
    assert one * 20 < waiting
    assert process * 20 < bulk
