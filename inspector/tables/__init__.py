"""Walking page tables: a whole tree, its leaves as merged ranges, one translation, and from a PA back.

This room sees physical memory as a function (``read`` or ``read_many``) and knows nothing of gdb, kernel objects,
VMs or policy.  It reports what the architecture gives no meaning to as a `Problem` with its place, and goes on;
whether KVM would have made what it sees is decided elsewhere.

`translate` and the shapes need the standard library only.  What works on whole trees needs numpy and is loaded on first
use, so that the interpreter inside gdb can import this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from inspector.tables.shapes import Entry, Problem, ProblemKind, Range, Read, ReadMany, Step, Table, Translation, Tree
from inspector.tables.translate import translate

if TYPE_CHECKING:
    from inspector.tables.ranges import RangeTable, merged_ranges, reverse
    from inspector.tables.walk import entries, reader_of, walk_tree

_NUMPY = {
    "RangeTable": "ranges",
    "merged_ranges": "ranges",
    "reverse": "ranges",
    "entries": "walk",
    "reader_of": "walk",
    "walk_tree": "walk",
}


def __getattr__(name: str) -> Any:
    if name in _NUMPY:
        return getattr(importlib.import_module(f"{__name__}.{_NUMPY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Entry",
    "Problem",
    "ProblemKind",
    "Range",
    "RangeTable",
    "Read",
    "ReadMany",
    "Step",
    "Table",
    "Translation",
    "Tree",
    "entries",
    "merged_ranges",
    "reader_of",
    "reverse",
    "translate",
    "walk_tree",
]
