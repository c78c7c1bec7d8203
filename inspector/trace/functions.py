"""The kernel's functions that are followed: what each does, and where its arguments are."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Role(enum.Enum):
    """What a function is to the trace."""

    OPERATION = enum.auto()
    INIT = enum.auto()
    VTCR = enum.auto()
    GET = enum.auto()
    PUT = enum.auto()
    ALLOC = enum.auto()
    ALLOC_EXACT = enum.auto()
    FREE_EXACT = enum.auto()
    DEFER = enum.auto()
    DCACHE = enum.auto()
    ICACHE = enum.auto()
    HYP_FLUSH = enum.auto()
    FLUSH = enum.auto()
    SECTION = enum.auto()
    PROTECTED = enum.auto()
    OBTAIN = enum.auto()
    RELEASE = enum.auto()


@dataclass(frozen=True)
class Function:
    """``arguments`` are the names of x0 and on, as far as they are told."""

    name: str
    role: Role
    arguments: tuple[str, ...]

    @property
    def is_void(self) -> bool:
        """Nothing is returned: what is in x0 then means nothing."""
        return self.role is Role.OPERATION and ("destroy" in self.name or self.name.endswith("_cb"))

    def result(self, value: int) -> int:
        """What it returned, of what x0 held: an entry, a bool, or an int (AAPCS64: no more of x0 is said to be)."""
        if self.is_void:
            return 0
        if self.name.endswith(("_mkyoung", "_mkold")):
            return value
        if self.name.endswith("_young"):
            return value & 0xFF
        value &= 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value

    @property
    def ends(self) -> bool:
        """Its return is looked at too."""
        return self.role not in (Role.GET, Role.PUT, Role.DEFER, Role.DCACHE, Role.ICACHE, Role.PROTECTED, Role.RELEASE)


def _operation(name: str, *arguments: str) -> Function:
    return Function(name, Role.OPERATION, ("pgt", *arguments))


INVALIDATING: Final = (
    "__kvm_tlb_flush_vmid_ipa",
    "__kvm_tlb_flush_vmid_ipa_nsh",
    "__kvm_tlb_flush_vmid",
    "__kvm_tlb_flush_vmid_range",
)
"""The functions of an operation whose TLBI and barrier instructions are told (kernel.md 15.4), as in VHE."""

FLUSHING: Final = (*INVALIDATING, "__kvm_flush_cpu_context", "__kvm_flush_vm_context", "__kvm_tlbi_s1e2")
"""All that invalidate; the last three are no operation's."""

LOADING: Final = "kvm_arch_vcpu_load"
IOCTL: Final = "kvm_vm_ioctl"
"""What write-protects for dirty logging invalidates before this returns (kernel.md 7.2)."""

SWITCHING: Final = ("__tlb_switch_to_guest", "__tlb_switch_to_host", "enter_vmid_context", "exit_vmid_context")
"""What they call, with barriers of their own."""

ABORTING: Final = "kvm_handle_guest_abort"
"""What a fault of a guest is for, its syndrome says: ``vcpu->arch.fault.esr_el2`` (arch/arm64/kvm/mmu.c)."""

RELEASING_FRAMES: Final = "kvm_release_pfn_clean"
"""Up to 6.12 what a fault lets go is named by its frame, later by its page; the functions for that are there before."""

PROTECTING: Final = "_kvm_host_prot_finalize"

_ALL: Final = (
    _operation("kvm_pgtable_stage2_map", "addr", "size", "phys", "prot", "mc", "flags"),
    _operation("kvm_pgtable_stage2_unmap", "addr", "size"),
    _operation("kvm_pgtable_stage2_wrprotect", "addr", "size"),
    _operation("kvm_pgtable_stage2_mkyoung", "addr", "flags"),
    _operation("kvm_pgtable_stage2_mkold", "addr"),
    _operation("kvm_pgtable_stage2_is_young", "addr"),
    _operation("kvm_pgtable_stage2_test_clear_young", "addr", "size", "mkold"),
    _operation("kvm_pgtable_stage2_relax_perms", "addr", "prot", "flags"),
    _operation("kvm_pgtable_stage2_flush", "addr", "size"),
    _operation("kvm_pgtable_stage2_set_owner", "addr", "size", "mc", "owner"),
    _operation("kvm_pgtable_stage2_annotate", "addr", "size", "mc", "type", "owner"),
    _operation("kvm_pgtable_stage2_split", "addr", "size", "mc"),
    _operation("kvm_pgtable_stage2_destroy"),
    _operation("kvm_pgtable_stage2_destroy_range", "addr", "size"),
    _operation("kvm_pgtable_stage2_destroy_pgd"),
    # The callback has no table: its pages say which it is of.
    Function("stage2_free_unlinked_table_rcu_cb", Role.OPERATION, ("head",)),
    Function("__kvm_pgtable_stage2_init", Role.INIT, ("pgt",)),
    Function("kvm_pgtable_stage2_init", Role.INIT, ("pgt",)),
    Function("kvm_get_vtcr", Role.VTCR, ("mmfr0", "mmfr1", "phys_shift")),
    # struct kvm_pgtable_mm_ops kvm_s2_mm_ops of mmu.c (kernel.md 10)
    Function("kvm_host_get_page", Role.GET, ("va",)),
    Function("kvm_s2_put_page", Role.PUT, ("va",)),
    Function("stage2_memcache_zalloc_page", Role.ALLOC, ("mc",)),
    Function("kvm_s2_zalloc_pages_exact", Role.ALLOC_EXACT, ("size",)),
    Function("kvm_s2_free_pages_exact", Role.FREE_EXACT, ("va", "size")),
    Function("stage2_free_unlinked_table", Role.DEFER, ("va", "level")),
    # Hyp stage-1, which the kernel keeps at EL1 (nVHE, hVHE), and what kvm_hyp_mm_ops has of its own (mmu.c).
    Function("kvm_pgtable_hyp_init", Role.INIT, ("pgt", "va_bits")),
    _operation("kvm_pgtable_hyp_map", "addr", "size", "phys", "prot"),
    _operation("kvm_pgtable_hyp_unmap", "addr", "size"),
    _operation("kvm_pgtable_hyp_destroy"),
    Function("kvm_host_put_page", Role.PUT, ("va",)),
    Function("kvm_hyp_zalloc_page", Role.ALLOC, ("arg",)),
    # What EL2 does at a hypercall there (arch/arm64/kvm/hyp/nvhe/tlb.c).
    *(Function(f"__kvm_nvhe_{name}", Role.HYP_FLUSH, ()) for name in FLUSHING),
    *(Function(name, Role.FLUSH, ()) for name in FLUSHING),
    # Within which operations are done and TLBs invalidated.
    Function(IOCTL, Role.SECTION, ()),
    Function(LOADING, Role.SECTION, ("vcpu",)),
    Function(ABORTING, Role.SECTION, ("vcpu",)),
    # Each CPU of a host in protected mode runs it, and no other (arch/arm64/kvm/pkvm.c; 6.1: arm.c).
    Function(PROTECTING, Role.PROTECTED, ()),
    # The page of the host that a fault is about (virt/kvm/kvm_main.c; up to 6.12, and later).
    Function("__gfn_to_pfn_memslot", Role.OBTAIN, ()),
    Function("__kvm_faultin_pfn", Role.OBTAIN, ()),
    Function(RELEASING_FRAMES, Role.RELEASE, ("pfn",)),
    Function("kvm_release_page_clean", Role.RELEASE, ("page",)),
    Function("kvm_release_page_dirty", Role.RELEASE, ("page",)),
    Function("clean_dcache_guest_page", Role.DCACHE, ("va", "size")),
    Function("invalidate_icache_guest_page", Role.ICACHE, ("va", "size")),
)

FUNCTIONS: Final[Mapping[str, Function]] = {function.name: function for function in _ALL}
"""By name.  One that a kernel has not is not followed: the release has no such operation, or it is inlined."""

OF_HYP: Final = ("kvm_hyp_zalloc_page", "kvm_host_put_page")
"""Without these hyp stage-1 is not followed, and nothing that begins with `HYP_PREFIX`."""
HYP_PREFIX: Final = "kvm_pgtable_hyp_"

NEEDED: Final = (
    "kvm_pgtable_stage2_map",
    "kvm_pgtable_stage2_unmap",
    "kvm_host_get_page",
    "kvm_s2_put_page",
    "stage2_memcache_zalloc_page",
    "kvm_s2_zalloc_pages_exact",
)
"""Without these nothing can be followed."""

WALKERS: Final = (
    "stage2_",
    "kvm_pgtable_",
    "_kvm_pgtable_",
    "__kvm_pgtable_",
    "hyp_",
    "kvm_get_vtcr",
    "kvm_tlb_flush_vmid_range",
    "kvm_phys_",
    "kvm_pte_",
    "kvm_set_",
    "kvm_clear_",
    "kvm_init_",
    "kvm_granule_",
    "kvm_block_",
    "kvm_pgd_",
)
"""How the functions of pgtable.c are called: its text is the stretch of these around kvm_pgtable_stage2_map."""
