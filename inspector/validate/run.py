"""One kernel in one configuration: booted, driven, followed, checked; and what came of each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode, InspectorError, TargetLost, Untestable
from inspector.machines import Machine, sentence
from inspector.trace.file import Trace
from inspector.trace.follow import Followed, Following, open_output, read_plan
from inspector.trace.lockstep import Difference
from inspector.trace.timeline import Course, course
from inspector.validate.configurations import Configuration
from inspector.validate.console import reports
from inspector.validate.kernels import Kernel
from inspector.validate.listed import listed
from inspector.validate.selftests import Selftests, run_selftests
from inspector.validate.shape import Shapes, shapes

Tell = Callable[[str], None]
_LINES: Final = 12
"""Of the end of a console."""
_AFTER: Final = 0.5
OPTIONS: Final = ("--trace", "--memory", "1536")
"""Of run_qemu.sh, for every machine."""
_NO_SCENARIO: Final = ("--scenario", "nokvm")


@dataclass
class Run:
    """What one boot came to.

    Where nothing was followed ``shapes`` is empty and ``course`` is `None`, as it is where it was not asked for.
    """

    configuration: Configuration
    release: str = ""
    parts: list[Part] = field(default_factory=list)
    shapes: Shapes = field(default_factory=dict)
    seconds: float = 0.0
    course: Course | None = None

    @property
    def is_whole(self) -> bool:
        """It can be compared."""
        return bool(self.shapes) and not any(part.code is ExitCode.UNTESTABLE for part in self.parts)


def run(
    kernel: Kernel,
    result: Run,
    lines: Sequence[str],
    trace: Path,
    tell: Tell,
    label: str = "",
    draw: bool = False,
    selftests: Selftests | None = None,
) -> None:
    """Boot it, have its guests do ``lines``, and put what came of it into ``result``; the trace is kept in a file.

    With ``draw`` its course too, which takes reading the trace once more.  ``selftests`` run in place of the exerciser.

    Whatever ends it, the machine is gone and ``result`` has what was done by then.
    """
    began = time.monotonic()
    configuration = result.configuration
    name = f"validate-{os.getpid()}"
    options = [*kernel.options(), *configuration.options(), *OPTIONS]
    if selftests is not None:
        options += [*_NO_SCENARIO, *([] if kernel.initramfs else selftests.options())]
    machine = Machine(name, options)
    prefix = f"{label or configuration.name}: "

    def add(what: str, code: ExitCode, summary: str, more: Sequence[str] = (), **figures: int | float | str) -> None:
        result.parts.append(Part(prefix + what, code, summary, tuple(more), figures))

    try:
        tell(f"{prefix}boots")
        try:
            machine.start()
        except Untestable as error:
            add("boot", ExitCode.UNTESTABLE, str(error), _end(machine))
            return
        following = Following(machine.folder, read_plan(machine.folder))
        result.release = following.header["release"]
        with open_output(trace) as stream:
            if selftests is not None:
                try:
                    run_selftests(machine, following, stream, selftests.tests, add, lambda text: tell(prefix + text))
                except TargetLost as error:
                    add("workload", ExitCode.UNTESTABLE, str(error), _end(machine))
            else:
                _exercise(machine, kernel, lines, add, lambda text: tell(prefix + text))
            tell(f"{prefix}judges what was followed")
            following.go(stream, _AFTER, machine.alive, tell)
        followed = following.end()
        judged = _judge(followed, add)
        _console(machine, add)
        if selftests is None:
            result.shapes = shapes(Trace(trace).events())
        if judged and draw:
            result.course = course(label or configuration.name, trace, followed.judge.broken, followed.judge.differing)
    except InspectorError as error:
        add("run", ExitCode.UNTESTABLE, str(error), _end(machine))
    finally:
        machine.stop()
        result.seconds = time.monotonic() - began


def _exercise(machine: Machine, kernel: Kernel, lines: Sequence[str], add: Callable[..., None], tell: Tell) -> None:
    """The default scenario's tables looked at, and then the lines."""
    problem = _check(machine, add)
    listed(machine, kernel.lists, add)
    for line in lines:
        tell(line)
        problem = problem or _work(machine, line)
    if problem:
        add("workload", ExitCode.UNTESTABLE, problem, _end(machine))


def _end(machine: Machine) -> list[str]:
    return machine.console().splitlines()[-_LINES:]


def _work(machine: Machine, line: str) -> str:
    """Why it could not be done; empty when it was."""
    done = machine.send(line)
    if done.returncode:
        return f"'{line}' failed: {sentence(done)}"
    ended = machine.send("end")
    return f"after '{line}': {sentence(ended)}" if ended.returncode else ""


def _check(machine: Machine, add: Callable[..., None]) -> str:
    """The tables of the default scenario, at one instant; why they could not be read."""
    done = machine.inspect("check", "--json")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return f"its tables could not be checked: {done.stderr.strip()[-200:]}"
    errors = [each for each in found["findings"] if each["severity"] == "error"]
    summary = f"{found['vms']} VMs, {len(found['checked'])} rules, {len(errors)} findings"
    lines = _grouped(((each["check"], "tables"), tuple(_finding(each))) for each in errors)
    add("tables", ExitCode.FINDINGS if errors else ExitCode.CLEAN, summary, lines, findings=len(errors))
    return ""


def _finding(facts: Mapping[str, Any]) -> Iterator[str]:
    """A finding of `inspector check --json`."""
    place = ", ".join(f"{name} {value}" for name, value in facts["where"].items() if value is not None)
    yield f"{facts['check']}: {facts['actual']}; expected: {facts['expected']}"
    yield f"  where: {place}"
    yield f"  why: {facts['why']}"


def _judge(followed: Followed, add: Callable[..., None]) -> bool:
    """Whether there was something to judge."""
    judge, counts = followed.judge, followed.judge.counts
    if counts.protected or counts.hypercalls or counts.operations <= counts.unknown:
        add("operations", ExitCode.UNTESTABLE, "what the kernel did could not be followed")
        return False
    broken = _grouped(
        ((each.violation.rule, each.violation.operation), (each.call, *each.violation.lines(), *_by(each.callers)))
        for each in judge.broken
    )
    summary = f"{counts.operations:,} operations, {len(judge.broken)} break a rule"
    code = ExitCode.FINDINGS if judge.broken else ExitCode.CLEAN
    add("protocol", code, summary, broken, operations=counts.operations, broken=len(judge.broken))
    differing = _grouped(
        (
            (each.call.partition(" args=")[0], each.difference.what.partition(":")[0]),
            (each.call, each.difference.what, *_sides(each.difference), *_by(each.callers)),
        )
        for each in judge.differing
    )
    summary = f"{judge.verdicts.held:,} operations do what the model does, {len(judge.differing)} do not"
    summary += f", {judge.verdicts.raced:,} raced" if judge.verdicts.raced else ""
    code = ExitCode.FINDINGS if judge.differing else ExitCode.CLEAN
    add("model", code, summary, differing, held=judge.verdicts.held, differing=len(judge.differing))
    if followed.outside:
        what = ", ".join(f"{name} {count}" for name, count in followed.outside.items())
        add("followed", ExitCode.UNTESTABLE, f"not all was followed: {what}")
    return True


def _sides(difference: Difference) -> Iterator[str]:
    for side, told in (("model", difference.model), ("kernel", difference.kernel)):
        yield f"  {side}:"
        yield from (f"    {line}" for line in told)


def _grouped(found: Iterable[tuple[tuple[str, str], Sequence[str]]]) -> list[str]:
    """The first of each kind, and how many more there are."""
    kinds: dict[tuple[str, str], list[Sequence[str]]] = {}
    for kind, lines in found:
        kinds.setdefault(kind, []).append(lines)
    shown: list[str] = []
    for kind, all_of_it in kinds.items():
        shown += all_of_it[0]
        if len(all_of_it) > 1:
            shown.append(f"  and {len(all_of_it) - 1} more: {' in '.join(kind)}")
    return shown


def _by(callers: Sequence[str]) -> Iterator[str]:
    if callers:
        yield "  called by: " + " < ".join(callers)


def _console(machine: Machine, add: Callable[..., None]) -> None:
    said = list(reports(machine.console()))
    lines = [line for each in said for line in each]
    code = ExitCode.FINDINGS if said else ExitCode.CLEAN
    add("console", code, f"{len(said)} reports of the kernel's own", lines, reports=len(said))
