"""All of it: each configuration of the kernel, of the baseline, and what differs between them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from inspector.crosscheck.apply import DoesNotApply
from inspector.crosscheck.run import Request as Source
from inspector.crosscheck.run import run as run_source
from inspector.crosscheck.verdict import Part, Verdict
from inspector.findings import ExitCode, Untestable
from inspector.machines import NotBuilt, require
from inspector.printable import printable
from inspector.target.signals import Interrupted
from inspector.trace.timeline import Course
from inspector.validate.cells import Cell
from inspector.validate.compare import Change, changes
from inspector.validate.configurations import Configuration, chosen, workload
from inspector.validate.kernels import Build, Kernel
from inspector.validate.matrix import SERIAL, Spread, run_cells
from inspector.validate.repeat import deterministic, in_order
from inspector.validate.run import Run
from inspector.validate.selftests import Selftests
from inspector.validate.selftests import built as build_selftests

_BASELINES: Final = 2
"""Runs of the baseline: where it differs from itself there is nothing to compare."""
_MOST: Final = 8
"""Changes that are shown."""


@dataclass(frozen=True)
class Sources:
    """A tree, or a file that holds one, and what a reader knows it by."""

    place: Path
    title: str


@dataclass(frozen=True)
class Request:
    """``depth`` is a key of `CONFIGURATIONS`; traces are kept in ``keep`` (``None``: they are not).

    ``source`` is what the kernel was built from, held against the model first: that costs seconds.  A `Build` is built
    once that is done.  ``draw``: the courses of the kernel's operations are wanted; ``how``: where its cells are done.
    ``configurations`` are names of those that are wanted in place of ``depth``'s.
    ``selftests`` are built from there and run in each.  ``deterministic``: machines that do the same each time, and the
    baseline's operations are held against the kernel's in their order too.
    """

    kernel: Kernel | Build
    baseline: Kernel | Build | None = None
    depth: str = "default"
    seed: int = 1
    keep: Path | None = None
    source: Source | None = None
    draw: bool = False
    how: Spread = SERIAL
    configurations: Sequence[str] = ()
    selftests: Sources | None = None
    deterministic: bool = False


@dataclass(frozen=True)
class Validated(Verdict):
    """``courses``: what the kernel's operations were in each configuration that was followed, where it was asked."""

    courses: Sequence[Course] = ()


def validate(request: Request, tell: Callable[[str], None]) -> Validated:
    """Raises `BadInput` outside of a checkout.  Interrupted, what had been done is the verdict."""
    require()
    configurations = chosen(request.depth, request.configurations)
    lines = given = workload(request.depth, request.seed)
    if request.deterministic:
        configurations = tuple(deterministic(each, lines) for each in configurations)
        lines = ()
    built: list[str] = []
    parts: list[Part] = []
    courses: list[Course] = []
    interrupted = False
    keep, scratch = request.keep, None
    if keep is None and request.deterministic:
        scratch = tempfile.TemporaryDirectory(prefix="s2-traces-")
        keep = Path(scratch.name)
    elif keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    try:
        if request.source is not None:
            interrupted = _source(request.source, isinstance(request.kernel, Build), tell, built, parts)
        kernel = None if interrupted or _stop(parts) else _kernel(request.kernel, "build", tell, parts)
        baseline = request.baseline
        if kernel is not None and baseline is not None:
            baseline = _kernel(baseline, "baseline: build", tell, parts)
        selftests = _selftests(request, tell, parts) if kernel is not None else None
        if kernel is not None:
            ways = [
                _cells(kernel, baseline, each, lines, request, selftests, keep is not None) for each in configurations
            ]
            runs, interrupted = run_cells([cell for way in ways for cell in way], request.how, keep, tell)
            for configuration, way in zip(configurations, ways, strict=True):
                mine, runs = runs[: len(way)], runs[len(way) :]
                _tell_of(configuration.name, way, mine, built, parts, courses)
                if request.deterministic and keep is not None and all(run is not None and run.is_whole for run in mine):
                    traces = [keep / cell.trace for cell in way if cell.selftests is None]
                    parts += in_order(configuration.name, traces[0], traces[1:])
    except (KeyboardInterrupt, Interrupted):
        interrupted = True
    finally:
        if scratch is not None:
            scratch.cleanup()
    if request.selftests is not None:
        built.append(printable(f"selftests: {request.selftests.title}"))
    what = f"seed {request.seed}, {len(configurations)} configurations: the default scenario, {', '.join(given)}"
    return Validated([*filter(None, dict.fromkeys(built)), what], parts, interrupted, courses)


_NOT_APPLIED: Final = "source: patch does not apply"


def _source(source: Source, built_from: bool, tell: Callable[[str], None], built: list[str], parts: list[Part]) -> bool:
    """The page-table code by itself; whether that was interrupted.

    Where a kernel is built from it, what cannot be tested so is a part like others, and what it has nothing to say of
    is left to the boots.
    """
    try:
        before = run_source(source, tell)
    except DoesNotApply as error:
        if not built_from:
            raise
        parts.append(Part(_NOT_APPLIED, ExitCode.UNTESTABLE, str(error)))
        return False
    except Untestable as error:
        if not built_from:
            raise
        parts.append(Part("source: crosscheck", ExitCode.UNTESTABLE, str(error)))
        return False
    built += before.built
    for part in before.parts:
        if built_from and part.name == "patch":
            part = Part(part.name, ExitCode.CLEAN, part.summary.partition(": ")[0] + ": the boots judge it")
        parts.append(replace(part, name=f"source: {part.name}"))
    return before.interrupted


def _stop(parts: Sequence[Part]) -> bool:
    return any(part.name == _NOT_APPLIED for part in parts)


def _kernel(wanted: Kernel | Build, name: str, tell: Callable[[str], None], parts: list[Part]) -> Kernel | None:
    """``None`` where it does not build: then there is a part that says why."""
    if isinstance(wanted, Kernel):
        return wanted
    try:
        return wanted.make(tell)
    except NotBuilt as error:
        parts.append(Part(name, ExitCode.UNTESTABLE, f"{wanted.title}: {error}", error.errors))
        return None


def _cells(
    kernel: Kernel,
    baseline: Kernel | Build | None,
    configuration: Configuration,
    lines: Sequence[str],
    request: Request,
    selftests: Selftests | None,
    keep: bool,
) -> list[Cell]:
    """The kernel's in one configuration, then the baseline's; and the kernel's with the selftests."""
    name = configuration.name
    cells = [Cell(kernel, configuration, tuple(lines), name, f"{name}.s2trace", request.draw, keep)]
    if isinstance(baseline, Kernel):
        for number in range(1, _BASELINES + 1):
            trace = f"{name}-baseline-{number}.s2trace"
            cells.append(Cell(baseline, configuration, tuple(lines), f"{name}, baseline", trace, keep=keep))
    if selftests is not None:
        label, trace = f"{name}, selftests", f"{name}-selftests.s2trace"
        cells.append(Cell(kernel, configuration, (), label, trace, request.draw, keep, selftests))
    return cells


def _selftests(request: Request, tell: Callable[[str], None], parts: list[Part]) -> Selftests | None:
    """``None`` where there are none: then a part says why, if they were asked for."""
    wanted = request.selftests
    if wanted is None:
        return None
    try:
        return build_selftests(wanted.place, wanted.title, request.depth == "quick", tell)
    except NotBuilt as error:
        parts.append(Part("selftests: build", ExitCode.UNTESTABLE, f"{wanted.title}: {error}", error.errors))
        return None


def _tell_of(
    name: str,
    cells: Sequence[Cell],
    runs: Sequence[Run | None],
    built: list[str],
    parts: list[Part],
    courses: list[Course],
) -> None:
    """What came of them, whichever were done; nothing is compared where one was not."""
    done, base = runs[0], [run for cell, run in zip(cells, runs, strict=True) if cell.kernel is not cells[0].kernel]
    tested = [run for cell, run in zip(cells, runs, strict=True) if cell.selftests is not None]
    for run in (done, *tested):
        if run is not None:
            built.append(f"kernel: {cells[0].kernel}, Linux {run.release}" if run.release else "")
            parts += run.parts
            courses += [run.course] if run.course is not None else []
    whole = [each for each in base if each is not None]
    if done is None or not base or len(whole) < len(base):
        return
    built.append(f"baseline: {cells[1].kernel}, Linux {whole[0].release}")
    bad = [part for part in whole[0].parts if part.code is not ExitCode.CLEAN]
    parts += [_of_baseline(part) for part in bad]
    parts.append(compared(name, done, whole))


def _of_baseline(part: Part) -> Part:
    """What is wrong with the baseline is said, and is no finding about the kernel."""
    return Part(part.name, ExitCode.UNTESTABLE, part.summary, part.lines, part.figures)


def compared(name: str, done: Run, base: Sequence[Run]) -> Part:
    """What the kernel does otherwise than the baseline."""
    if not done.is_whole or not all(each.is_whole for each in base):
        return Part(f"{name}: compared", ExitCode.UNTESTABLE, "a run was not whole: nothing is compared")
    found = changes([each.shapes for each in base], done.shapes)
    unsteady = sum(
        1 for key in base[0].shapes for shape in base[0].shapes[key] if shape not in base[-1].shapes.get(key, {})
    )
    total = sum(map(len, base[0].shapes.values()))
    summary = f"{len(found)} of {total} ways in which operations go differ from the baseline"
    if found:
        bad = any(part.code is ExitCode.FINDINGS for part in done.parts)
        summary += ": see the findings" if bad else ", and break no rule"
    if unsteady:
        summary += f"; {unsteady} differ from one run of the baseline to the next, and are not compared"
    return Part(
        f"{name}: compared",
        ExitCode.CLEAN,
        summary,
        tuple(_lines(found)),
        {"changes": len(found), "shapes": total, "unsteady": unsteady},
    )


def _lines(found: Sequence[Change]) -> Iterator[str]:
    """Those with the same difference together."""
    kinds: dict[tuple[str, ...], list[Change]] = {}
    for change in found:
        kinds.setdefault(tuple(line for line in change.lines() if line[:1] in "+-"), []).append(change)
    for alike in list(kinds.values())[:_MOST]:
        change = alike[0]
        if change.old is None:
            what = "is new"
        elif change.new is None:
            what = "is gone"
        else:
            what = "goes another way"
        yield f"{change.operation} that returned {change.returned} {what} ({change.example.times} times):"
        yield f"  operation {change.example.operation}, {change.example.call}"
        yield from (f"  {line}" for line in change.lines())
        if len(alike) > 1:
            names = Counter(each.operation for each in alike[1:])
            more = ", ".join(f"{count} of {name}" for name, count in names.items())
            yield f"  and {len(alike) - 1} more with this difference: {more}"
    if len(kinds) > _MOST:
        yield f"... and {len(kinds) - _MOST} more differences"
