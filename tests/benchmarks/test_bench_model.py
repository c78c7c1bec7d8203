"""How fast the model is: single pages mapped and unmapped with all their events, and the same in the kernel's C.

Prints figures (``pytest -s``); asserts that both sides did the same work, never how long it took.
"""

from __future__ import annotations

import time

import pytest

from inspector.codec import Geometry
from inspector.crosscheck.harness import Op, pack
from inspector.events import RawEvent
from inspector.model import Machine, MemoryCache, Stage2, generation
from inspector.model.operations import PLENTY
from inspector.model.prot import Prot, kernel_prot
from tests.crosscheck.kernels import harness as kernel_harness
from tests.crosscheck.kernels import labels

pytestmark = pytest.mark.harness

PAIRS = 10_000
BASE = 0x8000_0000
PROT = int(Prot.RWX)


def _addresses() -> list[int]:
    """Pages scattered over 16M, so that tables come and go."""
    return [BASE + (number * 37) % 4096 * 4096 for number in range(PAIRS)]


def _model(label: str) -> tuple[float, int, list[RawEvent]]:
    pgt = Stage2(generation(label), Machine(fwb=True), Geometry.for_ipa(40))
    assert pgt.init() == 0
    pgt.store.take_events()
    cache = MemoryCache(PLENTY)
    events = 0
    first: list[RawEvent] = []
    addresses = _addresses()
    started = time.perf_counter()
    for addr in addresses:
        assert pgt.map(addr, 4096, addr, PROT, cache) == 0
        events += len(pgt.store.events)
        first = first or pgt.store.take_events()
        pgt.store.events.clear()
        assert pgt.unmap(addr, 4096) == 0
        events += len(pgt.store.events)
        pgt.store.events.clear()
    return time.perf_counter() - started, events, first


def _kernel(label: str) -> tuple[float, int, list[RawEvent]]:
    prot = kernel_prot(PROT, generation(label))
    with kernel_harness(label, fwb=True) as harness:
        assert harness.stage2_init(40)[0] == 0
        ops = [
            op
            for addr in _addresses()
            for op in (
                pack(Op.MAP, addr=addr, size=4096, phys=addr, prot=prot),
                pack(Op.UNMAP, addr=addr, size=4096),
            )
        ]
        data = b"".join(ops)
        started = time.perf_counter()
        results = harness.run(data)
        took = time.perf_counter() - started
        first = harness.events()[1 : results[0].event_count - 1]
    return took, sum(result.event_count - 2 for result in results), first


@pytest.mark.parametrize("label", labels())
def test_map_and_unmap_single_pages(label: str) -> None:
    ours, our_events, our_first = _model(label)
    theirs, their_events, their_first = _kernel(label)
    assert our_events == their_events
    assert our_first == their_first
    rate, kernel_rate = 2 * PAIRS / ours, 2 * PAIRS / theirs
    print(
        f"\nmodel {label}: {rate:,.0f} operations/s with {our_events / 2 / PAIRS:.1f} events each (wanted: 20,000/s); "
        f"the kernel's C in the harness {kernel_rate:,.0f}/s: {kernel_rate / rate:.1f} times as fast"
    )
