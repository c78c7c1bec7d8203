"""How fast crosscheck is: the harness against a bare loop over the kernel's code, and the comparison against both.

Prints figures (``pytest -s``); asserts that the same work was done, never how long it took.
"""

from __future__ import annotations

import time

import pytest

from inspector.crosscheck.campaign import run
from inspector.crosscheck.harness import Op, pack
from inspector.generations import generation
from inspector.model.prot import Prot, kernel_prot
from tests.crosscheck.kernels import harness, kernel, labels

pytestmark = pytest.mark.harness

PAIRS = 20_000
OPERATIONS = 5_000
BASE = 0x8000_0000


def _work(label: str) -> bytes:
    """Pages scattered over 16M mapped and unmapped, so that tables come and go."""
    prot = kernel_prot(int(Prot.RWX), generation(label))
    addresses = [BASE + (number * 37) % 4096 * 4096 for number in range(PAIRS)]
    return b"".join(
        pack(Op.MAP, addr=addr, size=4096, phys=addr, prot=prot) + pack(Op.UNMAP, addr=addr, size=4096)
        for addr in addresses
    )


@pytest.mark.parametrize("label", labels())
def test_the_harness_against_a_bare_loop(label: str) -> None:
    """The bare loop calls map and unmap in C, keeps no result and throws the events of each away."""
    work = _work(label)
    with harness(label, fwb=True) as bare, harness(label, fwb=True) as whole:
        assert bare.stage2_init(40)[0] == whole.stage2_init(40)[0] == 0
        started = time.perf_counter()
        bare.loop(work)
        alone = time.perf_counter() - started
        started = time.perf_counter()
        results = whole.run(work)
        driven = time.perf_counter() - started
        assert len(results) == 2 * PAIRS
        assert not any(result.ret for result in results)
        # The bare loop did the same: the same pages are left, under the same addresses.
        assert bare.outstanding() == whole.outstanding()
        assert bare.info() == whole.info()
    print(
        f"\nharness {label}: {2 * PAIRS / driven:,.0f} operations/s with results and events kept, "
        f"{driven / alone:.2f} times the bare loop ({2 * PAIRS / alone:,.0f}/s)"
    )


@pytest.mark.parametrize("label", labels())
def test_the_model_against_the_kernel(label: str) -> None:
    """The random campaign, as `inspector crosscheck` runs it, in one process."""
    kernel(label).library()
    started = time.process_time()
    outcome = run(kernel(label), OPERATIONS, seed=7)
    took = time.process_time() - started
    assert outcome.difference is None
    print(
        f"\nmodel against kernel {label}: {outcome.operations / took:,.0f} operations/s of processor time with "
        f"{outcome.events / outcome.operations:.0f} events each, everything compared after each"
    )
