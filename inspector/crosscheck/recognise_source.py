"""Which generation a kernel tree is of, read from its ``kvm_pgtable.h`` by the traits that a built kernel shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from inspector.crosscheck.tree import HEADER, Tree
from inspector.generations import KernelCode, recognise

_SIGNS: Final[Mapping[str, str]] = {
    "pgtable": r"\bstruct kvm_pgtable \{",
    "mm_ops": r"\bstruct kvm_pgtable_mm_ops \{",
    "visit_ctx": r"\bstruct kvm_pgtable_visit_ctx \{",
    "signed_level": r"\bs8\s+start_level;",
    "pkvm_mappings": r"\bpkvm_mappings;",
    "invalid_pte_type": r"\bKVM_INVALID_PTE_TYPE_LOCKED\b",
    "prot_normal_nc": r"\bKVM_PGTABLE_PROT_NORMAL_NC\b",
    "xn_two_bits": r"\bKVM_PGTABLE_PROT_UX\b",
    "as_s1": r"\bKVM_PGTABLE_S2_AS_S1\b",
}
"""By trait (`inspector.generations.traits`), what tells it in the header without its comments.

``present_invalid_bit11`` is not among them: its sign is in no file that a build reads, and no generation needs it."""

_HYP_UNMAP: Final = r"\bkvm_pgtable_hyp_unmap\("


def traits(tree: Tree) -> dict[str, bool]:
    """The traits that the tree's header shows."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", tree.text[HEADER], flags=re.DOTALL)
    found = {name: re.search(pattern, code) is not None for name, pattern in _SIGNS.items()}
    # kvm_vmid.vmid_gen is in kvm_host.h, which no build here reads.  5.15 has it and 6.1 has not; between them
    # kvm_pgtable_hyp_unmap came to the header that is read (82bb02445de5, 5.17).
    found["vmid_struct"] = re.search(_HYP_UNMAP, code) is None
    return found


def recognise_source(tree: Tree) -> KernelCode:
    """The code of a tree, as `inspector.generations.recognise` has it of a built kernel with these traits."""
    return recognise(tree.release, traits(tree))
