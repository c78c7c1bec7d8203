"""What became of a fault: injected by itself, or as a cell of the matrix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Injected:
    """What was done: the address, how often it was passed by before, in how many seconds; ``done``: it was."""

    fault: str
    address: int
    passed: int
    seconds: float
    done: bool


@dataclass(frozen=True)
class Cell:
    """One fault in one kernel: ``found`` are the rules that it broke, and ``model`` if the model does otherwise.

    ``verdict``: ``found`` by an owner, ``missed``, or ``not injected`` for ``reason``.
    """

    fault: str
    kernel: str
    verdict: str
    found: tuple[str, ...]
    seconds: float
    reason: str = ""
