"""M10: whatever differs from the model is found, and said by M10 only where no other check says it."""

from __future__ import annotations

import pytest

from inspector.check import run_checks
from inspector.check.overlap import without_repeats
from inspector.findings import Finding, Severity, Where
from tests.check.build import AF, PAGE, WRITE, World, good_world

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
    (found,) = only_m10(world)
    assert (found.where.table_pa, found.expected) == (table, "page_count 7")
    assert found.actual.startswith("page_count 6:")
    assert [f.check for f in run_checks(world.capture())] == ["R1"]


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


def finding(check: str, **place: int) -> Finding:
    where = Where(vm="vm0", regime="stage-2 VMID 1", **place)
    return Finding(check, ERROR, where, "", "", "", None)


def test_repeats_are_those_that_are_covered_entirely() -> None:
    three = {"ipa": 0x1000, "size": 3 * PAGE, "level": 3, "table_pa": 0x4800_0000, "index": 1}
    general = finding("M10", **three)
    one = finding("S5", **{**three, "size": PAGE})
    two = finding("M7", **{**three, "ipa": 0x2000, "size": 2 * PAGE, "index": 2})
    assert without_repeats([general, one]) == [general, one]
    assert without_repeats([general, two]) == [general, two]
    assert without_repeats([one, general, two]) == [one, two]
    assert without_repeats([general, finding("S5", **{**three, "level": 2})])[0] is general
    assert without_repeats([general, finding("R1", table_pa=0x4800_0000, level=3)])[0] is general
    count = finding("M10", table_pa=0x4800_0000, level=3, ipa=0)
    assert without_repeats([count, finding("R1", table_pa=0x4800_0000, level=3, ipa=0)])[0].check == "R1"
    assert without_repeats([count, one]) == [count, one]
