"""Random kills of a trace: the machine runs on, with no breakpoint left, and what is on disk replays.

    python -m tests.live.trace_kills --source plugin|gdb [--count 100] [--seed N] [--kernel 6.12]

Each round starts `inspector trace` beside a machine whose VMs come and go, and kills it, or its gdb, while it follows.
Exit code 0 when every round was good.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from inspector.trace.file import Trace
from tests.live.kills import Kill, one_round
from tests.live.machine import Machine
from tests.live.poke import qmp


def busy(machine: Machine, ended: threading.Event) -> None:
    """Keep the exerciser at work: VMs made, touched and destroyed."""
    with contextlib.suppress(OSError, EOFError):
        while not ended.is_set():
            machine.command("run one", timeout=60)
            machine.command("end", timeout=60)


def planned(chance: random.Random, folder: Path, victims: Sequence[str]) -> Kill:
    """A kill between the first moment and some seconds after operations are followed."""
    number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    victim = chance.choice(victims) if number is signal.SIGKILL else "driver"
    command = ("trace", "--for", "4", "-o", str(folder / "killed.s2trace"))
    return Kill(chance.choice(("process", "gdb")), command, victim, number, chance.uniform(0.2, 4.0))


def killed(
    machine: Machine,
    count: int,
    seed: int,
    folder: Path,
    tell: Callable[[Kill], None] = lambda _: None,
    victims: Sequence[str] = ("driver", "driver", "gdb"),
) -> Iterator[str]:
    """Rounds in which the driver or its gdb is killed while it follows; what was not as it must be."""
    chance = random.Random(seed)
    ended = threading.Event()
    work = threading.Thread(target=busy, args=(machine, ended), daemon=True)
    work.start()
    with qmp(machine) as client:
        for number in range(count):
            kill = planned(chance, folder, victims)
            (folder / "killed.s2trace").unlink(missing_ok=True)
            outcome = one_round(machine, client, kill, f"{seed}-{number}", folder)
            trouble = outcome.trouble or _not_replayed(folder / "killed.s2trace")
            # A breakpoint that stayed would stop the machine at the exerciser's next operation.
            before = len(machine.named("done"))
            try:
                machine.wait_for("done", timeout=20, count=before + 3)
            except TimeoutError:
                trouble = trouble or "the machine does not go on"
            if not client.running():
                trouble = trouble or "the machine stopped later: a breakpoint is left"
            tell(kill)
            if trouble:
                yield f"{kill}: {trouble}"
    ended.set()
    work.join(90)


def _not_replayed(trace: Path) -> str | None:
    """Why what there is of the trace is no trace; one that was not begun is none either."""
    if not trace.exists() or not trace.stat().st_size:
        return None
    list(Trace(trace).events())
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--source", choices=("plugin", "gdb"), required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kernel", default=None)
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    options = ["--trace"] if given.source == "plugin" else []
    # The probe is part of QEMU: there is no gdb.
    victims = ("driver",) if given.source == "plugin" else ("driver", "driver", "gdb")
    kinds: Counter[str] = Counter()

    def tell(kill: Kill) -> None:
        kinds[f"{kill.signal.name} to {kill.victim}"] += 1

    bad = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Machine.start(given.kernel, scenario="none", options=options) as machine,
    ):
        for trouble in killed(machine, given.count, seed, Path(folder), tell, victims):
            bad += 1
            print(trouble, flush=True)
    print(f"{sum(kinds.values())} kills, {bad} left something behind: {dict(kinds)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
