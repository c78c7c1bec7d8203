"""Feeds one target: ``python -m tests.fuzz.engine TARGET --seconds 10 --seed 1 --keep FOLDER``.

By atheris, which looks for new paths through our code, where it installs; else by Hypothesis, which mutates the seeds.
The last line on standard output is ``TARGET ENGINE INPUTS inputs``; exit code 1 when an input failed, and that input is
then in FOLDER.  Whichever engine runs, one input may take `SECONDS` and the process `MEGABYTES`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn


class TooSlow(BaseException):
    """An input took longer than it may.  No `Exception`, so that nothing under test swallows it."""


def _too_slow(signum: int, frame: FrameType | None) -> NoReturn:
    raise TooSlow


class Engine:
    """One run of one target; `inputs` counts what was fed."""

    def __init__(self, name: str, keep: Path) -> None:
        from tests.fuzz.targets import TARGETS

        self.target = TARGETS[name]
        self.keep = keep
        self.inputs = 0

    def feed(self, data: bytes) -> None:
        """One input within its bounds; a failure is kept and ends the process."""
        from tests.fuzz.targets import SECONDS, feed

        self.inputs += 1
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            feed(self.target, data)
        except (Exception, TooSlow, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.keep.mkdir(parents=True, exist_ok=True)
            where = self.keep / f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            where.write_bytes(data)
            traceback.print_exc()
            print(f"failed on {where}", file=sys.stderr)
            self.end(1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def end(self, code: int) -> NoReturn:
        print(f"{self.target.name} {self.inputs} inputs", flush=True)
        sys.stderr.flush()
        os._exit(code)  # libFuzzer has its own idea of the end of a process


def by_atheris(engine: Engine, seconds: float, seed: int) -> NoReturn:
    """Coverage-guided, from the target's seeds."""
    import atheris

    end = time.monotonic() + seconds

    def one(data: bytes) -> None:
        engine.feed(data)
        if time.monotonic() > end:
            engine.end(0)

    with tempfile.TemporaryDirectory() as folder:
        for name, data in engine.target.seeds().items():
            Path(folder, name).write_bytes(data)
        # Time and memory are bounded by us, alike for both engines.
        options = [f"-seed={seed}", "-max_len=131072", "-rss_limit_mb=0", "-timeout=0", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, folder], one)
        atheris.Fuzz()
    engine.end(0)


def by_hypothesis(engine: Engine, seconds: float, seed: int) -> NoReturn:
    """Seeds with a few bytes changed, inserted, dropped or repeated, and bytes out of nowhere."""
    import hypothesis
    from hypothesis import HealthCheck, settings
    from hypothesis import strategies as st

    seeds = sorted(engine.target.seeds().values())
    place, piece = st.floats(0, 1), st.binary(max_size=16)
    edits = st.lists(st.tuples(st.sampled_from("sidr"), place, piece), max_size=8)

    def edited(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
        for kind, where, new in changes:
            at = int(where * len(data))
            if kind == "s":
                data = data[:at] + new + data[at + len(new) :]
            elif kind == "i":
                data = data[:at] + new + data[at:]
            elif kind == "d":
                data = data[:at] + data[at + 1 + 7 * len(new) :]
            else:
                data = data[:at] + data[at : at + 1 + 9 * len(new)] * 3 + data[at:]
        return data

    inputs = st.one_of(st.builds(edited, st.sampled_from(seeds), edits), st.binary(max_size=4096))
    end = time.monotonic() + seconds
    while time.monotonic() < end:

        @hypothesis.seed(seed)
        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @hypothesis.given(inputs)
        def some(data: bytes) -> None:
            if time.monotonic() < end:
                engine.feed(data)

        some()
        seed += 1
    engine.end(0)


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Fuzz one target.")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--engine", choices=("auto", "atheris", "hypothesis"), default="auto")
    parser.add_argument("--input", type=Path, help="Feed this file alone.")
    given = parser.parse_args()
    chosen = given.engine
    if chosen == "auto":
        chosen = "atheris" if importlib.util.find_spec("atheris") else "hypothesis"
    if chosen == "atheris" and given.input is None:
        import atheris

        # Before anything of ours is imported: what is loaded by then shows no paths.
        with atheris.instrument_imports(include=["inspector"]):
            import inspector

            for module in pkgutil.walk_packages(inspector.__path__, "inspector."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
    from tests.fuzz.targets import MEGABYTES

    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _too_slow)
    engine = Engine(given.target, given.keep)
    if given.input is not None:
        engine.feed(given.input.read_bytes())
        engine.end(0)
    for data in engine.target.seeds().values():
        engine.feed(data)
    if chosen == "atheris":
        by_atheris(engine, given.seconds, given.seed)
    by_hypothesis(engine, given.seconds, given.seed)


if __name__ == "__main__":
    main()
