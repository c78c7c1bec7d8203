"""Ten seconds for each target (``python -m tests.fuzz`` goes on for hours), and that a failure would be seen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from inspector.findings import BadInput
from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS, Target, feed

SECONDS = 10


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_own_errors_leaves(name: str, tmp_path: Path) -> None:
    seed = random.randrange(1, 1 << 31)
    result = fuzz(name, SECONDS, seed, tmp_path)
    assert result.failure is None, f"seed {seed}: {result.failure}"
    assert result.inputs > 20


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_good(name: str) -> None:
    """A target that refuses its seeds tests nothing behind the first look."""
    one = TARGETS[name]
    assert any(feed(one, data) for data in one.seeds().values()), name


def test_an_error_of_another_kind_is_a_failure() -> None:
    def run(data: bytes) -> None:
        raise {b"ours": BadInput, b"not": KeyError}[data]("")

    one = Target("planted", run, dict)
    assert not feed(one, b"ours")
    with pytest.raises(KeyError):
        feed(one, b"not")
