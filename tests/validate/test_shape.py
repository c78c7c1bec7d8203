"""Operations without their addresses: what is the same in two kernels, what is not, and what is no kernel's doing."""

from __future__ import annotations

from inspector.events import BARRIER, TLBI, RawEvent, parse_raw
from inspector.validate.compare import changes
from inspector.validate.shape import Shapes, folded, shapes

MAP = "call fn=kvm_pgtable_stage2_map args=pgt=0x1000"
UNMAP = """
call fn=kvm_pgtable_stage2_unmap args=pgt=0x1000,addr=0x{addr:x},size=0x1000
store pa=0x{table:x} old=0x{page:x} new=0x0 release=0 cas=0
barrier kind=ishst
tlbi kind=ipas2e1is ipa=0x{addr:x} level={level}
barrier kind=ish
tlbi kind=vmalle1is
barrier kind=ish
put page=0x{table:x} count={count}
ret value={ret}
"""


def events(text: str, lane: int = 0) -> list[tuple[int, RawEvent]]:
    return [(lane, parse_raw(line)) for line in text.strip().splitlines()]


def unmap(
    addr: int = 0x80000000,
    table: int = 0x40000000,
    page: int = 0x500007FF,
    level: int = 3,
    count: int = 2,
    ret: int = 0,
) -> list[tuple[int, RawEvent]]:
    return events(UNMAP.format(addr=addr, table=table, page=page, level=level, count=count, ret=ret))


def test_addresses_and_counts_make_no_difference() -> None:
    one = shapes(unmap())
    assert list(one) == [("unmap", 0)]
    other = shapes(unmap(addr=0x90000000, table=0x41000000, page=0x600007FF, count=7))
    assert changes([one], other) == []


def test_what_an_operation_does_makes_one() -> None:
    """A level hint, an attribute of the entry, a return value, an event that is left out."""
    base = shapes(unmap())
    for other in (
        unmap(level=2),
        unmap(page=0x5000077F),
        unmap(ret=-12),
        [each for each in unmap() if each[1][0] != BARRIER],
    ):
        assert changes([base], shapes(other)), other


def test_a_change_shows_what_differs() -> None:
    (change,) = changes([shapes(unmap())], shapes(unmap(level=2)))
    assert (change.operation, change.returned, change.example.operation) == ("unmap", 0, 1)
    lines = list(change.lines())
    assert "-tlbi ipas2e1is level 3" in lines
    assert "+tlbi ipas2e1is level 2" in lines


def test_an_invalidation_of_another_ipa_makes_one() -> None:
    """One that lies in what was asked for does not, wherever that is."""
    other = [
        (0, (*raw[:2], raw[2] + 0x1000, *raw[3:])) if raw[0] == TLBI and raw[2] else (0, raw) for _, raw in unmap()
    ]
    (change,) = changes([shapes(unmap())], shapes(other))
    assert "+tlbi ipas2e1is level 3 of another IPA" in change.lines()


def test_a_page_that_was_not_asked_for_makes_one() -> None:
    def mapped(page: int) -> Shapes:
        call = f"{MAP},addr=0x80000000,size=0x1000,phys=0x50000000"
        return shapes(events(f"{call}\nstore pa=0x40000000 old=0x400 new=0x{page:x}7ff release=1 cas=0\nret value=0"))

    (change,) = changes([mapped(0x50000)], mapped(0x50001))
    assert "+store locked -> page:0x7fc release of another page" in change.lines()


def test_a_table_is_not_a_page() -> None:
    """By the pages that were allocated, which an entry of the last level may look like."""
    text = f"{MAP}\n{{}}store pa=0x40000000 old=0x0 new=0x42000003 release=1 cas=0\nret value=0"
    with_table = shapes(events(text.format("alloc page=0x42000000\n")))
    (shape,) = with_table["map", 0]
    assert shape == ("alloc", "store 0 -> table release")
    (shape,) = shapes(events(text.format("")))["map", 0]
    assert shape == ("store 0 -> page:0x0 release",)


def test_lpa2_has_address_bits_where_shareability_is() -> None:
    init = "call fn=__kvm_pgtable_stage2_init args=pgt=0x1000,ia_bits=52,start_level=0,vtcr=0x1802d3558\nret value=0\n"
    runs = []
    for address in (0x50000000, 0x50000300):
        store = f"store pa=0x40000000 old=0x0 new={address | 0x4DF:#x} release=1 cas=0"
        text = f"{init}{MAP}\n{store}\nret value=0"
        runs.append(shapes(events(text)))
    assert changes([runs[0]], runs[1]) == []


def test_what_lost_a_race_is_left_out() -> None:
    lost = f"{MAP}\ncasfail pa=0x40000000 old=0x0 new=0x400\nret value=0"
    again = f"{MAP}\nret value=-11"
    assert shapes(events(f"{lost}\n{again}")) == {}


def test_operations_at_once_are_kept_apart() -> None:
    one, other = unmap(), [(1, raw) for _, raw in unmap(addr=0x90000000)]
    mixed = [each for pair in zip(one, other, strict=True) for each in pair]
    (example,) = shapes(mixed)["unmap", 0].values()
    assert example.times == 2


def test_repetitions_are_folded() -> None:
    assert folded(["a", "a", "a"]) == ("[a]+",)
    assert folded(["a", "b"] * 5 + ["c"]) == ("[a", "b]+", "c")
    assert folded(["a", "b", "b", "c", "a", "b", "b", "b", "c"]) == ("[a", "[b]+", "c]+")
    assert folded(["a", "b"]) == ("a", "b")


def test_what_a_baseline_does_only_at_times_is_no_change() -> None:
    steady, other = shapes(unmap()), shapes([*unmap(), *unmap(level=2)])
    assert changes([steady, other], steady) == []
    assert changes([other, steady], other) == []
    gone: Shapes = {}
    (change,) = changes([steady, other], gone)
    assert (change.new, change.example.operation) == (None, 1)
