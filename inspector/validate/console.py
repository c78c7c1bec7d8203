"""What the kernel says of itself on its console: the second opinion that costs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_REPORTS: Final = re.compile(
    r"WARNING: |BUG: |Kernel BUG at|kernel BUG at|Kernel panic|Internal error: |Oops|UBSAN: |"
    r"INFO: (?:possible|task .* blocked|rcu|suspicious)|rcu: INFO: |suspicious RCU usage|"
    r"refcount_t: |list_(?:add|del) corruption|Unable to handle kernel|kasan: |KASAN: "
)
"""Beginnings of reports: WARN, BUG, oops, KASAN, UBSAN, lockdep, RCU, DEBUG_LIST (lib/, kernel/, mm/ of 6.12)."""
_TIME: Final = re.compile(r"^\s*\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s*")
_MORE: Final = 3


def reports(console: str) -> Iterator[list[str]]:
    """Each report's first lines, without their times."""
    lines = [_TIME.sub("", line.rstrip("\r")) for line in console.splitlines()]
    at = 0
    while at < len(lines):
        if _REPORTS.search(lines[at]) and not lines[at].startswith("S2X "):
            yield [line for line in lines[at : at + 1 + _MORE] if line and "cut here" not in line]
            at += _MORE
        at += 1
