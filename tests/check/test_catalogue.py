"""The catalogue itself, and the behaviours that checks ask for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.check import CATALOGUE, NOT_SHOWN, run_checks, selected
from inspector.codec import Format, InvalidForm
from inspector.findings import BadInput, Severity
from inspector.generations import code_of, recognise
from inspector.snapshot import Scope
from tests.check.build import TRAITS_61, TRAITS_73, TRAITS_510, TRAITS_612, Guest, World, good_world

SHOWN = {f"S{n}" for n in range(1, 10)} | {f"M{n}" for n in (*range(1, 10), 11)} | {"V1", "V2", "R1"}
#: Every id of the page of invariants, which is where ids are defined.
ALL = set(re.findall(r"\*\*([A-Z]\d+)\*\*", (Path(__file__).resolve().parents[2] / "docs/invariants.md").read_text()))


def test_every_check_states_its_rule_and_source() -> None:
    assert CATALOGUE.keys() >= SHOWN
    for id, item in CATALOGUE.items():
        assert item.id == id and re.fullmatch(r"[A-Z]\d+", id)
        assert item.statement.endswith(".") and item.source


def test_what_one_instant_cannot_show_is_listed_with_the_reason() -> None:
    assert CATALOGUE.keys() | {one.id for one in NOT_SHOWN} == ALL
    for one in NOT_SHOWN:
        assert one.statement.endswith(".") and one.source and len(one.reason) > 20


def test_only_and_skip() -> None:
    assert [item.id for item in selected(["s3", "R1"])] == ["R1", "S3"]
    assert "S3" not in {item.id for item in selected(skip=["S3"])}
    assert {item.id for item in selected()} == CATALOGUE.keys()
    with pytest.raises(BadInput, match="Z9"):
        selected(["Z9"])
    with pytest.raises(BadInput, match="Z9"):
        selected(skip=["Z9"])


def test_run_only_what_was_asked_for() -> None:
    world = good_world()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.freeze_counts()
    world.refcounts[table] -= 1
    world.guests[0].map(0x4200_0000, 0x8200_0000)
    capture = world.capture()
    assert {f.check for f in run_checks(capture)} == {"R1", "S7"}
    assert {f.check for f in run_checks(capture, only=["S7"])} == {"S7"}
    assert {f.check for f in run_checks(capture, skip=["S7"])} == {"R1"}


def test_errors_come_before_notes() -> None:
    world = good_world()
    world.guests[0].place(0x4060_0000, 3)  # an empty table: a note of S9
    world.guests[2].vmid = 2  # an error of V1
    found = run_checks(world.capture())
    assert [f.severity for f in found] == [Severity.ERROR, Severity.NOTE]


@pytest.mark.parametrize("scope", [Scope.VMS, Scope.WALK])
def test_a_capture_that_is_not_full_is_refused(scope: Scope) -> None:
    with pytest.raises(BadInput, match=scope):
        run_checks(good_world().capture(scope=scope))


def test_a_host_without_vms_is_clean() -> None:
    assert run_checks(World().capture()) == []


@pytest.mark.parametrize(
    ("traits", "form", "nonzero"),
    [
        (TRAITS_510, InvalidForm.STALE, False),
        (TRAITS_61, InvalidForm.OWNER, True),
        (TRAITS_612, InvalidForm.LOCKED_BIT10, True),
        (TRAITS_73, InvalidForm.TYPED, True),
    ],
)
def test_generations_are_told_by_traits(traits: dict[str, bool], form: InvalidForm, nonzero: bool) -> None:
    """kernel.md 1.6 and 18: the columns 5.10, 6.1, 6.12 and 7.3."""
    behaviours = recognise("unknown", traits).behaviours
    assert behaviours.invalid is form
    assert behaviours.counts_nonzero is nonzero


def test_ha_is_constant_up_to_5_15_only() -> None:
    assert recognise("unknown", TRAITS_510).behaviours.ha_always
    assert recognise("unknown", {"mm_ops": True, "vmid_struct": True}).behaviours.ha_always
    assert not recognise("unknown", TRAITS_61).behaviours.ha_always


def format_of(world: World, guest: Guest) -> Format:
    host = world.capture().host
    return code_of(host).format(host, guest.mmu())


@pytest.mark.parametrize(
    ("traits", "flags", "fwb"),
    [
        (TRAITS_61, 0, True),
        (TRAITS_61, 1, False),
        (TRAITS_612, 1, False),
        (TRAITS_73, 1, True),
        (TRAITS_510, None, True),
    ],
)
def test_the_nofwb_flag_moved(traits: dict[str, bool], flags: int | None, fwb: bool) -> None:
    """kernel.md 10: bit 0 of pgt->flags is NOFWB up to 6.18 and IDMAP in 7.3."""
    world = World(traits)
    guest = world.guest(vmid=1)
    guest.mmu_changes["pgt_flags"] = flags
    assert format_of(world, guest).fwb is fwb


def test_two_xn_bits_need_the_kernel_and_the_cpu() -> None:
    for traits, xnx, two in ((TRAITS_73, 1, True), (TRAITS_73, 0, False), (TRAITS_612, 1, False)):
        world = World(traits)
        world.features["xnx"] = xnx
        guest = world.guest(vmid=1)
        assert format_of(world, guest).xnx is two
