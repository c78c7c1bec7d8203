"""Which room may import which: the table of docs/architecture.md, held against every import; and no circles.

Imports for typing count like any other: a room that needs a name to describe itself knows the room it is from.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "inspector"
GROUND = ("codec", "events", "findings", "numbers", "printable", "snapshot")
"""What the interpreter inside gdb imports, with the standard library alone (the codec's bulk decoder excepted)."""

_ROW = re.compile(r"^\| `inspector/([a-z_]+)(?:/|\.py)` \|.*\| ([^|]*) \|$", re.MULTILINE)

_ALL = "everything above"


@cache
def may_import() -> dict[str, frozenset[str]]:
    """The rooms of the architecture page, top row first, with what each may import beside the findings."""
    found: dict[str, frozenset[str]] = {}
    for name, imports in _ROW.findall((REPO / "docs/architecture.md").read_text()):
        if imports == _ALL:
            found[name] = frozenset(found)
        else:
            found[name] = frozenset(() if imports == "nothing" else imports.split(", ")) | {"findings", "printable"}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The full name of the module in a file."""
    parts = ["inspector", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> frozenset[str]:
    """Full names of what a file imports, wherever in it: of this package the modules, of others as written."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            modules = {name for alias in node.names if (name := f"{node.module}.{alias.name}") in NAMES}
            # Names that are taken from a package's __init__ are imports of that.
            names |= modules if len(modules) == len(node.names) else modules | {node.module}
    return frozenset(names)


def test_the_page_names_every_room() -> None:
    rooms = {room(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms == may_import().keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may_know(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in sorted(imported(path)):
        parts = name.split(".")
        if parts[0] == "inspector" and len(parts) > 1:
            assert parts[1] == here or parts[1] in may_import()[here], f"{here} may not import {name}"


def _edges(name: str) -> list[str]:
    """The modules of this package that module ``name`` imports.  A package's __init__ gathers its own modules."""
    return sorted(other for other in imported(NAMES[name]) if other in NAMES and other != name)


def test_no_file_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()
    way: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        assert name not in way, "a circle: " + " -> ".join([*way[way.index(name) :], name])
        way.append(name)
        for other in _edges(name):
            visit(other)
        way.pop()
        done.add(name)

    for name in NAMES:
        visit(name)


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if room(p) in GROUND and p.name != "bulk.py"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_the_ground_floor_needs_the_standard_library_alone(path: Path) -> None:
    """The interpreter inside gdb imports it."""
    for name in imported(path):
        top = name.split(".")[0]
        assert top == "inspector" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
