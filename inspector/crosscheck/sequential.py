"""One operation after the other on two sides, as a part of the verdict; and the same for a script that is replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from inspector.crosscheck import campaign
from inspector.crosscheck.differ import Difference, Open, What, run_on
from inspector.crosscheck.explain import Explained, explain
from inspector.crosscheck.generate import PLAIN, Focus
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.kernels import Both
from inspector.crosscheck.reproducer import BASELINE, MODEL, SANITIZERS, Reproducer
from inspector.crosscheck.sanitize import UnderSanitizers
from inspector.crosscheck.shrink import shrunk_on
from inspector.crosscheck.tree import Tree
from inspector.crosscheck.verdict import Part
from inspector.crosscheck.watch import Judged
from inspector.findings import ExitCode
from inspector.model.session import Setup

Tell = Callable[[str], None]

PROTOCOL: Final = "protocol"
"""The verdict's name for what the automaton says."""


@dataclass(frozen=True)
class Budget:
    """How much is tried: so many operations (``None``: no bound) or seconds, from a seed, on these granules.

    ``jobs`` and ``scheduler`` are those of `inspector.jobs.spread.spread`.
    """

    ops: int | None
    seconds: float | None
    seed: int
    granules: tuple[str, ...]
    jobs: int = 1
    scheduler: str | None = None


@dataclass(frozen=True)
class Matter:
    """What is compared with what: ``part`` is the verdict's name for it; ``names`` those of the sides.

    ``doubt`` is a sentence when a difference does not tell against the kernel, as where the model knows no such
    generation.  ``judged``: the protocol's automaton looks at the kernel's events too.  ``clean`` says that nothing was
    met; ``focus`` is what is done more often.
    """

    part: str
    names: tuple[str, str]
    kernel: Kernel
    open_sides: Open
    trees: tuple[Tree, ...]
    doubt: str = ""
    judged: bool = False
    clean: str = "no difference"
    focus: Focus = PLAIN


@dataclass(frozen=True)
class ModelAndKernel:
    """Begins the comparison of the model with a kernel's code, under the protocol's automaton."""

    kernel: Kernel

    def __call__(self, setup: Setup) -> Judged:
        return Judged(setup, self.kernel)


def model_and_kernel(kernel: Kernel, doubt: str = "") -> Matter:
    """The model is one side."""
    return Matter(MODEL, ("model", "kernel"), kernel, ModelAndKernel(kernel), (kernel.tree,), doubt, judged=True)


def baseline_and_patched(baseline: Kernel, patched: Kernel) -> Matter:
    """Both sides are kernels; the operations are those that suit the generation of the first."""
    both = Both(baseline, patched)
    return Matter(BASELINE, ("baseline", "patched"), baseline, both, (baseline.tree, patched.tree))


def sanitizers(kernel: Kernel) -> Matter:
    """The kernel's code by itself, each access of it checked; most tables are touched by nobody else."""
    clean = "no misuse of memory, nothing undefined, no warning, nothing leaked"
    sides = UnderSanitizers(kernel)
    return Matter(SANITIZERS, ("", "kernel"), kernel, sides, (kernel.tree,), clean=clean, focus=Focus(alone=0.7))


@dataclass
class Run:
    """A comparison in progress: `part` may be asked for at any time, when it was cut short as well."""

    matter: Matter
    budget: Budget
    outcome: campaign.Outcome = field(init=False)
    script: list[str] = field(default_factory=list)
    explained: Explained | None = None
    done: bool = False

    def __post_init__(self) -> None:
        self.outcome = campaign.Outcome(self.matter.kernel, self.budget.seed)

    def go(self, tell: Tell) -> None:
        """Compare until the budget is spent or they differ; then make the script small, and look at it closely."""
        budget, matter = self.budget, self.matter
        of = f" of {budget.ops}" if budget.ops is not None else ""

        def progress(outcome: campaign.Outcome) -> None:
            tell(f"{matter.part}: {outcome.operations}{of} operations")

        tell(f"{matter.part}: compiling")
        campaign.fill(
            self.outcome,
            campaign.Plan(matter.kernel, budget.granules, matter.open_sides, matter.focus),
            budget.ops,
            progress,
            seconds=budget.seconds,
            jobs=budget.jobs,
            scheduler=budget.scheduler,
            tell=tell,
        )
        self.script = self.outcome.script
        if self.outcome.difference is not None:
            tell(f"{matter.part}: they differ, making the script small")
            self.script = shrunk_on(self.script, matter.open_sides)
            self.explained = explain(self.script, matter.open_sides, matter.names, matter.trees)
        self.done = True

    def parts(self) -> list[Part]:
        """What has come of it."""
        found = [self._comparison(), *([self._protocol()] if self.matter.judged else [])]
        return [replace(part, built=self.outcome.built) for part in found]

    def _protocol(self) -> Part:
        outcome = self.outcome
        figures: dict[str, int | float | str] = {"operations": outcome.operations, "events": outcome.events}
        counts = f"{outcome.operations:,} operations, {outcome.events:,} events"
        code, summary = ExitCode.CLEAN, f"{counts}: no rule broken"
        if outcome.difference is not None:
            summary = f"{counts}, up to the difference: no rule broken"
        elif not self.done:
            code, summary = ExitCode.UNTESTABLE, f"cut short after {counts}: no rule broken"
        return self._broken(figures) or Part(PROTOCOL, code, summary, (), figures)

    def _broken(self, figures: dict[str, int | float | str]) -> Part | None:
        """The broken rule, with its script where that is all that is wrong."""
        first = self.explained.difference if self.explained is not None else self.outcome.difference
        if first is None or first.broken is None:
            return None
        if first.what is What.PROTOCOL:
            counts = f"after {self.outcome.operations:,} operations"
            return replace(_difference(self.matter, self.script, self.explained, counts, figures), name=PROTOCOL)
        code = ExitCode.UNTESTABLE if self.matter.doubt else ExitCode.FINDINGS
        summary = f"rule {first.broken.rule} is broken where the model differs: {first.broken.what}"
        return Part(PROTOCOL, code, summary, (), figures)

    def _comparison(self) -> Part:
        outcome, matter = self.outcome, self.matter
        figures: dict[str, int | float | str] = {
            "operations": outcome.operations,
            "events": outcome.events,
            "tables": outcome.sequences,
            "seed": outcome.seed,
        }
        counts = f"{outcome.operations:,} operations, {outcome.events:,} events, seed {outcome.seed}"
        if outcome.difference is None or _rule_alone(self.explained, outcome.difference):
            if not self.done:
                return Part(matter.part, ExitCode.UNTESTABLE, f"cut short after {counts}: {matter.clean}", (), figures)
            return Part(matter.part, ExitCode.CLEAN, f"{counts}: {matter.clean}", (), figures)
        return _difference(matter, self.script, self.explained, f"after {counts}", figures)


def _rule_alone(explained: Explained | None, difference: Difference) -> bool:
    """A rule is broken, but the sides do the same."""
    return (explained.difference if explained is not None else difference).what is What.PROTOCOL


def _difference(
    matter: Matter,
    script: Sequence[str],
    explained: Explained | None,
    counts: str,
    figures: dict[str, int | float | str],
) -> Part:
    if explained is None:  # cut short before it was made small
        summary, lines = f"they differ, {counts}; the script was not made small", ["Script:", *script[:8]]
        lines += [f"... {len(script) - 8} more lines, all in the reproducer ..."] if len(script) > 8 else []
    else:
        summary, lines = f"{explained.headline}, {counts}", list(explained.lines())
        script = explained.script
    code = ExitCode.UNTESTABLE if matter.doubt else ExitCode.FINDINGS
    if matter.doubt:
        summary = f"{matter.doubt}: {summary}"
    return Part(matter.part, code, summary, lines, figures, tuple(script))


def replayed(matter: Matter, script: Reproducer) -> Part:
    """The script once more, on this kernel (with the generation that it is taken for)."""
    setup = replace(script.setup, generation=matter.kernel.generation)
    lines = [setup.text(), *script.lines[1:]]
    figures: dict[str, int | float | str] = {"operations": len(lines) - 1}
    if run_on(lines, matter.open_sides) is None:
        return Part(matter.part, ExitCode.CLEAN, "the reproducer shows no difference any more", (), figures)
    explained = explain(lines, matter.open_sides, matter.names, matter.trees)
    part = _difference(matter, lines, explained, "still", figures)
    alone = explained is not None and explained.difference.what is What.PROTOCOL
    return replace(part, name=PROTOCOL) if alone else part
