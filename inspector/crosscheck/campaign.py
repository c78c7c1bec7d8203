"""The differential campaign: random operations on the model and on the kernel's own code, compared after each.

A freed page used by the kernel's own code, or a reference dropped that nobody holds, is the gravest difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from inspector.crosscheck.differ import Difference, Pair
from inspector.crosscheck.generate import Generator, random_setup
from inspector.crosscheck.harness import StoreFull, Unsupported
from inspector.crosscheck.kernel import Kernel
from inspector.model.operations import Operation, format_operation
from inspector.model.session import NoSuchEntry

SEQUENCE = 60
"""Operations on one table, about."""


@dataclass
class Outcome:
    """What a campaign did: counts, and the first difference with the script that shows it.

    ``abandoned``: tables given up because the harness had no page left; ``known_faults``: faults of the kernel's code
    that its generation is known for, on both sides alike.
    """

    kernel: Kernel
    seed: int
    operations: int = 0
    sequences: int = 0
    abandoned: int = 0
    known_faults: int = 0
    events: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)
    difference: Difference | None = None
    script: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What it did."""
        return f"{self.kernel.name}: {self.operations} operations on {self.sequences} tables, seed {self.seed}"


def run_sequence(outcome: Outcome, rng: Random) -> bool:
    """One table from init to destroy; ``False`` when the two sides differed."""
    setup = random_setup(rng, outcome.kernel.generation)
    pair = Pair(setup, outcome.kernel)
    done: list[Operation] = []
    try:
        generator = Generator(rng, pair.session, hyp=rng.random() < 0.1)
        for operation in generator.operations(rng.randrange(5, 2 * SEQUENCE)):
            done.append(operation)
            if not _step(outcome, pair, generator, operation):
                if outcome.difference is not None:
                    outcome.script = [setup.text(), *map(format_operation, done)]
                    return False
                break
    finally:
        outcome.known_faults += pair.known_faults
        pair.close()
    outcome.sequences += 1
    return True


def _step(outcome: Outcome, pair: Pair, generator: Generator, operation: Operation) -> bool:
    """One operation; ``False`` ends the sequence."""
    try:
        difference = pair.apply(operation)
    except (NoSuchEntry, Unsupported):
        return True
    except StoreFull:
        outcome.abandoned += 1
        return False
    outcome.operations += 1
    outcome.events += len(pair.events)
    outcome.by_name[operation.name] += 1
    if pair.ret < 0:
        outcome.returns[pair.ret] += 1
    if difference is not None:
        outcome.difference = difference
        return False
    generator.after(operation, pair.events)
    return True


def run(kernel: Kernel, ops: int, seed: int, progress: Callable[[Outcome], None] | None = None) -> Outcome:
    """Run until ``ops`` operations were compared, or the first difference (not shrunk)."""
    outcome = Outcome(kernel, seed)
    while outcome.operations < ops:
        rng = Random(f"{kernel.generation}/{seed}/{outcome.sequences}")
        if not run_sequence(outcome, rng):
            break
        if progress is not None and outcome.sequences % 500 == 0:
            progress(outcome)
    return outcome
