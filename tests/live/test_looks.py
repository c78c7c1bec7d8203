"""A reference too many on a table of a live machine: an error when it stays, nothing when it passes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.tables import entries
from tests.conftest import kernel_labels
from tests.live.machine import Machine
from tests.live.poke import Qmp, Ram, qmp
from tests.live.scene import Scene, clean_scene, refcount_pa

pytestmark = pytest.mark.live


@pytest.fixture(
    scope="module", params=sorted({None, *kernel_labels()[-1:]}, key=str), ids=lambda label: label or "default"
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Machine.start(request.param) as machine, clean_scene(machine) as scene:
        yield scene


@contextmanager
def surplus(scene: Scene) -> Iterator[tuple[int, Callable[[], None], Qmp]]:
    """A table whose ``_refcount`` is one too high while the machine runs on, and what takes the reference back.

    With the QMP client: QEMU serves one at a time.
    """
    table = next(e.table_pa for e in entries(scene.view().tree) if e.level == 3)
    pa, right = refcount_pa(scene, table), scene.clean.page_info[table].refcount
    with qmp(scene.machine) as client:
        ram = Ram(scene.machine, client)

        def put_back() -> None:
            ram.write(pa, right.to_bytes(4, "little"))

        assert ram.read(pa, 4) == right.to_bytes(4, "little")
        ram.write(pa, (right + 1).to_bytes(4, "little"))
        try:
            yield table, put_back, client
        finally:
            put_back()
            ram.close()


def inspector(scene: Scene, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "inspector", "--image", str(scene.machine.image), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(program: subprocess.Popen[str], code: int) -> str:
    out, err = program.communicate(timeout=300)
    assert program.returncode == code, (out, err)
    return out


def test_a_surplus_that_stays(scene: Scene, tmp_path: Path) -> None:
    live = ("--connect", scene.machine.gdb_socket)
    file = str(tmp_path / "x.s2cap")
    with surplus(scene) as (table, _, client):
        found = json.loads(finished(inspector(scene, *live, "check", "--json"), 1))["findings"]
        assert [(f["check"], f["severity"], f["where"]["table_pa"]) for f in found] == [("R1", "error", hex(table))]
        finished(inspector(scene, *live, "capture", file, "--looks", "3"), 0)
        assert client.running()
    assert "error R1" in finished(inspector(scene, "--from", file, "check"), 1)


def test_a_surplus_that_passes(scene: Scene) -> None:
    """The reference is taken back when the machine runs on after it was stopped for the first look."""
    with surplus(scene) as (_, put_back, client):
        program = inspector(scene, "--connect", scene.machine.gdb_socket, "check", "--json")
        for running in (False, True):
            deadline = time.monotonic() + 60
            while client.running() is not running:
                assert time.monotonic() < deadline and program.poll() is None, "the tool has not looked"
                time.sleep(0.002)
        put_back()
        document = json.loads(finished(program, 0))
    assert document["findings"] == []


def test_a_surplus_on_a_machine_that_stands_still(scene: Scene) -> None:
    """Time stands still too: nothing is told, and the machine is left standing."""
    with surplus(scene) as (_, _, client):
        client("stop")
        try:
            out = finished(inspector(scene, "--connect", scene.machine.gdb_socket, "check"), 0)
            assert not client.running()
        finally:
            client("cont")
    assert "note R1" in out and "looks again on a machine that runs" in " ".join(out.split())
