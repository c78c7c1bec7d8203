"""Each operation of a kernel's own code, performed again by the model with the arguments that the kernel was given.

The events are those of the compiled pgtable.c (tests/crosscheck), framed as the assembler frames those of a machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from fixtures.kernels import COMPILED
from inspector.crosscheck.differ import KernelSide
from inspector.events import BARRIER, CACHE, CALL, GET, PUT, RET, STORE, TLBI, TTL_UNKNOWN, RawEvent
from inspector.generations import GENERATIONS
from inspector.model.attributes import AF
from inspector.model.machine import Machine
from inspector.model.operations import Operation
from inspector.model.prot import Prot, kernel_prot, model_prot
from inspector.model.session import Setup
from inspector.model.state import HANDLE_FAULT, SHARED
from inspector.trace.replay import Judge
from tests.crosscheck import kernels
from tests.trace.test_replay import NAMES, PGT, callbacks

pytestmark = pytest.mark.harness

IPA, PAGE, BLOCK = 0x80000000, 4096, 2 << 20
RWX, RW = int(Prot.RWX), int(Prot.RW)
HA = 1 << 21
WALK_FLAGS = {"SHARED": 8, "HANDLE_FAULT": 16}
FEATURES = {"fwb": 1, "ttl": 1, "xnx": 0, "tlb_range": 1}

Events = list[tuple[int, RawEvent]]


def faults(label: str) -> int:
    """The walk flags of a fault handler's map."""
    generation = GENERATIONS[label]
    return (SHARED | (0 if generation.wrprotect_ignores_eagain else HANDLE_FAULT)) if generation.shared_walks else 0


def operations(label: str, count: int = 60) -> list[Operation]:
    """A table from init to destroy, with what a host does to a guest's."""
    dice = random.Random(7)
    found = [Operation("init")]
    for _ in range(count):
        page = IPA + PAGE * dice.choice((0, 1, 2, 3, 512, 513, 600))
        pa = 0x100000000 + PAGE * dice.randrange(1 << 18)
        found.append(
            dice.choice(
                (
                    Operation("map", page, PAGE, pa, dice.choice((RWX, RW)), cache=8, flags=faults(label)),
                    Operation("map", page, PAGE, pa, RWX, cache=8, flags=faults(label)),
                    Operation("map", page & -BLOCK, BLOCK, pa & -BLOCK, RWX, cache=8, flags=faults(label)),
                    Operation("map", page, PAGE, pa, RWX, cache=None),
                    Operation("unmap", page, PAGE * dice.randrange(1, 64)),
                    Operation("wrprotect", page & -BLOCK, BLOCK),
                    Operation("relax_perms", page, prot=RWX),
                    Operation("mkyoung", page),
                    Operation("flush", page & -BLOCK, 2 * BLOCK),
                )
            )
        )
        if found[-1].name == "map":
            found.append(Operation("grace_period"))
    return [*found, Operation("destroy")]


def instructions(raw: RawEvent, features: dict[str, int], generation: str) -> list[RawEvent]:
    """A TLB helper's call as the instructions that it makes (arch/arm64/kvm/hyp/vhe/tlb.c)."""
    if raw[0] != TLBI:
        return [raw]
    _, kind, ipa, level, pages = raw
    if kind == "vmid":
        return [(TLBI, "vmalls12e1is", None, None, None)]
    end: RawEvent = (TLBI, "vmalle1is", None, None, None)
    if kind == "range":
        return [(TLBI, "ripas2e1is", ipa, None, pages), end]
    hint = level if features["ttl"] and level != TTL_UNKNOWN and 1 <= level <= 3 else None
    return [(TLBI, "ipas2e1" if kind == "ipa_nsh" else "ipas2e1is", ipa & ~0xFFF, hint, None), end]


def arguments(o: Operation, label: str) -> list[str]:
    """The words of a ``call``, as registers hold them."""
    generation = GENERATIONS[label]
    flags = (8 if o.flags & SHARED else 0) | (16 if o.flags & HANDLE_FAULT else 0)
    words = [f"pgt={PGT:#x}", f"addr={o.addr:#x}", f"size={o.size:#x}", f"flags={flags:#x}"]
    if o.name in ("map", "relax_perms"):
        words += [f"phys={o.pa:#x}", f"prot={kernel_prot(o.prot, generation):#x}", f"mc={int(o.cache is not None):#x}"]
    return words


def traced(label: str, features: dict[str, int], given: Sequence[Operation] | None = None) -> Events:
    setup = Setup(label, machine=Machine(fwb=bool(features["fwb"]), tlb_range=bool(features["tlb_range"])))
    side = KernelSide(setup, kernels.kernel(label))
    geometry = setup.geometry()
    found: Events = []
    try:
        for operation in given if given is not None else operations(label):
            result, raws = side.apply(operation)
            name = NAMES.get(operation.name, f"kvm_pgtable_stage2_{operation.name}")
            words = arguments(operation, label) if operation.name != "grace_period" else ["head=0x1"]
            if operation.name == "init":
                words += [f"ia_bits={geometry.ia_bits}", f"start_level={geometry.start_level}", f"vtcr={HA:#x}"]
                words += [f"{name}={value}" for name, value in features.items()]
            words += ["shared"] if operation.flags & SHARED else []
            ret = 0 if operation.name == "grace_period" else result.ret
            if operation.name == "mkyoung":
                ret = result.value if result.ret >= 0 else 0
            for each in callbacks(raws) if operation.name == "grace_period" else [raws]:
                events = [told for raw in each for told in instructions(raw, features, label)]
                found += [(0, (CALL, name, ",".join(words))), *((0, raw) for raw in events), (0, (RET, ret))]
    finally:
        side.close()
    return found


def judged(events: Events, label: str) -> Judge:
    judge = Judge({"generation": label, "page_shift": 12, "walk_flags": WALK_FLAGS})
    for lane, raw in events:
        judge.take(lane, raw)
    judge.finish()
    return judge


@pytest.fixture(scope="module")
def events() -> Events:
    return traced("6.12", FEATURES)


@pytest.mark.parametrize("label", COMPILED)
@pytest.mark.parametrize("features", [FEATURES, {**FEATURES, "fwb": 0, "ttl": 0, "tlb_range": 0}])
def test_a_kernels_own_operations_are_held(label: str, features: dict[str, int]) -> None:
    judge = judged(traced(label, features), label)
    assert judge.differing == []
    assert judge.verdicts.held == judge.counts.operations - judge.counts.unknown
    assert judge.verdicts.held > 60
    assert judge.verdicts.raced == 0


def changed(events: Events, kind: int, change: Callable[[RawEvent], RawEvent | None], which: int = 3) -> Events:
    """One event of a kind is another, or gone."""
    at = [at for at, (_, raw) in enumerate(events) if raw[0] == kind and raw[1] not in ("vmalle1is", -11, -12)][which]
    new = change(events[at][1])
    return [*events[:at], *([] if new is None else [(0, new)]), *events[at + 1 :]]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (STORE, lambda raw: (*raw[:3], raw[3] ^ 1 << 7, *raw[4:])),
        (STORE, lambda raw: None),
        (GET, lambda raw: None),
        (PUT, lambda raw: None),
        (CACHE, lambda raw: None),
        (CACHE, lambda raw: (*raw[:2], raw[2] + PAGE, raw[3])),
        (TLBI, lambda raw: None),
        (TLBI, lambda raw: (TLBI, "vmalls12e1is", None, None, None)),
        (RET, lambda raw: (RET, -11)),
    ],
)
def test_what_the_kernel_does_otherwise_is_told(
    events: Events, kind: int, change: Callable[[RawEvent], RawEvent | None]
) -> None:
    judge = judged(changed(events, kind, change), "6.12")
    assert judge.differing
    assert judge.differing[0].difference.what


def test_a_repeated_tlbi_is_the_same_call(events: Events) -> None:
    """ARM64_WORKAROUND_REPEAT_TLBI: the same again after a DSB, or a TLBI of EL2 by address 0."""
    ish = (0, (BARRIER, "ish"))
    twice = [each for told in events for each in ((told, ish, told) if told[1][0] == TLBI else (told,))]
    assert judged(twice, "6.12").differing == []
    nothing = (0, (TLBI, "vale2is", 0, None, None))
    after = [each for told in events for each in ((told, ish, nothing) if told[1][0] == TLBI else (told,))]
    assert judged(after, "6.12").differing == []


def test_a_wrong_level_hint_is_told(events: Events) -> None:
    at = next(at for at, (_, raw) in enumerate(events) if raw[0] == TLBI and raw[3] == 3)
    wrong = [*events[:at], (0, (*events[at][1][:3], 2, None)), *events[at + 1 :]]
    judge = judged(wrong, "6.12")
    assert "level 2" in judge.differing[0].difference.what


def test_an_argument_that_was_not_acted_on_is_told(events: Events) -> None:
    """The call says another PA than what is stored."""
    at = next(at for at, (_, raw) in enumerate(events) if raw[0] == CALL and raw[1].endswith("_map"))
    call = events[at][1]
    text = call[2].replace("phys=0x1", "phys=0x2")
    judge = judged([*events[:at], (0, (CALL, call[1], text)), *events[at + 1 :]], "6.12")
    assert judge.differing


def test_one_difference_is_told_once(events: Events) -> None:
    """The model takes over what was seen, and goes on from there."""
    judge = judged(changed(events, STORE, lambda raw: (*raw[:3], raw[3] ^ 1 << 7, *raw[4:]), 0), "6.12")
    assert len(judge.differing) == 1


AGED = (
    Operation("init"),
    Operation("map", IPA, PAGE, 0x100000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("test_clear_young", IPA, PAGE, switch=1),
    Operation("test_clear_young", IPA, PAGE, switch=0),
    Operation("map", IPA, PAGE, 0x100000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
    Operation("destroy"),
)


def with_mkold(events: Events) -> Events:
    """``test_clear_young`` is told with its third argument."""
    switches = iter((1, 0))
    return [
        (lane, (CALL, raw[1], f"{raw[2]},mkold={next(switches)}"))
        if raw[0] == CALL and raw[1].endswith("test_clear_young")
        else (lane, raw)
        for lane, raw in events
    ]


def test_an_access_flag_that_the_hardware_set_is_no_difference() -> None:
    """Between two operations, where VTCR_EL2.HA says that it may: young again, and an identical map then is refused."""
    events = with_mkold(traced("6.12", FEATURES, AGED))
    assert judged(events, "6.12").differing == []
    rets = [at for at, (_, raw) in enumerate(events) if raw[0] == RET]
    young = [*events[: rets[3]], (0, (RET, 1)), *events[rets[3] + 1 :]]
    # The CAS that breaks the entry says that the flag was not set after all.
    assert judged(young, "6.12").differing == []
    calls = [at for at, (_, raw) in enumerate(young) if raw[0] == CALL]
    refused = [*young[: calls[4] + 1], (0, (RET, -11)), *young[calls[5] :]]
    assert judged(refused, "6.12").differing == []
    without = [
        (0, (CALL, raw[1], raw[2].replace(f"vtcr={HA:#x}", "vtcr=0x0"))) if raw[0] == CALL else (0, raw)
        for _, raw in young
    ]
    assert judged(without, "6.12").differing


def test_a_cas_that_found_what_nobody_stored() -> None:
    """The access flag may be the hardware's; anything else is a difference."""
    other = Operation("map", IPA, PAGE, 0x200000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT)
    events = with_mkold(traced("6.12", FEATURES, (*AGED[:4], other, AGED[5])))
    last = next(at for at, (_, raw) in enumerate(events) if raw[0] == STORE and raw[2] & 1 and not raw[2] & AF)
    for bits, differs in ((AF, False), (1 << 7, True)):
        raw = events[last][1]
        judge = judged([*events[:last], (0, (*raw[:2], raw[2] ^ bits, *raw[3:])), *events[last + 1 :]], "6.12")
        assert bool(judge.differing) is differs, bits


def test_operations_that_overlap_are_put_into_an_order(events: Events) -> None:
    """Two maps of other pages at once: each is as if the other had not been; and one that another made fail."""
    given = (
        Operation("init"),
        Operation("map", IPA, PAGE, 0x100000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
        Operation("map", IPA + PAGE, PAGE, 0x200000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
        Operation("map", IPA + 2 * PAGE, PAGE, 0x300000000, RWX, cache=8, flags=SHARED | HANDLE_FAULT),
        Operation("destroy"),
    )
    told = traced("6.12", FEATURES, given)
    calls = [at for at, (_, raw) in enumerate(told) if raw[0] == CALL]
    one, other = told[calls[2] : calls[3]], [(1, raw) for _, raw in told[calls[3] : calls[4]]]
    together = [*told[: calls[2]], one[0], other[0], *one[1:], *other[1:], *told[calls[4] :]]
    judge = judged(together, "6.12")
    assert (judge.differing, judge.verdicts.raced, judge.verdicts.held) == ([], 0, len(given))
    failed = [other[0], (1, (RET, -11))]
    raced = [*told[: calls[2]], one[0], failed[0], *one[1:], failed[1], *told[calls[4] :]]
    judge = judged([each for each in raced if each[1][0] != PUT or True], "6.12")
    assert judge.verdicts.raced == 2


def test_permissions_and_back() -> None:
    for generation in GENERATIONS.values():
        for value in range(1 << 6):
            try:
                given = kernel_prot(value, generation)
            except ValueError:
                continue
            assert model_prot(given, generation) == value
        with pytest.raises(ValueError, match="no enumerator"):
            model_prot(1 << 40, generation)


def test_without_the_cpus_features_the_model_is_not_asked() -> None:
    events = traced("6.12", FEATURES, AGED[:2])
    blind = [(0, (CALL, raw[1], raw[2].replace(",fwb=1", ""))) if raw[0] == CALL else (0, raw) for _, raw in events]
    assert judged(blind, "6.12").verdicts.held == 0


@pytest.mark.parametrize("ranges", [0, 1])
def test_a_cpu_that_does_not_say_whether_it_invalidates_by_range(ranges: int) -> None:
    """QEMU 11.1 shows no ID_AA64ISAR0_EL1: what the kernel does says which it is, and a fault is still one."""
    told = traced("6.12", {**FEATURES, "tlb_range": ranges})
    call = told[0][1]
    unsaid = [(0, (CALL, call[1], call[2].replace(f",tlb_range={ranges}", ""))), *told[1:]]
    assert unsaid[0] != told[0]
    judge = judged(unsaid, "6.12")
    assert (judge.differing, judge.verdicts.held) == ([], judged(told, "6.12").verdicts.held)
    assert judged(changed(unsaid, STORE, lambda raw: None), "6.12").differing
