"""The automaton on traces written by hand from the architecture's rules: each good one, and each that breaks a rule.

A trace is the event grammar, one event a line, with ``cpu=N`` before it where there are several.  Its comment says
``after:`` which trace comes first, and in ``breaks:`` the rules that must be reported, and no others.  All are of a
6.12 kernel with 4K pages and 40-bit IPA, no FWB.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.codec import Geometry
from inspector.events import parse_raw
from inspector.generations import generation
from inspector.protocol.automaton import Protocol
from inspector.protocol.facts import facts_of
from inspector.protocol.rules import Violation

TRACES = Path(__file__).parent / "traces"
ALL = sorted(path.stem for path in TRACES.glob("*_*.trace"))
FACTS = facts_of(generation("6.12"), Geometry.for_ipa(40))


def header(text: str, word: str) -> str:
    found = re.search(rf"^# {word}: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def feed(protocol: Protocol, name: str) -> Protocol:
    text = (TRACES / f"{name}.trace").read_text()
    if first := header(text, "after"):
        feed(protocol, first)
    for line in text.splitlines():
        if not line.startswith("#"):
            found = re.match(r"cpu=(\d+) (.*)", line)
            protocol.feed(int(found[1]) if found else 0, parse_raw(found[2] if found else line))
    return protocol


def violations(name: str) -> list[Violation]:
    return feed(Protocol(FACTS), name).violations


def broken(name: str) -> set[str]:
    return set(header((TRACES / f"{name}.trace").read_text(), "breaks").split())


@pytest.mark.parametrize("name", ALL)
def test_a_trace_breaks_what_it_says(name: str) -> None:
    found = violations(name)
    assert {each.rule for each in found} == broken(name), "\n".join(map(str, found))
    assert bool(found) == name.startswith("bad_")


def test_a_violation_says_all_that_is_known() -> None:
    (found,) = violations("bad_wrong_level")
    assert found.what.endswith("still in the TLBs: the TLBI hints at level 2")
    assert found.where == "entry at 0x40020000, level 3, IA 0x80000000"
    assert found.history[-2:] == (
        "CPU 0: tlbi kind=ipa ipa=0x80000000 level=2",
        "CPU 0: put page=0x40020000 count=1",
    )


def test_a_fork_goes_its_own_way() -> None:
    protocol = feed(Protocol(FACTS), "table")
    other = protocol.fork()
    protocol.feed(0, parse_raw("store pa=0x40020000 old=0x500007ff new=0x600007ff release=1 cas=0"))
    assert [each.rule for each in protocol.violations] == ["B1"]
    assert not other.violations
    other.feed(0, parse_raw("store pa=0x40020000 old=0x500007ff new=0x600007ff release=1 cas=0"))
    assert [each.rule for each in other.violations] == ["B1"]
