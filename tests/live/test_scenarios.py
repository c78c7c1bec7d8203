"""Everything a VMM can do to stage-2, step by step, looked at while it happens, and stopped in the middle of a walk.

The oracle is the exerciser's ground truth, printed again after every step: what was unmapped must be gone, what was
replaced must be the new page.  The checks must find nothing when all is quiet, and no error at any other instant.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from fixtures import truth
from fixtures.scenarios import SCENARIOS, Scenario
from inspector.capture.take import take
from inspector.capture.view import table_views
from inspector.check import run_checks
from inspector.findings import Severity, TargetLost
from inspector.snapshot import Capture, Scope, Vm
from inspector.symbols import Symbols, open_symbols
from inspector.tables import entries
from inspector.target.api import Target
from inspector.target.connect import attached
from inspector.target.machine import Machine as Attached
from tests.agreement import disagreements
from tests.conftest import kernel_labels
from tests.live.conftest import Cell
from tests.live.machine import Event, Machine

pytestmark = pytest.mark.live

_ALL = (
    Cell(None, "max", 2),
    Cell(None, "cortex-a76", 2),
    Cell(None, "cortex-a57", 2),
    Cell("6.12", "max", 2),
    Cell("7.3", "max", 2),
)
CELLS = tuple(cell for cell in _ALL if cell.kernel is None or cell.kernel in kernel_labels())


@dataclass(frozen=True)
class Host:
    """A machine without any VM at first."""

    cell: Cell
    machine: Machine
    symbols: Symbols

    def told(self) -> truth.Truth:
        return truth.parse(self.machine.console_text.splitlines())


@pytest.fixture(scope="module", params=CELLS, ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    cell: Cell = request.param
    with Machine.start(cell.kernel, cpu=cell.cpu, smp=cell.smp, gic=cell.gic, scenario="none") as machine:
        yield Host(cell, machine, open_symbols(image=machine.image))


def done(events: list[Event]) -> bool:
    """Whether the command was obeyed; an error that the exerciser met fails the test at once."""
    errors = [event for event in events if event["event"] in ("error", "usage", "guest_failed")]
    assert not errors, errors
    return bool(events[-1]["ok"])


def quiet_moments(host: Host, name: str) -> Iterator[tuple[str, truth.Truth]]:
    """Run a scenario; at each of its steps, and at its end, what the last step was and what is true then."""
    events = host.machine.command(f"run {name} step=1", timeout=90)
    assert done(events)
    while True:
        steps = [str(event["what"]) for event in events if event["event"] == "step"]
        yield steps[-1] if steps else "end", host.told()
        events = host.machine.command("next", timeout=90)
        if not done(events):
            return


def aged_leaves(capture: Capture) -> int:
    """Leaves without the access flag."""
    return sum(
        entry.descriptor.kind.is_leaf and not entry.descriptor.af
        for view in table_views(capture)
        for entry in entries(view.tree)
    )


HISTORY = [scenario for scenario in SCENARIOS if scenario.group == "HISTORY"]


@pytest.mark.parametrize("scenario", HISTORY, ids=lambda scenario: scenario.name)
def test_every_step(host: Host, scenario: Scenario) -> None:
    steps = []
    with attached(host.machine.gdb_socket) as target:
        target.resume()
        host.machine.command("end")
        for step, told in quiet_moments(host, scenario.name):
            capture = settled(target, host.symbols)
            assert disagreements(capture, told) == [], step
            assert {(vm.pid, vm.fd) for vm in capture.vms} == {(vm.pid, vm.fd) for vm in told.vms.values()}, step
            assert run_checks(capture) == [], step
            steps.append(step)
    assert len(steps) > scenario.steps, steps


def settled(target: Target, symbols: Symbols) -> Capture:
    """A capture; another one where somebody (compaction, reclaim) held a table page for a moment (kernel.md 10.1)."""
    for _ in range(3):
        capture = take(target, symbols)
        if not any(f.check == "R1" and f.severity is Severity.NOTE for f in run_checks(capture)):
            break
        time.sleep(0.5)
    return capture


def test_ageing_clears_access_flags(host: Host) -> None:
    """What the ageing scenario is for: when the kernel looks is its own affair, so it may need more than one try."""
    with attached(host.machine.gdb_socket) as target:
        target.resume()
        for _ in range(5):
            host.machine.command("end")
            for step, _told in quiet_moments(host, "age"):
                if step in ("aged", "blocks aged") and aged_leaves(take(target, host.symbols)):
                    return
    raise AssertionError("no leaf was ever seen without its access flag")


# --- while it happens ---


@dataclass
class Running:
    """Commands that the machine is obeying in the background; what went wrong with them."""

    machine: Machine
    lines: Iterable[str]
    failed: list[BaseException] = field(default_factory=list)
    thread: threading.Thread | None = None

    def start(self) -> None:
        self.thread = threading.Thread(target=self._obey, daemon=True)
        self.thread.start()

    def _obey(self) -> None:
        try:
            for line in self.lines:
                assert done(self.machine.command(line, timeout=120)), line
        except BaseException as error:
            self.failed.append(error)

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def finish(self) -> None:
        """Wait for the last command and raise what failed."""
        assert self.thread is not None
        self.thread.join()
        if self.failed:
            raise self.failed[0]


@contextmanager
def running(target: Target, machine: Machine, lines: Iterable[str]) -> Iterator[Running]:
    """The machine obeying ``lines`` meanwhile; at the end they are done."""
    target.resume()
    work = Running(machine, lines)
    work.start()
    try:
        yield work
    finally:
        target.resume()
    work.finish()


EXPLAINED: dict[str, Callable[[Vm], object]] = {
    "S1": lambda vm: vm.mmus[0].pgd_pa is None,  # kvm_free_stage2_pgd has begun, with its file still open
    "S6": lambda vm: vm.mmu_lock_held,  # stage2_try_break_pte to stage2_make_pte (kernel.md 19.4, 19.11)
    "S9": lambda vm: vm.mmu_lock_held,  # between the last put and the free, or the alloc and the first entry (19.5)
    "R1": lambda vm: vm.mmu_lock_held,  # between an entry and its reference (10.1)
    "M1": lambda vm: vm.invalidating,  # from invalidate_range_start to its unmap (19.6)
    "M4": lambda vm: vm.invalidating,
    "M3": lambda vm: True,  # between map and mark_page_dirty, bitmap and wrprotect (19.8): outside of mmu_lock
}
"""The notes that an instant may bring, and what must then be so of the VM: a note is not a way to look away."""


def judged(captures: Iterable[Capture]) -> Counter[tuple[str, str]]:
    """No capture has an error, nor a note without its reason (`EXPLAINED`); the notes by check and explanation."""
    notes: Counter[tuple[str, str]] = Counter()
    for number, capture in enumerate(captures):
        vms = {vm.name: vm for vm in capture.vms}
        for finding in run_checks(capture):
            cpus = [(cpu.running, cpu.symbol) for cpu in capture.host.cpus]
            assert finding.severity is not Severity.ERROR, (number, finding, cpus)
            assert finding.check in EXPLAINED, (number, finding, cpus)
            assert EXPLAINED[finding.check](vms[finding.where.vm or ""]), (number, finding, cpus)
            notes[finding.check, finding.why] += 1
    return notes


def test_at_many_instants(host: Host, rng: random.Random) -> None:
    """All scenarios run, one after the other and all alive; captures at whatever instants."""
    captures: list[Capture] = []
    with attached(host.machine.gdb_socket) as target:
        target.resume()
        host.machine.command("end")
        while len(captures) < 30:
            with running(target, host.machine, ["run history vms=24", "end"]) as work:
                while work.busy:
                    captures.append(take(target, host.symbols))
                    assert work.thread is not None
                    work.thread.join(rng.uniform(0, 0.3))
    for (check, why), count in judged(captures).items():
        print(f"{host.cell}: {len(captures)} captures, {count} notes {check}: {why}")


# --- stopped in the middle of a walk ---

WALKS = (
    "kvm_pgtable_stage2_map",
    "stage2_map_walker",
    "stage2_map_walk_leaf",
    "stage2_map_walker_try_leaf",
    "stage2_try_break_pte",
    "stage2_try_set_pte",
    "stage2_make_pte",
    "stage2_unmap_walker",
    "stage2_put_pte",
    "stage2_unmap_put_pte",
    "stage2_attr_walker",
    "stage2_split_walker",
    "kvm_pgtable_stage2_unmap",
    "kvm_pgtable_stage2_wrprotect",
    "__kvm_tlb_flush_vmid_ipa",
    "__kvm_tlb_flush_vmid",
    "kvm_s2_put_page",
    "kvm_pgtable_stage2_relax_perms",
    "kvm_pgtable_stage2_split",
)
"""Where walks that change a table begin and what they call, in one kernel or another; many are inlined away."""


def stopped(target: Attached, timeout: float) -> bool:
    """Whether the machine stopped by itself, within about ``timeout`` seconds."""
    try:
        target.session.wait_event(lambda event: event["message"] == "stopped", timeout)
    except TargetLost:
        if target.session.target_gone:
            raise
        return False
    return True


def stop_inside(target: Attached, address: int, rng: random.Random) -> bool:
    """Run until a CPU has come to ``address`` once more, and a random number of instructions further."""
    session = target.session
    target.stop()
    session.forget_events()
    reply = session.command(f"-break-insert -h -i {rng.randrange(6)} *{address:#x}")
    number = reply.payload["bkpt"]["number"]
    target.resume()
    hit = stopped(target, 0.7)
    if not hit:
        target.stop()
    session.command(f"-break-delete {number}")
    if hit:
        session.forget_events()
        session.console(f"stepi {rng.randrange(1, 150)}")
        hit = stopped(target, 30)
    return hit


def test_in_the_middle_of_a_walk(host: Host, rng: random.Random) -> None:
    captures: list[Capture] = []
    tried: Counter[str] = Counter()
    with attached(host.machine.gdb_socket) as target:
        slide = take(target, host.symbols, scope=Scope.VMS).host.kaslr_slide
        places = {name: at for name in WALKS if (at := host.symbols.address(name)) is not None}
        assert len(places) >= 4, places
        host.machine.command("end")
        while len(captures) < 16:
            lines = [f"run {name}" for name in ("log", "slots", "eager", "drop", "cow", "remap", "many vms=8 alive=3")]
            with running(target, host.machine, [*lines, "end"]) as work:
                while work.busy and len(captures) < 16:
                    name = min(places, key=lambda one: (tried[one], rng.random()))
                    tried[name] += 1
                    if stop_inside(target, places[name] + slide, rng):
                        captures.append(take(target, host.symbols))
                    else:
                        tried[name] += 3  # not one that this kernel or these scenarios come by often
                    target.resume()
    inside = [capture for capture in captures if any(vm.mmu_lock_held for vm in capture.vms)]
    assert len(inside) > len(captures) // 2, [c.host.cpus[0].symbol for c in captures]
    for (check, why), count in judged(captures).items():
        print(f"{host.cell}: {len(captures)} captures in {len(places)} functions, {count} notes {check}: {why}")


# --- more VMs than VMIDs ---


@pytest.mark.parametrize("host", [Cell(None, "cortex-a57", 2)], indirect=True, ids=str)
def test_vmids_run_out(host: Host) -> None:
    """Eight bits of VMID, and more VMs than that: numbers are given again, of which those of the past are no error."""
    with attached(host.machine.gdb_socket) as target:
        target.resume()
        host.machine.command("end")
        before = take(target, host.symbols)
        assert not before.vms
        for step, told in quiet_moments(host, "many vms=270 alive=6"):
            capture = take(target, host.symbols)
            assert disagreements(capture, told) == [], step
            assert run_checks(capture) == [], step
    generations = {vm.mmus[0].vmid_raw >> 8 for vm in capture.vms}
    assert max(generations) > 1, generations
