"""In which ways a kernel is run, and what its guests do there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Configuration:
    """A CPU model of QEMU's, more of the kernel's command line, how many CPUs.

    ``deterministic``: two runs are the same; then the guests do ``scenario``, as run_qemu.sh takes it.
    """

    name: str
    cpu: str
    append: str = ""
    smp: int = 2
    deterministic: bool = False
    scenario: str = ""

    def options(self) -> list[str]:
        """Of run_qemu.sh."""
        options = ["--cpu", self.cpu, "--smp", str(self.smp), *(["--append", self.append] if self.append else [])]
        options += ["--deterministic"] if self.deterministic else []
        return [*options, *(["--scenario", self.scenario] if self.scenario else [])]


_VHE: Final = Configuration("vhe", "max,lpa2=off")
_QUICK: Final = (_VHE,)
_DEFAULT: Final = (
    *_QUICK,
    Configuration("nvhe", "max,lpa2=off", "kvm-arm.mode=nvhe"),
    Configuration("cortex-a76", "cortex-a76"),
)
_FULL: Final = (
    *_DEFAULT,
    Configuration("cortex-a57", "cortex-a57"),
    Configuration("lpa2", "max"),
    Configuration("one-cpu", "max,lpa2=off", smp=1),
)

CONFIGURATIONS: Final = {"quick": _QUICK, "default": _DEFAULT, "full": _FULL}
"""By how thorough it is.  Without LPA2 IPAs have 48 bits: the end of a larger VM takes 6.18 and later four million
operations (kvm_pgtable_stage2_destroy_range for each GiB)."""

NAMES: Final = tuple(each.name for each in _FULL)


def chosen(depth: str, names: Sequence[str]) -> Sequence[Configuration]:
    """Those of a depth, or those that were named, in the order of `NAMES`."""
    return [each for each in _FULL if each.name in names] if names else CONFIGURATIONS[depth]


_SCENARIOS: Final = ("log", "manual", "drop", "protect", "cow", "remap", "slots", "teardown", "middle", "smp")
_RANDOM: Final = {"quick": 0, "default": 300, "full": 2000}


def workload(depth: str, seed: int) -> Sequence[str]:
    """What the exerciser is told, line by line, beside its default scenario."""
    lines = [f"run {name}" for name in _SCENARIOS]
    if _RANDOM[depth]:
        lines.append(f"run random,seed={seed},actions={_RANDOM[depth]}")
    return lines
