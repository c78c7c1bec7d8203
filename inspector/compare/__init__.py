"""Live against modelled, and capture against capture.

`compare_views` reads the abstract mappings out of captured tables, lets the model's own ``map`` build them anew, and
holds the two trees against each other, bit for bit.  `changes` says what differs between two captures.  Everything is
decided from captures; this room knows nothing of gdb, prints nothing, and is imported by ``check`` (invariant M10).
"""

from inspector.compare.difference import Difference, Side
from inspector.compare.instants import Change, Changes, MappingChange, TableChange, VmChange, changes
from inspector.compare.judge import Comparison, compare_views

__all__ = [
    "Change",
    "Changes",
    "Comparison",
    "Difference",
    "MappingChange",
    "Side",
    "TableChange",
    "VmChange",
    "changes",
    "compare_views",
]
