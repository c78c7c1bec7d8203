"""An operation on very many entries costs so much for each of them, and no more the more there are."""

from __future__ import annotations

import time

from inspector.events import parse_raw
from inspector.protocol.automaton import Protocol
from tests.protocol.test_traces import FACTS, feed

TABLES = 60
BASE = 0x8000_0000


def lines() -> list[str]:
    """Of 30,208 pages in 59 tables beside that of ``table.trace``: one map, one write protection, one unmap."""
    mapped, unmapped = ["call fn=kvm_pgtable_stage2_map"], ["call fn=kvm_pgtable_stage2_unmap"]
    protected = ["call fn=kvm_pgtable_stage2_wrprotect"]
    for number in range(1, TABLES):
        table = 0x4100_0000 + (number << 12)
        mapped += [
            f"alloc page={table:#x}",
            "get page=0x40010000",
            f"store pa={0x40010000 + 8 * number:#x} old=0x0 new={table | 3:#x} release=1 cas=0",
        ]
        for index in range(512):
            output, entry = 0x5000_0000 + (number << 21) + (index << 12), table + 8 * index
            mapped += [
                f"cache kind=dcache pa={output:#x} size=4096",
                f"cache kind=icache pa={output:#x} size=4096",
                f"get page={table:#x}",
                f"store pa={entry:#x} old=0x0 new={output | 0x7FF:#x} release=1 cas=0",
            ]
            protected.append(f"store pa={entry:#x} old={output | 0x7FF:#x} new={output | 0x77F:#x} release=0 cas=0")
            unmapped += [
                f"store pa={entry:#x} old={output | 0x77F:#x} new=0x0 release=0 cas=0",
                f"put page={table:#x} count={512 - index}",
            ]
    pages = (TABLES - 1) * 512
    flush = f"tlbi kind=range ipa={BASE + (1 << 21):#x} pages={pages}"
    ends = "ret value=0"
    return [*mapped, "barrier kind=ishst", ends, *protected, flush, ends, *unmapped, flush, ends]


def test_an_unmap_of_thirty_thousand_pages() -> None:
    """With a look at all that is owed for each of them it took a minute."""
    protocol = feed(Protocol(FACTS), "table")
    events = [parse_raw(line) for line in lines()]
    began = time.process_time()
    for raw in events:
        protocol.feed(0, raw)
    assert time.process_time() - began < 10
    assert [each.rule for each in protocol.violations] == [], protocol.violations[0].what
