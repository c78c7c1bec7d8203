"""The catalogue of rules as a page."""

from __future__ import annotations

import re
from pathlib import Path

from inspector.report import rules

REPO = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_code_says() -> None:
    """Mend with ``python -m inspector.report.rules``."""
    assert rules.PAGE.read_text(encoding="utf-8") == rules.page()


def test_every_rule_of_the_invariants_is_there() -> None:
    wanted = set(re.findall(r"\*\*([A-Z]\d+)\*\*", (REPO / "docs/invariants.md").read_text()))
    there = set(re.findall(r"^\| ([A-Z]\d+) \|", rules.page(), re.M))
    assert wanted
    assert wanted <= there
