"""The campaign sees a kernel whose own code is wrong: a copy of its pgtable.c with one small fault written into it.

Each fault is a finding with exit code 1, a shrunk script that shows it and, where memory is misused, the line of the
kernel's source; the same script on the true kernel shows nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from fixtures.harness.build import NEEDED, PGTABLE, unpack
from inspector import generations
from tests.model import harness
from tests.model.campaign import main, run
from tests.model.differ import What, run_lines

pytestmark = pytest.mark.harness

LABEL = "6.12"
BUDGET = 20_000
SEED = 1


@dataclass(frozen=True)
class Patch:
    """In ``function`` of pgtable.c, ``old`` (a pattern) becomes ``new``; the campaign must say ``what`` and ``says``.

    ``says`` is a pattern.
    """

    name: str
    function: str
    old: str
    new: str
    what: What
    says: str

    def apply(self, source: str) -> str:
        """The patched text.  Raises ``ValueError`` when the function or the place in it is not there."""
        body = re.search(rf"^[^\n;]*\b{self.function}\([^;{{]*\)\n{{.*?^}}", source, re.MULTILINE | re.DOTALL)
        if body is None:
            raise ValueError(f"there is no function {self.function}")
        patched, times = re.subn(self.old, self.new, body[0], flags=re.DOTALL)
        if not times:
            raise ValueError(f"{self.old} is not in {self.function}")
        return source[: body.start()] + patched + source[body.end() :]


PUT_CHILD = r"if \(childp\)\s+mm_ops->put_page\(childp\);"
FREE_UNLINKED = r"(kvm_pgtable_stage2_free_unlinked\(mm_ops, pgtable, level\);)"
DOUBLE_PUT = Patch(
    "a table put twice on an error path",
    "kvm_pgtable_stage2_create_unlinked",
    FREE_UNLINKED,
    r"\1 mm_ops->put_page(pgtable);",
    What.FAULT,
    r"drops a reference that nobody holds.*pgtable\.c:\d+, kvm_pgtable_stage2_create_unlinked",
)
PATCHES = (
    DOUBLE_PUT,
    Patch(
        "an empty table put twice",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); mm_ops->put_page(childp); }",
        What.FAULT,
        r"drops a reference that nobody holds.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    Patch(
        "a freed table read",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); (void)READ_ONCE(*childp); }",
        What.FAULT,
        r"reads the entry at 0x[0-9a-f]+, in a page that is not allocated.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    Patch(
        "a freed table written",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); WRITE_ONCE(*childp, 0); }",
        What.FAULT,
        r"stores to the entry at 0x[0-9a-f]+, in a page that is not allocated.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    Patch(
        "a wild pointer followed",
        "stage2_unmap_walker",
        PUT_CHILD,
        r"if (childp) { mm_ops->put_page(childp); *(volatile kvm_pte_t *)16 = 0; }",
        What.FAULT,
        r"follows a wild pointer.*pgtable\.c:\d+, stage2_unmap_walker",
    ),
    Patch(
        "a put without its get",
        "stage2_make_pte",
        r"mm_ops->get_page\(ctx->ptep\);",
        ";",
        What.EVENTS,
        "get page",
    ),
    Patch(
        "a table leaked when the race for its entry is lost",
        "stage2_map_walk_leaf",
        r"mm_ops->put_page\(childp\);",
        "",
        What.EVENTS,
        "put page",
    ),
    Patch(
        "an unlinked table leaked on an error path",
        "kvm_pgtable_stage2_create_unlinked",
        FREE_UNLINKED,
        "",
        What.EVENTS,
        "put page",
    ),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel source at hand, unpacked."""
    source = harness.sources()[LABEL]
    return source if source.is_dir() else unpack(source, tmp_path_factory.mktemp("tree"))


@pytest.fixture
def kernel(
    request: pytest.FixtureRequest, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Patch]:
    """That source with one patch; its libraries are built in a scratch folder."""
    patch: Patch = request.param
    copy = tmp_path / "patched" / LABEL
    for name in NEEDED:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tree / name, copy / name)
    (copy / PGTABLE).write_text(patch.apply((copy / PGTABLE).read_text()))
    with monkeypatch.context() as there:
        there.setenv(harness.SOURCES_VARIABLE, str(copy.parent))
        there.setenv(harness.BUILD_VARIABLE, str(tmp_path / "built"))
        harness.forget_libraries()
        yield patch
    harness.forget_libraries()


@pytest.mark.parametrize("kernel", PATCHES, indirect=True, ids=lambda patch: patch.name)
def test_a_wrong_kernel_is_a_finding(kernel: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--label", LABEL, "--ops", str(BUDGET), "--seed", str(SEED), "--quiet"])
    said = capsys.readouterr().out
    assert code == 1
    assert re.search(rf"FINDING after .*: {kernel.what}\n", said), said
    assert re.search(kernel.says, said), said
    script = said.partition("shrunk script:\n")[2].splitlines()
    found = run_lines(script)
    assert found is not None
    assert found.what is kernel.what
    assert len(script) <= 8, script


@pytest.mark.parametrize("kernel", [DOUBLE_PUT], indirect=True, ids=["create_unlinked"])
def test_a_known_fault_is_counted_and_no_finding(kernel: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """6.6.9 puts the page that free_unlinked has freed (kernel.md 8): of that generation it is expected."""
    known = replace(generations.generation(LABEL), unlinked_double_put=True)
    monkeypatch.setitem(generations.GENERATIONS, LABEL, known)
    outcome = run(LABEL, 5_000, SEED)
    assert outcome.difference is None, outcome.difference
    assert outcome.known_faults > 0
