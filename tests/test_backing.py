"""What backs a slot as columns says what the objects say."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace

import pytest

from inspector.backing import KNOWN, SPECIAL, WRITABLE, BackingRuns
from inspector.snapshot import Backing, BackingState
from tests.check.build import PAGE, good_world


def some(rng: random.Random, count: int) -> list[Backing]:
    """Runs of every kind, ascending, with gaps, up to the top of the addresses."""
    found, at = [], rng.choice((0, 0xFFFF_8000_0000))
    for _ in range(count):
        at += rng.choice((0, PAGE))
        size = rng.choice((1, 3, 512)) * PAGE
        pa = rng.choice((None, 0, rng.randrange(1 << 40) * PAGE))
        flags = (rng.random() < 0.5 for _ in range(3))
        readable, writable, special = flags
        state = rng.choice(list(BackingState))
        found.append(Backing(at, size, pa, state, readable, writable, rng.choice((0, PAGE, 2 << 20)), special))
        at += size
    return found


@pytest.mark.parametrize("count", [0, 1, 9000])
def test_columns_say_what_objects_say(rng: random.Random, count: int) -> None:
    runs = some(rng, count)
    columns = BackingRuns.of(runs)
    assert (
        list(columns) == runs and columns == runs and columns == BackingRuns.of(tuple(runs)) and len(columns) == count
    )
    assert BackingRuns.of(columns) is columns and hash(columns) == hash(tuple(runs))
    assert pickle.loads(pickle.dumps(columns)) == columns
    if count:
        assert columns[-1] == runs[-1] and columns[2:5] == runs[2:5]
        assert columns != [*runs[:-1], replace(runs[-1], size=runs[-1].size + PAGE)]
    assert columns.having(SPECIAL | KNOWN) == [run for run in runs if run.special and run.pa is not None]
    assert columns.having(WRITABLE, BackingState.SWAP) == [
        run for run in runs if run.writable and run.state is BackingState.SWAP
    ]
    assert columns.of_entries(2 << 20) == [run for run in runs if run.entry_size >= 2 << 20]
    totals = {state: sum(run.size for run in runs if run.state is state) for state in BackingState}
    assert columns.totals() == {state: total for state, total in totals.items() if total}
    for run in runs[:50]:
        for hva in (run.hva - 1, run.hva, run.hva + run.size - 1, run.hva + run.size):
            expected = next((one for one in runs if one.hva <= hva < one.hva + one.size), None)
            assert hva < 0 or columns.at(hva) == expected


def test_a_slot_with_columns_is_the_slot_with_objects() -> None:
    (slot, *_) = good_world().capture().vms[0].memslots
    other = replace(slot, backing=BackingRuns.of(slot.backing))
    assert slot == other and other == slot and hash(slot) == hash(other)
