"""The faults: where a kernel is stopped, what is done to it there, and what must find it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from inspector.inject.instructions import At


class Do(enum.Enum):
    """What is done when a place is reached."""

    RETURN = "the function returns at once"
    SKIP = "the instruction is not run"
    SET = "a register has another value"
    LATER = "the instruction is run after another one"
    PLAIN = "another instruction stores what this one would, without order"
    DELAY = "the CPU stands still while the others run"


@dataclass(frozen=True)
class Place:
    """``function`` is one name or several, of which the first that has it is taken; ``number`` counts instructions of
    the kind ``at`` from 0, ``None``: whichever is reached first.  ``after``: those that come after the first of that
    kind."""

    function: str
    at: At = At.ENTRY
    number: int | None = 0
    after: At | None = None

    def of_el2(self) -> Place:
        """The same in the code that runs at EL2 in nVHE."""
        return replace(self, function=" ".join(f"__kvm_nvhe_{each}" for each in self.function.split()))


@dataclass(frozen=True)
class Gate:
    """Only in such a call of ``function``: ``when`` holds at its entry, and one of ``caller`` has called it."""

    function: str
    when: str = ""
    caller: str = ""


@dataclass(frozen=True)
class Fault:
    """``place`` is where it is done, `at_el2` where in nVHE, if there is another.

    ``change`` is a gdb expression, with ``{t}`` for the register that the instruction stores or operates by, ``{n}``
    for that of its address, and ``{page}`` for the physical address of the page that it stores to; ``when`` is one that
    must hold (empty: the first time); ``caller`` are the functions of which one must have called, by the beginnings of
    their names; ``gate`` is what must have been entered before.  ``then`` is where `Do.LATER` runs it, ``by`` in which
    functions `Do.PLAIN` looks for its instruction.

    ``workload`` is what the exerciser is told to run, on ``cpu`` where not every CPU model does it.  ``owner`` is the
    rule of docs/invariants.md, or ``model``, that the model does otherwise, which must find it, ``unshared`` where
    faults do not share a table (before 6.2 the function `SHARES` is not there); empty: nothing must be found, for it is
    legal.  ``needs`` is a function without which a kernel does no such thing; ``vhe``: it does so in VHE alone.
    """

    name: str
    what: str
    place: Place
    do: Do
    owner: str
    workload: str
    change: str = ""
    when: str = ""
    caller: str = ""
    gate: Gate | None = None
    then: Place | None = None
    by: str = ""
    at_el2: Place | None = None
    cpu: str = ""
    unshared: str | None = None
    needs: str = ""
    vhe: bool = False

    def where(self, *, nvhe: bool) -> Place:
        """Its place in a host of that mode."""
        return self.at_el2 if nvhe and self.at_el2 is not None else self.place

    def owned_by(self, *, shared: bool) -> str:
        """The one that must find it."""
        return self.owner if shared or self.unshared is None else self.unshared


SHARES: Final = "stage2_try_set_pte"
"""Where faults on several CPUs contend for an entry (6.2 and later)."""

_IPA: Final = "__kvm_tlb_flush_vmid_ipa"
_RANGE: Final = "__kvm_tlb_flush_vmid_range"
_MAKES: Final = "stage2_make_pte stage2_map_walk_leaf"
"""Where an entry is stored with release, in 6.6 and later, and before."""
_LINKS: Final = "stage2_make_pte kvm_set_table_pte"
_LEAF: Final = "(${t} & 0x403) == 0x403"
_TABLE: Final = "(${t} & 0xfff) == 3"
"""An entry for a table has no attributes, not even an access flag."""
_RELAXES: Final = f"{_IPA}_nsh {_IPA}"
"""Called for a page whose permissions are relaxed: for this CPU in 6.6 and later, for all before."""
_SWITCH: Final = "enter_vmid_context __tlb_switch_to_guest"
"""Of 6.6 and later, and before."""
_TAKES: Final = "stage2_unmap stage2_put_pte"
"""What takes an entry away."""
_BREAK: Final = Gate(_IPA, "$w2 == 2", "stage2_try_break_pte stage2_put_pte")
"""A block is broken: dirty logging makes pages of it."""
_CLEAN: Final = "clean_dcache_guest_page"
_LET_GO: Final = "kvm_release_pfn_clean kvm_release_page_dirty"
_DROP: Final = "drop"
_MAP: Final = "one"
_COW: Final = "cow"
_LOG: Final = "log"
_ATTRIBUTES: Final = "stage2_update_leaf_attrs kvm_pgtable_stage2_wrprotect kvm_pgtable_stage2_relax_perms"


def _flush(
    name: str,
    what: str,
    do: Do,
    owner: str,
    at: At,
    number: int,
    *,
    el2: Place | None = None,
    change: str = "",
    when: str = "",
) -> Fault:
    """Something inside the flush of a block that is broken; a DSB but the first counts from the TLBI of stage 2."""
    place = Place(_IPA, at, number, At.TLBI if at is At.DSB and el2 is None else None)
    return Fault(name, what, place, do, owner, _LOG, change, when, gate=_BREAK, at_el2=el2 or place.of_el2())


def _switch(name: str, what: str, do: Do, owner: str, at: At, change: str = "", when: str = "") -> Fault:
    """Something where a flush by IPA puts on the context of a guest."""
    there = Place(_SWITCH, at, None).of_el2()
    return Fault(name, what, Place(_SWITCH, at), do, owner, _COW, change, when, gate=Gate(_IPA), at_el2=there)


def _unwalked(name: str, what: str, caller: str, workload: str, change: str = "") -> Fault:
    """An operation that ends before its walk: a function that returns at its entry would not be seen called at all."""
    return Fault(name, what, Place("kvm_pgtable_walk"), Do.RETURN, "model", workload, change=change, caller=caller)


def _unhelped(name: str, what: str, function: str, owner: str, workload: str = _MAP) -> Fault:
    """A callback that is not called."""
    return Fault(name, what, Place(function), Do.RETURN, owner, workload, at_el2=_el2(function))


def _misled(
    name: str, what: str, function: str, owner: str, change: str, workload: str = _MAP, when: str = ""
) -> Fault:
    """A function that is called with another argument."""
    return Fault(name, what, Place(function), Do.SET, owner, workload, change, when, at_el2=_el2(function))


def _el2(function: str) -> Place | None:
    """Its place in nVHE, where it is one of the TLB functions."""
    return Place(function).of_el2() if function.startswith("__kvm_") else None


def _stored(
    name: str,
    what: str,
    do: Do,
    change: str = "",
    *,
    owner: str = "model",
    when: str = _LEAF,
    by: str = "",
    unshared: str | None = None,
) -> Fault:
    """An entry that map stores."""
    place = Place(_LINKS if when == _TABLE else _MAKES, At.STLR, None)
    return Fault(name, what, place, do, owner, _MAP, change, when, by=by, unshared=unshared)


_ALL: Final = (
    Fault(
        "no-flush",
        "a TLB flush by IPA is not called",
        Place(_IPA),
        Do.RETURN,
        "B2",
        _LOG,
        when=_BREAK.when,
        caller=_BREAK.caller,
        at_el2=Place(_IPA).of_el2(),
    ),
    Fault(
        "no-table-flush",
        "a table is taken out, and no TLB flush is called",
        Place(_IPA),
        Do.RETURN,
        "B7",
        _DROP,
        when="$w2 != 3",
        caller=_TAKES,
        at_el2=Place(_IPA).of_el2(),
        # A block as well: 6.1 passes the level of both.
        unshared="B2",
    ),
    _flush(
        "no-dsb-before",
        "no DSB before the TLBI",
        Do.SKIP,
        "B2",
        At.DSB,
        0,
        el2=Place(f"enter_vmid_context {_IPA}", At.DSB, None).of_el2(),
    ),
    _flush("no-tlbi", "no TLBI of stage 2", Do.SKIP, "B2", At.TLBI, 0),
    _flush("no-dsb-between", "no DSB between the TLBI of stage 2 and of stage 1", Do.SKIP, "B4", At.DSB, 0),
    _flush("no-stage-1", "no TLBI of stage 1", Do.SKIP, "B4", At.TLBI, 1),
    _flush("no-dsb-after", "no DSB after the TLBI of stage 1", Do.SKIP, "B5", At.DSB, 1),
    _flush("other-block", "the TLBI names the next block", Do.SET, "B3", At.TLBI, 0, change="${t} = ${t} ^ 512"),
    _flush(
        "level-3-hint",
        "the TLBI of a block hints at level 3",
        Do.SET,
        "B3",
        At.TLBI,
        0,
        change="${t} = ${t} ^ (1UL << 44)",
        when="(${t} >> 44 & 15) == 6",
    ),
    Fault(
        "late-dsb",
        "the DSB before the TLBI comes after it",
        Place(_IPA, At.DSB),
        Do.LATER,
        "B2",
        _LOG,
        gate=_BREAK,
        at_el2=Place(f"enter_vmid_context {_IPA}", At.DSB, None).of_el2(),
        then=Place(_IPA, At.TLBI),
    ),
    Fault(
        "late-tlbi",
        "the TLBI of stage 2 comes after that of stage 1",
        Place(_IPA, At.TLBI),
        Do.LATER,
        "B4",
        _LOG,
        gate=_BREAK,
        at_el2=Place(_IPA, At.TLBI).of_el2(),
        then=Place(_IPA, At.TLBI, 1),
    ),
    Fault(
        "late-break",
        "an entry is made invalid after its TLBI",
        Place(SHARES, At.CAS),
        Do.LATER,
        "B2",
        _LOG,
        when="*(unsigned long *)${n} & 1",
        then=Place("kvm_s2_put_page"),
        needs=SHARES,
    ),
    Fault(
        "level-2-hint",
        "the TLBI of a page hints at level 2",
        Place(_RELAXES, At.TLBI),
        Do.SET,
        "B3",
        _LOG,
        change="${t} = ${t} ^ (1UL << 44)",
        when="(${t} >> 44 & 15) == 7",
        at_el2=Place(_RELAXES, At.TLBI).of_el2(),
    ),
    _misled(
        "other-ipa", "a flush is called with the next block's IPA", _IPA, "B3", "$x1 = $x1 ^ 0x200000", _LOG, "$w2 == 2"
    ),
    _misled("other-level", "a flush of a page is called with level 2", _RELAXES, "B3", "$x2 = 2", _LOG, "$w2 == 3"),
    Fault(
        "half-range",
        "of a range only its second half is invalidated",
        Place(_RANGE),
        Do.SET,
        "B6",
        _DROP,
        change="$x1 = $x1 + ($x2 / 2 << 12), $x2 = $x2 / 2",
        # Of few pages each has a TLBI of its own, and what reaches a part of a block reaches it.
        when="$x2 == 256",
        at_el2=Place(_RANGE).of_el2(),
        needs=_RANGE,
    ),
    _switch(
        "other-vmid",
        "VTTBR_EL2 gets another VMID for a flush",
        Do.SET,
        "B3",
        At.VTTBR,
        change="${t} = ${t} ^ (1UL << 55)",
        when="(${t} >> 48) != 0",
    ),
    Fault("no-switch", "HCR_EL2.TGE stays set for a flush", Place(_SWITCH, At.HCR), Do.SKIP, "B10", _COW, vhe=True),
    _switch("no-isb-before", "no ISB before the TLBI", Do.SKIP, "B10", At.ISB),
    _flush("no-isb-after", "no ISB after the last DSB", Do.SKIP, "B5", At.ISB, 0),
    _unhelped("no-vcpu-flush", "a vCPU comes to a CPU without a flush", "__kvm_flush_cpu_context", "V4"),
    Fault(
        "vmid-0",
        "a guest is to run with VMID 0",
        Place("kvm_vcpu_load_vhe __kvm_vcpu_run_vhe", At.VTTBR),
        Do.SET,
        "V1",
        _MAP,
        change="${t} = ${t} & 0xffffffffffff",
        at_el2=Place("__kvm_vcpu_run", At.VTTBR, None).of_el2(),
    ),
    Fault(
        "no-rollover-flush",
        "VMIDs are given out anew, and nothing is invalidated",
        Place("__kvm_flush_vm_context"),
        Do.RETURN,
        "V3",
        "many vms=300",
        at_el2=Place("__kvm_flush_vm_context").of_el2(),
        cpu="cortex-a57",
    ),
    _unhelped(
        "no-log-flush",
        "write protection for the dirty log is not flushed",
        "kvm_flush_remote_tlbs_memslot kvm_arch_flush_remote_tlbs_memslot",
        "B8",
        _LOG,
    ),
    _stored("lost-entry", "an entry is not stored", Do.SKIP, owner="S6", unshared="model"),
    _stored("other-page", "an entry is stored with the next page's address", Do.SET, change="${t} = ${t} ^ 0x1000"),
    _stored("no-write", "an entry is stored without its write permission", Do.SET, change="${t} = ${t} & ~0x80UL"),
    _stored("other-type", "an entry is stored with another memory type", Do.SET, change="${t} = ${t} ^ 0x10"),
    _stored(
        "plain-link",
        "a table is linked by a store without release",
        Do.PLAIN,
        owner="B9",
        when=_TABLE,
        by="stage2_try_set_pte stage2_map_walk_leaf stage2_attr_walker",
    ),
    _stored("links-itself", "a table is linked to itself", Do.SET, "${t} = {page} | 3", owner="S3", when=_TABLE),
    Fault(
        "no-lock",
        "an entry is replaced that was not LOCKED by cmpxchg",
        Place(SHARES, At.CAS),
        Do.SKIP,
        "C3",
        _MAP,
        needs=SHARES,
    ),
    Fault(
        "moved-in-place",
        "a change of attributes moves the page too",
        Place("stage2_attr_walker", At.STR, 1),
        Do.SET,
        "B1",
        _LOG,
        "${t} = ${t} ^ 0x1000",
        "(${t} & 1) == 1",
    ),
    _unhelped("no-put", "a reference is not dropped", "kvm_s2_put_page", "R1", _DROP),
    _unhelped("destroy-leaks", "a page is not let go when its VM ends", "kvm_s2_put_page", "R2", "teardown"),
    _unhelped("no-get", "a reference is not taken", "kvm_host_get_page", "R1"),
    _unhelped("page-kept", "the host's page of a fault is not let go", _LET_GO, "R3"),
    _misled("get-of-another", "a reference is taken on the next page", "kvm_host_get_page", "R1", "$x0 = $x0 ^ 0x1000"),
    # Of B11 only where memory is not forced write-back.
    *(
        replace(each, cpu="cortex-a76")
        for each in (
            _unhelped("no-clean", "the data cache is not cleaned", _CLEAN, "B11"),
            _misled("short-clean", "half of a page is cleaned", _CLEAN, "B11", "$x1 = $x1 / 2"),
            _misled("other-clean", "the next page is cleaned", _CLEAN, "B11", "$x0 = $x0 ^ 0x1000"),
        )
    ),
    _unhelped("no-icache", "the instruction cache is not invalidated", "invalidate_icache_guest_page", "B11"),
    _misled(
        "short-icache",
        "half of a page's instructions are invalidated",
        "invalidate_icache_guest_page",
        "B11",
        "$x1 = $x1 / 2",
    ),
    _unwalked("no-unmap", "unmap walks nothing and returns 0", "kvm_pgtable_stage2_unmap", _COW),
    _unwalked("no-map", "map walks nothing and returns 0", "kvm_pgtable_stage2_map", _MAP),
    _unwalked("map-error", "map walks nothing and returns -EINVAL", "kvm_pgtable_stage2_map", _MAP, "$x0 = -22"),
    _unwalked("no-attributes", "an attribute change walks nothing and returns 0", _ATTRIBUTES, "log"),
    replace(
        _misled(
            "executable",
            "a page is made executable that the guest reads or writes",
            "kvm_pgtable_stage2_map",
            "M5",
            "$x4 = $x4 | 1",
            when="($x4 & 1) == 0",
        ),
        # With CTR_EL0.DIC, as max has it, all memory is mapped executable.
        cpu="cortex-a76",
    ),
    Fault(
        "delayed-make",
        "a CPU stands still between break and make, while others fault",
        Place(_MAKES, At.STLR, None),
        Do.DELAY,
        "",
        "smp",
        when=_LEAF,
    ),
)

FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _ALL}
"""By name."""
