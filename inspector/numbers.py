"""The one reader of numbers that a person wrote: on the command line, in a filter, in a script.

Ground floor: standard library only, imports no other room but the findings.
"""

from __future__ import annotations

import re

from inspector.findings import BadInput
from inspector.printable import printable

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_NUMBER = re.compile(
    r"(?P<sign>-?)(?:0x(?P<hex>[0-9a-f]+(?:_[0-9a-f]+)*)|(?P<digits>[0-9]+(?:_[0-9]+)*)(?P<unit>[kmgt]?)b?)",
    re.ASCII | re.IGNORECASE,
)
_QUOTED = 40
_MOST = {16: 16, 10: 20}
"""Digits of the largest 64-bit number, by base: nothing longer is converted."""


def parse_number(text: str, what: str = "number", *, signed: bool = False) -> int:
    """A number of at most 64 bits: ``0x`` hex, decimal, or decimal with K, M, G, T; ``_`` between two digits.

    ``what`` names it in the sentence.  ``signed`` allows a minus, down to -(2**63).  Raises `BadInput`.
    """
    match = _NUMBER.fullmatch(text.strip())
    quoted = f"'{printable(text, _QUOTED)}' is not {_article(what)}"
    if match is None or (match["sign"] and not signed):
        raise BadInput(f"{quoted}: write it as 0x40000000, 4096 or 2M")
    base = 16 if match["hex"] else 10
    digits = (match["hex"] or match["digits"]).replace("_", "").lstrip("0") or "0"
    value = int(digits, base) << _UNITS[(match["unit"] or "").lower()] if len(digits) <= _MOST[base] else 1 << 64
    if value >> 64 or (match["sign"] and value > 1 << 63):
        raise BadInput(f"{quoted}: it has more than 64 bits")
    return -value if match["sign"] else value


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeioAEI" else f"a {noun}"
