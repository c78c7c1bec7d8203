"""The catalogue of invariants: how a rule is declared, and what it says its findings with.

An invariant is a function from a `Judge` and a `Context` to findings, registered with its id, its statement and the
source of the rule.  Adding one is writing that function in a module that ``inspector.check`` imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from inspector.check.context import Context
from inspector.check.places import Span
from inspector.findings import BadInput, Finding, History, Severity, Where

Check = Callable[["Judge", Context], Iterable[Finding]]


@dataclass(frozen=True)
class Invariant:
    """One rule: ``id`` as in findings, the ``statement``, its ``source``, and the function that holds it.

    ``why`` and ``function`` are what its findings say unless they say otherwise.  A rule about the ``form`` of tables
    (entries, pages, reference counts, whatever they map) is shown by ``inspector diff`` too; a ``general`` one speaks
    last, of what no other has.  One whose findings may be ``passing`` is asked again of later looks (`lasting`).
    """

    id: str
    statement: str
    source: str
    run: Check
    why: str
    function: str | None
    form: bool
    general: bool
    passing: bool


@dataclass(frozen=True)
class Unseen:
    """A rule, or a part of one, that no single instant can show: ``reason`` says why, and what shows it instead."""

    id: str
    statement: str
    source: str
    reason: str


#: Every registered invariant by id, in the order of registration.
CATALOGUE: dict[str, Invariant] = {}


def invariant(
    id: str,
    statement: str,
    source: str,
    function: str | None = None,
    why: str = "",
    *,
    form: bool = False,
    general: bool = False,
    passing: bool = False,
) -> Callable[[Check], Check]:
    """Register the decorated function as the invariant ``id``."""

    def register(run: Check) -> Check:
        assert id not in CATALOGUE, id
        CATALOGUE[id] = Invariant(id, statement, source, run, why, function, form, general, passing)
        return run

    return register


@dataclass(frozen=True)
class Judge:
    """One rule at work: what it says.

    ``functions`` names the kernel functions of this generation by what they do; any other name stands for itself (an
    empty one for none at all).
    """

    rule: Invariant
    functions: Mapping[str, str]

    def error(
        self,
        place: Where | Span,
        expected: str,
        actual: str,
        why: str | None = None,
        function: str | None = None,
        *,
        excuse: str | None = None,
        other: Where | None = None,
    ) -> Finding:
        """What contradicts the rule; with an ``excuse``, a note that states it.  ``other``: see `Finding`.

        Of a ``passing`` rule the excuse holds only until a later look: then ``why`` is the reason.
        """
        if excuse is not None:
            lasting = (Severity.ERROR, why or self.rule.why) if self.rule.passing else None
            return replace(self.note(place, expected, actual, excuse, function), lasting=lasting)
        found = self._finding(Severity.ERROR, place, expected, actual, why or self.rule.why, function)
        return found if other is None else replace(found, other=other)

    def note(
        self,
        place: Where | Span,
        expected: str,
        actual: str,
        why: str,
        function: str | None = None,
        *,
        history: History | None = None,
    ) -> Finding:
        """What has a legal explanation, which ``why`` states."""
        found = self._finding(Severity.NOTE, place, expected, actual, why, function)
        return found if history is None else replace(found, history=history)

    def _finding(
        self,
        severity: Severity,
        place: Where | Span,
        expected: str,
        actual: str,
        why: str,
        function: str | None,
    ) -> Finding:
        where, many = (place.where, place.many) if isinstance(place, Span) else (place, "")
        named = self.rule.function if function is None else function
        known = self.functions.get(named, named) if named else None
        return Finding(self.rule.id, severity, where, expected, actual + many, why, known)


def _order(one: Invariant) -> tuple[str, int]:
    match = re.fullmatch(r"([A-Z]+)(\d+)", one.id)
    assert match, one.id
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


def judged(context: Context, chosen: Iterable[Invariant]) -> list[Finding]:
    """What the chosen rules find: errors first, then notes, each in the order of the catalogue and of the tables."""

    def found() -> Iterator[Finding]:
        for one in sorted(chosen, key=lambda rule: rule.general):
            yield from one.run(Judge(one, context.functions), context)

    return in_order(found())


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then notes, each in the order of the catalogue; those of one rule as they come."""
    return sorted(findings, key=lambda f: (f.severity is not Severity.ERROR, _order(CATALOGUE[f.check])))
