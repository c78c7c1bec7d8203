"""The course of a trace: every operation is in it once, however many pieces it is drawn in."""

from __future__ import annotations

from collections import Counter

import pytest

from inspector.events import RawEvent, parse_raw
from inspector.findings import BadInput
from inspector.trace import timeline
from inspector.trace.timeline import Timeline

INIT = "call fn=__kvm_pgtable_stage2_init args=pgt={:#x},ia_bits=40,start_level=1,vtcr=0x0"
MAP = "call fn=kvm_pgtable_stage2_map args=pgt={:#x},addr=0x1000"
END = "call fn=kvm_pgtable_stage2_destroy args=pgt={:#x}"


def events(*texts: str) -> list[tuple[int, RawEvent]]:
    return [(0, parse_raw(text)) for text in texts]


def course(tables: int, maps: int) -> list[tuple[int, RawEvent]]:
    """Tables one after the other, at the same address: made, mapped, ended; every third map fails."""
    found = []
    for _ in range(tables):
        found += events(INIT.format(0x1000), "ret value=0")
        for at in range(maps):
            found += events(MAP.format(0x1000), "barrier kind=ish", "ret value=-12" if at % 3 == 2 else "ret value=0")
        found += events(END.format(0x1000), "ret value=0")
    return found


def totals(found: Timeline) -> Counter[tuple[int, str]]:
    counted: Counter[tuple[int, str]] = Counter()
    for piece in found.pieces:
        counted[piece.table, piece.name] += piece.operations
    return counted


def test_each_operation_is_a_piece() -> None:
    found = timeline.timeline(course(2, 3))
    assert (found.operations, found.width) == (10, 1)
    assert [(piece.first, piece.table, piece.name) for piece in found.pieces] == [
        (1, 1, "init"), (2, 1, "map"), (3, 1, "map"), (4, 1, "map"), (5, 1, "destroy"),
        (6, 2, "init"), (7, 2, "map"), (8, 2, "map"), (9, 2, "map"), (10, 2, "destroy"),
    ]  # fmt: skip
    assert [(life.number, life.made, life.ended) for life in found.tables] == [(1, 1, 5), (2, 6, 10)]
    assert [piece.failed for piece in found.pieces if piece.name == "map"] == [0, 0, 1, 0, 0, 1]
    assert {piece.events for piece in found.pieces if piece.name == "map"} == {2}


def test_nothing_is_lost_where_pieces_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = timeline.timeline(course(7, 30))
    monkeypatch.setattr(timeline, "MOST_PIECES", 40)
    joined = timeline.timeline(course(7, 30))
    assert joined.width > 1 and len(joined.pieces) <= 40
    assert totals(joined) == totals(whole) and joined.tables == whole.tables
    for name in ("failed", "events"):
        assert sum(getattr(piece, name) for piece in joined.pieces) == sum(
            getattr(piece, name) for piece in whole.pieces
        )
    assert all(piece.first % joined.width == 1 for piece in joined.pieces)


def test_two_at_once_and_one_that_does_not_end() -> None:
    one = events(INIT.format(0x1000), "ret value=0", MAP.format(0x1000))
    other = [(1, parse_raw(MAP.format(0x2000))), (1, parse_raw("ret value=-11"))]
    found = timeline.timeline([*one, *other])
    assert [(piece.first, piece.table, piece.failed) for piece in found.pieces] == [(1, 1, 0), (2, 1, 0), (3, 0, 1)]
    assert found.tables[0].ended is None


def test_what_no_kernel_does_is_refused() -> None:
    with pytest.raises(BadInput, match="after operation 1"):
        timeline.timeline(
            events("call fn=kvm_pgtable_stage2_map args=pgt=0x1000,addr=0x1000", "ret value=0", "call fn=f args=pgt=zz")
        )
