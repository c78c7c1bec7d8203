"""Kernels that are built, booted and judged: ``./run_qemu.sh test -m build``, and not without it: that takes minutes.

The fault is in a file that `inspector crosscheck` does not compile, so that the boots alone can find it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.console import command
from fixtures.listing import FILE
from inspector.capture.view import TableView, table_views
from inspector.symbols import open_symbols
from inspector.validate.listing import compare, parse, walked
from tests.live.conftest import take_from
from tests.live.machine import REPO, RUN_QEMU, Machine
from tests.live.poke import written

pytestmark = [pytest.mark.live, pytest.mark.build, pytest.mark.timeout(3600)]

PACKAGE = "linux-source-6.12"
NO_DSB = """\
--- a/arch/arm64/kvm/hyp/vhe/tlb.c
+++ b/arch/arm64/kvm/hyp/vhe/tlb.c
@@ -115,7 +115,6 @@
 \t */
 \tdsb(ish);
 \t__tlbi(vmalle1is);
-\t__tlbi_sync_s1ish_hyp();
 \tisb();
\x20
 \texit_vmid_context(&cxt);
"""


def package() -> Path:
    return Path(os.environ["INSPECTOR_KERNEL_SOURCES"]) / f"{PACKAGE}_all.deb"


def validate(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "inspector", "validate", "--quick", "--json", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_patch_with_a_fault_and_the_package_without_it(tmp_path: Path) -> None:
    """Both are built; the fault is found, and the difference between the two is the fault."""
    patch = tmp_path / "no-dsb.patch"
    patch.write_text(NO_DSB)
    code, document = validate("--source", PACKAGE, "--patch", patch)
    parts = {part["name"]: part for part in document["parts"]}
    assert code == 1, parts
    assert parts["source: patch"]["verdict"] == "clean", "it is left to the boots"
    assert parts["vhe: protocol"]["verdict"] == "findings"
    assert any(line.startswith("B5: ") for line in parts["vhe: protocol"]["lines"])
    for clean in ("tables", "listing", "model", "console", "compared"):
        assert parts[f"vhe: {clean}"]["verdict"] == "clean", parts[f"vhe: {clean}"]
    assert parts["vhe: listing"]["figures"]["ranges"] > 700
    changed = [line.strip() for line in parts["vhe: compared"]["lines"] if line.strip()[:1] in ("+", "-")]
    assert set(changed) == {"-barrier ish"}


def test_code_that_does_not_compile_is_not_tested(tmp_path: Path) -> None:
    patch = tmp_path / "broken.patch"
    wrong = NO_DSB.replace("-\t__tlbi_sync_s1ish_hyp();", "-\t__tlbi_sync_s1ish_hyp();\n+\tnothing_of_that_name();")
    patch.write_text(wrong.replace("+115,6 @@", "+115,7 @@"))
    code, document = validate("--source", PACKAGE, "--patch", patch)
    assert code == 125
    (part,) = (part for part in document["parts"] if part["name"] == "build")
    assert "arch/arm64/kvm/hyp/vhe/tlb.c:118:" in part["summary"]
    assert "nothing_of_that_name" in part["summary"]


def built(*edits: str) -> Path:
    """The folder of a kernel with those of fixtures/edits."""
    words = [word for edit in edits for word in ("--edit", REPO / "fixtures/edits" / edit)]
    done = subprocess.run([RUN_QEMU, "build", package(), *words], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


def test_a_refactoring_is_identical() -> None:
    """Functions in another order, two helpers split, the parts called what no list of ours has."""
    clean, other = built(), built("refactored.toml")
    assert clean != other
    kernel: list[str | Path] = ["--kernel", other / "Image", "--vmlinux", other / "vmlinux"]
    baseline: list[str | Path] = ["--baseline-kernel", clean / "Image", "--baseline-vmlinux", clean / "vmlinux"]
    code, document = validate(*kernel, *baseline, "--deterministic")
    parts = {part["name"]: part for part in document["parts"]}
    assert code == 0, parts
    assert parts["vhe: compared"]["figures"]["changes"] == 0
    repeated, order = (parts[f"vhe: {part}"]["figures"] for part in ("repeated", "in order"))
    assert repeated.pop("same") > 700
    assert not any(repeated.values()), parts["vhe: repeated"]
    # An RCU callback comes when its time has come, and this kernel's instructions are not as many.
    assert order["first"] == order["second"] == order["moved"] == 0, parts["vhe: in order"]
    assert order["displaced"] <= 5 < 700 < order["same"]


def test_a_seeded_fault_is_found_by_its_owner_and_the_clean_kernel_gives_nothing(tmp_path: Path) -> None:
    """One of the matrix; the others with `inspector detection-matrix`, for half an hour."""
    command = [sys.executable, "-m", "inspector", "detection-matrix", "no-break", "--tree", str(package()), "--json"]
    for _ in range(2):
        done = subprocess.run([*command, "-o", str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        cells = json.loads(done.stdout)["cells"]
        assert [cell["verdict"] for cell in cells] == ["clean", "clean", "clean", "found"]
        # The second time nothing is done again.
        assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == len(cells)


@pytest.fixture
def machine() -> Iterator[Machine]:
    folder = built()
    options = ["--vmlinux", str(folder / "vmlinux")]
    with Machine.start(str(folder / "Image"), cpu="max,lpa2=off", options=options) as started:
        assert started.vmlinux is not None
        yield started


def test_an_entry_that_changes_behind_the_kernels_back_is_a_mismatch(machine: Machine) -> None:
    """The kernel's listing is of before, our tables of after: one bit of one entry."""
    symbols = open_symbols(vmlinux=machine.vmlinux)

    def views() -> dict[str, TableView]:
        return {view.vm.name: view for view in table_views(take_from(machine, symbols))}

    before = views()
    listings = {}
    for name, view in before.items():
        events = command(machine.console_socket, "cat " + FILE.format(pid=view.vm.pid, fd=view.vm.fd))
        listings[name] = parse([event["line"] for event in events if event["event"] == "file"])
    agreed = compare({name: (walked(view.tree), listings[name]) for name, view in before.items()})
    assert not agreed.mismatches
    name, view = next(iter(before.items()))
    table = next(table for table in view.tree.tables if table.level == 3)
    index, word = next(
        (at // 8, word)
        for at in range(0, len(table.raw), 8)
        if (word := int.from_bytes(table.raw[at : at + 8], "little")) & 1
    )
    with written(machine, {table.pa + 8 * index: (word ^ 1 << 7).to_bytes(8, "little")}):  # S2AP[1]: write
        planted = compare({name: (walked(view.tree), listings[name]) for name, view in views().items()})
    assert list(planted.mismatches) == [name]
    (wrong,) = planted.mismatches[name]
    assert wrong.end - wrong.start == view.geometry.granule
