"""Captures of real kernels: nothing differs; and the fast way to rebuild a table is the slow one, faster."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inspector.capture.file import load
from inspector.capture.view import TableView, table_views
from inspector.check import Sides, compare_views
from inspector.check.counts import references
from inspector.codec import Kind
from inspector.compare import changes
from inspector.compare.machine import machine_of
from inspector.compare.rebuild import rebuild
from inspector.findings import Severity
from inspector.generations import code_of
from inspector.model import MemoryCache, Prot, Stage2
from inspector.snapshot import Capture, PageInfo
from inspector.tables import Entry, entries
from inspector.tables.columns import columns_of

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "captures"
RECORDED = sorted(FOLDER.glob("*.s2cap"))
_EXECUTE = {"X": Prot.X, "PX": Prot.PX, "UX": Prot.UX, "-": Prot.NONE}
_MEMORY = {"normal": Prot.NONE, "normal-nc": Prot.NORMAL_NC, "device-nGnRE": Prot.DEVICE}


@pytest.fixture(scope="module", params=RECORDED, ids=lambda path: path.stem)
def capture(request: pytest.FixtureRequest) -> Capture:
    return load(request.param)


def differences(capture: Capture) -> list[Sides]:
    views = list(table_views(capture))
    return [d for one in compare_views(views, code_of(capture.host)) for d in one.differences]


def test_nothing_differs(capture: Capture) -> None:
    assert [d for d in differences(capture) if d.finding.severity is Severity.ERROR] == []
    assert len(list(table_views(capture))) == len(capture.vms) >= 7


def test_the_kernel_is_recognised_and_cross_checked(capture: Capture) -> None:
    kernel = code_of(capture.host)
    assert capture.host.release.startswith(kernel.label + ".")
    assert kernel.cross_checked and not kernel.assumed


def mapped_one_by_one(view: TableView) -> Stage2:
    """Every leaf mapped by a call of its own, with what the codec says of it."""
    kernel = code_of(view.capture.host)
    pgt = Stage2(kernel.behaviours, machine_of(kernel, view), view.geometry)
    assert pgt.init() == 0
    for entry in entries(view.tree):
        leaf = entry.descriptor
        if leaf.kind.is_leaf:
            prot = Prot.R if leaf.readable else Prot.NONE
            prot |= Prot.W if leaf.writable else Prot.NONE
            prot |= _EXECUTE[leaf.executable] | _MEMORY[leaf.memory_type]
            assert pgt.map(entry.ia, leaf.size, leaf.output_address or 0, int(prot), MemoryCache(8)) == 0
    return pgt


def test_the_fast_rebuild_is_the_slow_one(capture: Capture) -> None:
    for view in table_views(capture):
        kernel = code_of(capture.host)
        fast = rebuild(view, kernel, columns_of(view.tree, view.format)).pgt
        slow = mapped_one_by_one(view)
        tables = list(fast.tables())
        assert [(t[1], t[2], t[4]) for t in tables] == [(t[1], t[2], t[4]) for t in slow.tables()]
        for (ours, level, *_), (theirs, *_) in zip(tables, slow.tables(), strict=True):
            assert fast.store.counts[ours] == slow.store.counts[theirs]
            for a, b in zip(fast.store.pages[ours], slow.store.pages[theirs], strict=True):
                assert a == b or (fast.is_table(a, level) and slow.is_table(b, level))


def test_the_counts_that_the_rule_asks_for_are_the_models(capture: Capture) -> None:
    code = code_of(capture.host)
    for view in table_views(capture):
        columns = columns_of(view.tree)
        model, right = rebuild(view, code, columns), references(columns, code.behaviours)
        built = [row for row, page in enumerate(model.page.tolist()) if page]
        assert len(built) > 1
        for row in built:
            empty = (
                columns.table & (columns.row == row) & ~np.isin(np.arange(len(columns.raw)), columns.page_entry[built])
            )
            assert model.pgt.store.counts[model.page[row]] + empty.sum() == right.low[row] == right.high[row]


# --- faults, one at a time, in every capture ---


def some_leaf(capture: Capture) -> tuple[TableView, Entry]:
    """A page of ordinary memory in the last VM's table."""
    view = list(table_views(capture))[-1]
    leaf = next(e for e in entries(view.tree) if e.descriptor.kind is Kind.PAGE)
    return view, leaf


def with_entry(capture: Capture, table_pa: int, index: int, value: int) -> Capture:
    page = bytearray(capture.pages[table_pa])
    page[8 * index : 8 * index + 8] = value.to_bytes(8, "little")
    return replace(capture, pages={**capture.pages, table_pa: bytes(page)})


def with_count(capture: Capture, pa: int, by: int) -> Capture:
    info = capture.page_info[pa]
    return replace(capture, page_info={**capture.page_info, pa: PageInfo(info.refcount + by, info.state)})


@pytest.mark.parametrize("bit", [2, 11, 51, 52, 55, 58, 59, 62, 63])
def test_a_flipped_bit(capture: Capture, bit: int) -> None:
    _, leaf = some_leaf(capture)
    raw = leaf.descriptor.raw
    found = differences(with_entry(capture, leaf.table_pa, leaf.index, raw ^ 1 << bit))
    assert [(d.finding.severity, d.where.table_pa, d.where.index, d.where.ipa) for d in found] == [
        (Severity.ERROR, leaf.table_pa, leaf.index, leaf.ia)
    ]
    assert found[0].model.entry is not None and found[0].model.entry.raw == raw


def test_counts(capture: Capture) -> None:
    _, leaf = some_leaf(capture)
    for by, severity in ((-1, Severity.ERROR), (1, Severity.NOTE)):
        found = differences(with_count(capture, leaf.table_pa, by))
        quiet = not any(cpu.running == "host" and cpu.symbol != "cpu_do_idle" for cpu in capture.host.cpus)
        expected = severity if quiet or by > 0 else Severity.NOTE
        assert [(d.finding.check, d.finding.severity, d.where.table_pa) for d in found] == [
            ("R1", expected, leaf.table_pa)
        ]


def test_a_dropped_entry(capture: Capture) -> None:
    _, leaf = some_leaf(capture)
    found = differences(with_entry(capture, leaf.table_pa, leaf.index, 0))
    # Its table is either left with a count too high, or (if it was the only entry) empty as well.
    assert {d.finding.check for d in found} <= {"R1", "S9"} and found
    assert {d.where.table_pa for d in found} == {leaf.table_pa}
    assert {d.finding.severity for d in found} == {Severity.NOTE}


@pytest.mark.parametrize("label", [None, "5.10", "6.18"])
@pytest.mark.parametrize("seed", range(3))
def test_any_data_is_survived(capture: Capture, seed: int, label: str | None) -> None:
    """Pages of noise and wild pointers: a verdict, no exception; read as any generation."""
    chance = random.Random(seed)
    pages = dict(capture.pages)
    for pa in chance.sample(sorted(pages), 6):
        index, value = chance.randrange(512), chance.choice(sorted(pages)) | 3
        page = bytearray(pages[pa])
        page[8 * index : 8 * index + 8] = value.to_bytes(8, "little")
        pages[pa] = chance.choice((bytes(page), chance.randbytes(len(page))))
    spoiled = replace(capture, pages=pages)
    kernel = code_of(capture.host, label)
    views = [view for view in table_views(spoiled) if kernel.behaviours.lpa2 or not view.geometry.lpa2]
    results = compare_views(views, kernel)
    assert label is not None or any(one.errors for one in results)
    assert not changes(capture, spoiled).same


# --- one capture against another ---


def test_a_capture_against_itself(capture: Capture) -> None:
    assert changes(capture, capture).same


def test_a_leaf_that_went(capture: Capture) -> None:
    view, leaf = some_leaf(capture)
    found = changes(capture, with_entry(capture, leaf.table_pa, leaf.index, 0))
    assert [(vm.name, vm.kind) for vm in found.vms] == [(view.vm.name, "changed")] and not found.host
    (table,) = found.vms[0].tables
    assert (table.removed, table.added, table.changed) == (1, 0, 0)
    (mapping,) = table.mappings
    assert mapping.after is None and mapping.before is not None
    assert (mapping.before.ia, mapping.before.attrs.raw) == (leaf.ia, leaf.descriptor.raw)
