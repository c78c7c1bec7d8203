"""Guests of 1, 8 and 64 GiB in pages of 4K: what each command costs grows no faster than the guest.

Goal: ten seconds and 4 GiB each, of the largest; what is asserted is the growth, and the memory, and never a time.
``python -m tests.benchmarks.scale --pages 64`` prints the same of a guest whose memory is scattered.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.scale import BYTES, exponent, measured, table

pytestmark = pytest.mark.processes

LIMIT = 1.2
"""Of the exponent, the start included (on a machine that is busy, what that takes changes by a third): linear, and some
for caches, which the largest guest does not fit in.  A sort adds 0.05; a loop in a loop would make it 2."""


@pytest.mark.parametrize(("powers", "longest"), [((18, 21, 24), 0), ((18, 21), 64)], ids=["one extent", "scattered"])
def test_cost_is_linear(
    powers: tuple[int, ...], longest: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = measured(0, 0, tmp_path).costs["vms"].seconds
    guests = [measured(1 << power, longest, tmp_path) for power in powers]
    with capsys.disabled():
        print("\n" + table(guests, fixed))
    for command, cost in guests[-1].costs.items():
        assert cost.memory < BYTES, command
        assert exponent(guests[-2], guests[-1], command) < LIMIT, command
