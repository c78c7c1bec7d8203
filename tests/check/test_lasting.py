"""What stays at later looks is an error, what passes is nothing, and one look is a note that says how to find out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest

from inspector.capture.view import table_views
from inspector.check import compare_views, in_question, run_checks
from inspector.findings import Finding, Severity
from inspector.generations import code_of
from inspector.snapshot import Capture, CpuState, Look, PageInfo, Running
from tests.check.build import PAGE, TRAITS_61, TRAITS_73, TRAITS_510, TRAITS_612, TYPE, VALID, World, good_world

ERROR, NOTE = Severity.ERROR, Severity.NOTE
IDLE = CpuState(0, {}, Running.HOST, "cpu_do_idle", False)
WALKING = CpuState(0, {}, Running.HOST, "stage2_map_walker", False)
LOCKED = {"6.12": 1 << 10, "7.3": 1 << 60}


def look(capture: Capture, seconds: float, cpu: CpuState = IDLE, locked: bool | None = None) -> Look:
    """What a look at ``capture``'s own instant would bring, of the pages in question."""
    pages = in_question(capture)
    return Look(
        seconds=seconds,
        cpus=(cpu,),
        mmu_locks={vm.name: locked for vm in capture.vms},
        roots={mmu.address: mmu.pgd_phys for vm in capture.vms for mmu in vm.mmus},
        page_info={pa: capture.page_info[pa] for pa in pages},
        pages={pa: capture.pages[pa] for pa in pages},
    )


def word(page: bytes, index: int, value: int) -> bytes:
    return page[: 8 * index] + struct.pack("<Q", value) + page[8 * index + 8 :]


def looked(capture: Capture, *looks: Look) -> list[Finding]:
    return run_checks(replace(capture, looks=looks))


def surplus(traits: dict[str, bool] = TRAITS_612, by: int = 1) -> tuple[World, int]:
    world = good_world(traits)
    table, _ = world.guests[0].place(0x4000_0000, 3)
    world.freeze_counts()
    world.refcounts[table] += by
    return world, table


def counted(one: Look, pa: int, refcount: int) -> Look:
    return replace(one, page_info={**one.page_info, pa: PageInfo(refcount, one.page_info[pa].state)})


# --- R1 ---


@pytest.mark.parametrize("traits", [TRAITS_510, TRAITS_61, TRAITS_612, TRAITS_73])
@pytest.mark.parametrize("by", [1, 3])
def test_a_surplus_that_stays_is_an_error(traits: dict[str, bool], by: int) -> None:
    world, table = surplus(traits, by)
    capture = world.capture()
    (found,) = looked(capture, *(look(capture, at) for at in (0.1, 0.5, 1.1, 2.0)))
    assert (found.check, found.severity, found.where.table_pa) == ("R1", ERROR, table)
    assert "2.0 s" in found.why and "5 looks" in found.why and found.lasting is None


def test_only_the_page_in_question_and_the_way_to_it_are_looked_at_again() -> None:
    world, table = surplus()
    guest = world.guests[0]
    assert in_question(world.capture()) == {guest.root, guest.place(0x4000_0000, 2)[0], table}
    assert in_question(good_world().capture()) == set()
    assert in_question(world.capture(), only=["S9"]) == set() == in_question(world.capture(), skip=["r1"])


def test_a_surplus_at_one_look_says_how_to_find_out() -> None:
    world, table = surplus()
    (found,) = run_checks(world.capture())
    assert (found.severity, found.where.table_pa) == (NOTE, table)
    assert "capture --looks 3" in found.why


@pytest.mark.parametrize("passed_at", [0, 1, 2])
def test_a_surplus_that_passes_is_nothing(passed_at: int) -> None:
    world, table = surplus()
    capture = world.capture()
    looks = [look(capture, at) for at in (0.1, 0.5, 2.0)]
    looks[passed_at] = counted(looks[passed_at], table, world.refcounts[table] - 1)
    assert looked(capture, *looks) == []


def test_the_page_may_have_more_entries_by_then() -> None:
    """One entry and one reference more, the surplus as before: it stays."""
    world, table = surplus()
    capture = world.capture()
    later = counted(look(capture, 1.0), table, world.refcounts[table] + 1)
    later = replace(later, pages={**later.pages, table: word(later.pages[table], 9, 0x8000_9000 | VALID | TYPE)})
    (found,) = looked(capture, look(capture, 0.1), later)
    assert found.severity is ERROR


def unlinked(one: Look, world: World) -> Look:
    table, index = world.guests[0].place(0x4000_0000, 2)
    return replace(one, pages={**one.pages, table: word(one.pages[table], index, 0)})


def moved(one: Look, world: World) -> Look:
    table, index = world.guests[0].place(0x4000_0000, 2)
    return replace(one, pages={**one.pages, table: word(one.pages[table], index, 0x4900_0000 | VALID | TYPE)})


def gone(one: Look, world: World) -> Look:
    return replace(one, mmu_locks={"vm1": None, "vm2": None})


def rootless(one: Look, world: World) -> Look:
    return replace(one, roots={**one.roots, world.guests[0].address: 0})


@pytest.mark.parametrize("change", [unlinked, moved, gone, rootless])
def test_a_page_that_is_no_table_of_the_vm_any_more_has_passed(change: Callable[[Look, World], Look]) -> None:
    world, _ = surplus()
    capture = world.capture()
    looks = [look(capture, 0.1), change(look(capture, 2.0), world)]
    assert [one for one in looked(capture, *looks) if one.check == "R1"] == []


def test_a_walk_in_progress_at_every_look_leaves_it_open() -> None:
    world, table = surplus()
    capture = world.capture()
    (found,) = looked(capture, look(capture, 0.1, WALKING), look(capture, 2.0, WALKING))
    assert (found.severity, found.where.table_pa) == (NOTE, table)
    assert "a walk may have been in progress" in found.why


def test_looks_at_which_a_walk_was_in_progress_do_not_count() -> None:
    """A walker hides the surplus, being one reference behind: the looks without it decide."""
    world, table = surplus()
    capture = world.capture()
    hidden = counted(look(capture, 0.5, WALKING), table, world.refcounts[table] - 1)
    (found,) = looked(capture, look(capture, 0.1), hidden, look(capture, 2.0))
    assert found.severity is ERROR


def test_a_free_mmu_lock_tells_that_no_walk_is_in_progress() -> None:
    world, _ = surplus()
    capture = world.capture()
    (found,) = looked(capture, look(capture, 0.1, WALKING, False), look(capture, 2.0, WALKING, False))
    assert found.severity is ERROR
    (found,) = looked(capture, look(capture, 0.1, IDLE, True), look(capture, 2.0, IDLE, True))
    assert found.severity is NOTE


def test_a_deficit_explained_by_a_walk_is_an_error_if_it_stays() -> None:
    world, table = surplus(by=-1)
    world.cpus[1] = replace(WALKING, index=1)
    capture = world.capture()
    (found,) = run_checks(capture)
    assert found.severity is NOTE
    (found,) = looked(capture, look(capture, 0.1), look(capture, 2.0))
    assert (found.check, found.severity, found.where.table_pa) == ("R1", ERROR, table)
    assert looked(capture, counted(look(capture, 0.1), table, 7), look(capture, 2.0)) == []


def test_diff_sees_the_same() -> None:
    world, table = surplus()
    capture = world.capture()
    for looks, severities in (
        ((), [NOTE]),
        ((look(capture, 0.1), look(capture, 2.0)), [ERROR]),
        ((counted(look(capture, 0.1), table, 7), look(capture, 2.0)), []),
    ):
        seen = replace(capture, looks=looks)
        compared = compare_views(list(table_views(seen)), code_of(seen.host))
        assert [one.finding.severity for each in compared for one in each.differences] == severities


# --- S6 ---


def locked_world(generation: str) -> tuple[World, int, int]:
    world = good_world({"6.12": TRAITS_612, "7.3": TRAITS_73}[generation])
    table, index = world.guests[0].map(0x4000_9000, 0)
    world.pages[table][index] = 0
    world.freeze_counts()
    world.pages[table][index] = LOCKED[generation]
    world.cpus[1] = replace(WALKING, index=1)
    return world, table, index


@pytest.mark.parametrize("generation", LOCKED)
def test_an_entry_that_stays_locked_is_an_error(generation: str) -> None:
    world, table, index = locked_world(generation)
    capture = world.capture()
    (found,) = run_checks(capture)
    assert (found.check, found.severity) == ("S6", NOTE) and "--looks" in found.why
    (found,) = looked(capture, look(capture, 0.1), look(capture, 2.0))
    assert (found.check, found.severity, found.where.table_pa, found.where.index) == ("S6", ERROR, table, index)


@pytest.mark.parametrize("generation", LOCKED)
def test_an_entry_that_was_locked_is_nothing(generation: str) -> None:
    world, table, index = locked_world(generation)
    capture = world.capture()
    later = look(capture, 2.0)
    later = replace(later, pages={**later.pages, table: word(later.pages[table], index, 0)})
    assert looked(capture, look(capture, 0.1, WALKING), later) == []


# --- S9 ---


def empty_world() -> tuple[World, int]:
    world = good_world()
    table, _ = world.guests[0].place(0x4080_0000, 3)
    return world, table


def test_an_empty_table_that_stays_is_legal() -> None:
    """A map that failed half-way leaves one (kernel.md 4.1); nothing comes back to it."""
    world, table = empty_world()
    capture = world.capture()
    (found,) = looked(capture, look(capture, 0.1), look(capture, 2.0))
    assert (found.check, found.severity, found.where.table_pa) == ("S9", NOTE, table)
    assert "failed half-way" in found.why and "2.0 s" in found.why and "--looks" not in found.why


def test_a_table_that_was_empty_is_nothing() -> None:
    world, table = empty_world()
    capture = world.capture()
    later = counted(look(capture, 2.0), table, 2)
    later = replace(later, pages={**later.pages, table: word(later.pages[table], 0, 0x8080_0000 | VALID | TYPE)})
    assert looked(capture, look(capture, 0.1), later) == []
    assert len(later.pages[table]) == PAGE
