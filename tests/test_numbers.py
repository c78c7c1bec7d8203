"""Numbers as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.findings import BadInput
from inspector.numbers import parse_number


@given(value=st.integers(0, (1 << 64) - 1))
def test_every_64_bit_number_is_read_back(value: int) -> None:
    for text in (f"{value:#x}", f"{value:#X}", str(value), f"{value:_}", f"0x{value:_x}", f" 0x{value:0100x}\n"):
        assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("2M", 1 << 21), ("4k", 4096), ("4KB", 4096), ("1g", 1 << 30), ("3T", 3 << 40), ("7b", 7), ("0x1b", 27), ("0", 0)],
)
def test_units(text: str, value: int) -> None:
    assert parse_number(text) == value


def test_signed() -> None:
    assert [parse_number(text, signed=True) for text in ("-1", "-0x10", "-2K", "5")] == [-1, -16, -2048, 5]
    assert parse_number(f"-{1 << 63}", signed=True) == -1 << 63
    for text in ("-1", f"-{(1 << 63) + 1}"):
        with pytest.raises(BadInput):
            parse_number(text, signed=text != "-1")


@given(text=st.one_of(st.text(), st.from_regex(r"-?(0x)?[0-9a-f_]{0,30}[kmgtb]{0,2}", fullmatch=True)))
def test_anything_else_is_refused_in_one_short_sentence(text: str) -> None:
    try:
        assert 0 <= parse_number(text, "size") < 1 << 64
    except BadInput as error:
        assert str(error).isprintable() and len(str(error)) < 500
        assert "is not a size: " in str(error)
