"""The faults: where a kernel is stopped, what is done to it there, and what must find it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class At(enum.Enum):
    """Where in a function: its entry, or its n-th instruction of a kind (DDI 0487 C4.1; value, mask of the word)."""

    ENTRY = (0, 0)
    DSB = (0xD503309F, 0xFFFFF0FF)
    TLBI = (0xD5088000, 0xFFF8F000)
    ISB = (0xD50330DF, 0xFFFFF0FF)
    VTTBR = (0xD51C2100, 0xFFFFFFE0)
    HCR = (0xD51C1100, 0xFFFFFFE0)
    STLR = (0xC89FFC00, 0xFFFFFC00)
    STR = (0xF9000000, 0xFFC00000)

    def matches(self, word: int) -> bool:
        """Is an instruction of this kind."""
        value, mask = self.value
        # Stores to the stack are no entry's.
        return mask != 0 and word & mask == value and (self is not At.STR or word >> 5 & 31 != 31)


class Do(enum.Enum):
    """What is done when it is reached."""

    RETURN = "the function returns at once"
    SKIP = "the instruction is not run"
    SET = "a register has another value"


@dataclass(frozen=True)
class Fault:
    """``function`` is one name or several, of which the kernel's first is taken.

    ``number`` counts instructions of the kind ``at`` from 0; ``change`` is a gdb expression, with ``{t}`` for the
    register that the instruction stores or operates by; ``when`` one that must hold (empty: the first time); ``caller``
    are the functions of which one must have called, by the beginnings of their names.

    ``workload`` is what the exerciser is told to run.  ``owners`` are rules of docs/invariants.md, or ``model``: that
    the model does otherwise; one of them must find it.
    """

    name: str
    what: str
    function: str
    do: Do
    owners: tuple[str, ...]
    workload: str
    at: At = At.ENTRY
    number: int = 0
    change: str = ""
    when: str = ""
    caller: str = ""


_IPA: Final = "__kvm_tlb_flush_vmid_ipa"
_MAKES: Final = "stage2_make_pte stage2_map_walk_leaf"
"""Where an entry is stored with release, in 6.6 and later, and before."""
_LEAF: Final = "(${t} & 0x403) == 0x403"
_RELAXES: Final = f"{_IPA}_nsh {_IPA}"
"""Called for a page whose permissions are relaxed: for this CPU in 6.6 and later, for all before."""
_SWITCH: Final = "enter_vmid_context __tlb_switch_to_guest"
"""Of 6.6 and later, and before."""
_TAKES: Final = "stage2_unmap stage2_put_pte"
"""What takes an entry away."""
_DROP: Final = "drop"
_MAP: Final = "one"
_COW: Final = "cow"
# Which entry the first flush is for differs by release: an unmapped page, an empty table, relaxed permissions.
_INVALID: Final = ("B2", "B3", "B7")
_STAGE_1: Final = ("B4", "B2", "B7")


def _flush(name: str, what: str, do: Do, owners: tuple[str, ...], at: At, number: int, change: str = "") -> Fault:
    """Something inside the flush by IPA."""
    return Fault(name, what, _IPA, do, owners, _DROP, at, number, change)


def _unwalked(name: str, what: str, caller: str, workload: str, change: str = "") -> Fault:
    """An operation that ends before its walk: a function that returns at its entry would not be seen called at all."""
    return Fault(name, what, "kvm_pgtable_walk", Do.RETURN, ("model",), workload, change=change, caller=caller)


def _unhelped(name: str, what: str, function: str, owners: tuple[str, ...], workload: str = _MAP) -> Fault:
    """A callback that is not called."""
    return Fault(name, what, function, Do.RETURN, owners, workload)


def _misled(
    name: str,
    what: str,
    function: str,
    owners: tuple[str, ...],
    change: str,
    workload: str = _MAP,
    when: str = "",
) -> Fault:
    """A function that is called with another argument."""
    return Fault(name, what, function, Do.SET, owners, workload, change=change, when=when)


def _stored(name: str, what: str, do: Do, change: str = "") -> Fault:
    """A leaf that map stores."""
    return Fault(name, what, _MAKES, do, ("model",), _MAP, At.STLR, change=change, when=_LEAF)


_ATTRIBUTES: Final = "stage2_update_leaf_attrs kvm_pgtable_stage2_wrprotect kvm_pgtable_stage2_relax_perms"

_ALL: Final = (
    Fault("no-flush", "a TLB flush by IPA is not called", _IPA, Do.RETURN, _INVALID, _DROP, caller=_TAKES),
    _flush("no-dsb-before", "no DSB before the TLBI", Do.SKIP, _INVALID, At.DSB, 0),
    _flush("no-tlbi", "no TLBI of stage 2", Do.SKIP, (*_INVALID, "model"), At.TLBI, 0),
    _flush("no-dsb-between", "no DSB between the TLBI of stage 2 and of stage 1", Do.SKIP, _STAGE_1, At.DSB, 1),
    _flush("no-stage-1", "no TLBI of stage 1", Do.SKIP, _STAGE_1, At.TLBI, 1),
    _flush("no-dsb-after", "no DSB after the TLBI of stage 1", Do.SKIP, _STAGE_1, At.DSB, 2),
    _flush("next-page", "the TLBI names the next page", Do.SET, (*_INVALID, "model"), At.TLBI, 0, "${t} = ${t} ^ 1"),
    Fault(
        "level-2-hint",
        "the TLBI of a page hints at level 2",
        _RELAXES,
        Do.SET,
        ("B3", "model"),
        "log",
        At.TLBI,
        change="${t} = ${t} ^ (1UL << 44)",
        when="(${t} >> 44 & 15) == 7",
    ),
    _misled(
        "other-ipa",
        "a flush is called with the next page's IPA",
        _IPA,
        (*_INVALID, "model"),
        "$x1 = $x1 ^ 0x1000",
        _DROP,
    ),
    _misled(
        "other-level",
        "a flush of a page is called with level 2",
        _RELAXES,
        ("B3", "model"),
        "$x2 = 2",
        "log",
        "$w2 == 3",
    ),
    Fault(
        "other-vmid",
        "VTTBR_EL2 gets another VMID for a flush",
        _SWITCH,
        Do.SET,
        ("B3",),
        _COW,
        At.VTTBR,
        change="${t} = ${t} ^ (1UL << 55)",
        when="(${t} >> 48) != 0",
        caller="__kvm_tlb_flush_vmid",
    ),
    Fault("no-switch", "HCR_EL2.TGE stays set for a flush", _SWITCH, Do.SKIP, ("B10",), _COW, At.HCR),
    Fault("no-isb-before", "no ISB before the TLBI", _SWITCH, Do.SKIP, ("B10",), _COW, At.ISB),
    _flush("no-isb-after", "no ISB after the last DSB", Do.SKIP, ("B5",), At.ISB, 0),
    _unhelped("no-vcpu-flush", "a vCPU comes to a CPU without a flush", "__kvm_flush_cpu_context", ("V4",)),
    _unhelped(
        "no-log-flush",
        "write protection for the dirty log is not flushed",
        "kvm_flush_remote_tlbs_memslot kvm_arch_flush_remote_tlbs_memslot",
        ("B8",),
        "log",
    ),
    _stored("lost-entry", "an entry is not stored", Do.SKIP),
    _stored("other-page", "an entry is stored with the next page's address", Do.SET, "${t} = ${t} ^ 0x1000"),
    _stored("no-write", "an entry is stored without its write permission", Do.SET, "${t} = ${t} & ~0x80UL"),
    _stored("other-type", "an entry is stored with another memory type", Do.SET, "${t} = ${t} ^ 0x10"),
    Fault(
        "moved-in-place",
        "a change of attributes moves the page too",
        "stage2_attr_walker",
        Do.SET,
        ("B1",),
        "log",
        At.STR,
        1,
        "${t} = ${t} ^ 0x1000",
        "(${t} & 1) == 1",
    ),
    _unhelped("no-put", "a reference is not dropped", "kvm_s2_put_page", ("R1", "R2"), _DROP),
    _unhelped("destroy-leaks", "a page is not let go when its VM ends", "kvm_s2_put_page", ("R2", "R1"), "teardown"),
    _unhelped("no-get", "a reference is not taken", "kvm_host_get_page", ("R1",)),
    _misled(
        "get-of-another", "a reference is taken on the next page", "kvm_host_get_page", ("R1",), "$x0 = $x0 ^ 0x1000"
    ),
    _unhelped("no-clean", "the data cache is not cleaned", "clean_dcache_guest_page", ("B11", "model")),
    _misled("short-clean", "half of a page is cleaned", "clean_dcache_guest_page", ("B11", "model"), "$x1 = $x1 / 2"),
    _misled(
        "other-clean", "the next page is cleaned", "clean_dcache_guest_page", ("B11", "model"), "$x0 = $x0 ^ 0x1000"
    ),
    _unhelped(
        "no-icache", "the instruction cache is not invalidated", "invalidate_icache_guest_page", ("B11", "model")
    ),
    _misled(
        "short-icache",
        "half of a page's instructions are invalidated",
        "invalidate_icache_guest_page",
        ("B11", "model"),
        "$x1 = $x1 / 2",
    ),
    _unwalked("no-unmap", "unmap walks nothing and returns 0", "kvm_pgtable_stage2_unmap", _COW),
    _unwalked("no-map", "map walks nothing and returns 0", "kvm_pgtable_stage2_map", _MAP),
    _unwalked("map-error", "map walks nothing and returns -EINVAL", "kvm_pgtable_stage2_map", _MAP, "$x0 = -22"),
    _unwalked("no-attributes", "an attribute change walks nothing and returns 0", _ATTRIBUTES, "log"),
)

FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _ALL}
"""By name."""
