"""The differential campaign: random operations on the model and on the kernel's own code, compared after each.

``python -m tests.model.campaign --label 6.12 --ops 1000000 --seed 1`` prints its seed, what it did and whether the two
ever differed; on a difference it prints a script, shrunk, that shows it (``inspector model`` runs it too), and exits 1.
A freed page used by the kernel's own code, or a reference dropped that nobody holds, is the gravest difference.
Kernel sources are found as :mod:`tests.model.harness` says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from inspector.model.operations import Operation, format_operation
from inspector.model.session import NoSuchEntry
from tests.model.differ import Difference, Pair
from tests.model.generate import Generator, random_setup
from tests.model.harness import StoreFull, Unsupported
from tests.model.shrink import shrink

SEQUENCE = 60
"""Operations on one table, about."""


@dataclass
class Outcome:
    """What a campaign did: counts, and the first difference with the script that shows it.

    ``abandoned``: tables given up because the harness had no page left; ``known_faults``: faults of the kernel's code
    that its generation is known for, on both sides alike.
    """

    label: str
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
        """What it did and how to repeat it."""
        again = f"python -m tests.model.campaign --label {self.label} --seed {self.seed}"
        return f"{self.operations} operations on {self.sequences} tables, seed {self.seed} (again: {again})"


def run_sequence(outcome: Outcome, rng: Random, label: str) -> bool:
    """One table from init to destroy; ``False`` when the two sides differed."""
    setup = random_setup(rng, label)
    pair = Pair(setup)
    lines = [setup.text()]
    try:
        generator = Generator(rng, pair.session, hyp=rng.random() < 0.1)
        for operation in generator.operations(rng.randrange(5, 2 * SEQUENCE)):
            lines.append(format_operation(operation))
            if not _step(outcome, pair, generator, operation):
                if outcome.difference is not None:
                    outcome.script = lines
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


def run(label: str, ops: int, seed: int, progress: Callable[[Outcome], None] | None = None) -> Outcome:
    """Run until ``ops`` operations were compared, or the first difference (not shrunk)."""
    outcome = Outcome(label, seed)
    while outcome.operations < ops:
        rng = Random(f"{label}/{seed}/{outcome.sequences}")
        if not run_sequence(outcome, rng, label):
            break
        if progress is not None and outcome.sequences % 500 == 0:
            progress(outcome)
    return outcome


def main(argv: list[str] | None = None) -> int:
    """The command; 0: no difference, 1: one was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.campaign", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--label", default="6.12", help="kernel generation (default 6.12)")
    parser.add_argument("--ops", type=int, default=20_000, help="operations to compare (default 20000)")
    parser.add_argument("--seed", type=int, default=1, help="seed (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    arguments = parser.parse_args(argv)
    started = time.monotonic()

    def progress(outcome: Outcome) -> None:
        if not arguments.quiet:
            rate = outcome.operations / (time.monotonic() - started)
            print(f"  {outcome.operations} operations, {outcome.sequences} tables, {rate:.0f}/s", flush=True)

    print(f"campaign: kernel {arguments.label}, seed {arguments.seed}, {arguments.ops} operations")
    outcome = run(arguments.label, arguments.ops, arguments.seed, progress)
    for name, count in sorted(outcome.by_name.items()):
        print(f"  {count:9} {name}")
    print("  returned: " + ", ".join(f"{code}: {count}" for code, count in sorted(outcome.returns.items())))
    if outcome.abandoned:
        print(f"  tables given up because the harness had no page left: {outcome.abandoned}")
    if outcome.known_faults:
        print(f"  faults of the kernel's code that {outcome.label} is known for: {outcome.known_faults}")
    if outcome.difference is None:
        print(
            f"kernel {outcome.label}, seed {outcome.seed}: {outcome.operations} operations on {outcome.sequences} "
            f"tables, {outcome.events} events, no difference ({time.monotonic() - started:.0f} s)"
        )
        return 0
    print(f"FINDING after {outcome.operations} operations: {outcome.difference}")
    print("shrunk script:")
    print("\n".join(shrink(outcome.script)))
    return 1


if __name__ == "__main__":
    sys.exit(main())
