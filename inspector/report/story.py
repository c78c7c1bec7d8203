"""Single operations, entries and instants out of a trace (`inspector replay --explain | --entry | --until`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.codec import Descriptor
from inspector.events import format_raw
from inspector.printable import printable
from inspector.report.decode import attributes
from inspector.report.document import Document, Hex, Level, Number, Raw, Record, hex_or_null, hexed
from inspector.report.dump import problem_text
from inspector.report.format import Lines, Painter, columns, raw, size
from inspector.tables.ranges import merged_ranges
from inspector.tables.shapes import Range
from inspector.trace.story import Change, KnownTable, Told


class ChangedEntry(Record, frozen=True):
    """An entry before and after a store."""

    pa: Annotated[Hex, Meta(description="Of the entry itself.")]
    ipa: Annotated[Hex, Meta(description="The first that it covers.")]
    level: Level
    old: Raw
    old_text: str
    new: Raw
    new_text: str


class ToldEvent(Record, frozen=True):
    """One event of an operation."""

    operation: Annotated[int, Meta(description="Its number in the trace, from 1.")]
    table: Annotated[int | None, Meta(description="The table's number; null where it is not known.")]
    event: Annotated[str, Meta(description="In the grammar of inspector/events.py.")]
    change: ChangedEntry | None
    callers: Annotated[Sequence[str], Meta(description="Of a call: the functions that called it, the innermost first.")]


class OperationDocument(Document, frozen=True, kw_only=True):
    """`inspector replay --explain N`."""

    command: Literal["replay"]
    operation: int
    events: Sequence[ToldEvent]


class LifeOfEntry(Document, frozen=True, kw_only=True):
    """`inspector replay --entry IPA`."""

    command: Literal["replay"]
    ipa: Hex
    events: Sequence[ToldEvent]


class RangeThen(Record, frozen=True):
    """Leaves of one level, contiguous in IPA and PA, equal in every attribute."""

    ipa: Hex
    size: Number
    level: Level
    pa: Hex | None
    leaves: Number
    text: str


class TableThen(Record, frozen=True):
    """A table as it was."""

    table: Annotated[int, Meta(description="Its number in the trace.")]
    root: Hex
    geometry: str
    pages: Annotated[int, Meta(description="Table pages.")]
    ranges: Sequence[RangeThen]
    problems: Sequence[str]


class TablesThen(Document, frozen=True, kw_only=True):
    """`inspector replay --until N`."""

    command: Literal["replay"]
    operation: int
    tables: Sequence[TableThen]


def _changed(change: Change | None) -> ChangedEntry | None:
    if change is None:
        return None
    old, new = change.old, change.new
    texts = raw(old.raw), old.describe(), raw(new.raw), new.describe()
    return ChangedEntry(hexed(change.pa), hexed(change.ia), change.level, *texts)


def _told(told: Told) -> ToldEvent:
    number = None if told.table is None else told.table.number
    return ToldEvent(told.operation, number, format_raw(told.raw), _changed(told.change), told.callers)


def explained(events: Sequence[Told]) -> OperationDocument:
    """One operation."""
    return OperationDocument(command="replay", operation=events[0].operation, events=[_told(each) for each in events])


def explained_lines(paint: Painter, events: Sequence[Told]) -> Lines:
    """One operation, event by event."""
    table = next((each.table.number for each in events if each.table is not None), None)
    of = "of a table that was made before" if table is None else f"on table {table}"
    yield paint(f"operation {events[0].operation} {of}", "bold")
    for told in events:
        yield from _event(told, "  ")


def _event(told: Told, indent: str) -> Lines:
    change = told.change
    if change is None:
        yield indent + printable(format_raw(told.raw))
        if told.callers:
            yield f"{indent}  called by: {printable(' < '.join(told.callers))}"
        return
    yield f"{indent}store to level {change.level}, IPA {change.ia:#x} ({size(change.size)}), at {change.pa:#x}"
    yield f"{indent}  was {raw(change.old.raw)}  {_text(change.old)}"
    yield f"{indent}  is  {raw(change.new.raw)}  {_text(change.new)}"


def _text(entry: Descriptor) -> str:
    return printable(entry.describe())


def life(ipa: int, found: Sequence[tuple[str, Told]]) -> LifeOfEntry:
    """What happened to one translation."""
    return LifeOfEntry(command="replay", ipa=hexed(ipa), events=[_told(told) for _, told in found])


def life_lines(paint: Painter, ipa: int, found: Sequence[tuple[str, Told]]) -> Lines:
    """What happened to one translation, under the operation that did it."""
    yield paint(f"IPA {ipa:#x}: {len(found)} events", "bold")
    before = 0
    for call, told in found:
        if told.operation != before:
            before = told.operation
            number = told.table.number if told.table is not None else 0
            yield paint(f"table {number}, operation {before}: {printable(call)}", "bold")
        yield from _event(told, "  ")


def _range(found: Range) -> RangeThen:
    where = hexed(found.ia), found.size, found.level, hex_or_null(found.pa)
    return RangeThen(*where, found.leaves, attributes(found.attrs).strip(", "))


def _then(table: KnownTable) -> TableThen:
    tree = table.tree()
    ranges = [_range(each) for each in merged_ranges(tree)]
    problems = [problem_text(each) for each in tree.problems]
    return TableThen(table.number, hexed(table.root), table.geometry.describe(), len(table.pages), ranges, problems)


def then(operation: int, tables: Mapping[int, KnownTable]) -> TablesThen:
    """The tables at one operation's end."""
    return TablesThen(command="replay", operation=operation, tables=[_then(each) for _, each in sorted(tables.items())])


def then_lines(paint: Painter, operation: int, tables: Mapping[int, KnownTable]) -> Lines:
    """The tables at one operation's end, as merged ranges."""
    yield paint(f"after operation {operation}: {len(tables)} tables", "bold")
    for table in then(operation, tables).tables:
        yield ""
        yield paint(f"table {table.table}", "bold") + f": root {table.root}, {table.geometry}, {table.pages} pages"
        rows = [
            [each.ipa, size(each.size), str(each.level), each.pa or "-", str(each.leaves), each.text]
            for each in table.ranges
        ]
        yield from columns(("IPA", "size", "level", "PA", "leaves", "attributes"), rows, right=(1, 2, 4), indent="  ")
        if not rows:
            yield "  nothing mapped"
        yield from ("  " + paint(printable(problem), "red") for problem in table.problems)
