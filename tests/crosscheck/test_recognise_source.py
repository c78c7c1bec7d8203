"""A tree is told by what its header has, whatever release its Makefile names."""

from __future__ import annotations

import pytest

from inspector.crosscheck.recognise_source import recognise_source
from inspector.crosscheck.tree import HEADER, Tree
from tests.crosscheck.kernels import labels, tree

pytestmark = pytest.mark.harness


def _edited(label: str, old: str, new: str) -> Tree:
    true = tree(label)
    header = true.text[HEADER].replace(old, new)
    assert header != true.text[HEADER]
    return Tree(true.origin, {**true.text, HEADER: header})


@pytest.mark.parametrize("label", labels())
def test_each_release_is_its_own_generation(label: str) -> None:
    code = recognise_source(tree(label))
    assert (code.label, code.assumed, code.as_read) == (label, False, True)


def test_the_source_wins_over_the_release() -> None:
    """6.12's release without signed levels and without the memory type of 6.9: what 6.6 is."""
    older = _edited("6.12", "s8\t\t\t\t\tstart_level", "u32\t\t\t\t\tstart_level")
    older = Tree(older.origin, {**older.text, HEADER: older.text[HEADER].replace("KVM_PGTABLE_PROT_NORMAL_NC", "X")})
    assert recognise_source(older).label == "6.6"


def test_what_is_only_in_a_comment_does_not_count() -> None:
    """The sign has to be code."""
    commented = _edited("6.12", "struct kvm_pgtable {", "/* pkvm_mappings; */\nstruct kvm_pgtable {")
    assert recognise_source(commented).label == "6.12"
    assert recognise_source(
        _edited("6.12", "struct kvm_pgtable {", "struct kvm_pgtable { int pkvm_mappings;")
    ).label == ("6.18")


def test_a_tree_that_no_record_matches_is_assumed() -> None:
    """Neither the callbacks of 5.15 nor the structure that is there since 5.10: only the release is left to go by."""
    strange = _edited("6.1", "struct kvm_pgtable {", "struct page_table {")
    header = strange.text[HEADER].replace("struct kvm_pgtable_mm_ops {", "struct page_table_ops {")
    code = recognise_source(Tree(strange.origin, {**strange.text, HEADER: header}))
    assert (code.label, code.assumed) == ("6.1", True)
