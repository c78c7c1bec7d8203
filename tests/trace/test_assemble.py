"""From records to events: what is whose, on any CPU, nested, preempted, and outside of everything."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    ALLOCFAIL,
    BARRIER,
    CACHE,
    CALL,
    CASFAIL,
    CHAIN,
    DEFER,
    ENTER,
    FREE,
    FREE_EXACT,
    GET,
    LEAVE,
    OBTAIN,
    PUT,
    RET,
    STORE,
    SYSREG,
    TLBI,
    RawEvent,
)
from inspector.events import RELEASE as LET_GO
from inspector.trace.assemble import MOST_EARLY, Assembler
from inspector.trace.functions import FUNCTIONS
from inspector.trace.plan import EXIT, Plan
from inspector.trace.raw import Record, RecordKind

NAMES = tuple(FUNCTIONS)
LINEAR = 0xFFFF000000000000 - 0x40000000
PGT = 0xFFFF000000010000
STACK, OTHER = 0xFFFF800010003F00, 0xFFFF800010013F00
PLAIN, RELEASE, CAS = 0x100, 0x104, 0x108
ROOT, TABLE = 0x48000000, 0x48010000
TLBI_IPA, DSB_ISH = 0xD50C8021, 0xD5033B9F


HVC = 0xD4000002
HYP_SP = 0x7C0012343F00


def plan() -> Plan:
    members = {"ia_bits": (0, 4), "start_level": (4, 1)}
    return Plan(
        "6.12.1",
        "6.12",
        "",
        NAMES,
        (),
        (0, 0x1000),
        (),
        (0, 0),
        frozenset((RELEASE,)),
        frozenset((CAS,)),
        members,
        8,
        12,
        hyp=((0x2000, 0x3000),),
    )


def enter(name: str, *words: int, cpu: int = 0, sp: int = STACK) -> Record:
    arguments = (*words, *(0,) * (len(FUNCTIONS[name].arguments) - len(words)))
    return Record(RecordKind.PROBE, cpu, NAMES.index(name), (*arguments, 0xDEAD, sp))


def leave(name: str, value: int = 0, cpu: int = 0, sp: int = STACK) -> Record:
    return Record(RecordKind.PROBE, cpu, EXIT + NAMES.index(name), (value, 0xDEAD, sp))


def store(
    pa: int,
    value: int,
    at: int = PLAIN,
    *,
    cpu: int = 0,
    sp: int = STACK - 64,
    size: int = 3,
    found: int = 0,
    compared: int | None = None,
) -> Record:
    words = (pa + LINEAR, pa, value, 0, found, at, found if compared is None else compared, sp)
    return Record(RecordKind.STORE, cpu, size, words)


def instruction(word: int, operand: int = 0, cpu: int = 0, sp: int = STACK - 64) -> Record:
    return Record(RecordKind.INSTRUCTION, cpu, 0, (word, operand, sp))


INIT = (
    enter("kvm_get_vtcr"),
    leave("kvm_get_vtcr", 0x802D3558),
    enter("__kvm_pgtable_stage2_init", PGT),
    enter("kvm_s2_zalloc_pages_exact", 0x1000, sp=STACK - 32),
    leave("kvm_s2_zalloc_pages_exact", ROOT + LINEAR, sp=STACK - 32),
    store(PGT - LINEAR, 40 | 1 << 32),
    instruction(0xD5033A9F),
    leave("__kvm_pgtable_stage2_init"),
)


def assembled(records: Sequence[Record]) -> tuple[list[tuple[int, RawEvent]], Assembler]:
    assembler = Assembler(plan())
    return [each for record in (*INIT, *records) for each in assembler.take(record)], assembler


def test_init_tells_the_tables_shape() -> None:
    events, assembler = assembled(())
    call = (CALL, "__kvm_pgtable_stage2_init", f"pgt={PGT:#x},ia_bits=40,start_level=1,vtcr=0x802d3558")
    assert events == [(0, call), (0, (ALLOC_EXACT, ROOT, 4096)), (0, (BARRIER, "ishst")), (0, (RET, 0))]
    assert not assembler.outside


def test_a_map() -> None:
    """Arguments, what helpers get and give, kinds of store, and the flag that the walk is shared."""
    events, assembler = assembled(
        (
            enter("kvm_pgtable_stage2_map", PGT, 0x80000000, 0x1000, 0x50000000, 7, 0, 0x18),
            enter("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
            leave("stage2_memcache_zalloc_page", TABLE + LINEAR, sp=STACK - 32),
            store(ROOT + 16, 0x400, CAS),
            enter("kvm_host_get_page", ROOT + 16 + LINEAR, sp=STACK - 96),
            store(ROOT + 16, TABLE | 3, RELEASE),
            store(TABLE, 0x500007FF),
            enter("clean_dcache_guest_page", 0x50000000 + LINEAR, 4096, sp=STACK - 96),
            enter("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
            leave("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
            store(STACK - LINEAR & (1 << 64) - 1, 1),
            leave("kvm_pgtable_stage2_map", (1 << 64) - 12),
        )
    )
    flags = "prot=0x7,mc=0x0,flags=0x18,shared"
    assert [raw for _, raw in events[4:]] == [
        (CALL, "kvm_pgtable_stage2_map", f"pgt={PGT:#x},addr=0x80000000,size=0x1000,phys=0x50000000,{flags}"),
        (ALLOC, TABLE),
        (STORE, ROOT + 16, 0, 0x400, 0, 1),
        (GET, ROOT),
        (STORE, ROOT + 16, 0x400, TABLE | 3, 1, 0),
        (STORE, TABLE, 0, 0x500007FF, 0, 0),
        (CACHE, "dcache", 0x50000000, 4096),
        (ALLOCFAIL,),
        (RET, -12),
    ]
    assert assembler.counts == {ROOT: 2, TABLE: 1}
    assert not assembler.outside


def test_the_last_reference_frees() -> None:
    events, assembler = assembled(
        (
            enter("kvm_pgtable_stage2_unmap", PGT, 0, 0x1000),
            enter("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
            leave("stage2_memcache_zalloc_page", TABLE + LINEAR, sp=STACK - 32),
            enter("stage2_free_unlinked_table", TABLE + LINEAR, 0xFFFFFFFF, sp=STACK - 32),
            enter("kvm_s2_put_page", TABLE + LINEAR, sp=STACK - 32),
            enter("kvm_s2_free_pages_exact", ROOT + LINEAR, 4096, sp=STACK - 32),
            leave("kvm_s2_free_pages_exact", 0, sp=STACK - 32),
            leave("kvm_pgtable_stage2_unmap"),
        )
    )
    wanted = [(ALLOC, TABLE), (DEFER, TABLE, -1), (PUT, TABLE, 0), (FREE, TABLE), (FREE_EXACT, ROOT, 4096)]
    assert [raw for _, raw in events[5:-1]] == wanted
    assert not assembler.pages


def test_a_cmpxchg_that_finds_another_value_stores_nothing() -> None:
    """The probe is told what a CAS would have stored; what it found and what it compared with say that it did not."""
    events, _ = assembled(
        (
            enter("kvm_pgtable_stage2_map", PGT),
            store(ROOT, 0x400, CAS),
            store(ROOT, 0x400, CAS, found=0x400, compared=0),
            store(ROOT, 0x500, CAS, found=0x401, compared=0x400),
            store(ROOT, 0x600, CAS, found=0x401),
            leave("kvm_pgtable_stage2_map"),
        )
    )
    assert [raw for _, raw in events[5:-1]] == [
        (STORE, ROOT, 0, 0x400, 0, 1),
        (CASFAIL, ROOT, 0, 0x400),
        (CASFAIL, ROOT, 0x400, 0x500),
        (STORE, ROOT, 0x401, 0x600, 0, 1),
    ]


ONE = (enter("kvm_pgtable_stage2_map", PGT), enter("kvm_pgtable_stage2_map", PGT, cpu=1, sp=OTHER))


def test_what_another_cpu_saw_of_a_store_waits_for_it() -> None:
    """CPU 1's CAS found CPU 0's table before CPU 0's callback told of it: what it tells comes after, in its order."""
    events, _ = assembled(
        (
            *ONE,
            store(ROOT, 0x400, CAS),
            store(ROOT, 0x400, CAS, cpu=1, sp=OTHER - 64, found=TABLE | 3, compared=0),
            leave("kvm_pgtable_stage2_map", cpu=1, sp=OTHER),
            store(ROOT, TABLE | 3, RELEASE),
            leave("kvm_pgtable_stage2_map"),
        )
    )
    assert events[6:] == [
        (0, (STORE, ROOT, 0, 0x400, 0, 1)),
        (0, (STORE, ROOT, 0x400, TABLE | 3, 1, 0)),
        (1, (CASFAIL, ROOT, 0, 0x400)),
        (1, (RET, 0)),
        (0, (RET, 0)),
    ]


def test_two_cpus_that_wait_for_each_others_stores_in_turn() -> None:
    events, _ = assembled(
        (
            *ONE,
            store(ROOT, 3, CAS, found=2, cpu=0),
            store(ROOT, 1, CAS, found=0, cpu=1, sp=OTHER - 64),
            store(ROOT, 2, CAS, found=1, cpu=1, sp=OTHER - 64),
            store(ROOT, 4, CAS, found=3, cpu=1, sp=OTHER - 64),
            leave("kvm_pgtable_stage2_map"),
            leave("kvm_pgtable_stage2_map", cpu=1, sp=OTHER),
        )
    )
    assert [raw[2:4] for _, raw in events if raw[0] == STORE] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_store_that_nobody_tells_of_holds_nothing_up() -> None:
    """An access flag, and what no other operation can have stored: those go on at once."""
    for operations, found in ((ONE, 0x400), (ONE[:1], 0x703)):
        events, _ = assembled((*operations, store(ROOT, 3, CAS, found=found)))
        assert events[-1] == (0, (STORE, ROOT, found, 3, 0, 1))


def test_waiting_for_a_store_that_never_comes_ends() -> None:
    """Nor is anything lost: what waited is told as it was, when the other operations end or after many records."""
    late = store(ROOT, 3, CAS, found=0x703)
    events, _ = assembled((*ONE, late, leave("kvm_pgtable_stage2_map", cpu=1, sp=OTHER)))
    assert events[-1] == (0, (STORE, ROOT, 0x703, 3, 0, 1))
    many = [store(ROOT + 8 * (1 + at % 100), at) for at in range(MOST_EARLY)]
    events, _ = assembled((*ONE, late, *many))
    assert [raw for lane, raw in events if lane == 0][-MOST_EARLY - 1] == (STORE, ROOT, 0x703, 3, 0, 1)


def test_two_cpus_and_one_that_was_preempted() -> None:
    """Who runs is told by the stack: an operation goes on on another CPU, and one begins where it was."""
    events, assembler = assembled(
        (
            enter("kvm_pgtable_stage2_unmap", PGT, 0, 0x1000),
            enter("kvm_pgtable_stage2_map", PGT, cpu=0, sp=OTHER),
            store(ROOT, 1, cpu=1),
            store(ROOT, 2, cpu=0, sp=OTHER - 64),
            instruction(TLBI_IPA, 0x80001, cpu=1),
            leave("kvm_pgtable_stage2_map", cpu=0, sp=OTHER),
            leave("kvm_pgtable_stage2_unmap", cpu=1),
            enter("kvm_pgtable_stage2_map", PGT, cpu=0, sp=OTHER),
            leave("kvm_pgtable_stage2_map", cpu=0, sp=OTHER),
        )
    )
    kinds = [(lane, raw[0]) for lane, raw in events[4:]]
    first = [(0, CALL), (64, CALL), (0, STORE), (64, STORE), (0, TLBI), (64, RET), (0, RET)]
    assert kinds == [*first, (0, CALL), (0, RET)]
    assert not assembler.outside


def test_an_operation_within_another_is_part_of_it() -> None:
    events, _ = assembled(
        (
            enter("kvm_pgtable_stage2_destroy", PGT),
            enter("kvm_pgtable_stage2_destroy_range", PGT, 0, 1 << 40, sp=STACK - 48),
            store(ROOT, 0),
            leave("kvm_pgtable_stage2_destroy_range", 5, sp=STACK - 48),
            leave("kvm_pgtable_stage2_destroy", 77),
        )
    )
    assert [raw[0] for _, raw in events[4:]] == [CALL, STORE, RET]
    assert events[-1][1] == (RET, 0), "it returns nothing: x0 means nothing"


def test_a_return_that_was_not_seen_loses_no_later_operation() -> None:
    """A function may leave by a jump to another one: the next one at its height on the stack tells that it has."""
    events, assembler = assembled(
        (
            enter("kvm_pgtable_stage2_unmap", PGT),
            enter("stage2_memcache_zalloc_page", 0, sp=STACK - 32),
            enter("kvm_pgtable_stage2_map", PGT),
            store(ROOT, 1),
            leave("kvm_pgtable_stage2_map"),
        )
    )
    assert [(lane, raw[0]) for lane, raw in events[4:]] == [(0, CALL), (0, CALL), (0, STORE), (0, RET)]
    assert assembler.outside == {
        "return of stage2_memcache_zalloc_page": 1,
        "return of kvm_pgtable_stage2_unmap": 1,
    }


def test_what_lies_in_no_operation_is_counted() -> None:
    events, assembler = assembled(
        (
            instruction(TLBI_IPA),
            instruction(DSB_ISH),
            enter("kvm_s2_put_page", ROOT + LINEAR),
            store(ROOT, 5),
            enter("kvm_pgtable_stage2_map", PGT),
            store(ROOT, 5, size=2),
        )
    )
    assert [raw[0] for _, raw in events[4:]] == [CALL]
    assert assembler.outside == {
        "tlbi ipas2e1is": 1,
        "kvm_s2_put_page": 1,
        "store to a table": 1,
        "store of another size to a table": 1,
    }


FLUSH_AT_EL2 = "__kvm_nvhe___kvm_tlb_flush_vmid_ipa"


def flush(cpu: int = 0) -> tuple[Record, ...]:
    """What EL2 does at a hypercall, on its own stack."""
    return (
        enter(FLUSH_AT_EL2, cpu=cpu, sp=HYP_SP),
        instruction(TLBI_IPA, 0x80000, cpu=cpu, sp=HYP_SP),
        instruction(DSB_ISH, cpu=cpu, sp=HYP_SP),
        leave(FLUSH_AT_EL2, cpu=cpu, sp=HYP_SP),
    )


UNMAP = enter("kvm_pgtable_stage2_unmap", PGT, 0x80000000, 0x1000)


def test_what_el2_does_at_an_operations_hypercall_is_the_operations() -> None:
    """nVHE: the TLB functions run there, on a stack of EL2's own."""
    events, assembler = assembled((UNMAP, instruction(HVC), *flush(), leave("kvm_pgtable_stage2_unmap")))
    assert [raw[:2] for _, raw in events[4:]] == [
        (CALL, "kvm_pgtable_stage2_unmap"),
        (ENTER, FLUSH_AT_EL2),
        (TLBI, "ipas2e1is"),
        (BARRIER, "ish"),
        (LEAVE, FLUSH_AT_EL2),
        (RET, 0),
    ]
    assert not assembler.outside


def test_a_hypercall_of_which_nothing_is_seen_is_told() -> None:
    events, _ = assembled((UNMAP, instruction(HVC), leave("kvm_pgtable_stage2_unmap")))
    assert (0, (BARRIER, "hvc")) in events


def test_what_el2_does_for_somebody_else_is_not_the_operations() -> None:
    """A flush by another task that ran in between, and one on another CPU."""
    events, assembler = assembled(
        (UNMAP, instruction(HVC), *flush(), *flush(), *flush(cpu=1), leave("kvm_pgtable_stage2_unmap"))
    )
    within = [raw[0] for lane, raw in events[4:] if lane == 0]
    assert within == [CALL, ENTER, TLBI, BARRIER, LEAVE, RET]
    assert [(lane, raw[0]) for lane, raw in events if lane] == [
        (lane, kind) for lane in (64, 1) for kind in (ENTER, TLBI, BARRIER, LEAVE)
    ]
    assert not assembler.outside


MSR_VTTBR, MSR_HCR = 0xD51C2103, 0xD51C1102
FLUSH = "__kvm_tlb_flush_vmid"


def test_a_flush_is_its_operations_with_what_it_writes() -> None:
    sp = STACK - 128
    events, _ = assembled(
        (
            UNMAP,
            enter(FLUSH, sp=sp),
            instruction(MSR_VTTBR, 0x1000040000001, sp=sp - 16),
            instruction(MSR_HCR, 0x400000000, sp=sp - 16),
            leave(FLUSH, sp=sp),
            leave("kvm_pgtable_stage2_unmap"),
        )
    )
    assert events[5:] == [
        (0, (ENTER, FLUSH, "cpu=0")),
        (0, (SYSREG, 0, "vttbr_el2", 0x1000040000001)),
        (0, (SYSREG, 0, "hcr_el2", 0x400000000)),
        (0, (LEAVE, FLUSH)),
        (0, (RET, 0)),
    ]


def test_an_ioctl_has_operations_and_flushes_in_it() -> None:
    """Operations keep their CPU's number as a lane; they and flushes say which ioctl they are in."""
    inner = STACK - 256
    events, assembler = assembled(
        (
            enter("kvm_vm_ioctl"),
            enter("kvm_pgtable_stage2_wrprotect", PGT, 0, 0x1000, sp=inner),
            leave("kvm_pgtable_stage2_wrprotect", sp=inner),
            enter(FLUSH, sp=inner),
            instruction(TLBI_IPA, 0x80000, sp=inner - 16),
            leave(FLUSH, sp=inner),
            leave("kvm_vm_ioctl"),
            enter("kvm_pgtable_stage2_wrprotect", PGT, 0, 0x1000, sp=inner),
        )
    )
    call = f"pgt={PGT:#x},addr=0x0,size=0x1000"
    assert [(lane, raw[:3]) for lane, raw in events[4:]] == [
        (8192, (ENTER, "kvm_vm_ioctl", "cpu=0")),
        (0, (CALL, "kvm_pgtable_stage2_wrprotect", f"{call},in=8192")),
        (0, (RET, 0)),
        (0, (ENTER, FLUSH, "cpu=0,in=8192")),
        (0, (TLBI, "ipas2e1is", 0x80000000)),
        (0, (LEAVE, FLUSH)),
        (8192, (LEAVE, "kvm_vm_ioctl")),
        (0, (CALL, "kvm_pgtable_stage2_wrprotect", call)),
    ]
    assert not assembler.outside


def test_who_called_an_operation_is_told_once() -> None:
    """By return addresses, which are those after the calls; later calls from there refer to it."""
    names = {0xFFFF800080001000: "inner", 0xFFFF800080002000: "outer"}
    assembler = Assembler(plan(), lambda address: names.get(address & -0x1000))
    chain = (0xFFFF800080001010, 0xFFFF800080003000, 0xFFFF800080003800)
    call = enter("kvm_pgtable_stage2_unmap", PGT, 0, 0x1000)
    call = call._replace(words=(*call.words[:-2], *chain, *call.words[-2:]))
    records = (*INIT, call, leave("kvm_pgtable_stage2_unmap"), call)
    told = [raw for each in records for _, raw in assembler.take(each)][4:]
    arguments = f"pgt={PGT:#x},addr=0x0,size=0x1000,by=1"
    assert told == [
        (CHAIN, 1, "inner<outer<0xffff800080003800"),
        (CALL, "kvm_pgtable_stage2_unmap", arguments),
        (RET, 0),
        (CALL, "kvm_pgtable_stage2_unmap", arguments),
    ]


def test_vttbr_of_who_runs_is_told_when_it_is_news() -> None:
    """The same again is none, but after a vCPU was loaded; nVHE's 0 between is told where a flush begins with it."""
    run = [instruction(MSR_VTTBR, value, sp=HYP_SP) for value in (0x1000040000001, 0)]
    events, _ = assembled((*run, *run, enter("kvm_arch_vcpu_load", 0x77), *run, enter(FLUSH)))
    told = [each for each in events[4:] if each[1][0] == SYSREG]
    assert [raw[3] for _, raw in told] == [0x1000040000001, 0x1000040000001, 0]
    assert {lane for lane, _ in told} == {4096}
    assert (8192, (ENTER, "kvm_arch_vcpu_load", "cpu=0,vcpu=0x77")) in events


def test_a_protected_host_is_told() -> None:
    events, _ = assembled((enter("_kvm_host_prot_finalize"),))
    assert events[4:] == [(0, (CALL, "_kvm_host_prot_finalize", ""))]


def test_hyp_stage_1_is_followed_too() -> None:
    """Its tables are not guests', though some callbacks are the same functions."""
    sp = STACK - 64
    events, assembler = assembled(
        (
            enter("kvm_pgtable_hyp_init", PGT + 0x100, 48),
            enter("kvm_hyp_zalloc_page", 0, sp=sp),
            leave("kvm_hyp_zalloc_page", 0x50000000 + LINEAR, sp=sp),
            store(PGT + 0x100 - LINEAR, 48),
            leave("kvm_pgtable_hyp_init"),
            enter("kvm_pgtable_hyp_map", PGT + 0x100, 0x1000, 0x1000, 0x9000, 3),
            store(0x50000000, 0x403, RELEASE),
            enter("kvm_host_get_page", 0x50000000 + LINEAR, sp=sp),
            leave("kvm_pgtable_hyp_map"),
        )
    )
    assert [raw[:2] for _, raw in events[4:]] == [
        (CALL, "kvm_pgtable_hyp_init"),
        (ALLOC, 0x50000000),
        (RET, 0),
        (CALL, "kvm_pgtable_hyp_map"),
        (STORE, 0x50000000),
        (GET, 0x50000000),
        (RET, 0),
    ]
    assert "ia_bits=48,start_level=0,vtcr=0x0" in events[4][1][2]
    assert not assembler.outside


# --- the host's pages ---

ABORT, OLD, NEW = "kvm_handle_guest_abort", "__gfn_to_pfn_memslot", "__kvm_faultin_pfn"
BY_FRAME, BY_PAGE, DIRTY = "kvm_release_pfn_clean", "kvm_release_page_clean", "kvm_release_page_dirty"
PAGE_AT = 0xFFFFFFC000200000
LOWER = STACK - 0x40


def of_pages(*records: Record) -> list[RawEvent]:
    told = Assembler(plan(), _distance=0)
    return [raw for record in records for _, raw in told.take(record) if raw[0] in (OBTAIN, LET_GO)]


def test_a_page_of_the_hosts_is_told_of_a_fault_alone() -> None:
    inside = (leave(OLD, 0x80000, sp=LOWER), enter(BY_FRAME, 0x80000, sp=LOWER))
    assert of_pages(enter(ABORT), *inside, leave(ABORT)) == [(OBTAIN, 0x80000), (LET_GO, 0x80000)]
    assert of_pages(*inside) == []
    assert of_pages(enter(ABORT), leave(ABORT), *inside) == []
    # Another task's, on a stack of its own.
    other = (leave(OLD, 0x80000, sp=OTHER), enter(BY_FRAME, 0x80000, sp=OTHER))
    assert of_pages(enter(ABORT), *other) == []


def test_what_is_no_frame_is_not_obtained() -> None:
    """KVM_PFN_ERR_FAULT and KVM_PFN_NOSLOT; what is then let go is not the fault's."""
    for none in (0x7FF << 52, 1 << 63):
        assert of_pages(enter(ABORT), leave(OLD, none, sp=LOWER), enter(BY_FRAME, 0x80000, sp=LOWER)) == []


def test_dirty_and_clean_are_one_release() -> None:
    """kvm_release_page_dirty ends in a branch to kvm_release_page_clean, or calls it; two calls are two releases."""
    before = (enter(ABORT), leave(NEW, 0x80000, sp=LOWER))
    dirty = enter(DIRTY, PAGE_AT, sp=LOWER)
    one = [(OBTAIN, 0x80000), (LET_GO, PAGE_AT)]
    assert of_pages(*before, dirty) == one
    assert of_pages(*before, dirty, enter(BY_PAGE, PAGE_AT, sp=LOWER)) == one
    assert of_pages(*before, dirty, enter(BY_PAGE, PAGE_AT, sp=LOWER - 0x20)) == one
    again = enter(BY_PAGE, PAGE_AT, sp=LOWER)
    again = Record(again.kind, again.cpu, again.number, (PAGE_AT, 0xBEEF, LOWER))  # called from elsewhere
    assert of_pages(*before, dirty, again) == [*one, (LET_GO, PAGE_AT)]
    assert of_pages(*before, dirty, dirty) == [*one, (LET_GO, PAGE_AT)]
