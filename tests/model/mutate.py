"""Mutations of the model: small wrong edits of its source, applied while it runs.

A :class:`Mutation` replaces one piece of a module's text by another; the functions compiled from the edited text
lend their code to the live ones (``__code__``), so that every import elsewhere sees the edit, and give it back.
A :class:`Flip` changes one named behaviour of a generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from inspector.generations import GENERATIONS


@dataclass(frozen=True)
class Mutation:
    """``old`` occurs exactly once in ``inspector.model.<module>``; ``label`` is the generation that must notice."""

    name: str
    module: str
    old: str
    new: str
    label: str = "6.12"


@dataclass(frozen=True)
class Flip:
    """One field of ``Generation`` of ``label`` set to ``value``."""

    field: str
    value: Any
    label: str

    def __str__(self) -> str:
        value = self.value.name if isinstance(self.value, enum.Enum) else self.value
        return f"{self.label}-{self.field}-{value}"


def _functions(namespace: dict[str, Any], module_name: str) -> Iterator[tuple[str, types.FunctionType]]:
    for name, thing in namespace.items():
        if isinstance(thing, types.FunctionType) and thing.__module__ == module_name:
            yield name, thing
        elif isinstance(thing, type) and thing.__module__ == module_name:
            for attribute, member in vars(thing).items():
                function = member.fget if isinstance(member, property) else member
                if isinstance(function, types.FunctionType):
                    yield f"{name}.{attribute}", function


@contextlib.contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The model with this mutation.  Raises ``ValueError`` when the text to replace is not there exactly once."""
    module = importlib.import_module(f"inspector.model.{mutation.module}")
    source = inspect.getsource(module)
    if source.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {mutation.old!r} occurs {source.count(mutation.old)} times")
    mutated = types.ModuleType(module.__name__)
    mutated.__file__ = module.__file__
    exec(compile(source.replace(mutation.old, mutation.new), module.__file__ or "", "exec"), vars(mutated))
    edited = dict(_functions(vars(mutated), module.__name__))
    saved: list[tuple[types.FunctionType, types.CodeType]] = []
    try:
        for name, function in _functions(vars(module), module.__name__):
            saved.append((function, function.__code__))
            function.__code__ = edited[name].__code__
        yield
    finally:
        for function, code in saved:
            function.__code__ = code


@contextlib.contextmanager
def flipped(flip: Flip) -> Iterator[None]:
    """The generation with one behaviour changed."""
    known = GENERATIONS
    original = known[flip.label]
    known[flip.label] = dataclasses.replace(original, **{flip.field: flip.value})
    try:
        yield
    finally:
        known[flip.label] = original


def other_values(field: str, value: Any) -> list[Any]:
    """What else a behaviour could be: the other truth value, the other members of an enumeration."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, enum.Enum):
        return [other for other in type(value) if other is not value]
    return []
