"""`inspector diff BEFORE AFTER --html`: what changed, each table before and after on one axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from inspector.capture.view import TableView, table_views, vm_title
from inspector.compare.instants import ChangeKind, Changes, MappingChange, TableChange, VmChange
from inspector.report import changes as changes_report
from inspector.report.changes import ChangedTable
from inspector.report.format import count, size
from inspector.report.html.maps import Map, Maps, Mark
from inspector.report.html.page import page
from inspector.report.html.picture import merged_of, pictures
from inspector.snapshot import Capture, Vm

_SIDES: Final = ("before", "after")
_PAGES: Final = 64
"""Addresses of table pages that are listed."""


class _Pair(NamedTuple):
    """A table of a VM that changed, before and after; ``change`` is `None` where it is the VM that did."""

    vm: VmChange
    before: TableView | None
    after: TableView | None
    change: TableChange | None


def _views(capture: Capture, vm: Vm | None) -> dict[int, TableView]:
    return {view.number: view for view in table_views(capture) if view.vm is vm}


def _pairs(found: Changes) -> Iterator[_Pair]:
    for vm in found.vms:
        before = _views(found.before, vm.vm if vm.kind is ChangeKind.GONE else vm.was)
        after = _views(found.after, None if vm.kind is ChangeKind.GONE else vm.vm)
        known = {table.number: table for table in vm.tables}
        for number in sorted(before.keys() | after.keys()):
            yield _Pair(vm, before.get(number), after.get(number), known.get(number))


def _mark(one: MappingChange) -> Mark:
    kind = "came" if one.before is None else "gone" if one.after is None else "changed"
    extent = one.after or one.before
    assert extent is not None
    sides = [
        f"{'was' if side is one.before else 'is'} {side.attrs.describe()}" for side in (one.before, one.after) if side
    ]
    where = f"IPA {extent.ia:#x}-{extent.ia + extent.size:#x} ({count(extent.leaves, 'leaf', 'leaves')})"
    return Mark(kind, extent.ia, extent.size, f"{kind} {where}: {'; '.join(sides)}")


def _map(pair: _Pair, drawn: Iterator[Any]) -> Map:
    name = f"{vm_title(pair.vm.vm)}: {(pair.after or pair.before).regime}"  # type: ignore[union-attr]
    panels = [next(drawn) if view is not None else None for view in (pair.before, pair.after)]
    notice = [f"{side}: {text}" for side, panel in zip(_SIDES, panels, strict=True) if panel for text in panel.left_out]
    if pair.change is not None and pair.change.omitted:
        notice.append(f"{count(pair.change.omitted, 'more changed range')} not marked")
    marks = [_mark(one) for one in pair.change.mappings] if pair.change is not None else []
    return Map(name=name, panels=panels, marks=marks, notice=notice)


def _range(one: Any) -> str:
    if one is None:
        return "-"
    return f"{one.raw} {one.text} ({one.leaves} x {size(one.size // one.leaves)})"


def _rows(table: ChangedTable) -> Iterator[dict[str, Any]]:
    for one in table.mappings:
        extent = one.after or one.before
        assert extent is not None
        start = int(extent.ipa, 16)
        yield {
            "kind": "came" if one.before is None else "gone" if one.after is None else "changed",
            "ipa": extent.ipa,
            "end": f"{start + extent.size:#x}",
            "size": extent.size,
            "before": _range(one.before),
            "after": _range(one.after),
        }


def _sections(pairs: Sequence[_Pair]) -> Iterator[dict[str, Any]]:
    for pair in pairs:
        table = changes_report.table_record(pair.change) if pair.change is not None else None
        yield {
            "name": vm_title(pair.vm.vm),
            "kind": pair.vm.kind.value,
            "regime": (pair.after or pair.before).regime,  # type: ignore[union-attr]
            "facts": pair.vm.facts,
            "table": table,
            "rows": list(_rows(table)) if table is not None else [],
            "freed": table.freed[:_PAGES] if table is not None else [],
            "allocated": table.allocated[:_PAGES] if table is not None else [],
        }


def html(found: Changes) -> str:
    """The file."""
    document = changes_report.document(found)
    pairs = list(_pairs(found))
    views = [view for pair in pairs for view in (pair.before, pair.after) if view is not None]
    drawn = iter(pictures(views, [merged_of(view) for view in views]))
    maps = [_map(pair, drawn) for pair in pairs]
    kinds = [vm.kind for vm in found.vms]
    said = ", ".join(
        f"{kinds.count(kind)} {word}" for kind, word in zip(ChangeKind, ("new", "gone", "changed"), strict=True)
    )
    return page(
        "diff.html",
        Maps(maps=maps, mark_name="changes", sides=_SIDES),
        title="stage-2 tables, before and after",
        verdict="nothing differs" if found.same else f"VMs: {said}",
        sign="✓" if found.same else "~",
        document=document,
        releases=(found.before.host.release, found.after.host.release),
        shown=list(_sections(pairs)),
        without=[vm for vm in found.vms if not any(pair.vm is vm for pair in pairs)],
        mark_one="change",
    )
