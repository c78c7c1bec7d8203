"""Hyp stage-1 of a kernel's own code, performed again by a model that has to find out which CPU it is on."""

from __future__ import annotations

from typing import Final

import pytest

from fixtures.kernels import COMPILED
from inspector.crosscheck.differ import KernelSide
from inspector.events import CALL, GET, RET, STORE, RawEvent
from inspector.generations import GENERATIONS
from inspector.model.hyp import GP
from inspector.model.machine import Machine
from inspector.model.operations import Operation
from inspector.model.prot import Prot, kernel_prot
from inspector.model.session import Setup
from inspector.trace.replay import Judge
from tests.crosscheck import kernels

pytestmark = pytest.mark.harness

PAGE, VA = 4096, 0x40_0000_0000
RW, RX, RO = int(Prot.R | Prot.W), int(Prot.R | Prot.X), int(Prot.R)
AP_READ_ONLY: Final = 1 << 7
LABELS = [label for label in COMPILED if label != "5.10"]
CPUS = [Machine(hvhe=hvhe, bti=bti) for hvhe in (False, True) for bti in (False, True)]

Events = list[tuple[int, RawEvent]]


def operations() -> list[Operation]:
    """As __create_hyp_mappings makes them: text, data, read-only data, a page that is there already, and no end."""
    maps = [(VA, 4, RX), (VA + 0x10000, 3, RW), (VA + 0x20000, 600, RO), (VA + 0x10000, 1, RW), (VA + (1 << 30), 1, RW)]
    found = [Operation("hyp_init")]
    return [*found, *(Operation("hyp_map", at, pages * PAGE, 0x80000000 + at, prot) for at, pages, prot in maps)]


def traced(label: str, machine: Machine) -> Events:
    generation = GENERATIONS[label]
    side = KernelSide(Setup(label, machine=machine), kernels.kernel(label))
    found: Events = []
    try:
        for each in operations():
            result, raws = side.apply(each)
            words = f"pgt=0x1000,addr={each.addr:#x},size={each.size:#x},phys={each.pa:#x}"
            words += f",prot={kernel_prot(each.prot, generation):#x}"
            if each.name == "hyp_init":
                words += ",ia_bits=48,start_level=0,vtcr=0x0,fwb=0,ttl=1,xnx=0,tlb_range=0"
            call = (CALL, f"kvm_pgtable_{each.name}", words)
            found += [(0, raw) for raw in (call, *raws, (RET, result.ret))]
    finally:
        side.close()
    return found


def judged(label: str, events: Events) -> Judge:
    judge = Judge({"generation": label, "page_shift": 12, "walk_flags": {}})
    for lane, raw in events:
        judge.take(lane, raw)
    judge.finish()
    return judge


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("machine", CPUS, ids=lambda m: f"{'hvhe' if m.hvhe else 'nvhe'}{'-bti' if m.bti else ''}")
def test_whichever_cpu_it_is_on_the_model_does_the_same(label: str, machine: Machine) -> None:
    judge = judged(label, traced(label, machine))
    assert (judge.broken, judge.differing) == ([], [])
    assert judge.verdicts.held == len(operations())


@pytest.mark.parametrize("label", LABELS)
def test_what_the_kernel_does_otherwise_is_found(label: str) -> None:
    """A page writable that should not be, a reference less, an entry less."""
    events = traced(label, CPUS[0])
    stores = [at for at, (_, raw) in enumerate(events) if raw[0] == STORE and raw[3] & 3 == 3 and raw[3] & 1 << 10]
    last = stores[-1]

    def changed(raw: RawEvent) -> Events:
        return [*events[:last], (0, raw), *events[last + 1 :]]

    raw = events[last][1]
    gets = [at for at, (_, each) in enumerate(events) if each[0] == GET]
    for wrong in (
        changed((*raw[:3], raw[3] ^ AP_READ_ONLY, *raw[4:])),
        changed((*raw[:3], raw[3] ^ 1 << 12, *raw[4:])),
        [*events[:last], *events[last + 1 :]],
        [each for at, each in enumerate(events) if at != gets[-1]],
    ):
        assert judged(label, wrong).differing


@pytest.mark.parametrize("label", [label for label in LABELS if GENERATIONS[label].hyp_bti])
def test_what_it_did_once_says_which_cpu_it_is_on(label: str) -> None:
    """After a guarded page of text one that is not guarded is wrong, though another CPU would have it so."""
    events = traced(label, Machine(bti=True))
    text = [at for at, (_, raw) in enumerate(events) if raw[0] == STORE and raw[3] & GP]
    _, raw = events[text[-1]]
    events[text[-1]] = (0, (*raw[:3], raw[3] & ~GP, *raw[4:]))
    assert len(judged(label, events).differing) == 1
