"""`inspector dump --html`: every table of a capture, with what `inspector check` finds in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from inspector.capture.view import TableView
from inspector.check import Comparison, Side
from inspector.findings import Finding
from inspector.generations import KernelCode
from inspector.report import check as check_report
from inspector.report.check import Check, FindingFacts, Place
from inspector.report.dump import range_cells
from inspector.report.format import count, raw
from inspector.report.host import info_document
from inspector.report.html.budget import shares
from inspector.report.html.maps import Map, Maps, Mark
from inspector.report.html.page import page
from inspector.report.html.picture import Picture, merged_of, pictures
from inspector.report.vms import geometry_text
from inspector.snapshot import Capture
from inspector.tables import RangeTable

MOST_ROWS: Final = 4_000
"""Rows of ranges, as text, in one file."""
MOST_FINDINGS: Final = 1_000


@dataclass(frozen=True)
class Row:
    """A range as `inspector dump` shows it."""

    ipa: str
    end: str
    size: int
    level: str
    pa: str
    permissions: str
    memory: str
    share: str
    af: str
    sw: str
    leaves: str
    raw: str


def rows_of(found: RangeTable, most: int) -> tuple[list[Row], int]:
    """The first ranges of a table as text, and how many more there are."""
    shown = found[:most]
    cells = range_cells(shown) if len(shown) else []
    sizes = shown.size.tolist()
    rows = [Row(ipa, end, sizes[at], *rest) for at, (ipa, end, _, *rest) in enumerate(zip(*cells, strict=True))]
    return rows, len(found) - len(rows)


def _place(where: Place) -> str:
    parts = [part for part in (where.vm, where.regime) if part]
    if where.ipa is not None:
        parts.append(f"IPA {where.ipa}")
    if where.table_pa is not None:
        parts.append(f"L{where.level} {where.table_pa}" + (f"[{where.index}]" if where.index is not None else ""))
    return ", ".join(parts) or "host"


@dataclass
class _Found:
    """A finding in the list: the number of the map it is in, and of its mark there."""

    facts: FindingFacts
    kind: str
    place: str
    map: int | None = None
    mark: int | None = None


def _marked(
    found: Sequence[Finding], check: Check, views: Sequence[TableView]
) -> tuple[list[_Found], list[list[Mark]]]:
    """Every finding for the list, and for each view its marks."""
    listed: list[_Found] = []
    marks: list[list[Mark]] = [[] for _ in views]
    for one, facts in zip(found, check.findings, strict=False):
        entry = _Found(facts, one.severity.value, _place(facts.where))
        for at, view in enumerate(views):
            if view.vm.name == one.where.vm and one.where.regime in (view.regime, None):
                entry.map, entry.mark = at, len(marks[at])
                text = f"{entry.kind} {one.check} {entry.place}: {one.actual}; expected {one.expected}; {one.why}"
                marks[at].append(Mark(entry.kind, *_extent(one, view), text))
                break
        listed.append(entry)
    return listed, marks


def _extent(one: Finding, view: TableView) -> tuple[int | None, int]:
    """The first IPA that a finding is about, and how many bytes."""
    where = one.where
    if where.ipa is not None:
        return where.ipa, where.size or 0
    if where.table_pa is not None:
        for level in view.tree.levels:
            for pa, ia in zip(level.pa.tolist(), level.ia.tolist(), strict=True):
                if pa == where.table_pa:
                    each = 1 << view.geometry.level_shift(level.level)
                    if where.index is None:
                        return ia, each * view.geometry.entries
                    return ia + where.index * each, each
    return None, 0


def _worst(marks: Sequence[Mark]) -> str:
    return next((kind for kind in ("error", "note") if any(mark.kind == kind for mark in marks)), "dim")


def _tables(
    views: Sequence[TableView],
    merged: Sequence[RangeTable],
    drawn: Sequence[Picture],
    marks: Sequence[Sequence[Mark]],
) -> Iterator[dict[str, Any]]:
    most = shares([len(found) for found in merged], MOST_ROWS)
    for at, (view, found) in enumerate(zip(views, merged, strict=True)):
        rows, omitted = rows_of(found, most[at])
        yield {
            "name": view.title,
            "vm": view.vm.name,
            "pid": view.vm.pid,
            "vmm": view.vm.command,
            "regime": view.regime,
            "root": view.root_pa,
            "ia_bits": view.geometry.ia_bits,
            "granule": view.geometry.granule,
            "levels": f"{view.geometry.start_level} to 3",
            "geometry": geometry_text(view.mmu),
            "tables": sum(len(level.pa) for level in view.tree.levels),
            "mapped": int(found.size.sum()),
            "leaves": int(found.leaves.sum()),
            "ranges": len(found),
            "slots": len(view.vm.memslots),
            "findings": len(marks[at]),
            "worst": _worst(marks[at]),
            "rows": rows,
            "omitted": omitted,
            "left_out": drawn[at].left_out,
            "problems": drawn[at].problems,
            "memslots": drawn[at].slots,
        }


def _side(side: Side) -> str:
    parts = [] if side.entry is None else [f"{raw(side.entry.raw)} {side.entry.describe() if side.entry.raw else ''}"]
    parts += [f"page_count {side.page_count}"] if side.page_count is not None else []
    return ", ".join(part.strip() for part in parts) or "-"


def model_html(compared: Sequence[Comparison], kernel: KernelCode, capture: Capture) -> str:
    """The file of `inspector diff`: what is there, and where it differs from what the model makes of the mappings."""
    found = [
        replace(one.finding, where=one.where, actual=_side(one.live), expected=_side(one.model))
        for each in compared
        for one in each.shown
    ]
    omitted = sum(len(each.differences) - len(each.shown) for each in compared)
    return html([each.view for each in compared], found, [], capture, kernel.text, omitted)


def html(
    views: Sequence[TableView],
    found: Sequence[Finding],
    checked: Sequence[str],
    capture: Capture,
    model: str = "",
    omitted: int = 0,
) -> str:
    """The file: ``views`` drawn, ``found`` marked where it is of one of them, and listed in any case.

    With ``model`` it is what that model makes otherwise, of which ``omitted`` more are not in ``found``.
    """
    check = check_report.document(found, dict.fromkeys(checked, ""), capture)
    listed, marks = _marked(found[:MOST_FINDINGS], check, views)
    merged = [merged_of(view) for view in views]
    drawn = pictures(views, merged)
    info = info_document(capture)
    maps = [
        Map(name=view.title, panels=[picture], marks=marked, notice=picture.left_out)
        for view, picture, marked in zip(views, drawn, marks, strict=True)
    ]
    return page(
        "dump.html",
        Maps(maps=maps, mark_name="findings"),
        title=f"stage-2 tables, Linux {info.host.release}",
        verdict=f"{count(check.errors, 'error')}, {count(check.notes, 'note')}",
        sign="✖" if check.errors else "✓",
        info=info,
        host=info.host,
        check=check,
        findings=listed,
        more_findings=len(found) - len(listed) + omitted,
        model=model,
        shown=list(_tables(views, merged, drawn, marks)),
        mark_one="finding",
    )
