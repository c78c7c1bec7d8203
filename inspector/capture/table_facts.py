"""What a person's gdb needs to know of a table, beside what a capture says; imports nothing of a target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TableFacts:
    """``pgt`` (``struct kvm_pgtable``) and its ``pgd`` are kernel addresses; ``marks`` are (PA, bytes, value) of what
    is other once the VM is gone and its memory another's: the root, and who made the VM."""

    pgt: int
    pgd: int
    marks: Sequence[tuple[int, int, int]]
