"""Which room may import which (design: the house and who lives in it)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "inspector"
GROUND = {"codec", "events", "findings", "numbers", "printable"}
MAY = {
    "codec": set(),
    "events": set(),
    "findings": set(),
    "printable": set(),
    "numbers": {"printable"},
    "snapshot": {"codec"},
    "generations": {"snapshot", "codec", "events"},
    "tables": {"codec"},
    "model": {"codec", "events", "generations", "tables"},
    "symbols": set(),
    "target": set(),
    "kernel": {"snapshot", "target", "symbols", "tables", "generations", "codec"},
    "capture": {"snapshot", "kernel", "tables", "codec", "generations", "target", "symbols"},
    "compare": {"snapshot", "capture", "model", "tables", "generations", "codec", "events"},
    "check": {"snapshot", "capture", "compare", "model", "tables", "generations", "codec"},
    "report": {"snapshot", "check", "compare", "capture", "tables", "generations", "codec", "model", "events"},
}
"""Beside the findings, which every room may name."""

MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in {"cli.py", "options.py"}
)


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "inspector" else set()
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may_know(path: Path) -> None:
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "inspector" and len(parts) > 1:
            if here == "kernel" and name in ("inspector.snapshot",):
                continue
            assert parts[1] in MAY[here] | {here, "findings", "numbers", "printable"}, f"{here} may not import {name}"


@pytest.mark.parametrize(
    "path", [p for p in MODULES if room(p) in GROUND and p.name != "bulk.py"], ids=lambda p: p.name
)
def test_the_ground_floor_needs_the_standard_library_alone(path: Path) -> None:
    """The interpreter inside gdb imports it."""
    for name in imported(path):
        top = name.split(".")[0]
        assert top == "inspector" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
