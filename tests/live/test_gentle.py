"""Looking does no harm: guests go on, and whatever happens to the inspector, the machine is left as it was found."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.snapshot import Scope
from inspector.symbols import open_symbols
from tests.live.conftest import take_from
from tests.live.machine import Machine
from tests.live.poke import Qmp, qmp

pytestmark = pytest.mark.live

INSPECTOR = "inspector"


@pytest.fixture(scope="module")
def spinning() -> Iterator[Machine]:
    """Guests that run all the time and count."""
    with Machine.start(scenario="spin") as machine:
        yield machine


def counters(machine: Machine) -> dict[tuple[int, int], int]:
    """Each vCPU's own count, kept by the guest in its memory."""
    return {
        (e["vm"], e["vcpu"]): int(str(e["counter"]), 0) for e in machine.command("progress") if e["event"] == "progress"
    }


def children(needle: str) -> list[int]:
    """Processes of ours whose command line names ``needle``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if needle in line and "gdb" in line.split(" ")[0]:
                found.append(int(entry.name))
    return found


def physical_mode(machine: Machine) -> str:
    """What the stub says of its physical mode to a client that is not ours (gdb itself, by hand)."""
    gdb = subprocess.run(
        [
            "gdb-multiarch",
            "-nx",
            "-q",
            "-batch",
            "-ex",
            "set architecture aarch64",
            "-ex",
            f"target remote {machine.gdb_socket}",
            "-ex",
            "maintenance packet qqemu.PhyMemMode",
            "-ex",
            "detach",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r'received: "(\d)"', gdb.stdout)
    assert found, gdb.stdout + gdb.stderr
    return found[1]


def left_alone(machine: Machine) -> None:
    """The machine runs, the stub is in virtual mode, and no gdb is left."""
    with qmp(machine) as client:
        assert client.running()
    assert children(str(machine.run_dir)) == []
    assert physical_mode(machine) == "0"


def test_a_hundred_times(spinning: Machine) -> None:
    symbols = open_symbols(image=spinning.image)
    before = counters(spinning)
    assert before
    for i in range(100):
        capture = take_from(spinning, symbols, "gdb" if i % 10 == 0 else "process", Scope.WALK)
        assert capture.vms
        if i % 25 == 24:
            now = counters(spinning)
            assert all(now[who] > count for who, count in before.items()), "a guest stands still"
            before = now
    left_alone(spinning)


def run_inspector(machine: Machine, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return machine.run(INSPECTOR, *arguments, timeout=timeout)


def _until_python_is_ours(process: subprocess.Popen[str]) -> None:
    """Wait for our first statement: the interpreter itself, still starting, dies of any signal as any program does."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.findall(r"^SigCgt:\s*([0-9a-f]+)", status, re.M)[0], 16) & bit:
            return
        time.sleep(0.001)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
@pytest.mark.parametrize("memory", ["process", "gdb"])
def test_a_signal_at_any_time(spinning: Machine, name: signal.Signals, memory: str, rng: random.Random) -> None:
    """Interrupted anywhere: one sentence, exit code 3 (or done before it came), and nothing is left behind."""
    codes = set()
    for _ in range(8):
        process = subprocess.Popen(
            [INSPECTOR, "--memory", memory, "check"],
            env=spinning.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _until_python_is_ours(process)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(name)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        assert process.returncode in (0, 3), (process.returncode, errors)
        codes.add(process.returncode)
    assert 3 in codes, "no signal came in time to interrupt anything"
    left_alone(spinning)


def test_a_machine_found_stopped_is_left_stopped(spinning: Machine) -> None:
    with qmp(spinning) as client:
        client("stop")
        try:
            result = run_inspector(spinning, "vms", "--json")
            assert result.returncode == 0, result.stderr
            assert json.loads(result.stdout)["vms"]
            assert not client.running()
        finally:
            client("cont")
    left_alone(spinning)


def test_qemu_killed_in_the_middle(rng: random.Random) -> None:
    """One sentence and exit code 3, whenever QEMU goes away."""
    with Machine.start(scenario="none") as machine:
        process = subprocess.Popen(
            [INSPECTOR, "--memory", "gdb", "check"],
            env=machine.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(rng.uniform(0.2, 0.8))
        machine.kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 3, errors
        assert "Traceback" not in errors
        assert len(errors.strip().splitlines()) == 1, errors
        assert children(str(machine.run_dir)) == []


def test_gdb_killed_in_the_middle(spinning: Machine) -> None:
    process = subprocess.Popen(
        [INSPECTOR, "--memory", "gdb", "check"],
        env=spinning.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        mine = [pid for pid in children("--interpreter") if _parent(pid) == process.pid]
        if mine:
            time.sleep(0.1)  # it attaches and reads for some tenths
            os.kill(mine[0], signal.SIGKILL)
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    left_alone(spinning)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return -1


def test_qmp_is_ours_alone(spinning: Machine) -> None:
    """The inspector needs no QMP: it works while somebody else holds the only connection."""
    client = Qmp(spinning.qmp_socket)
    try:
        assert run_inspector(spinning, "info").returncode == 0
    finally:
        client.close()
