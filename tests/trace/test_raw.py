"""The probe's records come whole, wherever the bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.trace.raw import MOST_WORDS, BadRecord, Reader, Record

RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from((1, 2, 3)),
        st.integers(0, 255),
        st.integers(0, (1 << 32) - 1),
        st.lists(st.integers(0, (1 << 64) - 1), max_size=MOST_WORDS).map(tuple),
    ),
    max_size=8,
)


def packed(record: Record) -> bytes:
    """As probe.c writes it: struct head, then the words."""
    return struct.pack(
        f"<BBHI{len(record.words)}Q", record.kind, record.cpu, len(record.words), record.number, *record.words
    )


@given(RECORDS, st.data())
def test_however_it_is_cut(records: list[Record], data: st.DataObject) -> None:
    whole = b"".join(map(packed, records))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    reader = Reader()
    found: list[Record] = []
    for low, high in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += reader.take(whole[low:high])
    assert found == records


@pytest.mark.parametrize("data", [b"\x00" * 8, b"\x05" + b"\x00" * 7, b"\x01\x00\xff\xff" + b"\x00" * 4])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(BadRecord):
        list(Reader().take(data))
