"""The model does what the kernel's own code does: returns, entries, counts, allocations and events, in order.

Every kernel source at hand whose generation the model knows is compared, ``OPERATIONS`` random operations each;
``inspector crosscheck --ops`` runs as many as one likes.
"""

from __future__ import annotations

from errno import EAGAIN, EINVAL, ENOMEM, ERANGE
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.crosscheck.campaign import Outcome, Plan, run, run_sequence
from inspector.crosscheck.differ import Pair, run_lines
from inspector.crosscheck.shrink import shrunk
from inspector.generations import GENERATIONS, Annotation, MapScheme
from inspector.model.operations import Operation, parse_operation
from inspector.model.prot import Prot
from inspector.model.session import Setup, parse_setup
from tests.crosscheck.kernels import kernel, labels

pytestmark = pytest.mark.harness

OPERATIONS = 20_000
"""Operations compared for each kernel in a test run."""

SCRIPTS = Path(__file__).resolve().parents[2] / "fixtures" / "scripts"


def _explain(outcome: Outcome) -> str:
    if outcome.difference is None:
        return ""
    return f"{outcome}: {outcome.difference}\nscript:\n" + "\n".join(shrunk(outcome.script, outcome.kernel))


@pytest.mark.parametrize("label", labels())
def test_random_operations(label: str) -> None:
    outcome = run(kernel(label), OPERATIONS, seed=20)
    assert outcome.difference is None, _explain(outcome)
    assert outcome.operations >= OPERATIONS
    assert outcome.abandoned == 0, "the harness had no page left"
    assert outcome.known_faults == 0


@pytest.mark.parametrize("label", labels())
def test_every_operation_and_error_is_met(label: str) -> None:
    """The campaign is no weaker than it says: each operation of this generation, each error code."""
    outcome = run(kernel(label), 5_000, seed=3)
    behaviours = GENERATIONS[label]
    wanted = {
        "map",
        "unmap",
        "wrprotect",
        "relax_perms",
        "mkyoung",
        "flush",
        "destroy",
        "hyp_map",
        "poke",
        "reference",
    }
    wanted |= {"test_clear_young"} if behaviours.test_clear_young else {"mkold", "is_young"}
    wanted |= {"split", "create_unlinked", "free_unlinked", "grace_period"} if behaviours.split else set()
    wanted |= {"get_leaf", "hyp_unmap"} if behaviours.get_leaf else set()
    wanted |= {"annotate", "destroy_range"} if behaviours.destroy_in_ranges else set()
    wanted |= {"set_owner"} if behaviours.annotation is Annotation.OWNER_BY_INVALID_PA else set()
    assert wanted <= set(outcome.by_name), outcome
    eagain = set() if behaviours.map_scheme is MapScheme.ANCHOR_IN_PLACE else {-EAGAIN}
    assert eagain | {-ENOMEM, -EINVAL, -ERANGE} <= set(outcome.returns), outcome


@pytest.mark.parametrize("label", labels())
@settings(max_examples=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))
@given(rng=st.randoms(use_true_random=False))
def test_hypothesis_finds_nothing(label: str, rng: Random) -> None:
    outcome = Outcome(kernel(label), 0)
    outcome.add(run_sequence(Plan(outcome.kernel), rng))
    assert outcome.difference is None, _explain(outcome)


@pytest.mark.parametrize("label", labels())
def test_a_hyp_map_of_what_is_no_physical_address(label: str) -> None:
    """Found by a million operations on 6.12: up to then kvm_block_mapping_supported asks no alignment of such a one."""
    script = ["hyp_init", "hyp_map 0xbbf200000 0x200000 pa=0xfffffffffffff000 prot=RW"]
    assert run_lines([f"machine generation={label}", *script], kernel(label)) is None


@pytest.mark.parametrize("label", ["6.1", "6.12", "7.3"])
def test_the_walkthrough_is_what_kernels_do(label: str) -> None:
    """The teaching script, part by part, on the kernel of that part."""
    setup: Setup | None = None
    pair: Pair | None = None
    compared = 0
    for line in (SCRIPTS / "review_walkthrough.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("machine"):
            setup = parse_setup(text)
            if pair is not None:
                pair.close()
            pair = Pair(setup, kernel(label)) if setup.generation == label else None
        elif text and pair is not None:
            assert pair.apply(parse_operation(text)) is None
            compared += 1
    if pair is not None:
        pair.close()
    assert compared > 5


@pytest.mark.parametrize("label", [label for label in labels() if GENERATIONS[label].split])
@pytest.mark.parametrize("force", ["whole tree", "level by level"])
def test_a_gigabyte_is_split_completely(label: str, force: str) -> None:
    """Both ways of splitting an L1 block down to pages: one tree of 513 tables, or tables of blocks first.

    Too many entries for the random campaign, so once here (kernel.md 8: 513 pages for a whole tree).
    """
    pair = Pair(Setup(label, machine=Setup().machine), kernel(label))
    try:
        assert pair.apply(Operation("init")) is None
        assert pair.apply(Operation("map", 1 << 30, 1 << 30, 1 << 31, int(Prot.RWX))) is None
        cache = 513 if force == "whole tree" else 512
        assert pair.apply(Operation("split", 1 << 30, 1 << 30, cache=cache)) is None
        if force == "whole tree":
            assert pair.ret == 0
            assert len(pair.session.store.pages) == 2 + 513
        else:
            assert pair.ret == -12
            assert len(pair.session.store.pages) == 2 + 512
        assert pair.apply(Operation("map", 1 << 30, 1 << 30, 1 << 31, int(Prot.RWX))) is None
        assert pair.apply(Operation("grace_period")) is None
        assert len(pair.session.store.pages) == 2
        assert pair.apply(Operation("destroy")) is None
        assert not pair.session.store.pages
    finally:
        pair.close()
