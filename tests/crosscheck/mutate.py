"""Mutations of the model: one function, method or constant of it, named, replaced by a wrong one while a test runs.

A :class:`Mutation` names its hook (``map_unlink.make_pte``, ``unmap.Unmap.visit``) and makes the wrong form of it from
the true one; every name under which the model's modules know a function sees the replacement.  A :class:`Flip` changes
one named behaviour of a generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from inspector.generations import GENERATIONS
from inspector.model.state import Visit

Change: TypeAlias = Callable[[Any], Any]
"""From the true function (or constant) to the wrong one."""

Place: TypeAlias = tuple[Any, str]
"""A module or class, and a name in it."""

_ROOM = "inspector.model."


@dataclass(frozen=True)
class Mutation:
    """``hook`` of ``inspector.model`` becomes ``change(hook)``; ``label`` is the generation that must notice."""

    name: str
    hook: str
    change: Change
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


def _find(hook: str) -> tuple[Any, list[Place]]:
    """What a hook names, and all places that hold it: a function is imported elsewhere, a constant is not followed."""
    module, *path = hook.split(".")
    owner: Any = importlib.import_module(_ROOM + module)
    for name in path[:-1]:
        owner = getattr(owner, name)
    real = vars(owner)[path[-1]]
    places = [(owner, path[-1])]
    if callable(real):
        modules = [module for name, module in list(sys.modules.items()) if name.startswith(_ROOM)]
        classes = [thing for module in modules for thing in vars(module).values() if isinstance(thing, type)]
        holders = [*modules, *dict.fromkeys(each for each in classes if each.__module__.startswith(_ROOM))]
        places += [(each, name) for each in holders for name, thing in vars(each).items() if thing is real]
    return real, places


def _put(places: list[Place], thing: Any) -> None:
    for owner, name in places:
        setattr(owner, name, thing)


@contextlib.contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The model with this mutation.  Raises ``KeyError`` or ``AttributeError`` when there is no such hook."""
    real, places = _find(mutation.hook)
    _put(places, mutation.change(real))
    try:
        yield
    finally:
        _put(places, real)


# ---- kinds of wrong functions


def nothing(real: Any) -> Any:
    """It does nothing."""
    return lambda *_, **__: None


def answers(value: Any) -> Change:
    """It always gives ``value``."""
    return lambda real: lambda *_, **__: value


def result(wrong: Callable[[Any], Any]) -> Change:
    """What it gives is made wrong."""
    return lambda real: lambda *args, **words: wrong(real(*args, **words))


def arguments(wrong: Callable[..., tuple[Any, ...]]) -> Change:
    """It is given other arguments."""
    return lambda real: lambda *args, **words: real(*wrong(*args, **words))


def during(hook: str, change: Change) -> Change:
    """While it runs, another function of the model is wrong."""

    def wrong(real: Any) -> Any:
        inner, places = _find(hook)
        replacement = change(inner)

        def function(*args: Any, **words: Any) -> Any:
            _put(places, replacement)
            try:
                return real(*args, **words)
            finally:
                _put(places, inner)

        return function

    return wrong


def sees(wrong: Callable[[Visit], dict[str, Any]]) -> Change:
    """Its visit context is another one: ``wrong`` gives the fields that differ."""

    def change(real: Any) -> Any:
        def function(owner: Any, ctx: Visit, *rest: Any) -> Any:
            return real(owner, moved(ctx, **wrong(ctx)), *rest)

        return function

    return change


def moved(ctx: Visit, **fields: Any) -> Visit:
    """A copy of a visit context with other fields."""
    copy = Visit()
    for name in Visit.__slots__:
        setattr(copy, name, fields.get(name, getattr(ctx, name)))
    return copy


# ---- generations


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
