"""Kernels are recognised by their types and symbols (kernel.md 0), by their release only when these are unknown."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from inspector.generations import GENERATIONS, TRAITS, Generation, recognise, series_of
from inspector.generations.facts import FACTS
from inspector.generations.registry import number

_OLD = ["pgtable", "mm_ops"]
_NEW = [*_OLD, "visit_ctx"]
_LATER = [*_NEW, "signed_level", "prot_normal_nc", "present_invalid_bit11"]

#: What kernel.md 0 and 13 say that each series has.
SERIES = {
    "5.10": ["pgtable", "vmid_struct"],
    "5.15": [*_OLD, "vmid_struct"],
    "6.1": _OLD,
    "6.6": _NEW,
    "6.12": _LATER,
    "6.18": [*_LATER, "pkvm_mappings"],
    "6.19": [*_LATER, "pkvm_mappings", "xn_two_bits"],
    "7.0": [*_LATER, "pkvm_mappings", "xn_two_bits", "as_s1"],
    "7.2": [*_LATER, "pkvm_mappings", "xn_two_bits", "as_s1", "invalid_pte_type"],
    "7.3": [*_LATER, "pkvm_mappings", "xn_two_bits", "as_s1", "invalid_pte_type"],
}


def facts(names: list[str]) -> dict[str, bool]:
    return {name: name in names for name in TRAITS}


def test_every_generation_is_told_by_traits() -> None:
    assert list(GENERATIONS) == list(SERIES)
    for label, each in GENERATIONS.items():
        assert each.label == label
        assert {*each.has, *each.lacks} <= TRAITS.keys()


@pytest.mark.parametrize("label", SERIES)
def test_by_traits(label: str) -> None:
    found = recognise(f"{label}.42-generic", facts(SERIES[label]))
    assert (found.label, found.assumed, found.as_read) == (label, False, True)
    assert found.behaviours == GENERATIONS[label]


@pytest.mark.parametrize("label", SERIES)
def test_look_alikes_are_alike(label: str) -> None:
    """What traits cannot tell apart behaves in one way; there the kernel's series chooses the name."""
    matching = [each for each in GENERATIONS.values() if each.matches(facts(SERIES[label]))]
    assert {behaviours(each) for each in matching} == {behaviours(GENERATIONS[label])}


def test_what_traits_tell_apart_behaves_in_another_way() -> None:
    told = {(each.has, each.lacks) for each in GENERATIONS.values()}
    assert len(told) == len({behaviours(each) for each in GENERATIONS.values()})


def behaviours(each: Generation) -> tuple[object, ...]:
    return tuple(getattr(each, name) for name in FACTS)


@pytest.mark.parametrize(("release", "label"), [("6.9.1", "6.12"), ("6.4.0-rc1", "6.6"), ("7.1.13", "7.2")])
def test_a_series_that_nobody_read_is_not_cross_checked(release: str, label: str) -> None:
    found = recognise(release, facts(SERIES[label]))
    assert (found.label, found.assumed, found.as_read, found.cross_checked) == (label, False, False, False)
    assert f"the kernel is a {found.series}" in found.text and found.text.endswith("not cross-checked")


def test_6_8_has_signed_levels_and_no_normal_non_cacheable() -> None:
    names = [name for name in SERIES["6.12"] if name != "prot_normal_nc"]
    found = recognise("6.8.0", facts(names)).behaviours
    assert found.lpa2 and not found.normal_nc
    assert recognise("6.12.0", facts(SERIES["6.12"])).behaviours.normal_nc


def test_old_capture_files_lack_the_newer_traits() -> None:
    """A capture that 1.0 made: the traits of that time, none of those added since."""
    since = {"pgtable", "as_s1"}
    for label in [label for label in SERIES if label != "7.0"]:  # then taken for 7.3, or for 6.18
        old = {name: value for name, value in facts(SERIES[label]).items() if name not in since}
        found = recognise(f"{label}.7", old)
        assert (found.label, found.as_read) == (label, True)
        assert found.assumed == (label == "5.10")  # nothing told it then but its release


@pytest.mark.parametrize(
    ("release", "label"),
    [
        ("5.4.1", "5.10"),
        ("5.15.100", "5.15"),
        ("6.0.3", "5.15"),
        ("6.12.1", "6.12"),
        ("6.17.0", "6.12"),
        ("8.1", "7.3"),
    ],
)
def test_by_release_when_types_are_unknown(release: str, label: str) -> None:
    found = recognise(release, {})
    assert (found.label, found.assumed) == (label, True) and str(found.series) in found.how


def test_nothing_known() -> None:
    found = recognise("unknown", {})
    assert found.assumed and found.label == "7.3" and not found.as_read


def test_series() -> None:
    assert series_of("6.12.107+deb13-cloud-arm64") == "6.12"
    assert series_of("6.1-rc3") == "6.1"
    assert series_of("unknown") is None


def test_every_behaviour_has_its_source() -> None:
    """A commit that is named is named whole; the section is one of docs/kernel.md."""
    about = {"label", "source", "cross_checked", "has", "lacks"}
    assert FACTS.keys() == {field.name for field in dataclasses.fields(Generation)} - about
    page = (Path(__file__).parents[2] / "docs" / "kernel.md").read_text()
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+\w?)?)\.? ", page, re.M))
    for name, fact in FACTS.items():
        assert fact.section in sections, name
        assert bool(fact.commits) != bool(fact.seen), name
        for commit in fact.commits:
            assert re.fullmatch(r"[0-9a-f]{12}", commit.hash) and re.fullmatch(r"\d\.\d+", commit.release), name
            assert re.match(r"(KVM: )?arm64(: |/mm: )", commit.subject), name


def test_a_field_changes_with_the_release_of_its_commit() -> None:
    """No generation older than the first commit of a field differs from the oldest one in it, but by a back-port."""
    back_ported = {
        # kernel.md 0: 6.1.y has "Condition HW AF updates on config option", and zaps tables without a level hint.
        ("6.1", "ha_always"),
        ("6.1", "unmap_table_tlbi"),
    }
    first = GENERATIONS["5.10"]
    for name, fact in FACTS.items():
        for label, each in GENERATIONS.items():
            if fact.commits and number(label) < number(fact.commits[0].release) and (label, name) not in back_ported:
                assert getattr(each, name) == getattr(first, name), (label, name)
