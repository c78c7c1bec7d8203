"""Interleavings as a part of the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from textwrap import wrap

from inspector.crosscheck.differ import KernelSide
from inspector.crosscheck.interleave.engine import Engine
from inspector.crosscheck.interleave.lockstep import Lockstep
from inspector.crosscheck.interleave.outcome import Outcome
from inspector.crosscheck.interleave.pairs import Scenario, racing, scenarios
from inspector.crosscheck.interleave.referee import Referee
from inspector.crosscheck.interleave.show import columns, schedule_text
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.layout import folded
from inspector.crosscheck.reproducer import INTERLEAVINGS, Reproducer
from inspector.crosscheck.verdict import WIDTH, Part
from inspector.findings import ExitCode
from inspector.jobs.spread import spread
from inspector.model.machine import Machine
from inspector.model.operations import format_operation, parse_operation
from inspector.model.session import Setup

NAME = INTERLEAVINGS
_FAULTS = 3
"""Faults of one schedule that are shown: the first has the others for consequences."""


@dataclass(frozen=True)
class Violation:
    """``wrong`` is what does not hold after the schedule of ``outcome``."""

    scenario: Scenario
    outcome: Outcome
    wrong: tuple[str, ...]


@dataclass
class Done:
    """What ran so far."""

    scenarios: int = 0
    schedules: int = 0
    distinct: int = 0
    incomplete: int = 0
    built: frozenset[str] = frozenset()

    def add(self, other: Done) -> None:
        """And what another did."""
        self.scenarios += other.scenarios
        self.schedules += other.schedules
        self.distinct += other.distinct
        self.incomplete += other.incomplete
        self.built |= other.built


def judge(outcome: Outcome, referee: Referee, lockstep: Lockstep | None) -> tuple[str, ...]:
    """What does not hold: misuse of memory, the end of the tables, the protocol, and what the model does otherwise."""
    wrong = [f"the kernel's code {fault}" for fault in outcome.faults[:_FAULTS]]
    if len(outcome.faults) > _FAULTS:
        wrong.append(f"... and {len(outcome.faults) - _FAULTS} more of the kind")
    wrong += outcome.broken
    if not wrong and (broken := referee.judge(outcome)) is not None:
        wrong += broken.lines()
    if not wrong and lockstep is not None and (other := lockstep.follow(outcome)) is not None:
        wrong.append(f"after {other.after} accesses the model {other.model}; the kernel's code: {other.kernel}")
    return tuple(wrong)


def explore(kernel: Kernel, scenario: Scenario, bound: int, done: Done, model: bool = True) -> Violation | None:
    """All schedules of one scenario; the violation with the fewest preemptions and accesses, if there is one."""
    side = KernelSide(scenario.setup, kernel, every_access=True)
    try:
        start = []
        for operation in scenario.start:
            result, raws = side.apply(operation)
            start.append((operation, result.ret, raws))
        referee = Referee(scenario.setup, tuple(start), scenario.operations)
        lockstep = Lockstep(scenario.setup, scenario.start, scenario.operations) if model else None
        packed = [side.packed(operation) for operation in scenario.operations]
        found: list[Violation] = []
        with Engine(side.harness, packed, scenario.setup.behaviours, bound=bound) as engine:
            for outcome in engine.outcomes(MOST_SCHEDULES):
                if wrong := judge(outcome, referee, lockstep):
                    found.append(Violation(scenario, outcome, wrong))
            done.schedules += engine.schedules
            done.distinct += engine.distinct
            done.incomplete += not engine.complete
        done.scenarios += 1
        done.built |= {side.harness.library.variant}
    finally:
        side.close()
    return min(found, key=lambda one: (one.outcome.preemptions, len(one.outcome.accesses)), default=None)


def explore_all(
    kernel: Kernel, bound: int, model: bool, chunk: Sequence[Scenario]
) -> list[tuple[Violation | None, Done]]:
    """One scenario after the other, up to the first violation."""
    found: list[tuple[Violation | None, Done]] = []
    for scenario in chunk:
        done = Done()
        violation = explore(kernel, scenario, bound, done, model)
        found.append((violation, done))
        if violation:
            break
    return found


CHUNK = 8
"""Scenarios that a worker does before it answers."""

MOST_SCHEDULES = 200_000
"""Of one scenario.  Two operations with a bound of 2 have some hundreds."""


def setups(generation: str, granules: Sequence[str], machines: int = 2) -> Iterator[Setup]:
    """The first ``machines`` of those that make a difference for faults: with FWB and TLB ranges, with neither."""
    for granule in granules:
        for fwb in (True, False)[:machines]:
            machine = Machine(fwb=fwb, tlb_range=fwb)
            yield Setup(generation, granule, machine=machine, pa=52 if granule == "64k" else 48)


def interleave(
    kernel: Kernel,
    *,
    granules: Sequence[str] = ("4k",),
    bound: int = 2,
    count: int = 2,
    machines: int = 2,
    seconds: float | None = None,
    model: bool = True,
    jobs: int = 1,
    scheduler: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Part:
    """Every ``count`` operations that the kernel lets race, in every starting state, with ``bound`` preemptions.

    ``seconds``: no new scenario is begun after so long.  ``jobs``, ``scheduler`` and ``tell`` are those of `spread`:
    the part does not depend on them.
    """
    done = Done()
    if not racing(Setup(kernel.generation)):
        return Part(NAME, ExitCode.CLEAN, "no two operations run at the same time in this kernel: its lock is held")
    work = [each for setup in setups(kernel.generation, granules, machines) for each in scenarios(setup, count)]
    end = None if seconds is None else time.monotonic() + seconds
    violation = None
    size = 1 if jobs == 1 and scheduler is None else CHUNK
    chunks = (work[start : start + size] for start in range(0, len(work), size))
    tell(f"interleavings: {len(work)} meetings of {count} operations")
    with closing(spread(partial(explore_all, kernel, bound, model), chunks, jobs, scheduler, tell)) as results:
        for violation, one in chain.from_iterable(results):
            done.add(one)
            if violation or (end is not None and time.monotonic() > end):
                break
            if not done.scenarios % 16:
                tell(f"interleavings: {done.scenarios} of {len(work)} meetings, {done.schedules} schedules")
    figures = {"schedules": done.schedules, "distinct": done.distinct, "meetings": done.scenarios, "preemptions": bound}
    said = (
        f"{done.schedules} schedules of {count} operations in {done.scenarios} meetings "
        f"({done.distinct} with different ends), at most {bound} preemptions"
    )
    if violation:
        lines, script = list(_lines(violation)), tuple(_meeting(violation.scenario))
        return Part(NAME, ExitCode.FINDINGS, f"broken after {said}", lines, figures, script, done.built)
    whole = done.scenarios == len(work) and not done.incomplete
    all_of = "that was all of them" if whole else f"not all of them: {len(work)} meetings in all"
    return Part(NAME, ExitCode.CLEAN, f"{said}: nothing broken; {all_of}", figures=figures, built=done.built)


def replayed_meeting(
    kernel: Kernel, script: Reproducer, bound: int, model: bool, tell: Callable[[str], None] = lambda text: None
) -> Part:
    """The meeting of a reproducer once more, in every order: the schedule that it was found in may be none of a tree
    whose code makes other accesses."""
    setup = replace(script.setup, generation=kernel.generation)
    start, together = (tuple(parse_operation(line) for line in lines) for lines in (script.lines[1:], script.together))
    scenario, done = Scenario(setup, "the reproducer's table", start, together), Done()
    tell(f"interleavings: {len(together)} operations in every order")
    violation = explore(kernel, scenario, bound, done, model)
    figures = {"schedules": done.schedules, "distinct": done.distinct, "meetings": 1, "preemptions": bound}
    said = f"{done.schedules} schedules of {len(together)} operations, at most {bound} preemptions"
    if violation:
        script_lines = tuple(_meeting(scenario))
        return Part(NAME, ExitCode.FINDINGS, f"broken, after {said}", list(_lines(violation)), figures, script_lines)
    return Part(NAME, ExitCode.CLEAN, f"{said}: nothing broken any more", figures=figures)


def _meeting(scenario: Scenario) -> Iterator[str]:
    """What a reproducer holds."""
    yield scenario.setup.text()
    yield from (format_operation(operation) for operation in scenario.start)
    for letter, operation in zip("ABC", scenario.operations, strict=False):
        yield f"{letter}: {format_operation(operation)}"


def _lines(violation: Violation) -> Iterator[str]:
    scenario = violation.scenario
    yield from (piece for wrong in violation.wrong for piece in folded(wrong, "", _indent(wrong) + "    "))
    yield f"Begin with {scenario.state}:"
    yield from (piece for line in _meeting(scenario) for piece in folded(line, "  ", "      "))
    yield from columns(violation.outcome, scenario.setup)
    yield from wrap(f"schedule: {schedule_text(violation.outcome.schedule)}", WIDTH - 4)


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))
