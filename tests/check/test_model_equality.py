"""M10: whatever differs from the model is found, and said by M10 only where no other check says it."""

from __future__ import annotations

import pytest

from inspector.check import run_checks
from inspector.findings import Finding, Severity
from tests.check.build import AF, INNER, PAGE, READ, WRITE, World, good_world

ERROR, NOTE = Severity.ERROR, Severity.NOTE


def only_m10(world: World) -> list[Finding]:
    return run_checks(world.capture(), only=["M10"])


def test_good_tables() -> None:
    assert only_m10(good_world()) == []


@pytest.mark.parametrize("bit", [2, 4, 8, 9, 11, 50, 51, 52, 53, 55, 58, 59, 63])
def test_a_bit_that_the_model_does_not_write(bit: int) -> None:
    world = good_world()
    if bit == 53:
        world.features["xnx"] = 0
    table, index = world.guests[0].place(0x4000_1000, 3)
    right = world.pages[table][index]
    world.pages[table][index] ^= 1 << bit
    (found,) = only_m10(world)
    assert (found.check, found.severity) == ("M10", ERROR)
    assert (found.where.table_pa, found.where.index, found.where.raw) == (table, index, right ^ 1 << bit)
    assert f"{right:#018x}" in found.expected and found.function == "stage2_set_prot_attr"
    said = [f for f in run_checks(world.capture()) if (f.where.table_pa, f.where.index) == (table, index)]
    assert len(said) == 1 and said[0].severity is ERROR


def test_a_count_too_low() -> None:
    world = good_world()
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.refcounts[table] = 6
    assert only_m10(world) == []  # R1 alone speaks of counts
    (found,) = run_checks(world.capture())
    assert (found.check, found.where.table_pa, found.actual) == ("R1", table, "page_count 6")
    assert found.expected.startswith("page_count 7 ")


def test_what_legal_history_explains_is_not_reported() -> None:
    world = good_world()
    world.features["hafdbs"] = 0
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] &= ~AF  # ageing
    world.guests[0].place(0x4060_0000, 3)  # an empty table
    table, index = world.guests[0].place(0x4000_2000, 3)
    world.pages[table][index] &= ~WRITE
    world.freeze_counts()
    world.refcounts[table] += 1
    assert only_m10(world) == []


def test_a_kernel_that_is_only_assumed_is_not_judged() -> None:
    world = good_world({})  # no types at all, and a release of 6.12: 5.10 it is not
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] |= 1 << 11
    assert only_m10(world) == []


def test_what_is_said_of_some_entries_is_not_repeated_and_the_rest_is_said() -> None:
    """Three neighbours that the model writes otherwise: one is M7's as well, and M10's are then the two others."""
    world = good_world()
    for number in range(3):
        table, index = world.guests[0].place(0x4000_0000 + number * PAGE, 3)
        world.pages[table][index] ^= READ if number else READ | INNER
    everything = {f.check: f.where.ipa for f in run_checks(world.capture(), skip=["M3"])}
    assert everything == {"M7": 0x4000_0000, "M10": 0x4000_1000}
    (found,) = [f for f in run_checks(world.capture(), skip=["M3"]) if f.check == "M10"]
    assert found.where.size == 2 * PAGE
    assert {f.check for f in run_checks(world.capture())} == {"M3", "M7"}
