"""Making a failing script small: drop operations, then simplify their words, as long as the two sides still differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from inspector.crosscheck.differ import Difference, Open, Pair, What, run_on
from inspector.crosscheck.kernel import Kernel
from inspector.model.operations import Operation, ScriptError, format_operation, parse_operation
from inspector.model.session import Session, Setup, parse_setup

Fails = Callable[[list[str]], Difference | None]


def _drop(lines: list[str], fails: Fails) -> list[str]:
    """Remove chunks of lines, ever smaller ones, while it still fails.

    Line 0 is the machine, and inits stay: the kernel's code does not survive being called without a table.
    """
    chunk = max(1, (len(lines) - 1) // 2)
    while chunk:
        at = 1
        while at < len(lines):
            gone = [line for line in lines[at : at + chunk] if "init" not in line.split()[0]]
            shorter = lines[:at] + [line for line in lines[at : at + chunk] if line not in gone] + lines[at + chunk :]
            if gone and fails(shorter) is not None:
                lines = shorter
            else:
                at += chunk
        chunk //= 2
    return lines


_SIMPLER: tuple[dict[str, object], ...] = (
    {"fail_alloc": 0},
    {"lose_cas": 0},
    {"flags": 0},
    {"cache": 1 << 20},
    {"prot": 3},
    {"prot": 15},
    {"change": 0},
    {"size": 0x1000},
    {"size": 0x200000},
)


def _plainer(lines: list[str], fails: Fails) -> list[str]:
    """The machine with as few words as possible that say something unusual; its generation stays."""
    usual = {word.partition("=")[0]: word for word in Setup().text().split()}
    for key in [word.partition("=")[0] for word in lines[0].split()[1:]]:
        words = lines[0].split()
        at = next(number for number, word in enumerate(words) if word.partition("=")[0] == key)
        if key == "generation" or words[at] == usual.get(key):
            continue
        words[at : at + 1] = [usual[key]] if key in usual else []
        candidate = [" ".join(words), *lines[1:]]
        if _can_be(candidate[0]) and fails(candidate) is not None:
            lines = candidate
    return lines


def _can_be(machine: str) -> bool:
    try:
        Session(parse_setup(machine))
    except (ScriptError, ValueError):
        return False
    return True


def _simplify(lines: list[str], fails: Fails) -> list[str]:
    for at in range(1, len(lines)):
        for change in _SIMPLER:
            try:
                operation: Operation = parse_operation(lines[at])
                simpler = format_operation(replace(operation, **change))  # type: ignore[arg-type]
            except ScriptError:
                continue
            if len(simpler) >= len(lines[at]):
                continue
            candidate = [*lines[:at], simpler, *lines[at + 1 :]]
            if fails(candidate) is not None:
                lines = candidate
    return lines


def shrink(lines: list[str], run: Fails) -> list[str]:
    """A script that still makes the two sides differ, as short as greedy deletion gets it; ``run`` tells whether.

    A fault of the kernel's code stays one, and one that the model does not have: a shorter script may misuse the
    tables itself, and then both sides do.  A broken rule stays the same rule, and nothing else becomes one.
    """
    first = run(lines)
    if first is None:
        return lines

    def fails(shorter: list[str]) -> Difference | None:
        found = run(shorter)
        if found is None:
            return None
        if first.what is What.FAULT:
            return found if (found.what, found.model) == (first.what, first.model) else None
        return found if _rule(found) == _rule(first) else None

    while True:
        before = lines
        lines = _plainer(_simplify(_drop(lines, fails), fails), fails)
        if lines == before:
            return lines


def _rule(difference: Difference) -> str:
    """The rule, where that is all that differs."""
    return difference.broken.rule if difference.what is What.PROTOCOL and difference.broken else ""


_HASTE = 250
"""Milliseconds after which an operation counts as endless while a script is made small, which takes dozens of runs."""


def shrunk(lines: list[str], kernel: Kernel) -> list[str]:
    """A script that makes the model and a kernel's code differ, made small."""
    return shrunk_on(lines, lambda setup: Pair(setup, kernel))


def shrunk_on(lines: list[str], open_sides: Open) -> list[str]:
    """A script that makes two sides differ, made small."""
    small = shrink(lines, lambda some: run_on(some, open_sides, _HASTE))
    return small if run_on(small, open_sides) else lines
