"""Reading a big guest's tables: 262,144 leaves of 4K, 1 GiB touched page by page, in one run with drgn.

Goals: not slower than drgn 0.3.0 (``--qemu`` over QMP) at the same table pages; decoding and merging within 20 times
a memcpy of the same bytes; a cold start to the first line of ``vms``, with symbols cached, under two seconds.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import drgn
import pytest

from inspector.capture.view import TableView, table_views
from inspector.snapshot import Capture, Scope
from inspector.symbols import open_symbols
from inspector.tables import merged_ranges, reader_of, walk_tree
from inspector.target.connect import open_target
from tests.benchmarks.timing import beside_memcpy
from tests.live.conftest import take_from
from tests.live.machine import Machine

pytestmark = pytest.mark.live

LEAVES = 262_144
#: The goal is 1; the same code gives 1.0 to 1.2 on one machine from run to run.
DRGN_LIMIT = 1.5
MEMCPY_FACTOR = 20
PAGE = 4096


def best_ms(call: Callable[[], object], times: int) -> float:
    """The fastest of several runs: the least disturbed by whatever else the machine does."""
    samples = []
    for _ in range(times):
        before = time.perf_counter()
        call()
        samples.append(time.perf_counter() - before)
    return min(samples) * 1000


@pytest.fixture(scope="module")
def big() -> Iterator[Machine]:
    with Machine.start(memory=2560, scenario="big") as machine:
        yield machine


@pytest.fixture(scope="module")
def capture(big: Machine) -> Capture:
    return take_from(big, open_symbols(image=big.image), "process", Scope.WALK)


@pytest.fixture(scope="module")
def view(capture: Capture) -> TableView:
    found = max(table_views(capture), key=lambda v: len(v.tree.tables))
    assert sum(r.leaves for r in merged_ranges(found.tree)) >= LEAVES
    return found


def test_reading_tables_against_drgn(big: Machine, view: TableView, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [table.pa for table in view.tree.tables]
    program = drgn.Program()
    program.set_qemu_qmp(big.qmp_socket)
    target = open_target(big.gdb_socket, memory="process")
    try:
        requests = [(pa, PAGE) for pa in pages]
        assert target.memory.read_many(requests) == [program.read(pa, PAGE, True) for pa in pages]
        theirs, ours = [], []
        for _ in range(20):  # in turn, so that whatever else runs disturbs both
            theirs.append(best_ms(lambda: [program.read(pa, PAGE, True) for pa in pages], 3))
            ours.append(best_ms(lambda: target.memory.read_many(requests), 3))
    finally:
        target.close()
    ratio = min(ours) / min(theirs)
    with capsys.disabled():
        print(
            f"\n{len(pages)} table pages: {min(ours):.2f} ms, drgn {min(theirs):.2f} ms: "
            f"{ratio:.2f} times drgn's time (goal: at most 1)"
        )
    assert ratio <= DRGN_LIMIT


def test_decoding_and_merging(view: TableView, capsys: pytest.CaptureFixture[str]) -> None:
    raw = {table.pa: table.raw for table in view.tree.tables}
    read_many = reader_of(raw)

    def decode() -> int:
        return len(merged_ranges(walk_tree(read_many, view.root_pa, view.geometry, view.format)))

    found = decode()
    blob = b"".join(raw.values())
    best = beside_memcpy(decode, blob, 500)
    with capsys.disabled():
        print(
            f"\n{len(blob) >> 10} KiB of live tables, {found} merged ranges: {best.working * 1e3:.2f} ms, "
            f"memcpy {best.copying * 1e3:.3f} ms: {best.ratio:.1f} times (goal: at most {MEMCPY_FACTOR})"
        )
    assert best.ratio <= MEMCPY_FACTOR


def test_cold_start(big: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """From the start of the process to its first line; the goal is printed, the assertion is a ratio to the
    interpreter's own start with the same imports."""
    big.run("inspector", "vms")  # fills the symbol cache

    def first_line() -> None:
        with subprocess.Popen(["inspector", "vms"], env=big.environment, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"vm0")
            process.stdout.read()

    seconds = best_ms(first_line, 5) / 1000
    imports = "import inspector.cli, inspector.capture.take, inspector.report"
    starting = best_ms(lambda: big.run("python", "-c", imports), 5) / 1000
    with capsys.disabled():
        print(
            f"\ncold start to the end of 'vms': {seconds:.2f} s (goal: 2), of which starting Python "
            f"with its imports {starting:.2f} s"
        )
    # A machine whose CPUs all sleep is seen to run when one wakes (target/host_process.py), a second or two later.
    assert seconds <= 20 * starting
