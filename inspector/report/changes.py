"""What differs between two captures (`inspector diff BEFORE AFTER`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.capture.view import vm_title
from inspector.compare.instants import Change, ChangeKind, Changes, MappingChange, TableChange, VmChange
from inspector.report.decode import attributes
from inspector.report.document import Bytes, Document, Hex, Level, Number, Raw, Record, hexed, record
from inspector.report.format import Lines, Painter, address, count, raw, size
from inspector.tables import Range


class ChangedFact(Record, frozen=True):
    """A fact in words; `null` where it was not, or is not there."""

    what: str
    before: str | None
    after: str | None


class ChangedRange(Record, frozen=True):
    """A merged range."""

    ipa: Hex
    size: Bytes
    level: Level
    pa: Hex
    leaves: Number
    raw: Annotated[Raw, Meta(description="The first leaf.")]
    text: str


class ChangedMapping(Record, frozen=True):
    """Leaves that came, went, or changed in place."""

    before: ChangedRange | None
    after: ChangedRange | None


class ChangedTable(Record, frozen=True):
    """A stage-2 table."""

    regime: str
    removed: Annotated[Number, Meta(description="Leaves.")]
    added: Annotated[Number, Meta(description="Leaves.")]
    changed: Annotated[Number, Meta(description="Leaves.")]
    mappings: Sequence[ChangedMapping]
    omitted: Annotated[Number, Meta(description="How many more mappings changed.")]
    allocated: Annotated[Sequence[Hex], Meta(description="Table pages.")]
    freed: Annotated[Sequence[Hex], Meta(description="Table pages.")]
    page_counts: Annotated[Sequence[ChangedFact], Meta(description="Tables with the same entries and another count.")]


class ChangedVm(Record, frozen=True):
    """A VM that came, is gone, or changed."""

    vm: str
    pid: Number | None
    vmm: str | None
    kind: ChangeKind
    facts: Sequence[ChangedFact]
    tables: Sequence[ChangedTable]


class DiffCaptures(Document, frozen=True, kw_only=True):
    """`inspector diff BEFORE AFTER`."""

    command: Literal["diff"] = "diff"
    before: Annotated[str, Meta(description="When it was taken.")]
    after: Annotated[str, Meta(description="When it was taken.")]
    other_boot: Annotated[bool, Meta(description="VMs are matched by name, addresses mean nothing across the two.")]
    same: bool
    host: Sequence[ChangedFact]
    vms: Sequence[ChangedVm]


def _facts(found: Sequence[Change]) -> list[ChangedFact]:
    return [record(ChangedFact, one) for one in found]


def _range(found: Range | None) -> ChangedRange | None:
    if found is None:
        return None
    first = found.attrs
    return record(ChangedRange, found, ipa=hexed(found.ia), raw=raw(first.raw), text=first.describe())


def table_record(table: TableChange) -> ChangedTable:
    """A table as the document has it."""
    return record(
        ChangedTable,
        table,
        mappings=[ChangedMapping(_range(one.before), _range(one.after)) for one in table.mappings],
        allocated=list(map(hexed, table.allocated)),
        freed=list(map(hexed, table.freed)),
        page_counts=_facts(table.counts),
    )


def _vm(one: VmChange) -> ChangedVm:
    return ChangedVm(
        vm=one.name,
        pid=one.vm.pid,
        vmm=one.vm.command,
        kind=one.kind,
        facts=_facts(one.facts),
        tables=list(map(table_record, one.tables)),
    )


def document(found: Changes) -> DiffCaptures:
    """`inspector diff BEFORE AFTER`."""
    return DiffCaptures(
        before=found.before.made,
        after=found.after.made,
        other_boot=found.other_boot,
        same=found.same,
        host=_facts(found.host),
        vms=list(map(_vm, found.vms)),
    )


def _fact_lines(one: Change) -> Lines:
    if one.before is not None and one.after is not None and "\n" not in one.before and len(one.before) < 24:
        yield f"  {one.what}: {one.before} -> {one.after}"
        return
    if one.before is not None:
        yield f"  - {one.what}: {one.before}"
    if one.after is not None:
        yield f"  + {one.what}: {one.after}"


def _range_text(sign: str, found: Range) -> str:
    each = f"{found.leaves} x {size(found.size // found.leaves)}"
    where = f"IPA {address(found.ia)}-{address(found.ia + found.size)} -> PA {address(found.pa)}"
    return f"    {sign} {where} ({each}) {attributes(found.attrs).strip()} {raw(found.attrs.raw)}"


def _mapping_lines(one: MappingChange, paint: Painter) -> Lines:
    if one.before is not None:
        yield paint(_range_text("-", one.before), "red")
    if one.after is not None:
        yield paint(_range_text("+", one.after), "green")


def _table_lines(one: TableChange, paint: Painter) -> Lines:
    yield (
        f"  {one.regime}: {count(one.removed, 'leaf entry', 'leaf entries')} removed, {one.added} added, "
        f"{one.changed} changed; {count(len(one.allocated), 'table')} allocated, {len(one.freed)} freed"
    )
    for mapping in one.mappings:
        yield from _mapping_lines(mapping, paint)
    if one.omitted:
        yield f"    and {count(one.omitted, 'more changed range')}"
    for sign, pages in (("-", one.freed), ("+", one.allocated)):
        if pages:
            more = "" if len(pages) <= 8 else f" and {len(pages) - 8} more"
            yield f"    {sign} tables at " + ", ".join(address(pa) for pa in pages[:8]) + more
    for change in one.counts:
        yield f"    {change.what}, entries unchanged: {change.before} -> {change.after}"


_SIGNS = {
    ChangeKind.GONE: ("- ", "red", " is gone"),
    ChangeKind.CAME: ("+ ", "green", " is new"),
    ChangeKind.CHANGED: ("", "bold", ""),
}
"""What stands before a VM's name, its colour, and what stands after."""


def lines(paint: Painter, found: Changes) -> Lines:
    """What differs between two captures."""
    yield f"- {found.before.made}, + {found.after.made}"
    if found.other_boot:
        yield "these are two boots (or two kernels): VMs are matched by name, addresses mean nothing across them"
    for change in found.host:
        yield from _fact_lines(change)
    for vm in found.vms:
        sign, color, suffix = _SIGNS[vm.kind]
        yield paint(f"{sign}{vm_title(vm.vm)}{suffix}", color)
        for fact in vm.facts:
            yield from _fact_lines(fact)
        for table in vm.tables:
            yield from _table_lines(table, paint)
    unchanged = len({vm.name for vm in found.after.vms} - {vm.name for vm in found.vms})
    if found.same:
        yield paint(f"nothing differs in {count(len(found.after.vms), 'VM')}", "bold green")
    else:
        changed, came, gone = (
            sum(vm.kind is kind for vm in found.vms) for kind in (ChangeKind.CHANGED, ChangeKind.CAME, ChangeKind.GONE)
        )
        said = f"{changed} changed, {came} new, {gone} gone, {unchanged} unchanged"
        yield paint(f"VMs: {said}", "bold")
