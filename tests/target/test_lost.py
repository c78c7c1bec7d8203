"""Things that die in the middle: QEMU, gdb, ourselves.  What can be put back is put back, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from inspector.findings import TargetLost
from inspector.target.connect import attached, open_target
from inspector.target.signals import Interrupted, signals_raise, signals_wait
from tests.target.conftest import CODE, Qemu, Starter, eventually

pytestmark = pytest.mark.live

BACKENDS = pytest.mark.parametrize("memory", ["process", "gdb"])


@contextmanager
def kill_soon(pid: int, after: float = 0.2) -> Iterator[None]:
    timer = threading.Timer(after, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        yield
    finally:
        timer.join()


@BACKENDS
def test_qemu_is_killed_in_the_middle_of_reading(counting: Qemu, memory: str) -> None:
    with (
        pytest.raises(TargetLost, match=r"gone|went away") as caught,
        attached(counting.stub, memory=memory) as machine,  # type: ignore[arg-type]
        kill_soon(counting.process.pid),
    ):
        while True:
            machine.memory.read_many([(CODE, 4096)] * 256)
    assert "\n" not in str(caught.value)


def test_qemu_is_killed_in_the_middle_of_single_reads(counting: Qemu) -> None:
    with (
        pytest.raises(TargetLost, match=r"gone|went away"),
        attached(counting.stub, memory="gdb") as machine,
        kill_soon(counting.process.pid),
    ):
        while True:
            machine.memory.read(CODE, 4096)


@pytest.mark.parametrize("running", [False, True])
def test_qemu_is_killed_between_commands(counting: Qemu, running: bool) -> None:
    with attached(counting.stub) as machine:
        if running:
            machine.resume()
        counting.kill()
        with pytest.raises(TargetLost):
            machine.stop()
            machine.cpus()


@BACKENDS
@pytest.mark.parametrize("paused", [False, True])
def test_gdb_is_killed_in_the_middle_of_reading(start_qemu: Starter, memory: str, paused: bool) -> None:
    """The stub is in physical mode and the machine stands: both are put back by a connection of our own."""
    qemu = start_qemu(paused=paused)
    with (
        pytest.raises(TargetLost, match="gdb ended"),
        attached(qemu.stub, memory=memory) as machine,  # type: ignore[arg-type]
        kill_soon(machine.session.pid),
    ):
        while True:
            machine.memory.read_many([(CODE, 4096)] * 256)
            machine.cpus()
    qemu.assert_as_found(running=not paused)


def test_gdb_is_killed_while_the_machine_runs(counting: Qemu) -> None:
    with attached(counting.stub, memory="gdb") as machine:
        machine.resume()
        os.kill(machine.session.pid, signal.SIGKILL)
        with pytest.raises(TargetLost):
            machine.stop()
    counting.assert_as_found()


def test_gdb_is_stopped_and_does_not_answer(counting: Qemu) -> None:
    with (
        pytest.raises(TargetLost, match="did not come in time"),
        attached(counting.stub, memory="gdb", timeout=2) as machine,
    ):
        os.kill(machine.session.pid, signal.SIGSTOP)
        machine.memory.read(CODE, 4)
    counting.assert_as_found()


READER = """
import sys
from inspector.target.connect import attached
from inspector.target.signals import Interrupted
try:
    with attached(sys.argv[1], memory=sys.argv[2]) as machine:
        print(machine.session.pid, flush=True)
        while True:
            machine.memory.read_many([(0x40100000, 4096)] * 256)
            machine.cpus()
except Interrupted as reason:
    sys.exit(128 + reason.signum)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_reader(qemu: Qemu, memory: str) -> tuple[subprocess.Popen[str], int]:
    """A process that reads without end, and the pid of its gdb."""
    root = Path(__file__).resolve().parents[2]
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, qemu.stub, memory],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        start_new_session=True,
    )
    assert reader.stdout is not None
    return reader, int(reader.stdout.readline())


def gone(pid: int) -> bool:
    """No such process, or only its entry left for init to take."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(parent: int) -> list[int]:
    """The pids whose parent is ``parent``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


@BACKENDS
@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_of_reading(
    start_qemu: Starter, memory: str, paused: bool, number: signal.Signals
) -> None:
    qemu = start_qemu(paused=paused)
    reader, gdb = start_reader(qemu, memory)
    time.sleep(0.15)
    # To the whole group, as a terminal's Ctrl-C is.
    os.killpg(reader.pid, number)
    assert reader.wait(20) == 128 + number
    assert reader.stdout is not None
    reader.stdout.close()
    assert gone(gdb)
    qemu.assert_as_found(running=not paused)


def test_signals_again_and_again_while_it_puts_things_back(counting: Qemu) -> None:
    reader, gdb = start_reader(counting, "gdb")
    while reader.poll() is None:
        os.killpg(reader.pid, signal.SIGTERM)
        time.sleep(0.002)
    assert reader.stdout is not None
    reader.stdout.close()
    assert gone(gdb)
    counting.assert_as_found()


@BACKENDS
@pytest.mark.parametrize("paused", [False, True])
def test_we_are_killed_outright(start_qemu: Starter, memory: str, paused: bool) -> None:
    """SIGKILL leaves us no chance; gdb sees its input end, and the guardian ours: between them all is put back."""
    qemu = start_qemu(paused=paused)
    reader, gdb = start_reader(qemu, memory)
    left_alone = children(reader.pid)
    assert gdb in left_alone
    time.sleep(0.15)
    reader.kill()
    reader.wait()
    assert reader.stdout is not None
    reader.stdout.close()
    # gdb and the guardian: until both are gone one of them may still be putting things back.
    eventually(lambda: all(map(gone, left_alone)), "gdb and the guardian end")
    qemu.assert_as_found(running=not paused)


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3])
def test_a_signal_at_any_moment_of_attaching(counting: Qemu, after: float) -> None:
    script = "import sys\nprint('up', flush=True)\n" + READER  # attached early enough, it prints another line
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, counting.stub, "auto"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        time.sleep(after)
        reader.terminate()
        # Before `attached` is entered the signal has its ordinary effect.
        assert reader.wait(20) in (128 + signal.SIGTERM, -signal.SIGTERM)
    counting.assert_as_found()


def test_open_without_close_is_put_back_when_the_process_ends(counting: Qemu) -> None:
    script = (
        "import sys\nfrom inspector.target.connect import open_target\nkeep = open_target(sys.argv[1], memory='gdb')\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script, counting.stub], check=True, cwd=root)
    counting.assert_as_found()


def test_a_signal_waits_while_things_are_put_back() -> None:
    order = []
    with pytest.raises(Interrupted) as caught, signals_raise():
        with signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            order.append("inside")
        order.append("never")
    assert order == ["inside"]
    assert caught.value.signum == 15


def test_handlers_of_others_are_given_back() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, frame: seen.append(number))
    try:
        with signals_raise(), pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert seen == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_no_handler_is_touched(counting: Qemu) -> None:
    results: list[bytes] = []

    def work() -> None:
        with attached(counting.stub) as machine:
            results.append(machine.memory.read(CODE, 4))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(results) == 1
    counting.assert_as_found()


def test_attaching_fails_half_way(counting: Qemu, tmp_path: Path) -> None:
    """A gdb that dies as it connects: the look at the stub has stopped the machine already."""
    (tmp_path / "gdb").write_text(
        "#!/bin/sh\n"
        'case "$*" in *-batch*) exec gdb-multiarch "$@";; esac\n'
        'while read -r line; do case "$line" in *target-select*) exit 9;; esac\n'
        'printf "%s^done\\n" "${line%%-*}"; done\n'
    )
    (tmp_path / "gdb").chmod(0o755)
    with pytest.raises(TargetLost, match=r"gdb ended .status 9"):
        open_target(counting.stub, gdb=str(tmp_path / "gdb"))
    counting.assert_as_found()
