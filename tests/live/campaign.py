"""Long traces: random actions on every kernel, each held against protocol, model and an independent count.

    python -m tests.live.campaign [--actions 3000] [--seed N] [--scenario TEXT] [ONLY...]

A machine for each configuration, traced from its start with a second plugin that counts the operations' entries. One
line each; ONLY are words that a configuration's line must have. Exit code 0 when nothing was found and every operation
that was counted was followed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import kernel_labels
from tests.live.counting import REPO, ended, with_counter
from tests.live.machine import Machine, MachineFailed


@dataclass(frozen=True)
class Configuration:
    """A kernel on a CPU."""

    kernel: str
    cpu: str
    append: str
    smp: int

    def __str__(self) -> str:
        mode = self.append or ("nvhe" if self.cpu == "cortex-a57" else "vhe")
        return f"{self.kernel:9} {self.cpu:14} {mode:19} smp={self.smp}"


def configurations() -> list[Configuration]:
    """Every kernel that there is on ``max``; the default one, and the others where they differ, on other CPUs."""
    found = []
    for label in (each for each in kernel_labels() if each not in ("5.10", "7.2")):
        cpu = "max,lpa2=off" if label.endswith("16k") else "max"
        found += [Configuration(label, cpu, "", smp) for smp in (2, 1)]
        if label in ("6.1", "6.12", "7.3"):
            found.append(Configuration(label, "cortex-a76", "", 2))
            found.append(Configuration(label, "max", "kvm-arm.mode=nvhe", 2))
    found += [Configuration("6.1", "cortex-a57", "", smp) for smp in (2, 1)]
    return [*found, Configuration("6.12", "max", "arm64_sw.hvhe=1", 2)]


def run(configuration: Configuration, scenario: str, seconds: float) -> tuple[dict[str, Any], dict[str, int]]:
    """The trace's document, and what was counted.  Raises `MachineFailed`, and ``TimeoutError`` for no end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = Path(os.environ["INSPECTOR_KERNELS"]) / configuration.kernel / "vmlinuz"
        options = ["--trace", "--qemu", str(with_counter(folder, image)), "--boot-timeout", "1200"]
        with Machine.start(
            configuration.kernel,
            cpu=configuration.cpu,
            smp=configuration.smp,
            # The counter knows link addresses alone.
            append=f"nokaslr {configuration.append}".strip(),
            scenario=scenario,
            options=options,
        ) as machine:
            machine.wait_for("workload_ended", timeout=seconds)
            counted = ended(machine.qemu_pid, folder)
            done = subprocess.run(
                [sys.executable, "-m", "inspector", "trace", "--run-dir", machine.run_dir, "--for", "0", "--json"],
                cwd=REPO,
                capture_output=True,
                text=True,
                check=False,
            )
    return json.loads(done.stdout), counted


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--actions", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--scenario", default=None)
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument("only", nargs="*")
    given = parser.parse_args()
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    scenario = given.scenario or f"random,seed={seed},actions={given.actions}"
    print(scenario, flush=True)
    bad = 0
    for configuration in configurations():
        if not all(word in str(configuration) for word in given.only):
            continue
        began = time.monotonic()
        try:
            document, counted = run(configuration, scenario, given.timeout)
        except (MachineFailed, TimeoutError) as error:
            bad += 1
            print(f"{configuration}: {error}", flush=True)
            continue
        all_followed = counted == document["operations_by_name"]
        found = len(document["broken"]) + len(document["differing"])
        bad += bool(found) or not all_followed or document["verdict"] != "clean"
        print(
            f"{configuration}: {document['verdict']}, {document['operations']:,} operations, "
            f"{'as counted' if all_followed else f'COUNTED {counted}'}, {document['raced']} raced, "
            f"pages {document['pages_made'] - document['pages_freed']:+} left, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for each in (*document["broken"], *document["differing"]):
            print(f"  {each}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
