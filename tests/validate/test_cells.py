"""Cells: what is kept of them, what they are known by, and what is said where they cannot be done."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode, Untestable
from inspector.machines import require_qemu
from inspector.trace.timeline import Course, Timeline
from inspector.validate import kept
from inspector.validate.cells import Cell, Result, Sent
from inspector.validate.configurations import NAMES, chosen
from inspector.validate.kernels import Kernel
from inspector.validate.run import Run
from inspector.validate.selftests import Selftest, Selftests
from inspector.validate.shape import shapes
from tests.validate.test_shape import unmap

VHE = chosen("quick", ())[0]
CELL = Cell(Kernel("a/Image", "a/vmlinux"), VHE, ("run log",), "vhe", "vhe.s2trace", draw=True, keep=True)
SENT = Sent(CELL, {"image": "11", "initramfs": "22"}, {"image": "a/Image", "initramfs": "b"})
CLEAN = Part("vhe: protocol", ExitCode.CLEAN, "817 operations", ("a",), {"operations": 817, "share": 0.5, "x": "y"})
BROKEN = Part("vhe: model", ExitCode.FINDINGS, "1 does not", ("\x1b[31mred",), script=("map",), built=frozenset({"a"}))
UNTESTED = Part("vhe: boot", ExitCode.UNTESTABLE, "it did not boot")


def result(*parts: Part) -> Result:
    course = Course("vhe", Timeline(3, 1, [], []), [], 0, {})
    return Result(Run(VHE, "6.12", list(parts), shapes(unmap()), 1.5, course), b"\0trace\xff")


def test_what_is_kept_is_what_came_of_it(tmp_path: Path) -> None:
    kept.make(tmp_path / "some" / "where")
    folder = tmp_path / "some" / "where"
    assert kept.load(folder, SENT) is None
    kept.store(folder, SENT, result(CLEAN, BROKEN))
    assert kept.load(folder, SENT) == result(CLEAN, BROKEN)


def test_what_could_not_be_tested_is_tried_again(tmp_path: Path) -> None:
    kept.store(tmp_path, SENT, result(CLEAN, UNTESTED))
    assert list(tmp_path.iterdir()) == []


def test_what_is_damaged_is_not_there(tmp_path: Path) -> None:
    kept.store(tmp_path, SENT, result(CLEAN))
    file = next(tmp_path.iterdir())
    whole = file.read_bytes()
    (tmp_path / "touched").mkdir()
    ours = zlib.compress(pickle.dumps(CLEAN))
    foreign = zlib.compress(b"cos\nrmdir\n(S'%s'\ntR." % str(tmp_path / "touched").encode())
    for damaged in (b"", whole[:-9], ours, foreign):
        file.write_bytes(damaged)
        assert kept.load(tmp_path, SENT) is None
    assert (tmp_path / "touched").is_dir(), "what is read runs nothing"


def test_a_cell_is_known_by_content_and_by_what_is_done() -> None:
    """Not by where its files lie, nor by what they are called."""
    elsewhere = replace(CELL, kernel=Kernel("b/Image", "b/vmlinux"))
    assert Sent(elsewhere, SENT.digests, {"image": "b/Image"}).key == SENT.key
    program = Selftests("/there", "mine", (Selftest("kvm_page_table_test", ("-v", "1")),))
    assert (
        replace(SENT, cell=replace(CELL, selftests=program)).key
        == replace(SENT, cell=replace(CELL, selftests=replace(program, folder="/here", title="yours"))).key
    )
    others = [
        replace(SENT, digests={"image": "12", "initramfs": "22"}),
        replace(SENT, digests={"image": "11", "initramfs": "23"}),
        replace(SENT, digests={"image": "11", "initramfs": "22", "vmlinux": "33"}),
        *(replace(SENT, cell=replace(CELL, configuration=each)) for each in chosen("full", ())[1:]),
        replace(SENT, cell=replace(CELL, lines=("run log", "run drop"))),
        replace(SENT, cell=replace(CELL, label="vhe, baseline")),
        replace(SENT, cell=replace(CELL, draw=False)),
        replace(SENT, cell=replace(CELL, selftests=program)),
    ]
    assert len({SENT.key, *(each.key for each in others)}) == 1 + len(others)


def test_on_a_worker_a_cell_has_the_workers_files() -> None:
    cell = SENT.at(lambda digest: Path("/store") / digest)
    assert cell.kernel.options() == ["--kernel", "/store/11", "--initramfs", "/store/22"]
    assert str(cell.kernel) == "a/Image"


def test_configurations_that_are_named_come_in_their_order() -> None:
    assert [each.name for each in chosen("quick", ("one-cpu", "nvhe"))] == ["nvhe", "one-cpu"]
    assert [each.name for each in chosen("full", ())] == list(NAMES)


def test_a_worker_without_qemu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Untestable, match=r"there is no qemu-system-aarch64 on .*: install it there"):
        require_qemu()
