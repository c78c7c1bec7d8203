"""The catalogue of invariants, and how they are run.

An invariant is a function from a `Context` to findings, registered with its id, its statement and the source of the
rule.  Adding one is writing that function in a module that ``inspector.check`` imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from inspector.check.context import Context
from inspector.check.overlap import without_repeats
from inspector.findings import BadInput, Finding, Severity
from inspector.snapshot import Capture, Scope

Check = Callable[[Context], Iterable[Finding]]


@dataclass(frozen=True)
class Invariant:
    """One rule: ``id`` as in findings, the ``statement``, its ``source``, and the function that holds it."""

    id: str
    statement: str
    source: str
    run: Check


@dataclass(frozen=True)
class Unseen:
    """A rule, or a part of one, that no single instant can show: ``reason`` says why, and what shows it instead."""

    id: str
    statement: str
    source: str
    reason: str


#: Every registered invariant by id, in the order of registration.
CATALOGUE: dict[str, Invariant] = {}


def invariant(id: str, statement: str, source: str) -> Callable[[Check], Check]:
    """Register the decorated function as the invariant ``id``."""

    def register(run: Check) -> Check:
        assert id not in CATALOGUE, id
        CATALOGUE[id] = Invariant(id, statement, source, run)
        return run

    return register


def _order(invariant: Invariant) -> tuple[str, int]:
    match = re.fullmatch(r"([A-Z]+)(\d+)", invariant.id)
    assert match, invariant.id
    return match[1], int(match[2])


def _known(ids: Iterable[str]) -> set[str]:
    wanted = {name.strip().upper() for name in ids}
    unknown = sorted(wanted - CATALOGUE.keys())
    if unknown:
        raise BadInput(
            f"there is no check {', '.join(unknown)}: 'inspector check --list' names the {len(CATALOGUE)} there are"
        )
    return wanted


def selected(only: Iterable[str] | None = None, skip: Iterable[str] | None = None) -> list[Invariant]:
    """The invariants ``only`` names (all when empty or ``None``) without those of ``skip``, ordered by id.

    Raises `BadInput` for an id that does not exist.
    """
    chosen = _known(only or ()) or set(CATALOGUE)
    chosen -= _known(skip or ())
    return sorted((CATALOGUE[id] for id in chosen), key=_order)


def run_checks(capture: Capture, only: Iterable[str] | None = None, skip: Iterable[str] | None = None) -> list[Finding]:
    """Judge ``capture``: errors first, then notes, each in the order of the catalogue and of the tables.

    Raises `BadInput` for an unknown id, and for a capture that was not taken in full.
    """
    chosen = selected(only, skip)
    if capture.scope is not Scope.FULL:
        raise BadInput(
            f"this capture holds only what '{capture.scope}' needs: checks need one made with 'inspector capture'"
        )
    context = Context(capture)

    def all_findings() -> Iterator[Finding]:
        for item in chosen:
            yield from item.run(context)

    return sorted(without_repeats(list(all_findings())), key=lambda f: f.severity is not Severity.ERROR)
