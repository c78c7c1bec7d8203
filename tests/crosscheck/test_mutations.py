"""The campaign can find bugs: with each mutation of the model it sees a difference within CI's budget.

A mutation is one function of the model that does a wrong thing (a put dropped, a wrong level hint, a store without its
release ...: ``mutations.py``); a flip is one named behaviour set as another kernel generation has it.  Each must be
noticed; the model without any mutation is compared in ``test_against_kernel.py``.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from inspector.crosscheck.campaign import run
from inspector.generations import GENERATIONS, Generation, generation
from tests.crosscheck.kernels import kernel, labels
from tests.crosscheck.mutate import Flip, Mutation, applied, flipped, other_values
from tests.crosscheck.mutations import MUTATIONS

pytestmark = pytest.mark.harness

BUDGET = 20_000
"""Operations per version that CI compares (``test_against_kernel.OPERATIONS``)."""

SEED = 1


NOT_FLIPPED = {
    "label": "a name",
    "source": "a statement about the model",
    "cross_checked": "a statement about the model",
    "has": "what it is recognised by",
    "lacks": "what it is recognised by",
    "permission_faults_share_lock": "nothing of pgtable.c",
    "init_all_vmids": "nothing of pgtable.c",
    "ha_always": "nothing of pgtable.c",
    "cacheable_pfnmap": "nothing of pgtable.c",
    "present_invalid_bit11": "nothing of pgtable.c",
    "prot_layout": "how a request is spelt for the kernel, not what the kernel does",
    "lpa2": "without it such a machine is refused, not modelled",
    "first_level": "a number; levels below it need a corrupt table",
    "annotation": "chooses the function that exists, which the campaign calls by name",
}
INVISIBLE = {
    # (generation, field): why no operation of that generation can tell
    ("5.10", "shared_walks"): "its map has no flags argument",
    ("5.10", "wrprotect_ignores_eagain"): "nothing says -EAGAIN there",
    ("5.10", "relax_flush_on_eagain"): "nothing says -EAGAIN there",
    ("5.10", "eagain"): "nothing says -EAGAIN there",
    ("5.10", "two_bit_xn"): "one execute bit is drawn, map compares whole entries, and nothing else reads XN",
    ("5.10", "hyp_two_bit_xn"): "with one execute bit and no hVHE the two forms are one",
    ("5.10", "software_bits_store"): "part of the UNLINK scheme",
    ("5.10", "span_flush_aligned"): "part of the UNLINK scheme",
    ("5.10", "cmo_checks_valid"): "its map does no cache maintenance",
    ("5.10", "unmap_defers_tables_too"): "nothing is deferred there",
    ("5.10", "split"): "the kernel has no such function to compare with",
    ("5.10", "split_barrier_each"): "there is no split",
    ("5.10", "unlinked_double_put"): "there is no split",
    ("5.10", "get_leaf"): "the kernel has no such function to compare with",
    ("5.10", "hyp_running_pa"): "no leaf is refused without the walk going on: every one moves the address on",
    ("6.1", "shared_walks"): "its map has no flags argument",
    ("6.1", "wrprotect_ignores_eagain"): "nothing in wrprotect says -EAGAIN there",
    ("6.12", "wrprotect_ignores_eagain"): "a walk outside a fault handler forgets -EAGAIN anyway",
    ("6.1", "software_bits_store"): "part of the UNLINK scheme",
    ("6.1", "span_flush_aligned"): "part of the UNLINK scheme",
    ("6.12", "span_flush_aligned"): "TABLE_PRE replaces only where the walk stands at the entry's start",
    ("7.2", "span_flush_aligned"): "TABLE_PRE replaces only where the walk stands at the entry's start",
    ("7.3", "span_flush_aligned"): "TABLE_PRE replaces only where the walk stands at the entry's start",
    ("6.1", "split_barrier_each"): "there is no split",
    ("6.1", "unlinked_double_put"): "there is no split",
    ("6.1", "relax_flush_on_eagain"): "nothing in relax_perms says -EAGAIN there",
    ("6.1", "unmap_defers_tables_too"): "nothing is deferred there",
    ("6.1", "split"): "the kernel has no such function to compare with",
    ("6.1", "hyp_two_bit_xn"): "with one execute bit and no hVHE the two forms are one",
}
INVISIBLE_VALUES = {
    ("5.10", "pgt_flags", "NOFWB_IDMAP"): "init takes no flags",
    ("5.10", "pgt_flags", "IDMAP_AS_S1"): "init takes no flags",
    ("5.10", "attr_walk_flags", "CALLER"): "no caller has flags to give",
    ("6.1", "eagain", "STOPS_UNLESS_IGNORED"): "the same where no walk ignores it",
    ("6.1", "attr_walk_flags", "CALLER"): "the same where no caller has flags to give",
    ("6.1", "invalid", "LOCKED_BIT10"): "nothing is marked in the ANCHOR scheme",
    ("6.1", "invalid", "TYPED"): "nothing is marked in the ANCHOR scheme",
}


CROSS_CHECKED = [label for label in labels() if GENERATIONS[label].cross_checked]


def _flips(label: str) -> list[Flip]:
    """Every behaviour of a generation, set as it is not."""
    behaviours = generation(label)
    return [
        Flip(field.name, value, label)
        for field in fields(Generation)
        if field.name not in NOT_FLIPPED and (label, field.name) not in INVISIBLE
        for value in other_values(field.name, getattr(behaviours, field.name))
        if (label, field.name, getattr(value, "name", None)) not in INVISIBLE_VALUES
    ]


@pytest.mark.parametrize(
    "mutation", [each for each in MUTATIONS if each.label in labels()], ids=lambda mutation: mutation.name
)
def test_a_mutation_is_found(mutation: Mutation) -> None:
    with applied(mutation):
        outcome = run(kernel(mutation.label), BUDGET, SEED)
    assert outcome.difference is not None, f"{mutation.name}: no difference in {outcome}"


@pytest.mark.parametrize("flip", [flip for label in CROSS_CHECKED for flip in _flips(label)], ids=str)
def test_a_behaviour_of_another_generation_is_found(flip: Flip) -> None:
    """Every named behaviour matters: set otherwise, the model no longer is that kernel."""
    with flipped(flip):
        outcome = run(kernel(flip.label), BUDGET, SEED)
    assert outcome.difference is not None, f"{flip}: no difference in {outcome}"


def test_no_mutation_is_left_behind() -> None:
    with applied(MUTATIONS[0]):
        assert run(kernel("6.12"), 2_000, SEED).difference is not None
    assert run(kernel("6.12"), 2_000, SEED).difference is None
