"""What the whole test run has at hand, said in its header."""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path
from typing import Any

# Its plugin would load it for the summary at last, and that fails in CPython 3.11 once Dask is loaded
# ("AST constructor recursion depth mismatch").
import hypothesis  # noqa: F401
import pytest
from xdist.scheduler import LoadScopeScheduling

from fixtures.kernels import TESTED


def kernel_labels() -> list[str]:
    """The kernels at hand (``6.1``, ``6.12-16k``), oldest first; a suite that is not reachable has none."""
    folder = os.environ.get("INSPECTOR_KERNELS")
    found = [path.parent.name for path in Path(folder).glob("*/vmlinuz")] if folder else []
    return sorted(found, key=lambda label: [int(part) for part in re.findall(r"\d+", label)])


def pytest_configure() -> None:
    """Programs under test inherit what we ignore, and ignoring a signal is something they respect.

    Under nohup, and in the background of a shell without job control, SIGHUP or SIGINT arrive ignored.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


_BENCHMARKS = Path(__file__).parent / "benchmarks"

#: What a test may need that takes its time; a test that needs none of it is `fast`.
SLOW = ("live", "harness", "kernels", "fuzz", "processes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A kernel's build takes minutes: only who asks for it by name (-m build) has one.
    if "build" not in config.option.markexpr:
        building = [item for item in items if item.get_closest_marker("build")]
        items[:] = [item for item in items if item not in building]
        config.hook.pytest_deselected(items=building)
    for item in items:
        if not any(item.get_closest_marker(name) for name in SLOW):
            item.add_marker(pytest.mark.fast)
        if item.path.is_relative_to(_BENCHMARKS):
            item.add_marker(pytest.mark.alone)


_CELL = re.compile(r"[\w.,=-]*-smp\d+-gic\d+")


class _ByMachine(LoadScopeScheduling):  # type: ignore[misc]
    """What is booted once for several tests one worker runs: a machine of the matrix, else a module's.

    Not by ``xdist_group``, which xdist 3.8 does not honour under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        module, _, name = nodeid.partition("::")
        cell = _CELL.search(name)
        return cell[0] if cell else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    return _ByMachine(config, log) if config.option.dist == "loadfile" else None


@pytest.fixture
def rng() -> random.Random:
    """Random choices.  A failure shows the seed; INSPECTOR_TEST_SEED=SEED makes the same choices again."""
    seed = int(os.environ.get("INSPECTOR_TEST_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    return random.Random(seed)


def pytest_report_header() -> list[str]:
    have = kernel_labels()
    missing = [label for label in TESTED if label not in have]
    lines = [f"kernels: {', '.join(have) or 'none (./run_qemu.sh test fetches them)'}"]
    if missing:
        lines.append(f"not collected, their suite was not reachable: tests on {', '.join(missing)}")
    lines.append("a random test that fails prints its seed and how to repeat it (hypothesis: --hypothesis-seed)")
    return lines
