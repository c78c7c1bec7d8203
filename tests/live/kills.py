"""Random kills: whichever one process is killed, at whatever moment, the machine is soon as it was found.

    python -m tests.live.kills --count 1000 [--seed N] [--kernel 6.12]

Each round starts one command beside a machine whose guests run, kills the program, its gdb or its guardian at a moment
chosen at random from the first millisecond on, and then asks QEMU's machine protocol whether the machine runs, a raw
client of the stub whether it is in virtual mode, and /proc whether a process is left.  Exit code 0 when every round
was good, 1 when one was not (its line says which); half of the kills are SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.live.machine import Machine
from tests.live.poke import Qmp, qmp
from tests.target.conftest import raw_connect, raw_request

COMMANDS = (("vms",), ("check",), ("capture", "out.s2cap"))
_PATIENCE = 20.0
_MARK = "INSPECTOR_KILLS_ROUND"


@dataclass(frozen=True)
class Kill:
    """One round: the command, which process is sent which signal, and how many seconds after its start."""

    memory: str
    command: tuple[str, ...]
    victim: str
    signal: signal.Signals
    after: float

    def __str__(self) -> str:
        what = " ".join(("--memory", self.memory, *self.command))
        return f"{what}: {self.signal.name} to {self.victim} after {self.after * 1000:.1f} ms"


@dataclass(frozen=True)
class Outcome:
    """How a round ended: ``trouble`` is what was not as it must be; ``seconds`` from the kill until the machine ran and
    no process was left."""

    kill: Kill
    code: int | None
    seconds: float
    trouble: str | None


def planned(chance: random.Random, longest: float) -> Kill:
    """A kill at random.  Moments crowd towards the beginning, where a machine is stopped and nobody knows it yet."""
    memory = chance.choice(("process", "gdb"))
    command = chance.choice(COMMANDS)
    gentle = chance.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    number = chance.choice((signal.SIGKILL, gentle))
    victim = chance.choice(("driver", "driver", "gdb", "guardian")) if number is signal.SIGKILL else "driver"
    after = longest * (chance.random() if chance.random() < 0.5 else chance.random() ** 3)
    return Kill(memory, command, victim, number, after)


def _marked(mark: str) -> dict[int, str]:
    """The processes of a round by the variable that they inherited: pid to what it is."""
    found = {}
    wanted = f"{_MARK}={mark}\0".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes():
                line = (folder / "cmdline").read_bytes()
                kind = "gdb" if b"--interpreter=mi3" in line else "guardian" if b"guardian.py" in line else "driver"
                found[int(folder.name)] = kind
    return found


def _strike(kill: Kill, process: subprocess.Popen[str], mark: str) -> bool:
    """Wait for the moment and kill; false when the victim did not live then."""
    end = time.monotonic() + kill.after
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    if kill.victim == "driver":
        process.send_signal(kill.signal)
        return process.returncode is None
    # A helper is there for a part of the time only: the moment counts from its own beginning.
    limit = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < limit:
        for pid, kind in _marked(mark).items():
            if kind == kill.victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, kill.signal)
                return True
    return False


def one_round(machine: Machine, client: Qmp, kill: Kill, mark: str, folder: Path) -> Outcome:
    """Start the command, kill, and look."""
    process = subprocess.Popen(
        ["inspector", "--memory", kill.memory, *kill.command],
        env={**machine.environment, _MARK: mark},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _strike(kill, process, mark)
    struck = time.monotonic()
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        return Outcome(kill, None, time.monotonic() - struck, "the command did not end")
    if kill.victim != "driver":
        struck = time.monotonic()  # the driver lives, and goes on as long as its work takes
    trouble = None
    while True:
        running, left = client.running(), _marked(mark)
        seconds = time.monotonic() - struck
        if running and not left:
            break
        if seconds > _PATIENCE:
            trouble = f"running: {running}; processes left: {sorted(left.values())}"
            break
        time.sleep(0.005)
    if trouble is None and (mode := _physical_mode(machine)) != "0":
        trouble = f"physical mode {mode}"
    if process.returncode == 1 or "Traceback" in errors:
        trouble = f"exit code {process.returncode}: {errors[-300:]}"
    return Outcome(kill, process.returncode, seconds, trouble)


def _physical_mode(machine: Machine) -> str:
    """``qqemu.PhyMemMode``, asked by a raw client that lets the machine run on."""
    with raw_connect(machine.gdb_socket) as connection:
        raw_request(connection, b"qSupported:multiprocess+")
        mode = raw_request(connection, b"qqemu.PhyMemMode").decode()
        assert raw_request(connection, b"D;1") == b"OK"
    return mode


def _duration(machine: Machine, folder: Path) -> float:
    """Seconds that the slowest command takes here, undisturbed."""
    start = time.monotonic()
    done = machine.run("inspector", "--memory", "gdb", "check")
    assert done.returncode == 0, done.stderr
    return time.monotonic() - start


def rounds(machine: Machine, count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """``count`` rounds, the same ones for the same ``seed`` (but for the clock)."""
    chance = random.Random(seed)
    longest = _duration(machine, folder)
    with qmp(machine) as client:
        for number in range(count):
            yield one_round(machine, client, planned(chance, longest), f"{seed}-{number}", folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kernel", default=None)
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    codes: Counter[object] = Counter()
    times: list[float] = []
    bad = 0
    with Machine.start(given.kernel, scenario="spin") as machine:
        for number, outcome in enumerate(rounds(machine, given.count, seed, machine.run_dir), 1):
            codes[outcome.code] += 1
            times.append(outcome.seconds)
            if outcome.trouble is not None:
                bad += 1
                print(f"round {number}: {outcome.kill}: {outcome.trouble}", flush=True)
            elif outcome.seconds > 1:
                print(f"round {number}: {outcome.kill}: took {outcome.seconds:.2f} s", flush=True)
            if number % 50 == 0:
                print(f"{number} rounds, {bad} bad, longest {max(times):.2f} s", file=sys.stderr, flush=True)
    times.sort()
    late = sum(one > 1 for one in times)
    print(f"{len(times)} kills, {bad} left something behind, {late} took longer than a second")
    print(f"until as found: median {times[len(times) // 2]:.3f} s, longest {times[-1]:.3f} s")
    print("exit codes: " + ", ".join(f"{code}: {n}" for code, n in sorted(codes.items(), key=str)))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
