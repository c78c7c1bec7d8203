"""The campaign sees a kernel whose own code is wrong: a copy of its pgtable.c with one small fault written into it.

Each fault is a finding, with a shrunk script that shows it and, where memory is misused, the line of the
kernel's source; the same script on the true kernel shows nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest

from inspector import generations
from inspector.crosscheck.campaign import run
from inspector.crosscheck.differ import What, run_lines
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.shrink import shrunk
from tests.crosscheck import kernels
from tests.crosscheck.faults.patch import Patch

pytestmark = pytest.mark.harness

LABEL = "6.12"
BUDGET = 20_000
SEED = 1


@dataclass(frozen=True)
class Wrong:
    """A faulty kernel: the campaign must say ``what`` and ``says``, a pattern."""

    patch: Patch
    what: What
    says: str

    @property
    def name(self) -> str:
        """What is wrong."""
        return self.patch.name


def _wrong(name: str, function: str, old: str, new: str, what: What, says: str) -> Wrong:
    return Wrong(Patch(name, function, old, new), what, says)


PUT_CHILD = r"if \(childp\)\s+mm_ops->put_page\(childp\);"
FREE_UNLINKED = r"(kvm_pgtable_stage2_free_unlinked\(mm_ops, pgtable, level\);)"
DOUBLE_PUT = _wrong(
    "a table put twice on an error path",
    "kvm_pgtable_stage2_create_unlinked",
    FREE_UNLINKED,
    r"\1 mm_ops->put_page(pgtable);",
    What.FAULT,
    r"drops a reference that nobody holds.*pgtable\.c:\d+, kvm_pgtable_stage2_create_unlinked",
)
PATCHES = (
    DOUBLE_PUT,
    _wrong(
        "an empty table put twice",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); mm_ops->put_page(childp); }",
        What.FAULT,
        r"drops a reference that nobody holds.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    _wrong(
        "a freed table read",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); (void)READ_ONCE(*childp); }",
        What.FAULT,
        r"reads the entry at 0x[0-9a-f]+, in a page that is not allocated.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    _wrong(
        "a freed table written",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); WRITE_ONCE(*childp, 0); }",
        What.FAULT,
        r"stores to the entry at 0x[0-9a-f]+, in a page that is not allocated.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    _wrong(
        "a wild pointer followed",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); *(volatile kvm_pte_t *)16 = 0; }",
        What.FAULT,
        r"follows a wild pointer.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    _wrong(
        "a walk begun again for ever",
        "kvm_pgtable_stage2_flush",
        r"return kvm_pgtable_walk\(",
        r"for (;;) kvm_pgtable_walk(",
        What.FAULT,
        r"does not end: it was stopped.*pgtable\.c:\d+, __kvm_pgtable_visit",
    ),
    _wrong(
        "a loop without any access",
        "kvm_pgtable_stage2_wrprotect",
        r"return ",
        r"while (addr) addr |= 1; return ",
        What.FAULT,
        r"does not end: it was stopped",
    ),
    _wrong(
        "a put without its get",
        "stage2_make_pte",
        r"mm_ops->get_page\(ctx->ptep\);",
        ";",
        What.EVENTS,
        "get page",
    ),
    _wrong(
        "a table leaked when the race for its entry is lost",
        "stage2_map_walk_leaf",
        r"mm_ops->put_page\(childp\);",
        "",
        What.EVENTS,
        "put page",
    ),
    _wrong(
        "an unlinked table leaked on an error path",
        "kvm_pgtable_stage2_create_unlinked",
        FREE_UNLINKED,
        "",
        What.EVENTS,
        "put page",
    ),
)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> tuple[Wrong, Kernel]:
    """The kernel's code with one patch."""
    wrong: Wrong = request.param
    return wrong, wrong.patch.put_on(kernels.kernel(LABEL))


@pytest.mark.parametrize("kernel", PATCHES, indirect=True, ids=lambda wrong: wrong.name)
def test_a_wrong_kernel_is_a_finding(kernel: tuple[Wrong, Kernel]) -> None:
    patch, wrong = kernel
    outcome = run(wrong, BUDGET, SEED)
    assert outcome.difference is not None
    assert outcome.difference.what is patch.what
    assert re.search(patch.says, str(outcome.difference)), outcome.difference
    script = shrunk(outcome.script, wrong)
    found = run_lines(script, wrong)
    assert found is not None
    assert found.what is patch.what
    assert len(script) <= 8, script
    assert run_lines(script, kernels.kernel(LABEL)) is None


@pytest.mark.parametrize("kernel", [DOUBLE_PUT], indirect=True, ids=["create_unlinked"])
def test_a_known_fault_is_counted_and_no_finding(kernel: tuple[Wrong, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """6.6.9 puts the page that free_unlinked has freed (kernel.md 8): of that generation it is expected."""
    known = replace(generations.generation(LABEL), unlinked_double_put=True)
    monkeypatch.setitem(generations.GENERATIONS, LABEL, known)
    outcome = run(kernel[1], 5_000, SEED)
    assert outcome.difference is None, outcome.difference
    assert outcome.known_faults > 0
