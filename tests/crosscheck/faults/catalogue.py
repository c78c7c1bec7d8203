"""The faults: what a patch may do wrong, and the channels that must see it.

Written for the code of 6.12 and later, where faults share the table (kernel.md 4).  `SEQUENTIAL` are those that the
comparison with the model owns; `APART` those that interleavings or sanitizers must find without it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from tests.crosscheck.faults.patch import Patch


class Channel(enum.StrEnum):
    """What judges a kernel's code, each for itself."""

    MODEL = "model"
    PROTOCOL = "protocol"
    SANITIZERS = "sanitizers"
    INTERLEAVINGS = "interleavings"


M, P, S, I = Channel.MODEL, Channel.PROTOCOL, Channel.SANITIZERS, Channel.INTERLEAVINGS  # noqa: E741


@dataclass(frozen=True)
class Fault:
    """``owners``: the channels each of which must see it."""

    patch: Patch
    owners: tuple[Channel, ...]

    @property
    def name(self) -> str:
        """What is wrong."""
        return self.patch.name


BREAK, MAKE, SET, LEAF = (
    "stage2_try_break_pte",
    "stage2_make_pte",
    "stage2_try_set_pte",
    "stage2_map_walker_try_leaf",
)
UNMAP, PRE, MAP_LEAF, ATTR = (
    "stage2_unmap_put_pte",
    "stage2_map_walk_table_pre",
    "stage2_map_walk_leaf",
    "stage2_attr_walker",
)
CAS: Final = r"return cmpxchg\(.*?;"
SET_LOCKED: Final = r"if \(!stage2_try_set_pte\(ctx, KVM_INVALID_PTE_LOCKED\)\)"
GET_IF_COUNTED: Final = r"if \(stage2_pte_is_counted\(new\)\)\s+mm_ops->get_page\(ctx->ptep\);"
PUT_CHILD: Final = r"if \(childp\)\s+mm_ops->put_page\(childp\);"
MAKE_TABLE: Final = r"new = kvm_init_table_pte\(childp, mm_ops\);\s+stage2_make_pte\(ctx, new\);"


def _fault(owners: tuple[Channel, ...], name: str, function: str, old: str, new: str) -> Fault:
    return Fault(Patch(name, function, old, new), owners)


SEQUENTIAL: Final = (
    _fault(
        (M, P),
        "a live leaf replaced without the break",
        LEAF,
        r"if \(!stage2_try_break_pte\(ctx, data->mmu\)\)",
        "if (!(kvm_pte_valid(ctx->old) && kvm_pte_valid(new) && !kvm_pte_table(ctx->old, ctx->level) && "
        "!kvm_pgtable_walk_shared(ctx) && ((ctx->old ^ new) & KVM_PTE_ADDR_MASK)) && "
        "!stage2_try_break_pte(ctx, data->mmu))",
    ),
    _fault(
        (M, P),
        "a break without its TLBI",
        BREAK,
        r"kvm_call_hyp\(__kvm_tlb_flush_vmid_ipa, mmu,\s+ctx->addr, ctx->level\);",
        ";",
    ),
    _fault((M,), "unmap that leaves the entry", UNMAP, r"kvm_clear_pte\(ctx->ptep\);", ";"),
    _fault(
        (M, P),
        "a cleared entry's TLBI left out",
        UNMAP,
        r"\} else if \(!stage2_unmap_defer_tlb_flush\(pgt\)\) \{",
        "} else if (0) {",
    ),
    _fault(
        (M, P),
        "a plain instead of a release store",
        MAKE,
        r"smp_store_release\(ctx->ptep, new\);",
        "WRITE_ONCE(*ctx->ptep, new);",
    ),
    _fault(
        (M, P),
        "the TLBI of the next page",
        BREAK,
        r"ctx->addr, ctx->level\);",
        "ctx->addr + kvm_granule_size(ctx->level), ctx->level);",
    ),
    _fault((M,), "XN never set", "stage2_set_prot_attr", r"attr \|= KVM_PTE_LEAF_ATTR_HI_S2_XN;", ";"),
    _fault(
        (M,),
        "device memory mapped as normal",
        "stage2_set_prot_attr",
        r"KVM_S2_MEMATTR\(pgt, DEVICE_nGnRE\)",
        "KVM_S2_MEMATTR(pgt, NORMAL)",
    ),
    _fault(
        (M,),
        "a write-protect that keeps W",
        "kvm_pgtable_stage2_wrprotect",
        r"KVM_PTE_LEAF_ATTR_LO_S2_S2AP_W",
        "KVM_PTE_LEAF_ATTR_LO_S2_S2AP_R",
    ),
    _fault((M, P, S), "an emptied table leaked by unmap", "stage2_unmap_walker", PUT_CHILD, ""),
    _fault(
        (M, P),
        "the deferred flush dropped",
        "kvm_pgtable_stage2_unmap",
        r"kvm_tlb_flush_vmid_range\(pgt->mmu, addr, size\);",
        ";",
    ),
    _fault(
        (M,),
        "an output address one page off",
        "stage2_map_walker_phys_addr",
        r"return phys \+ \(ctx->addr - ctx->start\);",
        "return phys + (ctx->addr - ctx->start) + (ctx->addr > ctx->start ? PAGE_SIZE : 0);",
    ),
    _fault(
        (M, P),
        "no instruction cache maintenance",
        LEAF,
        r"mm_ops->icache_inval_pou\(kvm_pte_follow\(new, mm_ops\), granule\);",
        ";",
    ),
)
"""Of the sixteen that the live detection matrix plants, those that lie in this file."""

APART: Final = (
    _fault((I,), "cmpxchg turned into a plain store", SET, CAS, "WRITE_ONCE(*ctx->ptep, new); return true;"),
    _fault((I,), "a store that goes through no macro", SET, CAS, "*ctx->ptep = new; return true;"),
    _fault((I,), "the cmpxchg's result ignored", SET, r"return (cmpxchg\(.*?\)) == .*?;", r"\1; return true;"),
    _fault(
        (I,),
        "a cmpxchg against a fresh read",
        SET,
        r"cmpxchg\(ctx->ptep, ctx->old, new\) == ctx->old",
        "({ kvm_pte_t now = READ_ONCE(*ctx->ptep); cmpxchg(ctx->ptep, now, new) == now; })",
    ),
    _fault(
        (I,),
        "LOCKED not set before a table is replaced",
        BREAK,
        SET_LOCKED,
        "if (!kvm_pte_table(ctx->old, ctx->level) && !stage2_try_set_pte(ctx, KVM_INVALID_PTE_LOCKED))",
    ),
    _fault((I,), "LOCKED not honoured", BREAK, r"if \(stage2_pte_is_locked\(ctx->old\)\)", "if (0)"),
    _fault(
        (I,),
        "a put before the cmpxchg, not undone when it fails",
        BREAK,
        SET_LOCKED + r"\s+return false;(.*?)if \(stage2_pte_is_counted\(ctx->old\)\)\s+mm_ops->put_page\(ctx->ptep\);",
        r"if (stage2_pte_is_counted(ctx->old)) mm_ops->put_page(ctx->ptep); "
        r"if (!stage2_try_set_pte(ctx, KVM_INVALID_PTE_LOCKED)) return false; \1",
    ),
    _fault(
        (I,),
        "a table freed that is still linked when the race is lost",
        PRE,
        r"ret = (stage2_map_walker_try_leaf\(ctx, data\));(.*?)mm_ops->free_unlinked_table\(childp, ctx->level\);",
        r"mm_ops->free_unlinked_table(childp, ctx->level); ret = \1;\2",
    ),
    _fault(
        (I,),
        "freed without a grace period",
        PRE,
        r"mm_ops->free_unlinked_table\(",
        "kvm_pgtable_stage2_free_unlinked(mm_ops, ",
    ),
    _fault(
        (I, S),
        "a reference taken for LOCKED",
        BREAK,
        r"if \(stage2_pte_is_counted\(ctx->old\)\)\s+mm_ops->put_page\(ctx->ptep\);",
        "mm_ops->get_page(ctx->ptep); if (stage2_pte_is_counted(ctx->old)) mm_ops->put_page(ctx->ptep);",
    ),
    _fault(
        (I,),
        "an exclusive store in the shared walk of relax_perms and mkyoung",
        ATTR,
        r"if \(!stage2_try_set_pte\(ctx, pte\)\)\s+return -EAGAIN;",
        "WRITE_ONCE(*ctx->ptep, pte);",
    ),
    _fault(
        (I,),
        "the reference taken after the store",
        MAKE,
        rf"({GET_IF_COUNTED})\s+(smp_store_release\(ctx->ptep, new\);)",
        r"\2 \1",
    ),
    _fault(
        (I,),
        "a table leaked when the race for its entry is lost",
        MAP_LEAF,
        r"mm_ops->put_page\(childp\);",
        "",
    ),
    _fault(
        (P,),
        "a split that links its table before filling it",
        "stage2_split_walker",
        MAKE_TABLE,
        "kvm_pte_t kept[PTRS_PER_PTE]; int i; "
        "for (i = 0; i < PTRS_PER_PTE; i++) { kept[i] = childp[i]; WRITE_ONCE(childp[i], 0); } "
        "new = kvm_init_table_pte(childp, mm_ops); stage2_make_pte(ctx, new); "
        "for (i = 0; i < PTRS_PER_PTE; i++) WRITE_ONCE(childp[i], kept[i]);",
    ),
    _fault(
        (S,),
        "a freed table read, by no macro",
        "stage2_unmap_walker",
        PUT_CHILD,
        "if (childp) { mm_ops->put_page(childp); (void)*(volatile kvm_pte_t *)childp; }",
    ),
    _fault(
        (S,),
        "the next entry looked at, beyond the table's end",
        "__kvm_pgtable_walk",
        r"if \(data->addr >= data->end\)",
        "(void)*(volatile kvm_pte_t *)&((kvm_pte_t *)pgtable)[idx + 1]; if (data->addr >= data->end)",
    ),
    _fault(
        (S,),
        "a local variable written beyond its end",
        "stage2_update_leaf_attrs",
        r"\*level = data.level;",
        "*(volatile s64 *)level = data.level;",
    ),
    _fault(
        (S,),
        "a shift by more bits than there are",
        "stage2_leaf_mapping_allowed",
        r"u64 phys = ",
        "volatile u64 mask = 1UL << (ctx->level + 62); (void)mask; u64 phys = ",
    ),
    _fault(
        (S,),
        "an unlinked table leaked on an error path",
        "kvm_pgtable_stage2_create_unlinked",
        r"kvm_pgtable_stage2_free_unlinked\(mm_ops, pgtable, level\);",
        "",
    ),
)
"""Found with the sequential comparison switched off."""

ALL: Final = (*SEQUENTIAL, *APART)
