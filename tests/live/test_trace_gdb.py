"""Machines followed through gdb: the same as the plugin saw, no rule broken, and nothing left behind whatever ends it.

The plugin and the agent in gdb look at one machine at once: what the exerciser does between is compared event by event.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inspector.capture.file import load
from inspector.events import BARRIER, CALL, RET, TLBI, RawEvent
from inspector.protocol.facts import AF
from inspector.trace.assemble import Assembler
from inspector.trace.file import Trace
from inspector.trace.follow import RECORDS, read_plan
from inspector.trace.plan import of_header
from inspector.trace.raw import Reader
from tests.conftest import kernel_labels
from tests.live.machine import Machine
from tests.live.poke import qmp
from tests.live.trace_kills import busy, killed

pytestmark = pytest.mark.live

REPO = Path(__file__).resolve().parents[2]
NVHE = "kvm-arm.mode=nvhe"
HOSTS = [(None, ""), (None, NVHE), *((label, "") for label in ("6.12",) if label in kernel_labels())]
WORKLOAD = ("run log", "end", "run smp", "run remap", "end", "run cow", "end", "run slots", "run protect")
KILLS = 12


@dataclass
class Operation:
    """One operation of a trace: its invalidations with their barriers, and what it returned (``None``: not seen)."""

    lane: int
    function: str
    arguments: str
    events: list[RawEvent]
    returned: int | None = None

    @property
    def told(self) -> tuple[Any, ...]:
        """What both sources see.

        gdb does not look at pgtable.c's own barriers: the ISB after each call of a TLB function (``kvm_call_hyp`` in
        VHE), and the DSB ISHST in which map and mkyoung end.
        """
        events = [each for each in self.events if each != (BARRIER, "isb")]
        if events and events[-1] == (BARRIER, "ishst"):
            events.pop()
        # The CPU's features, and who called in which ioctl, are the probe's to tell.
        arguments = re.sub(r",(fwb|in|by)=.*", "", self.arguments)
        return self.function, arguments, tuple(events), self.returned


def operations(path: Path) -> list[Operation]:
    """In the order of their beginnings."""
    found: list[Operation] = []
    running: dict[int, Operation] = {}
    for lane, raw in Trace(path).events():
        if raw[0] == CALL:
            running[lane] = Operation(lane, raw[1], raw[2], [])
            found.append(running[lane])
        elif lane in running and raw[0] == RET:
            running.pop(lane).returned = raw[1]
        elif lane in running and raw[0] in (TLBI, BARRIER):
            running[lane].events.append(raw)
    return found


def inspect(machine: Machine, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = machine.run(sys.executable, "-m", "inspector", *map(str, arguments))
    assert "Traceback" not in done.stderr
    return done


@dataclass(frozen=True)
class Both:
    """The same stretch by each source, and the machine, which stands still between commands."""

    machine: Machine
    folder: Path
    by_plugin: list[Operation]
    by_gdb: list[Operation]
    document: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(
    scope="module", params=HOSTS, ids=lambda host: (host[0] or "default") + host[1].replace("kvm-arm.mode=", "-")
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("gdb")
    kernel, append = request.param
    with Machine.start(kernel, append=append, options=["--trace"]) as machine:
        before = json.loads(inspect(machine, "trace", "--for", "0", "--json").stdout)
        script = folder / "work.sh"
        lines = [f"{sys.executable} -m fixtures.console {machine.console_socket} {line}" for line in WORKLOAD]
        script.write_text("#!/bin/sh\n" + "\n".join(f"{line} >/dev/null || exit 1" for line in lines) + "\n")
        script.chmod(0o755)
        trace = folder / "gdb.s2trace"
        done = inspect(machine, "trace", "--source", "gdb", "-o", trace, "--json", "--", script)
        assert done.returncode == 0, done.stdout + done.stderr
        plugin = inspect(machine, "trace", "--for", "0", "-o", folder / "plugin.s2trace", "--json")
        after = json.loads(plugin.stdout)
        stretch = operations(folder / "plugin.s2trace")[before["operations"] : after["operations"]]
        yield Both(machine, folder, stretch, operations(trace), json.loads(done.stdout), before, after)


def test_both_sources_tell_the_same(both: Both) -> None:
    """Operations in their order on each CPU, arguments, returns, barriers, invalidations with operands."""
    assert len(both.by_gdb) > 150
    lanes = {each.lane for each in (*both.by_plugin, *both.by_gdb)}
    for lane in sorted(lanes):
        seen = [[each.told for each in source if each.lane == lane] for source in (both.by_plugin, both.by_gdb)]
        assert seen[0] == seen[1], lane
    told = [each for one in both.by_gdb for each in one.events if each[0] == TLBI]
    assert len(told) > 60


def test_both_verdicts_are_clean(both: Both) -> None:
    for document in (both.document, both.after):
        assert (document["verdict"], document["broken"]) == ("clean", [])
    made = both.after["tables_made"] - both.before["tables_made"]
    assert both.document["tables_made"] == made
    # Nothing lies outside but what flushes after it has let go of the lock.
    assert all(what.startswith("tlbi ") for what in both.document["not_followed"]), both.document["not_followed"]


def test_the_tables_end_as_the_plugin_saw_them_made(both: Both) -> None:
    """Read through gdb, every table page holds what the stores that the plugin saw left in it."""
    capture = both.folder / "end.s2cap"
    done = inspect(both.machine, "--memory", "gdb", "capture", capture)
    assert done.returncode == 0, done.stderr
    assembler = Assembler(of_header(read_plan(both.machine.run_dir)))
    for record in Reader().take((both.machine.run_dir / RECORDS).read_bytes()):
        for _ in assembler.take(record):
            pass
    pages = load(str(capture)).pages
    assert len(pages) > 10
    for page, data in pages.items():
        words = (int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))
        read = {page + 8 * at: word | AF for at, word in enumerate(words) if word}
        stored = {at: word | AF for at, word in assembler.pages[page].items() if word}
        assert read == stored, f"{page:#x}"


def test_the_file_says_the_same(both: Both) -> None:
    done = inspect(both.machine, "replay", both.folder / "gdb.s2trace", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for name in ("operations", "events", "operations_by_name", "returns", "invalidations"):
        assert again[name] == both.document[name], name


def test_a_full_disk_is_one_sentence(both: Both) -> None:
    done = inspect(both.machine, "trace", "--source", "gdb", "--for", "1", "-o", "/dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "No space left on device" in done.stderr
    with qmp(both.machine) as client:
        assert client.running()


def test_kills_leave_nothing_behind(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    with Machine.start(scenario="none") as machine:
        troubles = list(killed(machine, KILLS, seed, tmp_path))
    assert not troubles, f"seed {seed}: " + "; ".join(troubles)


def test_a_machine_that_ends_is_the_end_of_its_trace(tmp_path: Path) -> None:
    with Machine.start(scenario="none") as machine:
        command = [sys.executable, "-m", "inspector", "trace", "--until-exit", "-o", str(tmp_path / "t"), "--json"]
        with subprocess.Popen(command, cwd=REPO, env=machine.environment, stdout=subprocess.PIPE, text=True) as tracing:
            assert tracing.stdout is not None
            end = threading.Event()
            threading.Thread(target=busy, args=(machine, end), daemon=True).start()
            while not (tmp_path / "t").exists():
                end.wait(0.05)
            end.wait(2)
            os.kill(machine.qemu_pid, signal.SIGKILL)
            document = json.loads(tracing.stdout.read())
        end.set()
    assert tracing.returncode == 0
    assert document["operations"] > 5
    assert len(operations(tmp_path / "t")) == document["operations"]


def test_a_host_in_protected_mode_is_said_to_be_untested() -> None:
    with Machine.start(append="kvm-arm.mode=protected", scenario="none") as machine:
        done = inspect(machine, "trace", "--for", "1")
        with qmp(machine) as client:
            assert client.running()
    assert done.returncode == 125
    assert "protected mode" in done.stderr
