"""The differential campaign: random operations on the model and on the kernel's own code, compared after each.

A freed page used by the kernel's own code, or a reference dropped that nobody holds, is the gravest difference.  Each
table's operations come from the seed and the table's number alone, so tables may be done by many processes at once:
results are added in the order of the numbers, up to the budget or the first difference, and are the same for any split.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from random import Random

from inspector.crosscheck.build import GRANULES
from inspector.crosscheck.differ import Difference, Open, Pair, Sides
from inspector.crosscheck.generate import PLAIN, Focus, Generator, random_setup
from inspector.crosscheck.harness import StoreFull, Unsupported
from inspector.crosscheck.kernel import Kernel
from inspector.jobs.spread import spread
from inspector.model.operations import Operation, format_operation
from inspector.model.session import NoSuchEntry, Setup

SEQUENCE = 60
"""Operations on one table, about."""

CHUNK = 8
"""Tables that a worker does before it answers: well under a second."""


@dataclass
class Sequence:
    """What became of one table, from init to destroy.

    ``abandoned``: the harness had no page left; ``known_faults``: faults of the kernel's code that its generation is
    known for, on both sides alike.  ``built`` are the variants of libraries that it took.  ``script`` is given with a
    difference.
    """

    operations: int = 0
    events: int = 0
    abandoned: int = 0
    known_faults: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)
    built: frozenset[str] = frozenset()
    difference: Difference | None = None
    script: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What a campaign did: the sums of its `Sequence`, and the first difference with the script that shows it."""

    kernel: Kernel
    seed: int
    operations: int = 0
    sequences: int = 0
    abandoned: int = 0
    known_faults: int = 0
    events: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)
    built: frozenset[str] = frozenset()
    difference: Difference | None = None
    script: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What it did."""
        return f"{self.kernel.name}: {self.operations} operations on {self.sequences} tables, seed {self.seed}"

    def add(self, one: Sequence) -> None:
        """One more table."""
        self.operations += one.operations
        self.events += one.events
        self.abandoned += one.abandoned
        self.known_faults += one.known_faults
        self.by_name += one.by_name
        self.returns += one.returns
        self.built |= one.built
        self.sequences += one.difference is None
        self.difference, self.script = one.difference, one.script


@dataclass(frozen=True)
class Plan:
    """What is compared and on which machines: the model with ``kernel``, or what ``open_sides`` begins instead (two
    kernels; it must be picklable).  ``granules`` are those to draw from; ``focus`` is what to do more often."""

    kernel: Kernel
    granules: tuple[str, ...] = tuple(GRANULES)
    open_sides: Open | None = None
    focus: Focus = PLAIN

    def open(self, setup: Setup) -> Sides:
        """Both sides with a machine and no table yet."""
        return self.open_sides(setup) if self.open_sides is not None else Pair(setup, self.kernel)


def run_sequence(plan: Plan, rng: Random) -> Sequence:
    """One table from init to destroy, or to the first difference."""
    done = Sequence()
    setup = random_setup(rng, plan.kernel.generation, plan.granules)
    pair = plan.open(setup)
    lines = [setup.text()]
    done.built = frozenset(side.harness.library.variant for side in pair.kernels)
    try:
        generator = Generator(rng, pair.session, hyp=rng.random() < plan.focus.hyp, focus=plan.focus)
        for operation in generator.operations(rng.randrange(5, 2 * SEQUENCE)):
            lines.append(format_operation(operation))
            if not _step(done, pair, generator, operation):
                break
    finally:
        done.known_faults += pair.known_faults
        pair.close()
    if done.difference is not None:
        done.script = lines
    return done


def _step(done: Sequence, pair: Sides, generator: Generator, operation: Operation) -> bool:
    """One operation; ``False`` ends the sequence."""
    try:
        difference = pair.apply(operation)
    except (NoSuchEntry, Unsupported):
        return True
    except StoreFull:
        done.abandoned += 1
        return False
    done.operations += 1
    done.events += len(pair.events)
    done.by_name[operation.name] += 1
    if pair.ret < 0:
        done.returns[pair.ret] += 1
    if difference is not None:
        done.difference = difference
        return False
    generator.after(operation, pair.events)
    return True


def run_sequences(plan: Plan, seed: int, numbers: range) -> list[Sequence]:
    """The tables of these numbers, or those up to the first difference."""
    done = []
    for number in numbers:
        done.append(run_sequence(plan, Random(f"{plan.kernel.generation}/{seed}/{number}")))
        if done[-1].difference is not None:
            break
    return done


def run(
    kernel: Kernel,
    ops: int,
    seed: int,
    progress: Callable[[Outcome], None] | None = None,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run until ``ops`` operations were compared, or the first difference (not shrunk).

    ``jobs``, ``scheduler`` and ``tell`` are those of `spread`; the outcome does not depend on them.
    """
    outcome = Outcome(kernel, seed)
    fill(outcome, Plan(kernel), ops, progress, jobs=jobs, scheduler=scheduler, tell=tell)
    return outcome


def fill(
    outcome: Outcome,
    plan: Plan,
    ops: int | None,
    progress: Callable[[Outcome], None] | None = None,
    *,
    seconds: float | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Go on until there are ``ops`` operations, or ``seconds`` have passed, or the first difference (not shrunk).

    What was done by then is in ``outcome`` also when this is interrupted.
    """
    end = None if seconds is None else time.monotonic() + seconds
    size = 1 if jobs == 1 and scheduler is None else CHUNK
    chunks: Iterator[range] = (range(start, start + size) for start in itertools.count(0, size))
    with closing(spread(partial(run_sequences, plan, outcome.seed), chunks, jobs, scheduler, tell)) as results:
        for one in itertools.chain.from_iterable(results):
            outcome.add(one)
            if outcome.difference is not None or (ops is not None and outcome.operations >= ops):
                break
            if end is not None and time.monotonic() >= end:
                break
            if progress is not None and outcome.sequences % 20 == 0:
                progress(outcome)
