"""Judges captures: the invariants of a live stage-2, one small function each.

`CATALOGUE` lists them with their sources, `NOT_SHOWN` the rules that no single instant can show, `run_checks` applies
the former.  Everything is decided from a `Capture`; this
room knows nothing of gdb, and prints nothing.
"""

from inspector.check import attributes, mapping, model, refcount, rights, root, structure, vmid
from inspector.check.catalogue import CATALOGUE, Invariant, Unseen, run_checks, selected
from inspector.check.unseen import NOT_SHOWN

__all__ = ["CATALOGUE", "NOT_SHOWN", "Invariant", "Unseen", "run_checks", "selected"]

# Importing a module of checks registers its functions; the order here is the order of `inspector check --list`.
_ROOMS = (root, structure, mapping, rights, attributes, vmid, refcount, model)
