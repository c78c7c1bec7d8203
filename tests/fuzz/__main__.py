"""Fuzz every target, or those named, for as long as wanted: ``python -m tests.fuzz --seconds 3600``.

Each target runs in a process of its own; what fails is kept in a folder, with the line that feeds it again.  At the end
a table of inputs by target; exit code 1 when anything failed.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """One target's run: how many inputs, and what was said when one failed."""

    name: str
    inputs: int
    seconds: float
    failure: str | None


def fuzz(name: str, seconds: float, seed: int, keep: Path, engine: str = "auto") -> Result:
    """Run one target in its own process."""
    start = time.monotonic()
    words = ["--seconds", str(seconds), "--seed", str(seed), "--keep", str(keep), "--engine", engine]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.engine", name, *words],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds * 3 + 300,
        check=False,
    )
    said = re.search(rf"^{re.escape(name)} (\d+) inputs$", done.stdout, re.MULTILINE)
    failed = done.returncode != 0 or said is None
    return Result(
        name,
        int(said[1]) if said else 0,
        time.monotonic() - start,
        (re.sub(r"^INFO: .*\n", "", done.stderr, flags=re.MULTILINE)[-3000:] or f"exit code {done.returncode}")
        if failed
        else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--engine", choices=("auto", "atheris", "hypothesis"), default="auto")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.targets) - TARGETS.keys()):
        parser.error(f"there is no target {', '.join(unknown)}")
    seed = random.randrange(1, 1 << 31) if given.seed is None else given.seed
    results = []
    for name in given.targets or TARGETS:
        result = fuzz(name, given.seconds, seed, given.keep.resolve(), given.engine)
        results.append(result)
        verdict = "failed" if result.failure else "good"
        print(f"{name:18} {result.inputs:>10,} inputs {result.seconds:7.0f} s  {verdict}", flush=True)
        if result.failure:
            print(result.failure, file=sys.stderr)
    failed = sum(one.failure is not None for one in results)
    print(f"seed {seed}: {sum(one.inputs for one in results):,} inputs over {len(results)} targets, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
