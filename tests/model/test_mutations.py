"""The campaign can find bugs: with each mutation of the model it sees a difference within CI's budget.

A mutation is one wrong edit of the model's text (a dropped put, a wrong level hint, a store without its release ...);
a flip is one named behaviour set as another kernel generation has it.  Each must be noticed; the model without any
mutation is compared in ``test_against_kernel.py``.
"""

# ruff: noqa: E501 - a mutation is read best with its two texts on one line each

from __future__ import annotations

from dataclasses import fields

import pytest

from inspector.findings import BadInput
from inspector.generations import GENERATIONS, Generation, generation
from tests.model.campaign import run
from tests.model.harness import sources
from tests.model.mutate import Flip, Mutation, applied, flipped, other_values

pytestmark = pytest.mark.harness

BUDGET = 20_000
"""Operations per version that CI compares (``test_against_kernel.OPERATIONS``)."""

SEED = 1


def _labels() -> list[str]:
    try:
        return [label for label in sources() if label in GENERATIONS]
    except BadInput:
        return ["6.12"]  # each test then fails with the sentence that says what to set


MUTATIONS = (
    # --- descriptors
    Mutation("AF left out of new leaves", "attributes", "| xn | AF", "| xn"),
    Mutation(
        "W taken for R",
        "attributes",
        "if prot & _R:\n            attr |= S2AP_R",
        "if prot & _W:\n            attr |= S2AP_R",
    ),
    Mutation("XN dropped from non-executable leaves", "attributes", "return 0 if prot & _X else XN", "return 0"),
    Mutation("SH set with LPA2", "attributes", "if not self._lpa2:", "if True:"),
    Mutation("FWB ignored in MemAttr", "attributes", "][self.fwb] << 2", "][False] << 2"),
    Mutation("software bits dropped", "attributes", "attr |= prot & SW_MASK", "attr |= 0"),
    Mutation("device mapped executable", "attributes", "if (device or nc) and prot & _X:", "if nc and prot & _X:"),
    Mutation("NOFWB flag forgotten", "attributes", "machine.fwb and not (by_flag and machine.no_fwb)", "machine.fwb"),
    Mutation(
        "PXN and UXN swapped",
        "attributes",
        "return _XN_CODES[wanted] << 53",
        "return (_XN_CODES[wanted] ^ (2 if wanted in (4, 8) else 0)) << 53",
        "7.3",
    ),
    Mutation(
        "block made of page type", "map_unlink", "| self.attr | (3 if level == LAST_LEVEL else 1)", "| self.attr | 3"
    ),
    Mutation("PA[51:48] lost on 64K pages", "walker", "return pte | (pa >> 48 & 0xF) << 12", "return pte"),
    Mutation("PA[51:50] lost with LPA2", "walker", "return pte | (pa >> 50 & 3) << 8", "return pte"),
    # --- the walker
    Mutation("one entry short", "walker", "while index <= last_index:", "while index < last_index:"),
    Mutation("end of the range included", "walker", "if addr >= end:", "if addr > end:"),
    Mutation("range counted from the unaligned address", "walker", "end = (start + size +", "end = (addr + size +"),
    Mutation("end equal to the limit refused", "walker", "walk.end > limit", "walk.end >= limit"),
    Mutation(
        "no descent into a table just installed",
        "walker",
        "old = entries[index]\n                descend = above_last and old & 3 == 3\n            if descend:",
        "old = entries[index]\n            if descend:",
    ),
    Mutation("no reload after TABLE_PRE", "walker", "if self.behaviours.reload_after_pre:", "if False:"),
    Mutation(
        "TABLE_POST before the children",
        "walker",
        "ret = self.walk_table(walk, self.pa_of(old), level + 1)\n                if ret:\n                    return ret\n"
        "                if flags & TABLE_POST:",
        "ret = 0\n                if flags & TABLE_POST:",
    ),
    Mutation("-EAGAIN forgotten in a fault handler", "walker", "return not flags & HANDLE_FAULT", "return True"),
    Mutation("second root page never reached", "walker", "            page += 1\n", "            page += 0\n"),
    Mutation(
        "SHARED walk allowed in the hypervisor",
        "walker",
        "if walk.flags & SHARED and self.machine.hyp_build:",
        "if False:",
    ),
    # --- map
    Mutation(
        "break without TLBI for a leaf",
        "map_unlink",
        "elif old & 1:\n            pgt.emit((TLBI",
        "elif False:\n            pgt.emit((TLBI",
    ),
    Mutation("break without TLBI for a table", "map_unlink", "pgt.flush_range(start, size)", "pass"),
    Mutation(
        "TLBI hint one level off",
        "map_unlink",
        '(TLBI, "ipa", addr, level, None)',
        '(TLBI, "ipa", addr, level - 1, None)',
    ),
    Mutation(
        "put forgotten in break",
        "map_unlink",
        "    if old:\n        pgt.put(table)\n    return True",
        "    return True",
    ),
    Mutation(
        "get after the store",
        "map_unlink",
        "        pgt.store.counts[table] += 1\n        pgt.emit((GET, table))\n    pgt.emit((STORE, table + 8 * index, locked, new, 1, 0))",
        "        pgt.store.counts[table] += 1\n    pgt.emit((STORE, table + 8 * index, locked, new, 1, 0))\n"
        "    if new:\n        pgt.emit((GET, table))",
    ),
    Mutation("make without release", "map_unlink", "locked, new, 1, 0))", "locked, new, 0, 0))"),
    Mutation(
        "child leaked when the race for a table is lost",
        "map_unlink",
        "            pgt.put(child)\n            return -EAGAIN",
        "            return -EAGAIN",
    ),
    Mutation(
        "identical map accepted",
        "map_unlink",
        "            return -EAGAIN\n        if pgt.behaviours.software",
        "            return 0\n        if pgt.behaviours.software",
    ),
    Mutation("software bits bypass shared walks too", "map_unlink", "NOT_SW and not flags & SHARED", "NOT_SW"),
    Mutation(
        "cache cleaned after the store",
        "map_unlink",
        'pgt.emit((CACHE, "dcache", pgt.pa_of(new), 1 << pgt.shifts[level]))',
        "pass",
    ),
    Mutation("icache forgotten", "map_unlink", "if machine.icache_op and", "if False and"),
    Mutation("SKIP_CMO forgotten", "map_unlink", "if not flags & SKIP_CMO:", "if True:"),
    Mutation("SKIP_BBM_TLBI forgotten", "map_unlink", "if old and not flags & SKIP_BBM_TLBI:", "if old:"),
    Mutation("block allowed with misaligned PA", "map_unlink", "return not phys & (size - 1) or", "return True or"),
    Mutation(
        "block allowed with misaligned IPA",
        "map_unlink",
        "if size > self.end - addr or addr & (size - 1):",
        "if size > self.end - addr:",
    ),
    Mutation("block beyond the end of the range", "map_unlink", "if size > self.end - addr or addr", "if addr"),
    Mutation("force_pte forgotten", "map_unlink", "        if self.force_pte:\n            return False\n", ""),
    Mutation("detached table freed at once", "stage2", "if not self.machine.rcu:", "if True:"),
    Mutation(
        "level of the deferred table off by one",
        "map_unlink",
        "self.pgt.defer(self.pgt.pa_of(old), level)",
        "self.pgt.defer(self.pgt.pa_of(old), level + 1)",
    ),
    Mutation("no barrier after map", "map", "    pgt.barrier()\n    return ret", "    return ret"),
    Mutation("owner 2 accepted", "map", "if owner > MAX_OWNER:", "if owner > MAX_OWNER + 1:"),
    Mutation("annotation type 1 accepted", "map", "kind in (0, LOCKED_TYPE)", "kind in (0,)", "7.3"),
    Mutation(
        "no warning for LOCKED in an exclusive walk",
        "map_unlink",
        "        if not flags & SHARED:\n            pgt.warn()\n        return False",
        "        return False",
    ),
    # --- the anchor
    Mutation(
        "flush by IPA instead of everything at the anchor",
        "map_anchor",
        "        pgt.flush_all()\n",
        "        pgt.flush_ipa(addr, level)\n",
        "6.1",
    ),
    Mutation(
        "leaf under the anchor keeps its reference",
        "map_anchor",
        "            if pgt.is_counted(old):\n                pgt.put(table)\n            return 0",
        "            return 0",
        "6.1",
    ),
    Mutation(
        "anchor's child freed before the block is stored",
        "map_anchor",
        "            ret = self._leaf(table, entries, index, level, addr)\n        else:",
        "            pgt.put(child)\n            ret = self._leaf(table, entries, index, level, addr)\n"
        "            pgt.put(table)\n            return ret\n        else:",
        "6.1",
    ),
    Mutation("running PA not advanced", "map_anchor", "        if valid_pa:\n            self.phys += size", "", "6.1"),
    # --- unmap
    Mutation("table TLBI with a level hint", "unmap", "hint = _table_level(pgt, level)", "hint = level"),
    Mutation(
        "unmap without TLBI",
        "unmap",
        "        if not silent:\n            pgt.emit((TLBI",
        "        if False:\n            pgt.emit((TLBI",
    ),
    Mutation("empty tables kept", "unmap", "if pgt.store.counts[child] != 1:", "if True:"),
    Mutation(
        "child freed before the parent's reference is dropped",
        "unmap",
        "        pgt.put(table)\n        if flush:",
        "        if child:\n            pgt.put(child)\n            child = 0\n        pgt.put(table)\n        if flush:",
    ),
    Mutation(
        "dcache cleaned in spite of FWB",
        "unmap",
        "not pgt.attributes.fwb and pgt.machine.dcache_op",
        "pgt.machine.dcache_op",
    ),
    Mutation("deferred flush forgotten", "unmap", "    if deferred:\n        pgt.flush_range(addr, size)\n", ""),
    Mutation("annotation survives unmap", "unmap", "if old and pgt.behaviours.counts_nonzero:", "if False:"),
    # --- attributes
    Mutation("wrprotect clears R", "attrs", "addr, size, 0, S2AP_W, flags)[0]", "addr, size, 0, S2AP_R, flags)[0]"),
    Mutation("relax_perms flushes inner shareable", "attrs", '"ipa_nsh" if behaviours', '"ipa" if behaviours'),
    Mutation(
        "relax_perms silent when nothing changed",
        "attrs",
        "    if ret == 0:\n        pgt.emit((TLBI, kind",
        "    if ret == 0 and change.pte & 1 and set_bits & ~change.pte:\n        pgt.emit((TLBI, kind",
    ),
    Mutation(
        "execute permission without icache",
        "attrs",
        "if pgt.behaviours.attr_icache and pgt.machine.icache_op:",
        "if False:",
    ),
    Mutation("mkyoung barrier always", "attrs", "if ret == 0 or pgt.behaviours.mkyoung_barrier_always:", "if True:"),
    Mutation(
        "mkold returns the new entry",
        "attrs",
        "    return 0 if ret else change.pte\n\n\ndef stage2_is_young",
        "    return 0 if ret else change.pte & ~AF\n\n\ndef stage2_is_young",
        "6.1",
    ),
    Mutation("test_clear_young always clears", "attrs", "        if self.mkold:\n", "        if True:\n"),
    Mutation("flush in spite of FWB", "attrs", "    if pgt.attributes.fwb:\n        return 0\n", ""),
    # --- split and destroy
    Mutation(
        "split keeps the memory type",
        "split",
        "prot = pgt.attributes.prot_of(old)",
        "prot = pgt.attributes.prot_of(old) | (16 if old >> 2 & 0xF == 1 else 0)",
    ),
    Mutation(
        "split wants one page more", "split", "return self.pgt.index_mask + 2", "return self.pgt.index_mask + 3000"
    ),
    Mutation("split without a page left", "split", "if self.cache.nobjs < (needed if whole_tree else 1):", "if False:"),
    Mutation(
        "unlinked table flushed while built", "split", "flags = SKIP_BBM_TLBI | SKIP_CMO", "flags = SKIP_BBM_TLBI"
    ),
    Mutation(
        "unlinked table leaked on error",
        "split",
        "    if ret:\n        free_unlinked(pgt, page, level)\n",
        "    if ret:\n",
    ),
    Mutation(
        "destroy forgets tables",
        "destroy",
        "            pgt.put(table)\n            pgt.put(child)\n            return 0",
        "            pgt.put(table)\n            return 0",
    ),
    Mutation(
        "destroy clears entries",
        "destroy",
        "            pgt.put(child)\n            return 0\n        if pgt",
        "            pgt.put(child)\n            pgt.write(table, entries, index, 0)\n            return 0\n        if pgt",
    ),
    Mutation("destroy_range frees tables in use", "destroy", "if pgt.store.counts[child] == 1:", "if True:", "7.3"),
    # --- hyp stage-1
    Mutation("hyp: RO encoded as RW", "hyp", "(2 if hvhe else 3)", "(0 if hvhe else 1)"),
    Mutation("hyp: GP forgotten", "hyp", "                attr |= GP\n", "                attr |= 0\n"),
    Mutation("hyp: partial block unmapped", "hyp", "if self.end - addr < size:", "if False:"),
    Mutation(
        "hyp: hole passed over",
        "hyp",
        "        if not old & 1:\n            return -EINVAL\n        child = 0",
        "        if not old & 1:\n            return 0\n        child = 0",
    ),
    Mutation(
        "hyp: TLBI before the store",
        "hyp",
        "        pgt.write(table, entries, index, 0)\n        pgt.barrier()\n        pgt.emit((TLBI, instruction, addr, hint, None))\n",
        "        pgt.emit((TLBI, instruction, addr, hint, None))\n        pgt.write(table, entries, index, 0)\n        pgt.barrier()\n",
    ),
)

NOT_FLIPPED = {
    "label": "a name",
    "source": "a statement about the model",
    "cross_checked": "a statement about the model",
    "has": "what it is recognised by",
    "lacks": "what it is recognised by",
    "ha_always": "nothing of pgtable.c",
    "cacheable_pfnmap": "nothing of pgtable.c",
    "present_invalid_bit11": "nothing of pgtable.c",
    "prot_layout": "how a request is spelt for the kernel, not what the kernel does",
    "lpa2": "without it such a machine is refused, not modelled",
    "first_level": "a number; levels below it need a corrupt table",
    "annotation": "chooses the function that exists, which the campaign calls by name",
}
INVISIBLE = {
    # (generation, field): why no operation of that generation can tell
    ("6.1", "shared_walks"): "its map has no flags argument",
    ("6.1", "wrprotect_ignores_eagain"): "nothing in wrprotect says -EAGAIN there",
    ("6.12", "wrprotect_ignores_eagain"): "a walk outside a fault handler forgets -EAGAIN anyway",
    ("6.1", "software_bits_store"): "part of the UNLINK scheme",
    ("6.1", "span_flush_aligned"): "part of the UNLINK scheme",
    ("6.12", "span_flush_aligned"): "TABLE_PRE replaces only where the walk stands at the entry's start",
    ("7.3", "span_flush_aligned"): "TABLE_PRE replaces only where the walk stands at the entry's start",
    ("6.1", "split_barrier_each"): "there is no split",
    ("6.1", "unlinked_double_put"): "there is no split",
    ("6.1", "relax_flush_on_eagain"): "nothing in relax_perms says -EAGAIN there",
    ("6.1", "unmap_defers_tables_too"): "nothing is deferred there",
    ("6.1", "split"): "the kernel has no such function to compare with",
    ("6.1", "hyp_two_bit_xn"): "with one execute bit and no hVHE the two forms are one",
}
INVISIBLE_VALUES = {
    ("6.1", "eagain", "STOPS_UNLESS_IGNORED"): "the same where no walk ignores it",
    ("6.1", "attr_walk_flags", "CALLER"): "the same where no caller has flags to give",
    ("6.1", "invalid", "LOCKED_BIT10"): "nothing is marked in the ANCHOR scheme",
    ("6.1", "invalid", "TYPED"): "nothing is marked in the ANCHOR scheme",
}


PROVEN = [label for label in _labels() if GENERATIONS[label].cross_checked]


def _flips(label: str) -> list[Flip]:
    """Every behaviour of a generation, set as it is not."""
    behaviours = generation(label)
    return [
        Flip(field.name, value, label)
        for field in fields(Generation)
        if field.name not in NOT_FLIPPED and (label, field.name) not in INVISIBLE
        for value in other_values(field.name, getattr(behaviours, field.name))
        if (label, field.name, getattr(value, "name", None)) not in INVISIBLE_VALUES
    ]


@pytest.mark.parametrize(
    "mutation", [each for each in MUTATIONS if each.label in _labels()], ids=lambda mutation: mutation.name
)
def test_a_mutation_is_found(mutation: Mutation) -> None:
    with applied(mutation):
        outcome = run(mutation.label, BUDGET, SEED)
    assert outcome.difference is not None, f"{mutation.name}: {outcome.operations} operations and no difference"


@pytest.mark.parametrize("flip", [flip for label in PROVEN for flip in _flips(label)], ids=str)
def test_a_behaviour_of_another_generation_is_found(flip: Flip) -> None:
    """Every named behaviour matters: set otherwise, the model no longer is that kernel."""
    with flipped(flip):
        outcome = run(flip.label, BUDGET, SEED)
    assert outcome.difference is not None, f"{flip}: {outcome.operations} operations and no difference"


def test_no_mutation_is_left_behind() -> None:
    with applied(MUTATIONS[0]):
        assert run("6.12", 2_000, SEED).difference is not None
    assert run("6.12", 2_000, SEED).difference is None
