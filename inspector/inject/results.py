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

    ``mode`` is what was asked for (empty: as the kernel chooses).  ``verdict``: ``found`` by its ``owner``, or
    ``missed``; ``silent`` where nothing must be found, or ``false alarm``; ``not there``: this kernel does no such
    thing; ``not injected`` for ``reason``.
    """

    fault: str
    kernel: str
    verdict: str
    found: tuple[str, ...]
    seconds: float
    reason: str = ""
    mode: str = ""
    owner: str = ""
