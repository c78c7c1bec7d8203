"""`inspector crosscheck`: a source in, a verdict out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from inspector.crosscheck import campaign
from inspector.crosscheck.differ import run_lines
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.shrink import shrunk
from inspector.crosscheck.tree import read_tree
from inspector.crosscheck.verdict import Part, Verdict
from inspector.findings import ExitCode
from inspector.generations.recognise import recognise


@dataclass(frozen=True)
class Request:
    """What the command line asks for; ``cache`` is where sources are unpacked and libraries kept.

    ``jobs`` and ``scheduler`` are those of `inspector.crosscheck.scale.spread`.
    """

    source: Path
    cache: Path
    ops: int
    seed: int
    jobs: int = 1
    scheduler: str | None = None


def default_cache() -> Path:
    """``$INSPECTOR_HARNESS_BUILD``, else ``$XDG_CACHE_HOME/kvm-stage2-inspector/crosscheck`` (``~/.cache``)."""
    if given := os.environ.get("INSPECTOR_HARNESS_BUILD"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvm-stage2-inspector" / "crosscheck"


def run(request: Request, tell: Callable[[str], None]) -> Verdict:
    """Everything that was asked for, one part after the other; ``tell`` is told how it goes."""
    tree = read_tree(request.source, request.cache)
    code = recognise(tree.release, {})
    kernel = Kernel(str(request.source), tree, code.label, request.cache)
    built = [f"{request.source}: Linux {tree.release}", f"model: {code.text}"]
    return Verdict(built, [sequential(kernel, request, tell)])


def sequential(kernel: Kernel, request: Request, tell: Callable[[str], None]) -> Part:
    """The model against the kernel's code."""

    def progress(outcome: campaign.Outcome) -> None:
        tell(f"model against kernel: {outcome.operations} of {request.ops} operations")

    outcome = campaign.run(
        kernel, request.ops, request.seed, progress, jobs=request.jobs, scheduler=request.scheduler, tell=tell
    )
    figures: dict[str, int | float | str] = {
        "operations": outcome.operations,
        "events": outcome.events,
        "seed": outcome.seed,
    }
    done = f"{outcome.operations} operations, {outcome.events} events, seed {outcome.seed}"
    if outcome.difference is None:
        return Part("model against kernel", ExitCode.CLEAN, f"{done}: no difference", figures=figures)
    tell("model against kernel: they differ, making the script small")
    script = shrunk(outcome.script, kernel)
    lines = [*script, *str(run_lines(script, kernel)).splitlines()]
    return Part("model against kernel", ExitCode.FINDINGS, f"they differ after {done}", lines, figures)
