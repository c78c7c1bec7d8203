"""Coverage as a part of the verdict: how much of the file ran, and what became of the lines that were changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from inspector.crosscheck import campaign
from inspector.crosscheck.coverage import Counts, run, share
from inspector.crosscheck.covering import Work
from inspector.crosscheck.generate import Focus
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.lines import Line, What, judge
from inspector.crosscheck.tree import PGTABLE, Tree
from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode

NAME = "coverage"
OPERATIONS = 5_000
ROUNDS = 3
"""How often more is tried for changed lines that have not run, each time with `OPERATIONS` that are about them."""

_SECONDS = 20.0

_MORE: Mapping[str, str] = {
    "split": "split",
    "unlinked": "unlinked",
    "annotate": "annotate",
    "owner": "annotate",
    "relax": "relax",
    "young": "mkyoung",
    "age": "age",
    "mkold": "age",
    "wrprotect": "wrprotect",
    "flush": "flush",
    "unmap": "unmap",
    "map": "map",
    "leaf": "leaf",
    "free": "grace_period",
}
"""A word in the name of a function of the kernel to what the generator calls the operation that gets there."""


def coverage(
    kernel: Kernel,
    old: Tree | None,
    granules: Sequence[str],
    seed: int,
    *,
    uncovered_ok: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Part:
    """What ran of ``kernel``'s file; of the lines that differ from ``old``, where that is given, what became of each.

    A changed line that never ran, that no build has, or that is not the kernel's here, makes it untestable, unless
    ``uncovered_ok``.
    """
    tell("coverage: counting lines")
    counted = replace(kernel, coverage=True, _libraries={})
    counts: dict[str, Counts] = {}
    run(Work(campaign.Plan(counted, tuple(granules)), OPERATIONS, _SECONDS, seed), counts)
    lines = judge(old, kernel.tree, counts) if old is not None else []
    for number in range(ROUNDS):
        waiting = [line for line in lines if line.what is What.NOT_RUN]
        if not waiting or old is None:
            break
        tell(f"coverage: {len(waiting)} changed lines have not run, trying for them")
        plan = campaign.Plan(counted, tuple(granules), focus=focus_on(waiting, counts))
        run(Work(plan, OPERATIONS, _SECONDS, seed + 1_000_003 * (number + 1)), counts)
        lines = judge(old, kernel.tree, counts)
    return _part(counts, lines, old is not None, uncovered_ok)


def focus_on(lines: Sequence[Line], counts: Mapping[str, Counts]) -> Focus:
    """What to do more often so that these lines may run: by the names of the functions that they are in."""
    names = [
        name
        for line in lines
        for name, (first, last, _) in counts.get(line.file, Counts()).functions.items()
        if first <= line.number <= last
    ]
    hyp = sum(name.startswith(("hyp_", "kvm_pgtable_hyp_")) for name in names)
    more = frozenset(operation for word, operation in _MORE.items() if any(word in name.split("_") for name in names))
    return Focus(hyp=0.1 if not names else min(0.95, max(0.05, hyp / len(names))), more=more)


def _part(counts: Mapping[str, Counts], lines: Sequence[Line], changes: bool, uncovered_ok: bool) -> Part:
    whole = counts.get(PGTABLE, Counts())
    ran, all_lines = share(whole.lines.values())
    taken, all_branches = share(whole.branches.values())
    figures: dict[str, int | float | str] = {
        "lines": all_lines,
        "lines_run": ran,
        "branches": all_branches,
        "branches_run": taken,
    }
    said = f"{ran} of {all_lines} lines and {taken} of {all_branches} branches of {Path(PGTABLE).name} ran"
    shown = []
    never = sorted(name for name, (_, _, calls) in whole.functions.items() if not calls)
    if never:
        shown.append(f"Functions that never ran: {', '.join(never)}")
    if not changes:
        return Part(NAME, ExitCode.CLEAN, said, shown, figures)
    by_kind = Counter(line.what for line in lines)
    figures |= {f"changed_{kind.name.lower()}": by_kind[kind] for kind in What}
    open_lines = [line for line in lines if not line.what.covered]
    counted = ", ".join(f"{by_kind[kind]} {kind}" for kind in What if by_kind[kind])
    said += f"; of {len(lines)} changed lines: {counted}" if lines else "; no line of code was changed"
    shown = [f"{line.what}: {line}" for line in open_lines] + shown
    if not open_lines or uncovered_ok:
        return Part(NAME, ExitCode.CLEAN, said, shown, figures)
    return Part(NAME, ExitCode.UNTESTABLE, f"{said}: no clean bill (--uncovered-ok takes it for one)", shown, figures)
