"""Every generation known: the files of this room that are named for one, oldest first."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Final

from inspector.generations.record import Generation


def number(series: str) -> tuple[int, int]:
    """``6.12`` as numbers that compare."""
    major, minor = series.split(".")
    return int(major), int(minor)


def _read() -> dict[str, Generation]:
    files = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])]
    modules = [importlib.import_module(f"{__package__}.{name}") for name in files if re.fullmatch(r"v\d+_\d+", name)]
    found = [module.GENERATION for module in modules]
    return {each.label: each for each in sorted(found, key=lambda each: number(each.label))}


GENERATIONS: Final = _read()
"""By label."""


def generation(label: str) -> Generation:
    """The generation called ``label``.  Raises ``KeyError`` with the known labels in its message."""
    if label not in GENERATIONS:
        raise KeyError(f"no generation {label!r}; known are {', '.join(GENERATIONS)}")
    return GENERATIONS[label]
