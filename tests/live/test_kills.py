"""Whichever process is killed, at whatever moment, the machine is as it was found (`tests.live.kills` does more)."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.live.kills import rounds
from tests.live.machine import Machine

pytestmark = pytest.mark.live


def test_fifty_random_kills(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    with Machine.start(scenario="spin") as machine:
        bad = [outcome for outcome in rounds(machine, 50, seed, tmp_path) if outcome.trouble is not None]
    assert not bad, f"seed {seed}: " + "; ".join(f"{one.kill}: {one.trouble}" for one in bad)
