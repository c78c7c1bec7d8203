"""Guests of 1, 8 and 64 GiB in pages of 4K, and hosts of 125 and 1,000 VMs: what each command costs grows no faster.

Goal: ten seconds and 4 GiB each, of the largest guest; 3 s for `vms` and 20 s for `check` of the largest host.  What is
asserted is the growth, and the memory, and never a time.
``python -m tests.benchmarks.scale --pages 64`` prints the same of a guest whose memory is scattered.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scale import BYTES, Guest, exponent, measured, measured_host, table

pytestmark = pytest.mark.processes

LIMIT = 1.3
"""Of the exponent, the start included (on a machine that is busy, what that takes changes by a third): linear, and some
for caches, which the largest guest does not fit in.  A sort adds 0.05; a loop in a loop would make it 2."""


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What a command takes of a host without guests."""
    return measured(0, 0, tmp_path_factory.mktemp("none")).costs["vms"].seconds


@pytest.mark.parametrize(("powers", "longest"), [((18, 21, 24), 0), ((18, 21), 64)], ids=["one extent", "scattered"])
def test_cost_is_linear(
    powers: tuple[int, ...], longest: int, fixed: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guests = [measured(1 << power, longest, tmp_path) for power in powers]
    _judge(guests, fixed, capsys)


def test_cost_is_linear_in_vms(fixed: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _judge([measured_host(number, tmp_path) for number in (125, 1000)], fixed, capsys)


def _judge(guests: list[Guest], fixed: float, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\n" + table(guests, fixed))
    for command, cost in guests[-1].costs.items():
        assert cost.memory < BYTES, command
        assert exponent(guests[-2], guests[-1], command) < LIMIT, command
