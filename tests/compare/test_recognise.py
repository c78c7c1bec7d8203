"""Kernels are recognised by their types and symbols (kernel.md 0), by their release only when these are unknown."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from inspector.behaviours import GENERATIONS, recognise, series_of
from inspector.model import GENERATIONS as MODELLED
from inspector.model import generation
from tests.check.build import good_world

_OLD = ["mm_ops"]
_NEW = ["mm_ops", "visit_ctx"]


@dataclass(frozen=True)
class Facts:
    release: str
    traits: dict[str, bool] = field(default_factory=dict)


#: What kernel.md 0 and 13 say that each series has.
TRAITS = {
    "5.10": [],
    "5.15": [*_OLD, "vmid_struct"],
    "6.1": _OLD,
    "6.6": _NEW,
    "6.12": [*_NEW, "signed_level", "mmu_vtcr", "nested_mmus"],
    "6.18": [*_NEW, "signed_level", "mmu_vtcr", "nested_mmus", "pkvm_mappings"],
    "7.3": [*_NEW, "signed_level", "mmu_vtcr", "nested_mmus", "pkvm_mappings", "invalid_pte_type", "xn_two_bits"],
}


def test_the_model_has_every_generation() -> None:
    assert list(MODELLED) == list(GENERATIONS) == list(TRAITS)


@pytest.mark.parametrize("label", TRAITS)
def test_by_traits(label: str) -> None:
    found = recognise(Facts(f"{label}.42-generic", dict.fromkeys(TRAITS[label], True)))
    assert (found.label, found.assumed, found.as_read) == (label, False, True)


@pytest.mark.parametrize(("release", "label"), [("6.9.1", "6.12"), ("6.4.0-rc1", "6.6"), ("6.19.3", "6.18")])
def test_a_series_that_nobody_read_is_not_proven(release: str, label: str) -> None:
    found = recognise(Facts(release, dict.fromkeys(TRAITS[label], True)))
    assert (found.label, found.assumed, found.as_read) == (label, False, False)


@pytest.mark.parametrize(
    ("release", "label"),
    [("5.15.100", "5.15"), ("6.0.3", "5.15"), ("6.12.1", "6.12"), ("6.17.0", "6.12"), ("8.1", "7.3")],
)
def test_by_release_when_types_are_unknown(release: str, label: str) -> None:
    found = recognise(Facts(release))
    assert (found.label, found.assumed) == (label, True) and str(found.series) in found.how


def test_nothing_known() -> None:
    found = recognise(Facts("unknown"))
    assert found.assumed and found.label == "7.3" and not found.as_read


def test_series() -> None:
    assert series_of("6.12.107+deb13-cloud-arm64") == "6.12"
    assert series_of("6.1-rc3") == "6.1"
    assert series_of("unknown") is None


def test_the_same_facts_as_the_checks() -> None:
    from inspector.compare import kernel_of

    for label, names in TRAITS.items():
        world = good_world(dict.fromkeys(names, True))
        world.host_changes = {"release": f"{label}.1"}
        kernel = kernel_of(world.capture().host)
        read = generation(label)
        ours = kernel.behaviours
        assert (ours.locked_mask, ours.locked_value, ours.two_bit_xn, ours.counts_nonzero, ours.lpa2) == (
            read.locked_mask,
            read.locked_value,
            read.two_bit_xn,
            read.counts_nonzero,
            read.lpa2,
        )
