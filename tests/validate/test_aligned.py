"""Traces in their order: one renaming of places holds for all of it, and what has no partner is told."""

from __future__ import annotations

from inspector.events import RawEvent, parse_raw
from inspector.validate.aligned import Operation, align, operations

MAP = """
call fn=kvm_pgtable_stage2_map args=pgt=0xffff00000{vm}000,addr=0x{ipa:x},size=0x1000,phys=0x{page:x},in=8192,by={by}
store pa=0x{table:x} old=0x0 new=0x{page:x}7db release=1 cas=0
ret value={ret}
"""


def mapped(
    ipa: int = 0x80000, page: int = 0x50000, table: int = 0x40000018, vm: int = 1, by: int = 1, ret: int = 0
) -> list[tuple[int, RawEvent]]:
    text = MAP.format(ipa=ipa, page=page, table=table, vm=vm, by=by, ret=ret)
    return [(0, parse_raw(line)) for line in text.strip().splitlines()]


def of(*each: list[tuple[int, RawEvent]]) -> list[Operation]:
    return list(operations(event for events in each for event in events))


def test_other_places_and_callers_are_the_same_operations() -> None:
    first = of(mapped(), mapped(ipa=0x81000, page=0x51000, table=0x40000020))
    other = of(mapped(page=0x60000, table=0x41000018, vm=2, by=7), mapped(0x81000, 0x61000, 0x41000020, vm=2))
    found = align(first, other)
    assert found.is_identical
    assert (found.same, found.share) == (2, 1.0)


def test_a_place_that_is_two_is_not_renamed() -> None:
    """Two pages in one trace, one page twice in the other."""
    first = of(mapped(), mapped(ipa=0x81000, page=0x51000))
    twice = of(mapped(), mapped(ipa=0x81000, page=0x50000))
    for one, other in ((first, twice), (twice, first)):
        found = align(one, other)
        assert not found.is_identical
        assert [each.number for each in found.moved] == [2]
        assert found.same == 1


def test_an_ipa_an_index_and_a_result_are_no_places() -> None:
    for other in (mapped(ipa=0x82000), mapped(table=0x40000020), mapped(ret=-12)):
        found = align(of(mapped()), of(other))
        assert (found.same, len(found.first), len(found.second)) == (0, 1, 1)
        assert found.share == 0


def test_what_one_has_more_is_told_and_the_rest_is_aligned() -> None:
    each = [mapped(ipa=0x80000 + 0x1000 * at, table=0x40000000 + 8 * at) for at in range(9)]
    found = align(of(*each), of(*each[:4], mapped(ipa=0x90000), *each[4:7], *each[8:]))
    assert found.same == 8
    assert [operation.number for operation in found.first] == [8]
    assert [operation.number for operation in found.second] == [5]


def test_one_that_comes_later_is_told_apart() -> None:
    each = [mapped(ipa=0x80000 + 0x1000 * at, table=0x40000000 + 8 * at) for at in range(6)]
    found = align(of(*each), of(*each[:2], *each[3:5], each[2], *each[5:]))
    assert not found.is_identical
    assert (found.same, len(found.displaced), found.first, found.second) == (5, 1, [], [])


def test_an_operation_that_does_not_end_is_none() -> None:
    assert of(mapped()[:2]) == []
