"""Barriers, invalidations and stores, as GNU as 2.40 assembles them (-march=armv8.4-a)."""

from __future__ import annotations

import pytest

from inspector.codec import tlbi
from inspector.events import BARRIER, TLBI, RawEvent
from inspector.trace.instructions import event_of
from inspector.trace.plan import is_conditional, is_release


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        (0xD5033B9F, "ish"),
        (0xD5033A9F, "ishst"),
        (0xD503379F, "nsh"),
        (0xD503369F, "nshst"),
        (0xD5033F9F, "sy"),
        (0xD503399F, "ishld"),
        (0xD5033FDF, "isb"),
        (0xD4000002, "hvc"),
    ],
)
def test_barriers(word: int, kind: str) -> None:
    assert event_of(word, 0) == (BARRIER, kind)


@pytest.mark.parametrize("word", [0xD5033BBF, 0xD503201F, 0xD503233F, 0xF9000020])  # dmb ish, nop, paciasp, str
def test_what_is_neither(word: int) -> None:
    assert event_of(word, 0) is None


@pytest.mark.parametrize(
    ("name", "operand", "event"),
    [
        ("ipas2e1is", tlbi.by_ipa(0x80001000, 3), (TLBI, "ipas2e1is", 0x80001000, 3, None)),
        ("ipas2e1is", tlbi.by_ipa(0x80001000), (TLBI, "ipas2e1is", 0x80001000, None, None)),
        # The address is told as it was given, whatever the hint's level covers.
        ("ipas2e1", tlbi.by_ipa(0x80005000, 2), (TLBI, "ipas2e1", 0x80005000, 2, None)),
        ("vmalle1is", 0, (TLBI, "vmalle1is", None, None, None)),
        ("vmalls12e1is", 0, (TLBI, "vmalls12e1is", None, None, None)),
        ("ripas2e1is", tlbi.by_ipa_range(0x80000000, 7, 1), (TLBI, "ripas2e1is", 0x80000000, None, 512)),
    ],
)
def test_invalidations(name: str, operand: int, event: RawEvent) -> None:
    assert event_of(tlbi.encode_instruction(name, 1), operand) == event


def test_a_range_of_52_bit_tables_begins_in_units_of_64k() -> None:
    """DDI 0487 C5.5, with DS=1; read otherwise it would be 16 times too low."""
    word, operand = tlbi.encode_instruction("ripas2e1is", 1), tlbi.by_ipa_range(0x90000000, 7, 1, lpa2=True)
    assert event_of(word, operand, True) == (TLBI, "ripas2e1is", 0x90000000, None, 512)
    assert event_of(word, operand) == (TLBI, "ripas2e1is", 0x9000000, None, 512)


@pytest.mark.parametrize(
    ("word", "release", "conditional"),
    [
        (0xC89FFC22, True, False),  # stlr x2, [x1]
        (0xF9000022, False, False),  # str x2, [x1]
        (0xC8A07C22, False, True),  # cas x0, x2, [x1]
        (0xC8E0FC22, True, True),  # casal x0, x2, [x1]
        (0xC8A0FC22, True, True),  # casl x0, x2, [x1]
        (0xC8037C22, False, True),  # stxr w3, x2, [x1]
        (0xC803FC22, True, True),  # stlxr w3, x2, [x1]
        (0xC85F7C22, False, False),  # ldxr x2, [x1]
        (0xC8DFFC22, False, False),  # ldar x2, [x1]
        (0x889FFC22, False, False),  # stlr w2, [x1]: no descriptor is stored so
    ],
)
def test_stores(word: int, release: bool, conditional: bool) -> None:
    assert (is_release(word), is_conditional(word)) == (release, conditional)
