"""The catalogue of faults: each can be placed in a kernel, is owned by a rule that is judged, and is documented."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from inspector import cli, report
from inspector.findings import BadInput, ExitCode, Untestable
from inspector.inject.catalogue import FAULTS, At, Do, Fault
from inspector.inject.matrix import read_cells
from inspector.inject.perform import place
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
    assert fault.owners
    assert set(fault.owners) <= {*RULES, "model"}
    assert f"| {fault.name} | {fault.what} |" in (REPO / "docs/inject.md").read_text()
    assert fault.do is not Do.SET or fault.change


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_has_its_place_in_every_kernel(symbols: KernelSymbols, fault: Fault) -> None:
    address, register = place(symbols, fault)
    near = symbols.nearest(address)
    assert near is not None
    assert near[0] in fault.function.split()
    assert (near[1] == 0) is (fault.at is At.ENTRY)
    assert register < 31 or "{t}" not in fault.change


def test_a_place_that_there_is_not(symbols: KernelSymbols) -> None:
    with pytest.raises(Untestable, match="has no nothing_such"):
        place(symbols, Fault("x", "", "nothing_such", Do.RETURN, ("B2",), "one"))
    with pytest.raises(Untestable, match="no such instruction"):
        place(symbols, Fault("x", "", "kvm_host_get_page", Do.SKIP, ("B2",), "one", At.TLBI, 9))


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
        ([], ExitCode.UNTESTABLE),
    ],
)
def test_the_matrix_as_an_exit_code(verdicts: list[str], code: ExitCode) -> None:
    assert report.inject.code_of([Cell("no-tlbi", "6.1", verdict, (), 1.0, "") for verdict in verdicts]) is code
