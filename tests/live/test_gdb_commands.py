"""The ``stage2`` commands in a real gdb: the same as the command line's, and what only a debugger can do.

What `stage2 watch` says is held against a trace that a TCG plugin made of the same machine: every store to a table, by
other means.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import kernel_labels
from tests.live.gdb_session import PROMPT, REPO, Session
from tests.live.machine import Machine
from tests.live.poke import qmp

pytestmark = pytest.mark.live

KERNELS = (None, *(label for label in ("6.12", "7.3") if label in kernel_labels()))
WATCHED = 0x8000_5000
"""In the first huge page of the scenario "log": a block that becomes pages and a block again."""

_ACCESS_FLAG = 1 << 10
_CHANGE = re.compile(
    r"^#(\d+) L(-?\d) 0x[0-9a-f]+\[\d+\] at (0x[0-9a-f]+) changed (.*)\n +was (0x[0-9a-f]+)  .*\n +now (0x[0-9a-f]+)",
    re.MULTILINE,
)


def other_gdb(release: str) -> str:
    cache = os.environ.get("INSPECTOR_CACHE", str(Path.home() / ".cache/kvm-stage2-inspector"))
    command = ["python3", "-m", "fixtures.debugger", "--cache", cache, "--release", release]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def inspect(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "inspector", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=KERNELS, ids=lambda kernel: kernel or "default")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine.start(request.param, options=["--trace"]) as started:
        yield started


def comparable(text: str) -> list[str]:
    """Without what tells how and when memory was read, and the blanks that a terminal ends lines with."""
    return [line.rstrip() for line in text.splitlines() if "memory" not in line and not line.startswith("taken ")]


REFUSED = (
    ("nokvm", "kvm-arm.mode=none", "KVM is not initialised in the host kernel"),
    ("none", "", "no VM"),
)
COMMANDS = (
    "info",
    "vms",
    "registers",
    "memslots",
    "dump",
    "dump --vm vm0 --tree",
    "walk 0 --vm vm0",
    "walk 0x40000000 --vm vm1",
    "reverse 0x48000000",
    "check",
    "diff",
)


def test_commands_say_what_the_command_line_says_at_the_same_instant(machine: Machine, tmp_path: Path) -> None:
    """The command line's answer is of a capture, taken over its own gdb while the machine stands."""
    capture = tmp_path / "same.s2cap"
    with qmp(machine) as client:
        client("stop")
        try:
            inspect("--connect", machine.gdb_socket, "capture", capture)
            with Session() as gdb:
                gdb.attach(machine.gdb_socket)
                for line in COMMANDS:
                    assert comparable(gdb(f"stage2 {line}")) == comparable(inspect("--from", capture, *line.split()))
            assert not client.running()
        finally:
            client("cont")


def test_a_capture_through_gdb_is_checked_like_any_other(machine: Machine, tmp_path: Path) -> None:
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        gdb(f"stage2 capture {tmp_path / 'gdb.s2cap'}")
        gdb("detach")
    assert json.loads(inspect("--from", tmp_path / "gdb.s2cap", "check", "--json"))["findings"] == []


def watched(gdb: Session, machine: Machine, steps: int = 5) -> list[tuple[str, str, str]]:
    """(where, before, after) of every change that the watch tells, while the scenario goes through its steps."""
    gdb.type(f"stage2 watch {WATCHED:#x} --vm vm{vm_of_log(gdb)} --continue")
    text = gdb.read_to("is translated by")
    for _ in range(steps):
        machine.command("next", timeout=120)
    gdb.press(b"\x03")
    text += gdb.read_to("interrupted (")
    gdb.read_to(PROMPT)
    found = _CHANGE.findall(text)
    assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
    changes = []
    for _, _, place, by, before, after in found:
        if "without a store" in by:  # what only the hardware does: it sets the access flag
            assert int(before, 16) ^ int(after, 16) == _ACCESS_FLAG
            assert int(after, 16) & _ACCESS_FLAG
            continue
        changes.append((place, before, after))
    for part in re.split(r"^#", text, flags=re.MULTILINE)[1:]:
        if "without a store" in part.splitlines()[0]:
            continue
        assert re.search(r"kvm_pgtable_stage2_|stage2_", part)
        # From a system call to the end, or from a thread of the kernel's own: DAMON's looks at what is in use.
        assert re.search(r"^ +(el0t_64_sync|ret_from_fork)\+", part, re.MULTILINE), part
    return changes


def vm_of_log(gdb: Session) -> int:
    """The number of the VM that the scenario made, the last time it ran."""
    found = re.findall(r"^vm(\d+) \(pid (\d+) log\)", gdb("stage2 vms"), re.MULTILINE)
    return max((int(pid), int(number)) for number, pid in found)[1]


def traced(machine: Machine, folder: Path, place: str, ipa: int = WATCHED) -> list[tuple[str, str, str]]:
    """The same by the plugin's trace: every store that changed the translation, in the table of ``place``."""
    trace = folder / "run.s2trace"
    inspect("trace", "--run-dir", machine.run_dir, "--since", "start", "--for", "0.5", "-o", trace)
    told = json.loads(inspect("replay", trace, "--entry", hex(ipa), "--json"))["events"]
    changes = [(event["table"], event["change"]) for event in told if event["change"] is not None]
    (table,) = {table for table, change in changes if change["pa"] == place}
    made = [change for number, change in changes if number == table]
    return [(each["pa"], each["old"], each["new"]) for each in made if each["old"] != each["new"]]


def without_access_flag(changes: list[tuple[str, str, str]]) -> list[tuple[str, int, int]]:
    """Where, before, after; without bit 10, and without what changes nothing else.

    The hardware sets it without a store: a trace cannot know whether aging then cleared anything (DAMON, on 7.3).
    """
    flagless = [
        (place, int(before, 16) & ~_ACCESS_FLAG, int(after, 16) & ~_ACCESS_FLAG) for place, before, after in changes
    ]
    return [(place, before, after) for place, before, after in flagless if before != after]


def hold(machine: Machine, program: str, folder: Path) -> None:
    """Watch the scenario with one gdb, and hold it against the trace."""
    machine.command("run log step=1", timeout=120)
    with Session(program) as gdb:
        gdb.attach(machine.gdb_socket)
        seen = watched(gdb, machine)
        gdb("detach")
    made = traced(machine, folder, seen[0][0])
    # A block write-protected, broken into a table, its page made, write-protected, made writable ..., a block again.
    assert len(seen) >= 8
    known, told = without_access_flag(made), without_access_flag(seen)
    # The trace has more: what came before the watch, and what DAMON looked at after it.
    begins = [at for at in range(len(known)) if known[at : at + len(told)] == told]
    assert len(begins) == 1, (seen, made)
    assert known[begins[0] - 1][2] == told[0][1], "nothing is missing between what was found and the first"


def test_watch_tells_every_change_that_a_trace_has(machine: Machine, tmp_path: Path) -> None:
    hold(machine, "gdb-multiarch", tmp_path)


@pytest.mark.parametrize("release", ["trixie", "forky"])
def test_watch_in_newer_gdbs(release: str, tmp_path: Path) -> None:
    with Machine.start(options=["--trace"]) as machine:
        hold(machine, other_gdb(release), tmp_path)


def test_two_vcpus_that_change_neighbouring_entries(machine: Machine, tmp_path: Path) -> None:
    """The watch begins in the first operation of a VM whose two vCPUs fault every other page of one table at once."""
    page = 0x4000_6000
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        gdb("stage2 break map if overlaps(0x40000000+2M)")
        gdb.type("continue")
        with machine.asking("run smp"):
            vm = re.search(r" on stage-2 VMID \d+ of (vm\d+) ", gdb.read_to(PROMPT))
            assert vm is not None
            gdb("delete")
            gdb.type(f"stage2 watch {page:#x} --vm {vm[1]} --continue")
            text = gdb.read_to("is translated by")
        gdb.press(b"\x03")
        text += gdb.read_to("interrupted (")
        gdb.read_to(PROMPT)
        gdb("detach")
    seen = [found[2:3] + found[4:] for found in _CHANGE.findall(text) if "by CPU" in found[3]]
    known, told = (without_access_flag(each) for each in (traced(machine, tmp_path, seen[0][0], page), seen))
    # The tables on the way, and the page: each once, though two vCPUs race for them.
    assert len(told) >= 2
    assert known[-len(told) :] == told


@pytest.mark.parametrize("line", ["dump", f"watch {WATCHED:#x}"])
def test_a_gdb_killed_while_it_reads_leaves_the_stub_as_it_was(line: str) -> None:
    """In physical mode, which is QEMU's and outlives the connection."""
    with Machine.start(scenario="one") as machine:
        for found in (0, 1):
            with Session() as gdb:
                gdb.attach(machine.gdb_socket)
                gdb(f"maintenance packet Qqemu.PhyMemMode:{found}")
                gdb("python import os, signal, gdb_scripts.packets as packets")
                gdb("python packets.read = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
                gdb.type(f"stage2 {line}")
                assert gdb.process.wait(60) == -signal.SIGKILL
            deadline = time.monotonic() + 10
            while physical_mode(machine) != b"%d" % found:
                assert time.monotonic() < deadline, "physical mode is not as it was"
                time.sleep(0.2)


def physical_mode(machine: Machine) -> bytes:
    """What the stub says to whoever comes next; the machine runs on."""
    with Session() as gdb:
        gdb(f"target remote {machine.gdb_socket}")
        said = gdb("maintenance packet qqemu.PhyMemMode")
        gdb("detach")
    return said.partition('received: "')[2][:1].encode()


def test_break_stops_for_its_range_alone(machine: Machine) -> None:
    """The guest maps pages of 0x40000000 and on; the break is on one of them."""
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        assert "Breakpoint 1 at" in gdb("stage2 break map if overlaps(0x40020000+4K)")
        gdb.type("continue")
        with machine.asking("run one") as told:
            said = gdb.read_to(PROMPT)
            assert re.search(r"kvm_pgtable_stage2_map\(addr=0x40020000, size=0x[0-9a-f]+, ", said)
            assert re.search(r"IPA 0x40020000: L\d 0x[0-9a-f]+\[\d+\] => 0x0+  invalid", said)
            said = gdb("stage2 finish")
            assert "kvm_pgtable_stage2_map returned 0" in said
            assert re.search(r"IPA 0x40020000: L3 0x[0-9a-f]+\[32\] => 0x[0-9a-f]+  page PA", said)
            gdb("delete")
            gdb("detach")
        assert told[-1] == {"event": "done", "command": "run", "ok": True}


STATE = ("thread", "frame", "info breakpoints", "show pagination", "output/x $pc", "output/x $sp")


def test_a_long_session_leaves_all_as_it_was() -> None:
    """Fifty commands, good and bad; and Ctrl-C in the middle of three."""
    with Machine.start() as machine, Session() as gdb:
        gdb.attach(machine.gdb_socket)
        gdb("thread 2")
        gdb("hbreak *0xffff800000000000")
        before = [gdb(line) for line in STATE]
        for _ in range(5):
            for line in (*COMMANDS[:4], "walk 0 --vm vm0", "decode 0x40000048123fdb --level 3", "nonsense"):
                gdb(f"stage2 {line}")
            for line in ('p/x $s2_pa(0, "vm0")', 'p/x $s2_desc(0, "vm0")', "stage2 walk 0 --vm nobody"):
                gdb(line)
        assert [gdb(line) for line in STATE] == before
        assert 'received: "0"' in gdb("maintenance packet qqemu.PhyMemMode")

        # Interrupted while the tool has more to say than a pipe holds.
        gdb("python import gdb_scripts.lend as lend")
        gdb("python def interrupt(_): raise KeyboardInterrupt")
        assert "KeyboardInterrupt" in gdb("python lend.run(['dump', '--tree'], interrupt)", 60)

        for line in ("stage2 check", "stage2 dump", "stage2 watch 0 --vm vm0"):
            gdb.type(line)
            if "watch" in line:
                gdb.read_to("is translated by")
            else:
                gdb.read_to(line)
                time.sleep(0.7)  # until it is under way: a Ctrl-C at the prompt takes back what was typed
            gdb.press(b"\x03")
            gdb.read_to("interrupted")
            gdb.read_to(PROMPT)
            assert 'received: "0"' in gdb("maintenance packet qqemu.PhyMemMode")
            assert "[Current thread is 2 " in gdb("thread")
            assert "Quit" not in gdb("p 1")
        assert gdb("info breakpoints") == before[2]
        gdb("delete")
        gdb("detach")
        assert machine.command("progress")[-1]["ok"]


def test_functions_and_the_translation_agree(machine: Machine) -> None:
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        walked = gdb("stage2 walk 0x123 --vm vm0")
        said = re.search(r"mapped: \w+ at PA (0x[0-9a-f]+)", walked)
        hva = re.search(r"HVA (0x[0-9a-f]+)", walked)
        assert hva is not None
        assert gdb(f'p/x $s2_ipa({hva[1]}, "vm0")').split()[-1] == "0x123"
        if said is not None:
            assert gdb('p/x $s2_pa(0x123, "vm0")').split()[-1] == said[1]
        gdb("detach")


def test_names_are_completed_right_after_attaching(machine: Machine) -> None:
    """With a kernel whose symbols are known; nobody is asked where nothing is attached."""
    line = "stage2 walk 0 --vm vm1"
    inspect("--connect", machine.gdb_socket, "info")
    with Session() as gdb:
        gdb(f"source {REPO / 'gdb_scripts/stage2.py'}")
        assert gdb(f"complete {line}") == ""
        gdb.attach(machine.gdb_socket)
        completed = gdb(f"complete {line}").split("\n")
        told = re.findall(r"^(vm\d+) ", gdb("stage2 vms"), re.MULTILINE)
        assert sorted(completed) == ["", *sorted(f"stage2 walk 0 --vm {vm}" for vm in told if vm.startswith("vm1"))]
        assert gdb("stage2 walk 0 --vm vm1").startswith("stage-2 VMID")
        gdb("detach")


@pytest.mark.parametrize(("scenario", "append", "words"), REFUSED)
def test_no_kvm_or_no_vm_is_one_sentence(scenario: str, append: str, words: str) -> None:
    with Machine.start(scenario=scenario, append=append) as machine, Session() as gdb:
        gdb.attach(machine.gdb_socket)
        for line in ("check", "dump", "walk 0", "watch 0", "reverse 0x48000000"):
            said = gdb(f"stage2 {line}").removeprefix("inspector: ")
            assert words in said or "there are no VMs on this host" in said, (line, said)
            assert len(said.splitlines()) == 1
        assert words in gdb("p $s2_pa(0)")
        said = gdb("stage2 break map")
        assert ("KVM is not initialised" in said) == (scenario == "nokvm"), said
        gdb("delete")
        assert gdb("p 6 * 7").endswith("= 42\n")
        gdb("detach")


def test_what_cannot_be_done_is_one_sentence(machine: Machine) -> None:
    with Session() as gdb:
        assert gdb(f"source {REPO / 'gdb_scripts/stage2.py'}") == ""
        for line in ("stage2 vms", "stage2 watch 0", "stage2 break map", "p $s2_pa(0)"):
            said = gdb(line)
            assert "no machine is attached" in said, said
            assert "Traceback" not in said
        gdb.attach(machine.gdb_socket)
        for line, words in (
            ("stage2 walk 0 --vm nobody", "nobody"),
            ("stage2 watch 0 --vm nobody", "there is no VM 'nobody'"),
            ("stage2 watch", "takes one IPA"),
            ("stage2 watch 0xffff000000000000 --vm vm0", "outside the 32-bit input address space"),
            ("stage2 watch 0 --count none", "a number of changes"),
            ("stage2 break", "An operation"),
            ("stage2 break nothing", "has no operation 'nothing'"),
            ("stage2 break map if 7", "is not overlaps(A-B)"),
            ("stage2 break map if overlaps(2-1)", "empty range"),
            ("stage2 finish", "not where a 'stage2 break' stops"),
            ("stage2 dump --range nonsense", "nonsense"),
        ):
            said = gdb(line)
            assert words in said, (line, said)
            assert "Traceback" not in said
        gdb("detach")
    with Session(STAGE2_INSPECTOR="/nowhere/inspector") as gdb:
        gdb.attach(machine.gdb_socket)
        assert "gdb-init" in gdb("stage2 vms")
        gdb("detach")


def test_a_gdb_that_is_killed_in_a_watch_leaves_nothing() -> None:
    """No process, no watchpoint: the guest runs on, over the entry that was watched, too."""
    with Machine.start() as machine:
        machine.command("run log step=1", timeout=120)
        with Session() as gdb:
            gdb.attach(machine.gdb_socket)
            gdb.type(f"stage2 watch {WATCHED:#x} --vm vm{vm_of_log(gdb)} --continue")
            gdb.read_to("is translated by")
            time.sleep(0.5)
            children = subprocess.run(
                ["pgrep", "-P", str(gdb.process.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            assert children
            gdb.process.send_signal(signal.SIGKILL)
            gdb.process.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.monotonic() < deadline, f"{children} are left"
            time.sleep(0.05)
        with qmp(machine) as client:
            assert client.running()
            for _ in range(5):
                assert machine.command("next", timeout=60)[-1]["ok"]
            assert client.running()


# The last of each machine: its VMs are ended here.


def test_a_watch_ends_where_its_vm_is_destroyed(machine: Machine) -> None:
    """Its tables are freed without an entry being cleared (up to 6.18); from 6.19 on that is left alone too."""
    machine.command("run log step=1", timeout=120)
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        gdb.type(f"stage2 watch {WATCHED:#x} --vm vm{vm_of_log(gdb)} --continue")
        gdb.read_to("is translated by")
        with machine.asking("end"):
            assert "the table is being destroyed (kvm_pgtable_stage2_destroy" in gdb.read_to(PROMPT)
            assert "Quit" not in gdb("p 1")
            assert "No breakpoints or watchpoints" in gdb("info breakpoints")
            gdb("detach")


def test_break_of_a_vm_stops_for_no_other(machine: Machine) -> None:
    """Nor for one that is made after it is gone, which often gets its memory, and so its addresses."""
    machine.command("run log step=1", timeout=120)
    with Session() as gdb:
        gdb.attach(machine.gdb_socket)
        vm = vm_of_log(gdb)
        gdb(f"stage2 break wrprotect --vm vm{vm}")
        gdb.type("continue")
        with machine.asking("next"):
            assert re.search(rf"stage2_wrprotect\(.*\) on stage-2 VMID \d+ of vm{vm} ", gdb.read_to(PROMPT))
            gdb("disable")
            gdb.type("continue")
            gdb.read_to("Continuing.")
        machine.command("end")
        gdb.interrupt()
        gdb("enable")
        gdb.type("continue")
        gdb.read_to("Continuing.")
        for line in ("run log step=1", "next", "next"):
            machine.command(line, timeout=120)
        assert "received signal SIGINT" in gdb.interrupt()
        gdb("delete")
        gdb("detach")
