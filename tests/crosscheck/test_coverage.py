"""What became of changed lines: real edits of a real file, and the classes that they must fall into."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from inspector.crosscheck.coverage import Counts
from inspector.crosscheck.covered import NAME, coverage, focus_on
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.lines import Line, What, without_comments
from inspector.crosscheck.tree import ASM, PGTABLE, Tree
from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode
from tests.crosscheck import kernels

pytestmark = pytest.mark.harness

LABEL = "6.12"
HWDEF = f"{ASM}/pgtable-hwdef.h"


def edited(old: str, new: str, file: str = PGTABLE) -> tuple[Tree, Tree]:
    """The true tree, and one in which the first match of ``old`` became ``new``."""
    true = kernels.tree(LABEL)
    text, times = re.subn(old, new, true.text[file], count=1, flags=re.DOTALL | re.MULTILINE)
    assert times, f"{old} is not there"
    return true, replace(true, text={**true.text, file: text})


def judged(old: str, new: str, file: str = PGTABLE, uncovered_ok: bool = False) -> Part:
    true, patched = edited(old, new, file)
    part = coverage(Kernel("patched", patched, LABEL, kernels.builds()), true, ("4k",), 1, uncovered_ok=uncovered_ok)
    assert part.name == NAME
    return part


WRPROTECT = r"(^int kvm_pgtable_stage2_wrprotect\([^{]*\{)"
CASES = (
    ("a comment alone", WRPROTECT, r"/* a word */\n\1 /* another */", ExitCode.CLEAN, {"no_code": 2}),
    ("a line that runs", WRPROTECT, r"\1\n\tif (!size)\n\t\treturn -EINVAL;", ExitCode.CLEAN, {"run": 2}),
    (
        "a line that cannot run",
        WRPROTECT,
        r"\1\n\tif (size == 12345)\n\t\tsize++;",
        ExitCode.UNTESTABLE,
        {"not_run": 1},
    ),
    (
        "a configuration that nobody builds",
        WRPROTECT,
        r"#ifdef CONFIG_OF_NOBODY\nint nobody(void) { return 1; }\n#endif\n\1",
        ExitCode.UNTESTABLE,
        {"not_built": 1},
    ),
)


@pytest.mark.parametrize(("name", "old", "new", "code", "kinds"), CASES, ids=[case[0] for case in CASES])
def test_a_changed_line(name: str, old: str, new: str, code: ExitCode, kinds: dict[str, int]) -> None:
    part = judged(old, new)
    assert part.code is code, part
    for kind, number in kinds.items():
        assert part.figures[f"changed_{kind}"] >= number, part  # type: ignore[operator]
    if code is ExitCode.UNTESTABLE:
        assert judged(old, new, uncovered_ok=True).code is ExitCode.CLEAN
        assert any("pgtable.c:" in line for line in part.lines)


def test_a_deleted_line_counts_as_what_is_around_it() -> None:
    part = judged(r"^\tWARN_ON\(mm_ops->page_count\(pgtable\) != 1\);\n", "")
    assert part.code is ExitCode.CLEAN, part
    assert part.figures["changed_run"] == 1


def test_a_header_that_the_shims_stand_for() -> None:
    part = judged(r"\A", "#define SOMETHING_OF_NOBODY 1\n", HWDEF)
    assert part.code is ExitCode.UNTESTABLE, part
    assert part.figures["changed_shimmed"] == 1


def test_a_macro_that_runs() -> None:
    part = judged(r"^(#define KVM_PTE_TYPE\s)", r"#define KVM_PTE_OF_NOBODY BIT(1)\n\1")
    assert part.figures["changed_not_run"] == 1, part
    part = judged(r"^#define (KVM_PTE_TYPE)\s[^\n]*", r"#define \1 (BIT(1))")
    assert part.code is ExitCode.CLEAN, part
    assert part.figures["changed_run"] == 1


def test_without_changes_it_only_counts() -> None:
    part = coverage(kernels.kernel(LABEL), None, ("4k", "16k", "64k"), 1)
    assert part.code is ExitCode.CLEAN
    lines, ran = int(part.figures["lines"]), int(part.figures["lines_run"])
    source = without_comments(kernels.tree(LABEL).text[PGTABLE])
    assert 0.9 * lines < ran <= lines < sum(bool(line.strip()) for line in source.splitlines())


def test_it_steers_by_the_names_of_functions() -> None:
    counts = {PGTABLE: Counts(functions={"hyp_map_walker": (1, 9, 0), "kvm_pgtable_stage2_split": (20, 29, 0)})}
    assert focus_on([Line(PGTABLE, 5, "", What.NOT_RUN)], counts).hyp > 0.9
    split = focus_on([Line(PGTABLE, 25, "", What.NOT_RUN)], counts)
    assert split.hyp < 0.1
    assert split.more == {"split"}
