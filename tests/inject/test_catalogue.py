"""The catalogue of faults: each can be placed in a kernel, is owned by a rule that is judged, and is documented."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from inspector import cli, report
from inspector.findings import BadInput, ExitCode, Untestable
from inspector.inject.catalogue import FAULTS, SHARES, Do, Fault, Place
from inspector.inject.instructions import At
from inspector.inject.matrix import read_cells
from inspector.inject.places import places, plain_store
from inspector.inject.results import Cell
from inspector.protocol.rules import RULES
from inspector.symbols import open_symbols
from inspector.symbols.kernel import KernelSymbols
from tests.conftest import kernel_labels

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=[label for label in kernel_labels() if label != "5.10"])
def symbols(request: pytest.FixtureRequest) -> KernelSymbols:
    return open_symbols(image=Path(os.environ["INSPECTOR_KERNELS"]) / request.param / "vmlinuz")


def test_there_are_as_many_as_promised() -> None:
    assert len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_is_owned_by_what_is_judged_and_documented(fault: Fault) -> None:
    assert {fault.owner, fault.owned_by(shared=False)} <= {*RULES, "model", ""}
    assert f"| {fault.name} | {fault.what} |" in (REPO / "docs/inject.md").read_text()
    assert (fault.do is Do.SET) <= bool(fault.change)
    assert (fault.do is Do.LATER) == (fault.then is not None)
    assert (fault.do is Do.PLAIN) == bool(fault.by)
    assert fault.owner or fault.do is Do.DELAY, "what is no fault is not done"


def test_every_rule_that_a_trace_judges_has_a_fault() -> None:
    # EL2 is initialised before anybody attaches.
    assert {fault.owner for fault in FAULTS.values()} >= {*RULES, "model"} - {"V5"}


@pytest.mark.parametrize("nvhe", [False, True], ids=["vhe", "nvhe"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_has_its_place_in_every_kernel(symbols: KernelSymbols, fault: Fault, nvhe: bool) -> None:
    there = not fault.needs or symbols.address(fault.needs) is not None
    # What is needed is what a generation does not do at all: not a name that a compiler took away.
    assert there or symbols.address(SHARES) is None
    if not there:
        return
    where = fault.where(nvhe=nvhe)
    for place in (where, fault.then) if fault.then is not None else (where,):
        for found in places(symbols, place, fault.name):
            near = symbols.nearest(found.address)
            assert near is not None
            assert near[0] == found.function
            assert found.function.partition(".")[0] in place.function.split()
            assert (near[1] == 0) is (place.at is At.ENTRY) is found.is_entry
            assert found.source < 31 or "{t}" not in fault.change
            assert found.base < 31 or "{page}" not in fault.change
    if fault.do is Do.PLAIN:
        store = plain_store(symbols, fault.by)
        assert symbols.text(store.address, 4) == (0xF9000000 | store.base << 5 | store.source).to_bytes(4, "little")


def test_a_place_that_there_is_not(symbols: KernelSymbols) -> None:
    with pytest.raises(Untestable, match="has no nothing_such"):
        places(symbols, Place("nothing_such"), "x")
    with pytest.raises(Untestable, match="no such instruction"):
        places(symbols, Place("kvm_host_get_page", At.TLBI, 9), "x")
    with pytest.raises(Untestable, match="no plain store"):
        plain_store(symbols, "nothing_such kvm_host_get_page")


def test_the_list() -> None:
    document = json.loads(CliRunner().invoke(cli.main_group, ["inject", "--list", "--json"]).output)
    assert [fault["name"] for fault in document["faults"]] == list(FAULTS)


@pytest.mark.parametrize("options", [["nothing-such"], [], ["no-tlbi", "no-put"], ["no-tlbi"]])
def test_what_cannot_be_asked(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSPECTOR_CONNECT", raising=False)
    done = CliRunner().invoke(cli.main_group, ["inject", *options])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1


def test_a_file_of_something_else(tmp_path: Path) -> None:
    assert read_cells(tmp_path / "none") == []
    for text in ("x\n", "[]\n", '{"fault": 1}\n'):
        (tmp_path / "cells").write_text(text)
        with pytest.raises(BadInput):
            read_cells(tmp_path / "cells")


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["found", "found"], ExitCode.CLEAN),
        (["found", "missed", "not injected"], ExitCode.FINDINGS),
        (["found", "not injected"], ExitCode.UNTESTABLE),
        (["found", "silent", "not there"], ExitCode.CLEAN),
        (["found", "false alarm"], ExitCode.FINDINGS),
        (["not there"], ExitCode.UNTESTABLE),
        ([], ExitCode.UNTESTABLE),
    ],
)
def test_the_matrix_as_an_exit_code(verdicts: list[str], code: ExitCode) -> None:
    assert report.inject.code_of([Cell("no-tlbi", "6.1", verdict, (), 1.0, "") for verdict in verdicts]) is code
