"""The parser of the exerciser's console, and what it says stage-2 must contain.

Consoles are written by hand in the exerciser's format; expected values follow from them by arithmetic that the
tests spell out (4K host pages, 2M blocks: DDI 0487 D8.2, 4K granule).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from fixtures.truth import Block, Expected, Truth, TruthError, differences, expected_leaves, parse

PAGE = 0x1000
MEGA2 = 0x200000


def line(event: str, **fields: Any) -> str:
    return "S2X " + json.dumps({"event": event, **fields})


BOOT = line("boot", release="6.1.0", page_size=PAGE, ipa_limit=48)


def vm_line(vm: int = 0, **fields: Any) -> str:
    return line("vm", vm=vm, **{"pid": 80, "fd": 7, "ipa_bits": 40, "vcpus": 1, **fields})


def slot_line(gpa: int, size: int, *, id: int = 0, vm: int = 0, hva: int = 0xFFFF80000000, **fields: Any) -> str:
    values: dict[str, Any] = {"flags": 0, "kind": "anon4k", "confirmed": False, **fields}
    return line("slot", vm=vm, id=id, gpa=hex(gpa), size=hex(size), hva=hex(hva), **values)


def pages_line(ipa: int, pfn: int, count: int = 1, *, slot: int = 0, vm: int = 0, **fields: Any) -> str:
    values: dict[str, Any] = {"step": 1, "access": "w", "leaf": "4k", **fields}
    place = {"ipa": hex(ipa), "hva": "0xffff80000000", "pfn": hex(pfn), "count": count}
    return line("pages", vm=vm, slot=slot, **place, **values)


def expect(*lines: str) -> Expected:
    (only,) = expected_leaves(parse([BOOT, vm_line(), *lines])).values()
    return only


# ---- parsing ----


def test_a_console_is_read_among_kernel_messages() -> None:
    truth = parse(
        [
            "[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x000f0510]\r\n",
            BOOT + "\r\n",
            "[    2.1] random: crng init done" + vm_line() + "\r\n",  # a message that ends without a newline
            slot_line(0x40000000, 0x100000, flags=2, kind="anon4k"),
            line("truth", sequence=1),
            pages_line(0x40001000, 0x41DA1, 3, access="rw"),
            line("hole", vm=0, ipa="0x0", size="0x40000000"),
            line("ready", scenario="one"),
        ]
    )
    assert truth.boot is not None and truth.boot.ipa_limit == 48
    assert truth.page_size == 4096
    vm = truth.vms[0]
    assert (vm.pid, vm.fd, vm.ipa_bits) == (80, 7, 40)
    assert vm.slots[0].read_only and not vm.slots[0].dirty_logging
    assert vm.slots[0].gpa == 0x40000000 and vm.slots[0].size == 0x100000
    assert list(vm.runs[0].pages(PAGE)) == [(0x40001000, 0x41DA1), (0x40002000, 0x41DA2), (0x40003000, 0x41DA3)]
    assert vm.holes == ((0, 0x40000000),)
    assert truth.ready == ("one",)


def test_steps_of_a_run() -> None:
    down = parse([BOOT, vm_line(), pages_line(0, 0x100, 3, step=-1)]).vms[0].runs[0]
    same = parse([BOOT, vm_line(), pages_line(0, 0x100, 3, step=0)]).vms[0].runs[0]
    assert [pfn for _, pfn in down.pages(PAGE)] == [0x100, 0xFF, 0xFE]
    assert [pfn for _, pfn in same.pages(PAGE)] == [0x100, 0x100, 0x100]


def test_a_new_truth_replaces_pages_and_holes_but_not_slots() -> None:
    hole = line("hole", vm=0, ipa="0x100000", size="0x1000")
    first = [BOOT, vm_line(), slot_line(0, 0x100000), line("truth", sequence=1), pages_line(0, 1), hole]
    truth = parse([*first, line("truth", sequence=2), pages_line(0, 2), hole])
    assert [run.pfn for run in truth.vms[0].runs] == [2]
    assert len(truth.vms[0].holes) == 1
    assert len(truth.vms[0].slots) == 1


def test_what_goes_away_is_forgotten() -> None:
    lines = [BOOT, vm_line(0), vm_line(1), slot_line(0, PAGE), slot_line(PAGE, PAGE, id=1)]
    lines += [pages_line(0, 1), pages_line(PAGE, 2, slot=1)]
    lines += [line("destroyed", vm=1), line("slot_deleted", vm=0, id=1)]
    truth = parse(lines)
    assert list(truth.vms) == [0]
    assert [slot.id for slot in truth.vms[0].slots] == [0]
    assert [run.slot for run in truth.vms[0].runs] == [0]


def test_dirty_logging_changes_the_slots_flags_only() -> None:
    lines = [BOOT, vm_line(), slot_line(0, PAGE, flags=2), slot_line(PAGE, PAGE, id=1)]
    on = parse([*lines, line("dirty", vm=0, slot=0, on=True)]).vms[0].slots
    assert [slot.flags for slot in on] == [3, 0]
    off = parse([*lines, line("dirty", vm=0, slot=0, on=True), line("dirty", vm=0, slot=0, on=False)])
    assert [slot.flags for slot in off.vms[0].slots] == [2, 0]


def test_reports_are_collected() -> None:
    truth = parse(
        [
            BOOT,
            line("refused", ipa_bits=49, limit=48, errno=22, why="Invalid argument"),
            line("skipped", what="gicv2", why="No such device"),
            line("progress", vm=3, vcpu=1, counter=5, spinning=True, mmio_exits=0, faults=0),
            line("progress", vm=3, vcpu=1, counter=9, spinning=True, mmio_exits=0, faults=0),
            line("help", scenario="one", help="an event of a later version"),
        ]
    )
    assert [(r.ipa_bits, r.limit, r.errno) for r in truth.refused] == [(49, 48, 22)]
    assert [s.what for s in truth.skipped] == ["gicv2"]
    assert truth.progress[3, 1].counter == 9
    assert truth.events[-1]["scenario"] == "one"


def test_of_a_vm_whose_guest_was_given_up_nothing_is_expected() -> None:
    slots = [slot_line(0, PAGE), slot_line(0, PAGE, vm=1)]
    why = "no answer within 20 s"
    failed = line("guest_failed", vm=1, vcpu=0, ipa_bits=40, pc="0x0", why=why)
    told = parse([BOOT, vm_line(0), vm_line(1), *slots, failed, line("truth", sequence=1), pages_line(0, 0x500)])
    assert {number: vm.failed for number, vm in told.vms.items()} == {0: None, 1: why}
    assert list(expected_leaves(told)) == [0]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('S2X {"event":"vm","vm":0,"pi', "damaged"),
        ('S2X {"vm":0}', "names no event"),
        (line("vm", vm=1, pid=2), "lacks"),
        (pages_line(0, 1, vm=7), "VM 7, which does not exist"),
        (vm_line(0), "introduced twice"),
    ],
)
def test_damage_is_refused(bad: str, says: str) -> None:
    with pytest.raises(TruthError, match=says):
        parse([BOOT, vm_line(), bad])


def test_a_console_without_the_exerciser_is_refused() -> None:
    with pytest.raises(TruthError, match="no boot line"):
        _ = parse(["Kernel panic - not syncing"]).page_size


def test_errors_of_the_exerciser_forbid_expectations() -> None:
    truth: Truth = parse([BOOT, line("error", what="no PFN in pagemap", errno=1, why="Operation not permitted")])
    with pytest.raises(TruthError, match="no PFN in pagemap: Operation not permitted"):
        expected_leaves(truth)


# ---- expectations ----

BASE = 0x80000000


def thp(*pages: str) -> Expected:
    return expect(slot_line(BASE, 4 * MEGA2, kind="thp", confirmed=True), *pages)


def test_pages_give_pages() -> None:
    expected = expect(slot_line(0, 0x10000), pages_line(0x3000, 0x500, 2))
    assert expected.pages == {0x3000: 0x500, 0x4000: 0x501}
    assert not expected.blocks


def test_a_touched_page_of_a_block_gives_the_aligned_block() -> None:
    # Page 5 of the second 2M of the slot has PFN 0x60005, so the block starts at PFN 0x60000.
    expected = thp(pages_line(BASE + MEGA2 + 5 * PAGE, 0x60005, leaf="2m"))
    assert expected.blocks == {Block(BASE + MEGA2, MEGA2, 0x60000)}


def test_a_1g_page() -> None:
    slot = slot_line(1 << 32, 1 << 30, kind="hugetlb1g", confirmed=True)
    for leaf in ("1g", "any"):
        expected = expect(slot, pages_line((1 << 32) + 7 * PAGE, 0x80007, leaf=leaf))
        assert expected.blocks == {Block(1 << 32, 1 << 30, 0x80000)}


def test_a_page_that_its_split_block_lost_is_not_expected() -> None:
    expected = thp(pages_line(BASE, 0x60000, leaf="none"), pages_line(BASE + PAGE, 0x60001))
    assert expected.pages == {BASE + PAGE: 0x60001}
    assert not expected.blocks


def test_a_block_that_the_slot_cannot_hold_is_a_contradiction() -> None:
    slot = slot_line(BASE + MEGA2 // 2, MEGA2, kind="thp", confirmed=True)
    with pytest.raises(TruthError, match="no 2m block"):
        expect(slot, pages_line(BASE + MEGA2 // 2, 0x60100, leaf="2m"))
    assert not expect(slot, pages_line(BASE + MEGA2 // 2, 0x60100, leaf="any")).blocks


# ---- comparing ----


def gicv() -> str:
    return line("device", vm=0, what="gicv", ipa="0x8010000", pa="0x8040000", size="0x2000", required="0x1000")


MIXED = (
    slot_line(0, 0x10000),
    slot_line(BASE, 4 * MEGA2, id=1, kind="thp", confirmed=True),
    pages_line(0x3000, 0x500, 2),
    pages_line(BASE + 5 * PAGE, 0x60005, slot=1, leaf="2m"),
    pages_line(BASE + MEGA2, 0x60200, slot=1, leaf="any"),
    gicv(),
)
RIGHT: Mapping[int, tuple[int, int]] = {
    0x3000: (PAGE, 0x500000),
    0x4000: (PAGE, 0x501000),
    BASE: (MEGA2, 0x60000000),
    BASE + MEGA2: (MEGA2, 0x60200000),
    0x8010000: (PAGE, 0x8040000),
    0x8011000: (PAGE, 0x8041000),
}


def compare(changes: Mapping[int, tuple[int, int] | None]) -> list[str]:
    leaves = {**RIGHT, **changes}
    return differences(expect(*MIXED), [(ipa, *leaf) for ipa, leaf in sorted(leaves.items()) if leaf])


@pytest.mark.parametrize(
    "legal",
    [
        {},
        {BASE + MEGA2: (PAGE, 0x60200000)},  # "any": a page does as well
        {0x8011000: None},  # the part of GICV that only some kernels map
    ],
)
def test_agreement(legal: Mapping[int, tuple[int, int] | None]) -> None:
    assert compare(legal) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0x3000: (PAGE, 0x501000)}, "0x3000 is mapped to PA 0x501000, but PA 0x500000 backs it"),
        ({0x3000: None}, "0x3000 was touched, but is not mapped"),
        ({0x5000: (PAGE, 0x502000)}, "0x5000 is mapped .* but was not touched"),
        ({BASE: None}, "0x80005000 was touched, but is not mapped"),
        ({BASE: (MEGA2, 0x60400000)}, "unexpected block"),
        ({BASE: (1 << 30, 0x40000000)}, "unexpected block"),
        ({BASE + 2 * MEGA2: (MEGA2, 0x60400000)}, "unexpected block"),
        ({BASE: None, BASE + 5 * PAGE: (PAGE, 0x60005000)}, "leaf of 0x1000 bytes, not of 0x200000"),
        ({0x8010000: None}, "device page at IPA 0x8010000 is not mapped"),
        ({0x8010000: (PAGE, 0x8030000)}, "PA 0x8030000, but PA 0x8040000 backs it"),
        ({0x8011000: (PAGE, 0x8042000)}, "PA 0x8042000, but PA 0x8041000 backs it"),
    ],
)
def test_each_difference_is_told(change: Mapping[int, tuple[int, int] | None], says: str) -> None:
    assert any(re.search(says, text) for text in compare(change)), compare(change)
