"""Judges captures: the invariants of a live stage-2, one small function each.

`CATALOGUE` lists them with their sources, `run_checks` applies them.  Everything is decided from a `Capture`; this
room knows nothing of gdb, and prints nothing.
"""

from inspector.check import mapping, refcount, root, structure, vmid
from inspector.check.catalogue import CATALOGUE, Invariant, run_checks, selected

__all__ = ["CATALOGUE", "Invariant", "run_checks", "selected"]

# Importing a module of checks registers its functions; the order here is the order of `inspector check --list`.
_ROOMS = (root, structure, mapping, vmid, refcount)
