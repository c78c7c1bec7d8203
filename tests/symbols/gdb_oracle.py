"""gdb as a reader of the same DWARF: the places of members and the values of enumerators, asked of
gdb-multiarch.

`ask` starts gdb on a vmlinux with this very file as its script; the part under ``if "gdb" in`` runs inside
gdb.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Answer = Mapping[str, Any]


def ask(vmlinux: Path, members: Mapping[str, Sequence[str]], enumerators: Sequence[tuple[str, str]]) -> Answer:
    """``sizes``, ``members`` (key "struct path": bit position, bit size or 0, bytes of its type) and
    ``enumerators``.
    """
    question = json.dumps({"members": {name: list(paths) for name, paths in members.items()}, "enums": enumerators})
    done = subprocess.run(
        ["gdb-multiarch", "-q", "-nx", "-batch", "-iex", "set auto-load no", "-x", __file__, str(vmlinux)],
        env=os.environ | {"ORACLE_QUESTION": question},
        capture_output=True,
        text=True,
        check=False,
    )
    marked = [line for line in done.stdout.splitlines() if line.startswith("ORACLE ")]
    assert marked, f"gdb did not answer: {done.stdout[-500:]} {done.stderr[-500:]}"
    answer: Answer = json.loads(marked[0].removeprefix("ORACLE "))
    return answer


def _inside() -> None:
    import gdb

    question = json.loads(os.environ["ORACLE_QUESTION"])

    def lookup(name: str) -> Any:
        for word in ("struct", "union", "enum"):
            try:
                return gdb.lookup_type(f"{word} {name}")
            except gdb.error:
                continue
        return None

    def find(where: Any, name: str) -> Any:
        """(bit position, field) of a member, those of anonymous structs included."""
        for each in where.strip_typedefs().fields():
            if each.name == name:
                return each.bitpos, each
            if not each.name:
                found = find(each.type, name)
                if found is not None:
                    return each.bitpos + found[0], found[1]
        return None

    def place(where: Any, path: str) -> Any:
        position = 0
        field: Any = None
        for part in path.split("."):
            kind = (where if field is None else field.type).strip_typedefs()
            if kind.code not in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
                return None
            found = find(kind, part)
            if found is None:
                return None
            position, field = position + found[0], found[1]
        return [position, field.bitsize, field.type.strip_typedefs().sizeof]

    sizes, members = {}, {}
    for name, paths in question["members"].items():
        where = lookup(name)
        if where is not None:
            sizes[name] = where.sizeof
            for path in paths:
                found = place(where, path)
                if found is not None:
                    members[f"{name} {path}"] = found
    enums = {}
    for enum, name in question["enums"]:
        try:
            enums[name] = int(gdb.parse_and_eval(f"(long long){name}"))
        except gdb.error:
            where = lookup(enum) if enum else None
            for each in where.fields() if where is not None else ():
                if each.name == name:
                    enums[name] = each.enumval
    print("ORACLE " + json.dumps({"sizes": sizes, "members": members, "enumerators": enums}))


if "gdb" in sys.modules:
    _inside()
