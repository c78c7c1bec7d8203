"""What the automaton must know of machine and kernel to judge events, and what is legal for which operation."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inspector.codec import Geometry
from inspector.generations import Generation, MapScheme, TableTlbi

S2AP: Final = 3 << 6
S2AP_W: Final = 1 << 7
AF: Final = 1 << 10
DBM: Final = 1 << 51
XN: Final = 3 << 53
SW: Final = 0xF << 55
IN_PLACE: Final = S2AP | AF | DBM | XN | SW
"""What may change between two valid values (DDI 0487 D8.16, break-before-make; the same bits in hyp stage-1: AP, AF,
DBM, PXN and UXN, software bits)."""

DEBTS: Final[Mapping[str, tuple[int, str]]] = {
    "wrprotect": (S2AP_W, "kvm_mmu_wp_memory_region flushes remotely (kernel.md 7.2)"),
    "mkold": (AF, "the clear_flush_young callback's caller flushes (kernel.md 7.5)"),
    "test_clear_young": (AF, "the clear_flush_young callback's caller flushes (kernel.md 7.5)"),
    "relax_perms": (XN, "with FEAT_XNX the XN field is written as asked for, PX alone takes UX away (kernel.md 7.3)"),
}
"""The permissions that an operation may have taken away and not yet invalidated when it returns: whose the debt is."""

DEAD: Final = frozenset({"destroy", "destroy_range", "destroy_pgd", "hyp_destroy"})
"""From these on the table is out of use: ``kvm_free_stage2_pgd`` takes it from its MMU first (kernel.md 9)."""


class Counted(enum.Enum):
    """Which entries hold a reference on their page (kernel.md 10.1)."""

    NONE = "none"
    VALID = "valid"
    NONZERO = "non-zero, LOCKED excepted"


@dataclass(frozen=True)
class Call:
    """An operation as far as the protocol differs by it.

    ``name`` is the operation's in scripts, or the kernel function's (`operation_name`); ``shared``: others may walk
    the table too (KVM_PGTABLE_WALK_SHARED of a kernel that then uses cmpxchg); ``skip_tlbi``, ``skip_cmo``:
    KVM_PGTABLE_WALK_SKIP_*: the caller vouches; ``ragged``: a size that is not whole pages, whose last page
    a deferred flush of 6.6 and later leaves out (kernel.md 6; no caller in the kernel passes one).  ``waited``: it is
    known that every grace period of what it frees is over.  ``section``: the ioctl that it is part of, by a number;
    what it leaves to be invalidated is owed when that returns.
    """

    name: str = ""
    shared: bool = False
    skip_tlbi: bool = False
    skip_cmo: bool = False
    ragged: bool = False
    waited: bool = False
    section: int | None = None


@dataclass(frozen=True)
class Facts:
    """One table's regime, shape and kernel.

    ``zero_is_no_hint``: level 0 to a TLB helper is no hint (kernels without TLBI_TTL_UNKNOWN, kernel.md 6).
    ``own_level_for_tables``: unmap hints at the table entry's own level, a fault that 36e008323926 mended.
    ``tables_deferred``: unmap frees a table before the deferred flush, mended in 6.6.y (f62d4c3eb687).
    ``double_put``: create_unlinked's error path puts a page twice, mended by c60d847be7b8.
    ``xnx``: XN is two bits.  ``fwb``: no data cache maintenance is needed.  ``map_cleans``, ``map_invalidates``,
    ``attr_invalidates``: map cleans the data cache, map and attribute changes invalidate the instruction cache
    (5.10 does all that in its fault handler; a callback may be absent).
    ``rcu``: tables taken out in a shared walk live on to the end of a grace period.
    """

    geometry: Geometry
    counted: Counted = Counted.NONZERO
    locked_mask: int = 0
    locked_value: int = 0
    zero_is_no_hint: bool = False
    own_level_for_tables: bool = False
    tables_deferred: bool = False
    double_put: bool = False
    xnx: bool = False
    fwb: bool = False
    map_cleans: bool = True
    map_invalidates: bool = True
    attr_invalidates: bool = True
    rcu: bool = True


def facts_of(
    generation: Generation,
    geometry: Geometry,
    *,
    hyp: bool = False,
    fwb: bool = False,
    xnx: bool = False,
    dcache_op: bool = True,
    icache_op: bool = True,
    rcu: bool = True,
) -> Facts:
    """The facts of a table that a kernel of ``generation`` keeps; ``fwb`` for this table (not where NOFWB is set)."""
    in_map = generation.map_scheme is not MapScheme.ANCHOR_IN_PLACE and not hyp
    counted = Counted.NONZERO if generation.counts_nonzero and not hyp else Counted.VALID
    return Facts(
        geometry,
        counted=Counted.NONE if hyp and not generation.hyp_unmap else counted,
        locked_mask=0 if hyp else generation.locked_mask,
        locked_value=generation.locked_value,
        zero_is_no_hint=generation.unmap_table_tlbi is not TableTlbi.UNKNOWN,
        own_level_for_tables=generation.unmap_table_tlbi is TableTlbi.OWN_LEVEL,
        tables_deferred=generation.unmap_defers_tables_too,
        double_put=generation.unlinked_double_put,
        xnx=xnx and generation.two_bit_xn and not hyp,
        fwb=fwb,
        map_cleans=dcache_op and in_map,
        map_invalidates=icache_op and in_map,
        attr_invalidates=icache_op and generation.attr_icache and not hyp,
        rcu=rcu,
    )


def operation_name(function: str) -> str:
    """The script's name for a kernel function: ``kvm_pgtable_stage2_map`` is ``map``; others stay as they are."""
    for prefix in ("kvm_pgtable_stage2_", "__kvm_pgtable_stage2_", "kvm_pgtable_"):
        if function.startswith(prefix):
            return function.removeprefix(prefix)
    return "grace_period" if function == "stage2_free_unlinked_table_rcu_cb" else function
