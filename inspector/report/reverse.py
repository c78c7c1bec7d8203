"""Which guests map a physical address (`inspector reverse`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.capture.view import TableView
from inspector.report.document import Document, Hex, Level, TableName, hexed, table_name
from inspector.report.dump import EntryFacts, entry_facts, entry_text
from inspector.report.format import Lines, Painter, address
from inspector.tables import Entry, Table

Found = Sequence[tuple[TableView, list[tuple[int, Entry]]]]
"""For every table, the leaves that map the address: the IPA that it has there, and the entry."""


class MappingOfAddress(TableName, frozen=True):
    """A leaf that maps the address."""

    at: Annotated[Hex, Meta(description="The IPA of the address.")]
    entry: EntryFacts


class TableAtAddress(TableName, frozen=True):
    """A table page that the address is in."""

    table_pa: Hex
    level: Level
    ipa: Hex


class Reverse(Document, frozen=True, kw_only=True):
    """`inspector reverse`."""

    command: Literal["reverse"] = "reverse"
    pa: Hex
    mappings: Sequence[MappingOfAddress]
    tables: Sequence[TableAtAddress]


def _tables_at(view: TableView, pa: int) -> Iterator[Table]:
    return (table for table in view.tree.tables if table.pa <= pa < table.pa + view.geometry.granule)


def document(pa: int, found: Found) -> Reverse:
    """`inspector reverse`."""
    return Reverse(
        pa=hexed(pa),
        mappings=[
            MappingOfAddress(**table_name(view), at=hexed(ipa), entry=entry_facts(entry))
            for view, hits in found
            for ipa, entry in hits
        ],
        tables=[
            TableAtAddress(**table_name(view), table_pa=hexed(table.pa), level=table.level, ipa=hexed(table.ia))
            for view, _ in found
            for table in _tables_at(view, pa)
        ],
    )


def lines(paint: Painter, pa: int, found: Found) -> Lines:
    """Which guests map ``pa``, and whether it is itself a table."""
    anything = False
    for view, hits in found:
        for table in _tables_at(view, pa):
            anything = True
            place = f"level {table.level} table for IPA {address(table.ia)}, page_count"
            known = view.capture.page_info.get(table.pa)
            number = known.refcount if known else "unknown"
            yield f"PA {address(pa)} is in a table of {view.title}: {place} {number}"
        for ipa, entry in hits:
            anything = True
            yield paint(view.title, "bold") + f": IPA {address(ipa)}"
            yield f"  {entry_text(entry)}"
    if not anything:
        yield f"no guest maps PA {address(pa)}"
