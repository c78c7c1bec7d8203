"""The protocol automaton over kernels' own code: nothing on clean ones, and on a faulty one exactly the fault's rule.

The model judges nothing here.  Of a faulty kernel all tables of the budget are looked at, the first violation of each:
no other rule may be reported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random

import pytest

from inspector.crosscheck import campaign
from inspector.crosscheck.differ import run_on
from inspector.crosscheck.generate import Focus
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.reproducer import MODEL, Reproducer
from inspector.crosscheck.sequential import Budget, Run, model_and_kernel, replayed
from inspector.crosscheck.verdict import Part
from inspector.crosscheck.watch import UnderWatch, Watched
from inspector.findings import ExitCode
from inspector.model.session import Setup
from inspector.model.state import Stage2Table
from tests.crosscheck import kernels
from tests.crosscheck.faults.patch import Patch

pytestmark = pytest.mark.harness

LABEL = "6.12"
SEED = 1
CLEAN = 20_000
FAULTY = 1_500


@dataclass
class Gathering:
    """Watches, and keeps the rules that were broken."""

    kernel: Kernel
    sides: list[Watched]

    def __call__(self, setup: Setup) -> Watched:
        self.sides.append(UnderWatch(self.kernel)(setup))
        return self.sides[-1]

    def rules(self) -> set[str]:
        return {side.violation.rule for side in self.sides if side.violation is not None}


def rules_broken(kernel: Kernel, operations: int) -> tuple[set[str], str]:
    """The rules broken in so many operations, and the first violation's text."""
    gathering = Gathering(kernel, [])
    plan = campaign.Plan(kernel, open_sides=gathering, focus=Focus(alone=0.5))
    done, first = 0, ""
    number = 0
    while done < operations:
        one = campaign.run_sequence(plan, Random(f"{SEED}/{number}"))
        number, done = number + 1, done + one.operations
        first = first or str(one.difference or "")
    return gathering.rules(), first


def patched(name: str, function: str, old: str, new: str, times: int = 1) -> Kernel:
    """The kernel's code with one place of it changed."""
    return Patch(name, function, old, new, times).put_on(kernels.kernel(LABEL))


@pytest.mark.parametrize("label", kernels.labels())
def test_a_clean_kernel_keeps_the_protocol(label: str) -> None:
    assert rules_broken(kernels.kernel(label), CLEAN) == (set(), "")


@pytest.mark.parametrize("label", kernels.labels()[-1:])
def test_a_reserved_bit_that_was_planted_is_held_against_nobody(label: str) -> None:
    """XN[0] without FEAT_XNX is RES0: 7.3 reads 0b11 as executable (stage2_pte_executable), a CPU may as well not."""
    script = [
        f"machine generation={label} xnx=0",
        "init",
        "map 0x3fffe00000 0x1000 pa=0xbfffe00000 prot=RW",
        "poke 0x3fffe00000 level=3 entry=0xe000bfffe0073f",
        "relax_perms 0x3fffe00000 prot=RWX",
    ]
    assert run_on(script, UnderWatch(kernels.kernel(label))) is None


BREAK, MAKE, LEAF, UNMAP = (
    "stage2_try_break_pte",
    "stage2_make_pte",
    "stage2_map_walker_try_leaf",
    "stage2_unmap_put_pte",
)
FAULTS = {
    "a leaf gets another address without the break": (
        "B1",
        LEAF,
        r"if \(!stage2_try_break_pte\(ctx, data->mmu\)\)",
        "if (!(kvm_pte_valid(ctx->old) && kvm_pte_valid(new) && !kvm_pte_table(ctx->old, ctx->level) && "
        "!kvm_pgtable_walk_shared(ctx) && ((ctx->old ^ new) & KVM_PTE_ADDR_MASK)) && "
        "!stage2_try_break_pte(ctx, data->mmu))",
    ),
    "a break without its TLBI": (
        "B2",
        BREAK,
        r"kvm_call_hyp\(__kvm_tlb_flush_vmid_ipa, mmu,\s+ctx->addr, ctx->level\);",
        ";",
    ),
    "unmap without its TLBI, and no deferred one": (
        "B2",
        UNMAP,
        r"\} else if \(!stage2_unmap_defer_tlb_flush\(pgt\)\) \{",
        "} else if (0) {",
    ),
    "a level hint that is one off": ("B3", BREAK, r"ctx->addr, ctx->level\);", "ctx->addr, ctx->level - 1);"),
    "the TLBI of the neighbour": (
        "B3",
        BREAK,
        r"ctx->addr, ctx->level\);",
        "ctx->addr + kvm_granule_size(ctx->level), ctx->level);",
    ),
    "half of a table's range": (
        "B6",
        BREAK,
        r"kvm_tlb_flush_vmid_range\(mmu, addr, size\);",
        "kvm_tlb_flush_vmid_range(mmu, addr, system_supports_tlb_range() ? size / 2 : size);",
    ),
    "a deferred flush that is too short": (
        "B6",
        "kvm_pgtable_stage2_unmap",
        r"kvm_tlb_flush_vmid_range\(pgt->mmu, addr, size\);",
        "kvm_tlb_flush_vmid_range(pgt->mmu, addr, PAGE_SIZE);",
    ),
    "the deferred flush dropped": (
        "B2",
        "kvm_pgtable_stage2_unmap",
        r"kvm_tlb_flush_vmid_range\(pgt->mmu, addr, size\);",
        ";",
    ),
    "a table freed without a TLBI": (
        "B7",
        UNMAP,
        r"kvm_call_hyp\(__kvm_tlb_flush_vmid_ipa, mmu, ctx->addr,\s+TLBI_TTL_UNKNOWN\);",
        ";",
    ),
    "age takes permissions too": (
        "B8",
        "stage2_age_walker",
        r"~KVM_PTE_LEAF_ATTR_LO_S2_AF",
        "~(KVM_PTE_LEAF_ATTR_LO_S2_AF | KVM_PTE_LEAF_ATTR_LO_S2_S2AP_R)",
    ),
    "a plain store of the entry": ("B9", MAKE, r"smp_store_release\(ctx->ptep, new\);", "WRITE_ONCE(*ctx->ptep, new);"),
    "no data cache maintenance": (
        "B11",
        LEAF,
        r"mm_ops->dcache_clean_inval_poc\(kvm_pte_follow\(new, mm_ops\),\s+granule\);",
        ";",
    ),
    "no instruction cache maintenance": (
        "B11",
        LEAF,
        r"mm_ops->icache_inval_pou\(kvm_pte_follow\(new, mm_ops\), granule\);",
        ";",
    ),
    "no instruction cache maintenance when X is added": (
        "B11",
        "stage2_attr_walker",
        r"mm_ops->icache_inval_pou\(.*?\);",
        ";",
    ),
    "relax_perms without a TLBI": (
        "B3",
        "kvm_pgtable_stage2_relax_perms",
        r"if \(!ret \|\| ret == -EAGAIN\)",
        "if (0)",
    ),
    "a shared walk that stores plainly": (
        "C3",
        "stage2_try_set_pte",
        r"if \(!kvm_pgtable_walk_shared\(ctx\)\)",
        "if (1)",
    ),
    "no reference for an entry": ("R1", MAKE, r"mm_ops->get_page\(ctx->ptep\);", ";"),
    "no reference dropped": ("R1", BREAK, r"mm_ops->put_page\(ctx->ptep\);", ";"),
    "an emptied table kept": ("R2", "stage2_unmap_walker", r"if \(childp\)\s+mm_ops->put_page\(childp\);", ""),
    "an emptied table put twice": (
        "R2",
        "stage2_unmap_walker",
        r"if \(childp\)\s+mm_ops->put_page\(childp\);",
        "if (childp) { mm_ops->put_page(childp); mm_ops->put_page(childp); }",
    ),
    "a replaced table kept": (
        "R2",
        "stage2_map_walk_table_pre",
        r"mm_ops->free_unlinked_table\(childp, ctx->level\);",
        "",
    ),
}


def verdict_on(kernel: Kernel) -> tuple[Part, Part, list[str]]:
    """Both parts of the verdict, and the script that shows what was found."""
    run = Run(model_and_kernel(kernel), Budget(4000, None, 7, ("4k",)))
    run.go(lambda text: None)
    comparison, protocol = run.parts()
    return comparison, protocol, run.script


def test_what_model_and_kernel_share_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is made to lose the same TLBI: the two agree, and the rule is broken."""
    true = Stage2Table.flush_ipa

    def flush_ipa(self: Stage2Table, ipa: int, level: int) -> None:
        if sys._getframe(1).f_code.co_name != "try_break_pte":
            true(self, ipa, level)

    monkeypatch.setattr(Stage2Table, "flush_ipa", flush_ipa)
    name = "a break without its TLBI"
    kernel = patched(name, *FAULTS[name][1:])
    comparison, protocol, script = verdict_on(kernel)
    assert comparison.code is ExitCode.CLEAN
    assert (protocol.name, protocol.code) == ("protocol", ExitCode.FINDINGS)
    assert protocol.summary.startswith("rule B2 is broken in 'map ")
    assert len(script) <= 5
    text = "\n".join(protocol.lines)
    assert "on both sides alike, the one that breaks the rule marked" in text
    assert sum(line.startswith("> ") for line in protocol.lines) == 1
    assert "kernel: pgtable.c:" in text
    again = replayed(model_and_kernel(kernel), Reproducer(MODEL, tuple(protocol.script)))
    assert (again.name, again.code) == ("protocol", ExitCode.FINDINGS)


def test_a_difference_from_the_model_says_which_rule_is_broken() -> None:
    name = "a break without its TLBI"
    comparison, protocol, _ = verdict_on(patched(name, *FAULTS[name][1:]))
    assert (comparison.code, protocol.code) == (ExitCode.FINDINGS, ExitCode.FINDINGS)
    assert protocol.summary.startswith("rule B2 is broken where the model differs: ")
    assert not protocol.script
    assert any(line.strip().startswith("B2: ") for line in comparison.lines)


def test_what_breaks_no_rule_is_said_to_break_none() -> None:
    """A wrong return code is the model's affair alone."""
    kernel = patched("wrong code", "stage2_map_walker_try_leaf", r"return -EAGAIN;", "return -EBUSY;", 2)
    comparison, protocol, _ = verdict_on(kernel)
    assert (comparison.code, protocol.code) == (ExitCode.FINDINGS, ExitCode.CLEAN)
    assert protocol.summary.endswith("up to the difference: no rule broken")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_breaks_its_rule_and_no_other(name: str) -> None:
    rule, function, old, new = FAULTS[name]
    rules, first = rules_broken(patched(name, function, old, new), FAULTY)
    assert rules == {rule}, first
