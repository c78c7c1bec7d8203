"""What commands cost by the size of a guest: ``python -m tests.benchmarks.scale [--pages N] [POWER …]``; and by the
number of VMs: ``python -m tests.benchmarks.scale --vms [NUMBER …]``.

Every figure is of a process of its own: CPU seconds and peak memory as the kernel counts them, so that other work on
the machine is not in it.  `capture` is what taking one does after the bytes have arrived (the walk of the guest's
tables and of its VMM's, the file), on planted tables; the other commands are run as a person runs them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from inspector.capture.file import save
from inspector.capture.view import table_views
from inspector.codec import Format, Geometry, Regime
from inspector.kernel.vmm import read_runs
from inspector.tables import merged_ranges, reader_of, walk_tree
from tests.benchmarks.planted import HVA, many, planted, vmm_tables
from tests.check.build import PAGE, World

REPO = Path(__file__).resolve().parents[2]
COMMANDS = (("vms",), ("check",), ("diff",), ("dump",), ("dump", "--json"))
"""`vms` is little more than loading the file."""
SECONDS, BYTES = 10.0, 4 << 30
"""What is asked for of a guest of 64 GiB."""


@dataclass(frozen=True)
class Cost:
    """CPU seconds, and peak memory in bytes, of a process."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Guest:
    """A planted guest of so many leaves, or a host of so many VMs, and what each command costs on it."""

    size: int
    what: str
    costs: dict[str, Cost]


def run(*command: str) -> Cost:
    """Run a program to its end, its output thrown away; it must find nothing wrong."""
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (command, process.returncode)
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss << 10)


def measured(leaves: int, longest: int, folder: Path) -> Guest:
    """A guest of so many leaves in extents of at most ``longest`` pages (0: one); 0 leaves: a host without guests."""
    path = folder / f"{leaves}-{longest}.s2cap"
    if not leaves:
        save(World().capture(), path)
        starts = [run(*_inspector(path, "vms")) for _ in range(3)]
        return Guest(0, "no VM", {"vms": min(starts, key=lambda one: one.seconds)})
    told = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.scale", "--take", str(path), "--pages", str(longest), str(leaves)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    costs = {"capture": Cost(float(told[1]), int(told[2]))}
    costs |= {" ".join(command): run(*_inspector(path, *command)) for command in COMMANDS}
    path.unlink()
    return Guest(leaves, f"{leaves} leaves, {told[0]} ranges", costs)


def measured_host(vms: int, folder: Path) -> Guest:
    """A host with so many VMs."""
    path = folder / f"{vms}.s2cap"
    save(many(vms), path)
    return Guest(vms, f"{vms} VMs", {" ".join(command): run(*_inspector(path, *command)) for command in COMMANDS})


def _inspector(path: Path, *command: str) -> list[str]:
    return [sys.executable, "-m", "inspector", "--max-memory", "8G", "--from", str(path), *command]


def take(leaves: int, longest: int, path: Path) -> tuple[int, float, int]:
    """Write a planted guest's capture as `inspector.capture.take` makes one: ranges, CPU seconds, peak memory."""
    capture, (vmm, root) = planted(leaves, longest), vmm_tables(leaves, longest)
    began = time.process_time()
    (view,) = table_views(capture)
    tree = walk_tree(reader_of(capture.pages), view.root_pa, view.geometry, view.format)
    pages = {table.pa: table.raw for table in tree.tables}
    assert pages == capture.pages
    space: Any = SimpleNamespace(geometry=Geometry.for_stage1(48), memory=SimpleNamespace(read_many=reader_of(vmm)))
    fmt = Format(Regime.LINUX_STAGE1, linux_612=True)
    (found,) = read_runs(space, root, fmt, [(HVA, HVA + leaves * PAGE)])
    save(capture, path)
    seconds = time.process_time() - began
    assert list(found[:1000]) == list(capture.vms[0].memslots[0].backing[:1000])
    peak = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line).split()[1])
    return len(merged_ranges(tree)), seconds, peak << 10


def exponent(small: Guest, large: Guest, command: str, fixed: float = 0) -> float:
    """How the cost of a command grows with the leaves, between two guests: 1 is linear.

    ``fixed`` seconds, what a command takes of a host without guests, are taken off (`capture` is measured without a
    start).
    """
    fixed = 0 if command == "capture" else fixed
    one, other = (max(0.01, guest.costs[command].seconds - fixed) for guest in (small, large))
    return math.log(other / one) / math.log(large.size / small.size)


def table(guests: list[Guest], fixed: float) -> str:
    """All figures, and for each command its exponent from each guest to the next."""
    lines = [f"{'':12}" + "".join(f"{one.what:>36}" for one in guests)]
    for command in guests[0].costs:
        cells = [f"{one.costs[command].seconds:.2f} s, {one.costs[command].memory >> 20} MiB" for one in guests]
        grows = [f"{exponent(*pair, command, fixed):.2f}" for pair in itertools.pairwise(guests)]
        lines.append(f"{command:12}" + "".join(f"{cell:>36}" for cell in cells) + "   exponents " + ", ".join(grows))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("numbers", type=int, nargs="*", metavar="POWER", help="Leaves: 2**POWER. Default: 18 21 24.")
    parser.add_argument("--vms", action="store_true", help="Numbers of VMs in place of powers. Default: 125 1000.")
    parser.add_argument("--pages", type=int, default=0, metavar="N", help="Extents of 1 to N pages. Default: one.")
    parser.add_argument("--take", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.take:
        print(*take(given.numbers[0], given.pages, given.take))
        return
    with TemporaryDirectory() as folder:
        fixed = measured(0, 0, Path(folder)).costs["vms"].seconds
        if given.vms:
            guests = [measured_host(number, Path(folder)) for number in given.numbers or [125, 1000]]
        else:
            guests = [measured(1 << power, given.pages, Path(folder)) for power in given.numbers or [18, 21, 24]]
    print(table(guests, fixed))


if __name__ == "__main__":
    main()
