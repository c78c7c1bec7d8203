"""The model's tree for a captured one, and capture against capture.

`rebuild` reads the abstract mappings out of captured tables and lets the model's own ``map`` build them anew: what then
differs, bit for bit, is a finding of ``check``.  `changes` says what differs between two captures.  Everything is
decided from captures; this room knows nothing of gdb, prints nothing, and is imported by ``check``.
"""

from inspector.compare.instants import Change, Changes, MappingChange, TableChange, VmChange, changes

__all__ = [
    "Change",
    "Changes",
    "MappingChange",
    "TableChange",
    "VmChange",
    "changes",
]
