"""``python -m inspector.report.rules`` writes docs/rules.md: every rule, where it comes from, and who judges it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import inspector.check  # noqa: F401 - registers the invariants
from inspector.check.catalogue import CATALOGUE
from inspector.check.unseen import NOT_SHOWN
from inspector.inject.catalogue import FAULTS
from inspector.protocol.rules import RULES

PAGE: Final = Path(__file__).resolve().parents[2] / "docs/rules.md"
_GROUPS: Final = {
    "S": "Structure",
    "R": "References",
    "M": "Mappings",
    "B": "Break-before-make, barriers, TLBI, caches",
    "C": "Concurrency",
    "V": "VMIDs and contexts",
    "H": "EL2's own stage 1",
    "P": "Who owns what (pKVM)",
    "N": "Shadow tables of nested guests",
}
_HEAD: Final = """# Rules

Generated from the code by `python -m inspector.report.rules`. **check** judges one instant (`inspector check`),
**trace** what happens between two (`inspector trace`, `replay`, `validate`), **faults** are those of `inspector inject`
that this rule must find. [invariants.md](invariants.md) says why each holds, and where a release has it otherwise.
"""


def page() -> str:
    """The text as it is to be."""
    return "".join((_HEAD, *(line for group in _GROUPS for line in _section(group))))


def _section(group: str) -> Iterator[str]:
    """A heading and its table, by number."""
    unseen = {each.id: each for each in NOT_SHOWN}
    ids = sorted({*CATALOGUE, *RULES, *unseen}, key=_order)
    yield f"\n## {_GROUPS[group]}\n\n| rule | what must hold | source | judged by |\n|---|---|---|---|\n"
    for rule in (each for each in ids if each[0] == group):
        seen, hidden = CATALOGUE.get(rule), unseen.get(rule)
        one = seen or hidden
        statement = one.statement if one is not None else f"{RULES[rule][0].upper()}{RULES[rule][1:]}."
        source = one.source if one is not None else ""
        yield f"| {rule} | {_cell(statement)} | {_cell(source)} | {_cell('; '.join(_judges(rule)))} |\n"


def _judges(rule: str) -> Iterator[str]:
    if rule in CATALOGUE:
        yield "check"
    hidden = next((each for each in NOT_SHOWN if each.id == rule), None)
    if rule in RULES:
        yield "trace"
    elif hidden is not None:
        yield f"not by check: {hidden.reason}" if rule not in CATALOGUE else f"not this part: {hidden.reason}"
    if faults := [name for name, fault in FAULTS.items() if fault.owner == rule]:
        yield f"faults: {', '.join(faults)}"


def _order(rule: str) -> tuple[str, int]:
    return rule[0], int(re.sub(r"\D", "", rule) or 0)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
