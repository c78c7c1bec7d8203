"""Tables as merged ranges in an Arrow file (`inspector dump --arrow`): for pandas, polars and the like.

One row a range, with the columns of `RangeFacts` and the name of its table; addresses and descriptors are numbers here,
for Arrow has unsigned ones of 64 bits.  Written piece by piece: memory does not grow with the number of ranges beyond
what the ranges themselves take.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import astuple

import inspector
from inspector.capture.view import View
from inspector.codec import Execute, MemoryType, Shareability
from inspector.findings import BadInput
from inspector.report.decode import leaf
from inspector.report.document import SCHEMA, table_name
from inspector.report.dump import shown_ranges
from inspector.report.leaves import by_pattern
from inspector.report.window import Window
from inspector.tables import RangeTable

COLUMNS = (
    ("vm", "name", "", "the VM; null: a table of the host's own"),
    ("pid", "int64", "", "its VMM's process; null: not known"),
    ("vmm", "name", "", "the command of that process; null: not known"),
    ("regime", "name", "", "the table, as in 'stage-2 VMID 3'"),
    ("root", "uint64", "address", "PA of the table's root"),
    ("ipa", "uint64", "address", "first input address (--hyp: a VA)"),
    ("size", "uint64", "bytes", "of the range"),
    ("level", "int8", "", "of its leaves, -1 to 3"),
    ("pa", "uint64", "address", "first output address"),
    ("read", "bool_", "", "may be read"),
    ("write", "bool_", "", "may be written"),
    ("execute", "name", "", "who may execute"),
    ("memory_type", "name", "", "normal, normal-nc, device-nGnRE, as-s1 or memattr-0x.."),
    ("shareability", "name", "", "null with 52-bit descriptors (LPA2)"),
    ("af", "bool_", "", "access flag"),
    ("sw", "uint8", "", "software bits [58:55]"),
    ("leaves", "uint64", "count", "how many leaves the range is"),
    ("raw", "uint64", "descriptor", "the first leaf"),
)
"""Name, Arrow type (``name``: a string that is repeated, kept once), unit and meaning of each column, in order."""

_BATCH = 1 << 18
"""Ranges written together."""


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise BadInput(
            "--arrow needs pyarrow, which is not installed: pip install 'kvm-stage2-inspector[arrow]'"
        ) from None
    return pyarrow


def require(path: str) -> None:
    """Raises `BadInput` when no Arrow file can be written, before any work is done."""
    _pyarrow()
    if Path(path).is_dir():
        raise BadInput(f"{path} cannot be written: it is a directory")


def _schema(arrow: Any) -> Any:
    kinds = {"name": arrow.dictionary(arrow.int32(), arrow.utf8())}

    def kind(name: str) -> Any:
        return kinds[name] if name in kinds else getattr(arrow, name)()

    fields = [
        arrow.field(name, kind(of), metadata={"unit": unit, "description": said} if unit else {"description": said})
        for name, of, unit, said in COLUMNS
    ]
    return arrow.schema(fields, {"tool": f"kvm-stage2-inspector {inspector.__version__}", "schema": str(SCHEMA)})


def _names(views: Sequence[View]) -> dict[str, list[str]]:
    """Every string that each column of names may hold: an Arrow file has them once, before its rows."""
    tables = [table_name(view) for view in views]
    known: dict[str, list[str]] = {
        "execute": list(map(str, Execute)),
        "shareability": list(map(str, Shareability)),
        "memory_type": [
            *map(str, MemoryType),
            *map("memattr-{:#x}".format, range(16)),
            *map("attrindx-{}".format, range(8)),
        ],
    }
    return known | {key: sorted({one[key] for one in tables} - {None}) for key in ("vm", "vmm", "regime")}


def _columns(view: View, found: RangeTable) -> dict[str, Any]:
    """Columns of numbers as arrays; of names as lists, and of those that all rows have in common as one value."""
    # Attributes are decoded once a pattern, of which there are few.
    leaves, which = by_pattern(found, lambda one: astuple(leaf(one)))
    read, write_, execute, memory, share, af, sw = (list(column) for column in zip(*leaves, strict=True))
    return {
        **table_name(view),
        "root": np.full(len(found), view.root_pa, dtype=np.uint64),
        "ipa": found.ia,
        "size": found.size,
        "level": found.level,
        "pa": found.pa,
        "read": np.array(read)[which],
        "write": np.array(write_)[which],
        "execute": (execute, which),
        "memory_type": (memory, which),
        "shareability": (share, which),
        "af": np.array(af)[which],
        "sw": np.array(sw, dtype=np.uint8)[which],
        "leaves": found.leaves,
        "raw": found.raw,
    }


def _array(arrow: Any, kind: Any, value: Any, names: list[str] | None, rows: int) -> Any:
    """A column of the file, of what `_columns` has for it."""
    if isinstance(value, np.ndarray):
        return arrow.array(value, type=kind)
    if names is None:
        return arrow.nulls(rows, kind) if value is None else arrow.repeat(arrow.scalar(value, kind), rows)
    of, which = value if isinstance(value, tuple) else ([value], np.zeros(rows, dtype=np.intp))
    numbers = np.array([-1 if one is None else names.index(one) for one in of], dtype=np.int32)[which]
    index = arrow.array(numbers, mask=numbers < 0)
    return arrow.DictionaryArray.from_arrays(index, arrow.array(names, type=arrow.utf8()))


def write(path: str, views: Sequence[View], window: Window) -> int:
    """Write the ranges of ``views`` inside ``window`` to an Arrow file, and return how many there are.

    Raises `BadInput` where pyarrow is missing or the file cannot be written.
    """
    arrow = _pyarrow()
    schema, names, count = _schema(arrow), _names(views), 0
    try:
        with Path(path).open("wb") as out, arrow.ipc.new_file(out, schema) as file:
            for view in views:
                shown = shown_ranges(view, window)
                count += len(shown)
                for start in range(0, len(shown), _BATCH):
                    some = shown.where(slice(start, start + _BATCH))
                    made = _columns(view, some)
                    arrays = [_array(arrow, at.type, made[at.name], names.get(at.name), len(some)) for at in schema]
                    file.write_batch(arrow.record_batch(arrays, schema=schema))
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
    return count
