"""Live tables against the model's, on every machine of the matrix; and faults written into a live table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fixtures.kernels import COMPILED
from inspector.capture.view import TableView, table_views
from inspector.check import Sides, compare_views
from inspector.codec import Kind
from inspector.findings import Severity
from inspector.generations import code_of
from inspector.snapshot import Capture
from inspector.symbols import Symbols, open_symbols
from inspector.tables import Entry, entries
from tests.live.conftest import Booted, take_from
from tests.live.machine import Machine
from tests.live.poke import written

pytestmark = pytest.mark.live


def differences(capture: Capture) -> list[Sides]:
    views = list(table_views(capture))
    return [d for one in compare_views(views, code_of(capture.host)) for d in one.differences]


def test_every_table_is_the_models(booted: Booted) -> None:
    capture = booted.capture()
    kernel = code_of(capture.host)
    series = ".".join(capture.host.release.split(".")[:2])
    assert (kernel.label, kernel.assumed) == (series, False)
    assert kernel.cross_checked or series not in COMPILED
    assert len(list(table_views(capture))) == len(capture.vms) >= 4
    assert [d for d in differences(capture) if d.finding.severity is Severity.ERROR] == []


def test_the_same_instant_twice(booted: Booted) -> None:
    """The guests idle after their scenarios: two captures differ in nothing but what ageing and scanners do."""
    from inspector.compare import changes

    found = changes(booted.capture(), booted.capture())
    assert not found.host and {vm.kind for vm in found.vms} <= {"changed"}
    for vm in found.vms:
        assert not vm.facts
        for table in vm.tables:
            assert (table.removed, table.added, table.allocated, table.freed) == (0, 0, (), ())


# --- planted faults ---


@pytest.fixture(scope="module")
def symbols(default_machine: Machine) -> Iterator[Symbols]:
    yield open_symbols(image=default_machine.image)


def victim(capture: Capture) -> tuple[TableView, Entry]:
    """The second page of the table with most pages."""
    view = max(table_views(capture), key=lambda v: len(v.tree.tables))
    return view, [e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE][1]


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.parametrize("change", [1 << 2, 1 << 8, 1 << 11, 1 << 51, 1 << 55, 1 << 63], ids=hex)
def test_a_changed_leaf(default_machine: Machine, symbols: Symbols, change: int) -> None:
    view, leaf = victim(take_from(default_machine, symbols))
    assert not view.geometry.lpa2  # so that bit 8 is shareability and not an address
    raw = leaf.descriptor.raw
    with written(default_machine, {leaf.pa: word(raw ^ change)}):
        found = differences(take_from(default_machine, symbols))
    assert [(d.finding.severity, d.where.vm, d.where.table_pa, d.where.index) for d in found] == [
        (Severity.ERROR, view.vm.name, leaf.table_pa, leaf.index)
    ]
    assert found[0].model.entry is not None and (found[0].model.entry.raw ^ raw) & ~(1 << 10) == 0


def test_the_command(default_machine: Machine, symbols: Symbols) -> None:
    clean = default_machine.run("inspector", "diff", "--json")
    assert clean.returncode == 0, clean.stderr
    assert json.loads(clean.stdout)["errors"] == 0
    view, leaf = victim(take_from(default_machine, symbols))
    with written(default_machine, {leaf.pa: word(leaf.descriptor.raw | 1 << 59)}):
        said = default_machine.run("inspector", "diff", "--vm", view.vm.name)
    assert said.returncode == 1
    assert f"{leaf.table_pa:#x}[{leaf.index}]" in said.stdout
    assert f"- {leaf.descriptor.raw | 1 << 59:#018x}" in said.stdout
