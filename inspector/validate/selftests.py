"""The kernel's own KVM selftests, run one after the other in one boot, and what came of each.

A selftest that fails says nothing of stage-2 by itself: what is found is found in the operations that were followed.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from inspector import machines
from inspector.findings import ExitCode, TargetLost
from inspector.machines import Machine
from inspector.printable import SHORT, printable
from inspector.trace.follow import Following

Tell = Callable[[str], None]
Add = Callable[..., None]
_MOST_SECONDS: Final = 900
"""That one of them may take in its machine: run_qemu.sh's own limit for a workload."""
_GRACE: Final = 100
"""Seconds more until a machine that does not end it is given up."""
_AFTER: Final = 0.5
_SKIPPED: Final = 4
"""KSFT_SKIP, tools/testing/selftests/kselftest.h."""
_WHY: Final = re.compile(r"# SKIP(?: -)? *(.*)")
_LINES: Final = 8
_CASE: Final = re.compile(r"^Test: (\w+)")
_QEMUS: Final = {("page_fault_test", "ro_memslot_no_syndrome_guest_cas"): "uffd_faults"}
"""What fails under QEMU whatever the kernel does: test and case, and what its assertion is about.

A CAS whose read would fault as well is told as a write (atomic_mmu_lookup(), accel/tcg/cputlb.c), where WnR has to be 0
(Arm ARM, ISS encoding for an exception from a Data Abort): so KVM does not fault in what a write may not change.
"""
_MANIFEST: Final = "selftests.json"
_ALARMS: Final = {("memslot_perf_test", signal.SIGALRM)}
"""host_perform_sync() gives the guest 2 s (6.1) or 10 s (6.12): too few for an emulator on a busy machine."""


@dataclass(frozen=True)
class Selftest:
    """``left_out`` says why it is not run; empty where it is."""

    name: str
    words: tuple[str, ...] = ()
    left_out: str = ""


@dataclass(frozen=True)
class Selftests:
    """What a source has of them; ``folder`` holds the programs, ``title`` is what the source is known by."""

    folder: str
    title: str
    tests: tuple[Selftest, ...]

    def options(self) -> list[str]:
        """Of run_qemu.sh: to bring them along."""
        return ["--selftests", self.folder]


def built(place: Path, title: str, quick: bool, tell: Tell) -> Selftests:
    """With ``quick`` without those that take minutes.

    Raises `machines.NotBuilt` when none of them can be, `BadInput` for what is no source.
    """
    folder = machines.build([str(place)], tell, "selftests")
    listed = json.loads((folder / _MANIFEST).read_text())
    tests = (Selftest(each["name"], tuple(each["words"]), _left_out(each, quick)) for each in listed)
    return Selftests(str(folder), title, tuple(tests))


def _left_out(listed: dict[str, Any], quick: bool) -> str:
    if "problem" in listed:
        return f"it cannot be built from this source ({printable(listed['problem'], SHORT)})"
    return "it takes minutes, which --quick has not" if quick and listed["slow"] else ""


def run_selftests(
    machine: Machine, following: Following, out: IO[bytes], tests: Sequence[Selftest], add: Add, tell: Tell
) -> None:
    """Each to its end, and what it did judged: a part each.  Raises `TargetLost` when the machine ends."""
    ran = 0
    for test in tests:
        if test.left_out:
            add(test.name, ExitCode.CLEAN, f"not run: {test.left_out}")
            continue
        tell(f"{test.name} {' '.join(test.words)}")
        before = following.operations, following.found
        done = machine.send(f"run program {test.name} seconds={_MOST_SECONDS}", _MOST_SECONDS + _GRACE)
        following.go(out, _AFTER, machine.alive, tell)
        ended = _ended(done.stdout, test.name)
        if ended is None:
            raise TargetLost(f"the machine ended while {test.name} ran")
        operations, found = following.operations - before[0], following.found - before[1]
        ran += ended.get("code") != _SKIPPED
        _tell_of(test, ended, (operations, found), _said(machine, test.name), add)
    if not ran:
        add("selftests", ExitCode.UNTESTABLE, "none of them could run on this host")


def _ended(events: str, name: str) -> dict[str, object] | None:
    """How it ended; ``None`` where that was not told."""
    for line in events.splitlines():
        event: dict[str, object] = json.loads(line)
        if event.get("event") == "workload_ended" and event.get("name") == name:
            return event
    return None


def _said(machine: Machine, name: str) -> list[str]:
    """What it printed."""
    after = machine.console().rpartition(f'"workload_started","name":"{name}"')[2]
    lines = [line.rstrip("\r") for line in after.splitlines()[1:]]
    return [line for line in lines if not line.startswith("S2X ")]


def _tell_of(test: Selftest, ended: dict[str, object], did: tuple[int, int], said: Sequence[str], add: Add) -> None:
    operations, found = did
    figures = {"operations": operations, "findings": found}
    what = f"{operations:,} operations, {found} findings"
    if ended.get("code") == 0:
        add(test.name, ExitCode.CLEAN, what, **figures)
    elif (test.name, ended.get("signal")) in _ALARMS:
        add(test.name, ExitCode.CLEAN, f"{what}, up to where its own alarm went off: it was too slow here", **figures)
    elif (case := _of_qemu(test, said)) is not None:
        add(test.name, ExitCode.CLEAN, f"{what}, up to its case {case}, which fails under QEMU", **figures)
    elif ended.get("code") == _SKIPPED:
        why = next((match[1] for line in reversed(said) if (match := _WHY.search(line))), "it says not why")
        add(test.name, ExitCode.CLEAN, f"skipped: {printable(why, SHORT)}", **figures)
    else:
        if "timeout" in ended:
            how = f"did not end within {ended['timeout']} s"
        elif "signal" in ended:
            how = f"was ended by signal {ended['signal']}"
        else:
            how = f"failed with exit code {ended['code']}"
        lines = [line for line in said if line.strip()][-_LINES:]
        add(test.name, ExitCode.UNTESTABLE, f"it {how} after {what}", lines, **figures)


def _of_qemu(test: Selftest, said: Sequence[str]) -> str | None:
    """The case at which it failed, where QEMU is the reason."""
    cases = [match[1] for line in said if (match := _CASE.match(line))]
    about = _QEMUS.get((test.name, cases[-1])) if cases else None
    failed = about is not None and any(f"test->expected_events.{about}" in line for line in said[-_LINES:])
    return cases[-1] if failed else None
