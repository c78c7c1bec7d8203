"""Attaching gently: whatever was found is there again afterwards, on every orderly way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inspector.findings import TargetLost
from inspector.target.connect import attached, open_target
from tests.target.conftest import COUNTER, Qemu, Starter, children_of, eventually, gdb_children

pytestmark = pytest.mark.live

BACKENDS = pytest.mark.parametrize("memory", ["process", "gdb"])


@BACKENDS
def test_a_running_machine_stands_while_attached_and_runs_after(counting: Qemu, memory: str) -> None:
    eventually(counting.counts, "the machine counts")
    with attached(counting.stub, memory=memory) as machine:  # type: ignore[arg-type]
        assert not counting.running()
        assert machine.found.running
        assert not counting.counts()
    counting.assert_as_found(running=True)


@BACKENDS
def test_a_machine_that_has_not_started_stays_so(start_qemu: Starter, memory: str) -> None:
    qemu = start_qemu(paused=True)
    with attached(qemu.stub, memory=memory) as machine:  # type: ignore[arg-type]
        assert not machine.found.running
        assert machine.found.status == "prelaunch"
        assert machine.memory.read(0x40100000, 4) != bytes(4)
    assert qemu.qmp("query-status")["status"] == "prelaunch"
    qemu.assert_as_found(running=False)


def test_a_machine_stopped_by_hand_stays_stopped(counting: Qemu) -> None:
    """By the stop reply to a new client (QEMU before 8.1), else by its CPU threads, which never stir."""
    counting.qmp("stop")
    with attached(counting.stub) as machine:
        assert not machine.found.running
    counting.assert_as_found(running=False)
    counting.qmp("cont")
    with attached(counting.stub) as machine:
        assert machine.found.running
    counting.assert_as_found(running=True)


def test_the_state_to_leave_it_in_can_be_given(counting: Qemu) -> None:
    with attached(counting.stub, leave="stopped"):
        pass
    counting.assert_as_found(running=False)
    with attached(counting.stub, leave="running"):
        pass
    counting.assert_as_found(running=True)


@BACKENDS
def test_a_physical_mode_that_was_on_stays_on(counting: Qemu, memory: str) -> None:
    counting.set_physical_mode(1)
    with attached(counting.stub, memory=memory) as machine:  # type: ignore[arg-type]
        assert machine.found.physical_mode == 1
        machine.memory.read(COUNTER, 8)
    counting.assert_as_found(physical_mode="1")


@BACKENDS
def test_an_exception_inside_changes_nothing_of_that(counting: Qemu, memory: str) -> None:
    with pytest.raises(ZeroDivisionError), attached(counting.stub, memory=memory) as machine:  # type: ignore[arg-type]
        machine.memory.read(COUNTER, 8)
        raise ZeroDivisionError
    counting.assert_as_found()


@BACKENDS
def test_stop_and_resume(counting: Qemu, memory: str) -> None:
    with attached(counting.stub, memory=memory) as machine:  # type: ignore[arg-type]
        machine.stop()
        for _ in range(3):
            machine.resume()
            machine.resume()
            eventually(counting.counts, "the machine counts on")
            machine.stop()
            machine.stop()
            assert not counting.running()
            assert machine.memory.read(COUNTER, 8) == counting.word(COUNTER).to_bytes(8, "little")
            assert machine.cpus()[0].registers["x1"] == COUNTER
        machine.resume()
        with pytest.raises(TargetLost, match="stop it first"):
            machine.cpus()
    counting.assert_as_found()


def test_close_twice_and_use_after_close(counting: Qemu) -> None:
    machine = open_target(counting.stub)
    machine.close()
    machine.close()
    with pytest.raises(TargetLost, match="let go"):
        machine.cpus()
    counting.assert_as_found()


def test_twenty_times_leaves_nothing(counting: Qemu) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        with attached(counting.stub, memory=("process", "gdb")[number % 2]) as machine:
            assert len(machine.memory.read_many([(COUNTER, 8)] * 10)) == 10
    counting.assert_as_found()
    assert gdb_children() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_over_tcp_with_every_spelling(start_qemu: Starter) -> None:
    qemu = start_qemu(tcp=True)
    port = qemu.stub.rpartition(":")[2]
    for address in (qemu.stub, f"localhost:{port}", f":{port}"):
        with attached(address) as machine:
            assert machine.memory.name == "process"
            assert machine.found.pid == qemu.process.pid
    qemu.assert_as_found()


def test_over_a_unix_socket_by_a_relative_path(counting: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(counting.stub).parent)
    with attached("./" + Path(counting.stub).name) as machine:
        assert machine.found.pid == counting.process.pid


def test_what_it_says_of_itself(counting: Qemu) -> None:
    said: list[str] = []
    version = counting.qmp("query-version")["qemu"]
    with attached(counting.stub, progress=said.append) as machine:
        description = machine.description
    assert f"QEMU {version['major']}.{version['minor']}.{version['micro']}" in description
    assert str(counting.process.pid) in description
    assert "memory by process" in description
    assert len(said) >= 3


def test_the_kernel_file_is_what_qemu_was_given(start_qemu: Starter, tmp_path: Path) -> None:
    (tmp_path / "Image").write_bytes(b"\x00\x00\x00\x14" + bytes(4092))
    qemu = start_qemu(None, "-kernel", str(tmp_path / "Image"))
    with attached(qemu.stub) as machine:
        assert machine.kernel_file == str(tmp_path / "Image")


def test_no_gdb_is_seen_as_a_child_before_or_after(counting: Qemu) -> None:
    before = children_of(os.getpid())
    with attached(counting.stub):
        assert len(gdb_children()) == 1
    assert children_of(os.getpid()) == before
