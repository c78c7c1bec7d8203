"""Judges captures: the invariants of a live stage-2, one small function each.

`CATALOGUE` lists them with their sources, `NOT_SHOWN` the rules that no single instant can show.  `run_checks` and
`compare_views` are two views of what they find.  Everything is decided from a `Capture`; this room knows nothing of
gdb, and prints nothing.
"""

from inspector.check import attributes, hyp, mapping, model, nested, pkvm, refcount, rights, root, structure, vmid
from inspector.check.catalogue import CATALOGUE, Invariant, Unseen, selected
from inspector.check.lasting import in_question
from inspector.check.unseen import NOT_SHOWN
from inspector.check.verdict import Comparison, Side, Sides, compare_views, run_checks

__all__ = [
    "CATALOGUE",
    "NOT_SHOWN",
    "Comparison",
    "Invariant",
    "Side",
    "Sides",
    "Unseen",
    "compare_views",
    "in_question",
    "run_checks",
    "selected",
]

# Importing a module of checks registers its functions.
_ROOMS = (root, structure, mapping, rights, attributes, vmid, refcount, hyp, pkvm, nested, model)
