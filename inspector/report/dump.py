"""Stage-2 tables as merged ranges (`inspector dump`) and entry by entry (`inspector dump --tree`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import astuple

from inspector.capture.view import OwnView, View
from inspector.codec import Descriptor, Execute, InvalidForm, Kind, decode
from inspector.codec.layouts import DONATED_TO_GUEST, TYPE_DONATION
from inspector.report.decode import Fields, Leaf, Shared, attributes, leaf, parts
from inspector.report.document import (
    Bytes,
    Document,
    Hex,
    Level,
    Number,
    Raw,
    Record,
    TableName,
    hexed,
    record,
    rows,
    table_name,
)
from inspector.report.format import Lines, Painter, address, columns, count, long_columns, raw, size
from inspector.report.leaves import ByPattern, by_pattern
from inspector.report.window import EVERYTHING, Window
from inspector.snapshot import OwnKind, PageState
from inspector.tables import Entry, Problem, ProblemKind, RangeTable, Table, entries, merged_ranges
from inspector.tables.columns import columns_of


class ProblemFacts(Record, frozen=True):
    """Something in a tree that the architecture gives no good meaning to."""

    kind: ProblemKind
    table_pa: Hex
    index: Number | None
    level: Level
    ipa: Hex
    raw: Raw | None
    detail: str


class RangeFacts(Record, frozen=True):
    """Leaves of one level, contiguous in IPA and PA, equal in every attribute."""

    ipa: Hex
    size: Bytes
    level: Level
    pa: Hex
    read: bool
    write: bool
    execute: Execute
    memory_type: str
    shareability: Shared
    af: bool
    sw: Number
    leaves: Annotated[Number, Meta(description="How many.")]
    raw: Annotated[Raw, Meta(description="The first leaf.")]


class OwnedRange(Record, frozen=True):
    """Neighbouring addresses that the host does not own, and who does."""

    ipa: Hex
    size: Bytes
    owner: str
    entries: Annotated[Number, Meta(description="How many.")]
    raw: Annotated[Raw, Meta(description="The first entry.")]


class RangesOfTable(TableName, frozen=True):
    """A table's mappings."""

    table_pages: Annotated[Number, Meta(description="How many.")]
    ranges: Sequence[RangeFacts]
    problems: Sequence[ProblemFacts]
    owned: Annotated[Sequence[OwnedRange] | UnsetType, Meta(description="`--host`: what the annotations say.")] = UNSET


class Dump(Document, frozen=True, kw_only=True):
    """`inspector dump`."""

    command: Literal["dump"] = "dump"
    tables: Sequence[RangesOfTable]


class PageFacts(Record, frozen=True):
    """A table page, and the entry that leads to it."""

    pa: Hex
    level: Level
    ipa: Hex
    parent_pa: Hex | None
    parent_index: Number | None
    page_count: Number | None
    page_state: PageState | None


class EntryFacts(Record, frozen=True):
    """A non-zero entry and its place."""

    table_pa: Hex
    index: Number
    level: Level
    ipa: Hex
    raw: Raw
    kind: Kind
    pa: Hex | None
    fields: Fields
    text: str
    leaf: Leaf | UnsetType = UNSET


class EntriesOfTable(TableName, frozen=True):
    """A table's pages and entries, both in the order of the kernel's walk."""

    pages: Sequence[PageFacts]
    entries: Sequence[EntryFacts]
    problems: Sequence[ProblemFacts]


class DumpTree(Document, frozen=True, kw_only=True):
    """`inspector dump --tree`."""

    command: Literal["dump"] = "dump"
    tables: Sequence[EntriesOfTable]


# --- problems ---


def _problems(view: View) -> Iterator[ProblemFacts]:
    return (record(ProblemFacts, problem, ipa=hexed(problem.ia)) for problem in view.tree.problems)


def problem_text(problem: Problem) -> str:
    """One line: place, kind, detail, and the raw entry."""
    at = f"[{problem.index}]" if problem.index is not None else ""
    value = f" {raw(problem.raw)}" if problem.raw is not None else ""
    place = f"level {problem.level} table {address(problem.table_pa)}{at}{value}, IPA {address(problem.ia)}"
    return f"{problem.kind}: {place}: {problem.detail}"


# --- merged ranges ---


def shown_ranges(view: View, window: Window) -> RangeTable:
    """The merged ranges of ``view`` inside ``window``."""
    found = merged_ranges(view.tree)
    assert isinstance(found, RangeTable)
    return window.of(found)


def _ranges(view: View, window: Window) -> Iterator[RangeFacts]:
    members = ByPattern(view.geometry, lambda found: astuple(leaf(found)))
    for found in shown_ranges(view, window):
        ipa, pa, known = hexed(found.ia), hexed(found.pa), members(found.attrs)
        yield RangeFacts(*(ipa, found.size, found.level, pa, *known, found.leaves, raw(found.attrs.raw)))


def ranges_document(views: Sequence[View], window: Window) -> Dump:
    """`inspector dump`."""
    return Dump(
        tables=rows(
            RangesOfTable(
                **table_name(view),
                table_pages=len(view.tree.tables),
                ranges=rows(_ranges(view, window)),
                problems=rows(_problems(view)),
                owned=list(_owned(view, window)) if _annotated(view) else UNSET,
            )
            for view in views
        )
    )


# --- annotations of a protected host ---


def _annotated(view: View) -> bool:
    """Whether annotations belong to what the table says."""
    return isinstance(view, OwnView) and view.table.kind is OwnKind.HOST


def _owned(view: View, window: Window) -> Iterator[OwnedRange]:
    """The annotations in the window's addresses (what asks for PAs or leaves asks for none), merged by owner."""
    if not window.whole and (window.pa != EVERYTHING or window.rule is not None):
        return
    tree = columns_of(view.tree)
    at = np.flatnonzero(~tree.valid)
    found = tree.at(at[np.argsort(tree.ia[at], kind="stable")])
    names = {raw: _owner(view, raw, level) for raw, level in zip(found.raw.tolist(), found.level.tolist(), strict=True)}
    last: OwnedRange | None = None
    end = 0
    for ia, length, raw_value in zip(found.ia.tolist(), found.size.tolist(), found.raw.tolist(), strict=True):
        if not window.ipa.meets(ia, length):
            continue
        owner = names[raw_value]
        if last is not None and last.owner == owner and end == ia:
            last = OwnedRange(last.ipa, last.size + length, owner, last.entries + 1, last.raw)
        else:
            if last is not None:
                yield last
            last = OwnedRange(hexed(ia), length, owner, 1, raw(raw_value))
        end = ia + length
    if last is not None:
        yield last


def _owner(view: View, raw_value: int, level: int) -> str:
    """``hyp``, ``guest 0x1000``, or what else such an entry says."""
    found = decode(raw_value, level, view.geometry, view.format)
    typed = found.format.invalid is InvalidForm.TYPED
    if found.kind is not Kind.ANNOTATED or (typed and found.field("annotation_type") != TYPE_DONATION):
        return found.describe()
    owner = found.field("owner")
    if typed and owner == DONATED_TO_GUEST:
        return f"guest {found.field('handle'):#x}"
    return {1: "hyp", 2: "ffa"}.get(owner, f"owner {owner}")


def _owned_lines(paint: Painter, view: View, window: Window) -> Lines:
    """Who owns what the host does not."""
    found = list(_owned(view, window))
    if not found:
        return
    total = sum(one.size for one in found)
    yield f"  not the host's, by {count(sum(one.entries for one in found), 'annotation')}: {size(total)}"
    cells = [
        (one.ipa, hexed(int(one.ipa, 16) + one.size), size(one.size), one.owner, str(one.entries), one.raw)
        for one in found
    ]
    yield from columns(
        ("IPA", "end", "size", "owner", "entries", "first"), cells, right=(2, 4), indent="  ", paint=paint
    )


_RANGE_HEAD = ("end", "size", "level", "PA", "perm", "memory", "share", "AF", "SW", "leaves", "first descriptor")


def _attribute_cells(leaf: Descriptor) -> tuple[str, str, str, str, str]:
    """Permissions, memory type, shareability, AF and software bits as cells."""
    share = leaf.shareable if not leaf.geometry.lpa2 else "-"
    return leaf.permissions, leaf.memory_type, share, "AF" if leaf.af else "-", f"{leaf.sw:#x}" if leaf.sw else "-"


def range_cells(found: RangeTable) -> list[list[str]]:
    """The cells of each range, its address first, column by column: a big guest has a quarter of a million ranges."""
    hexes = [[f"{value:#x}" for value in column.tolist()] for column in (found.ia, found.ia + found.size, found.pa)]
    sizes = {value: size(value) for value in np.unique(found.size).tolist()}
    each = np.stack((found.leaves, found.size // found.leaves), axis=1)
    kinds = {tuple(pair): f"{pair[0]} x {size(pair[1])}" for pair in np.unique(each, axis=0).tolist()}
    known, which = by_pattern(found, _attribute_cells)
    which = which.tolist()
    return [
        hexes[0],
        hexes[1],
        [sizes[value] for value in found.size.tolist()],
        [str(level) for level in found.level.tolist()],
        hexes[2],
        *([cells[column] for cells in map(known.__getitem__, which)] for column in range(5)),
        [kinds[pair] for pair in zip(*each.T.tolist(), strict=True)],
        [f"{value:#018x}" for value in found.raw.tolist()],
    ]


def ranges_lines(paint: Painter, views: Sequence[View], window: Window) -> Lines:
    """Each table as merged ranges."""
    for view in views:
        found = shown_ranges(view, window)
        tables = count(len(view.tree.tables), "table")
        yield paint(view.title, "bold") + f": root {address(view.root_pa)}, {view.shape}, {tables}"
        if len(found):
            head = (view.addresses, *_RANGE_HEAD)
            yield from long_columns(head, range_cells(found), right=(2, 3, 10), indent="  ", paint=paint)
        else:
            yield "  nothing mapped" if window.whole else "  nothing mapped that matches"
        if _annotated(view):
            yield from _owned_lines(paint, view, window)
        for problem in view.tree.problems:
            yield "  " + paint(problem_text(problem), "red")


# --- the tree ---


def _shown_entries(view: View, window: Window) -> Iterator[Entry]:
    """Entries in walk order: all, or the leaves of ``window`` with the tables that lead to their addresses."""
    window = window.remembering(view.geometry)
    for entry in entries(view.tree):
        if entry.descriptor.kind.is_leaf:
            if window.accepts_leaf(entry.ia, entry.descriptor):
                yield entry
        elif window.ipa.meets(entry.ia, entry.descriptor.size):
            yield entry


def _page(view: View, table: Table) -> PageFacts:
    known = view.capture.page_info.get(table.pa)
    count, state = (known.refcount, known.state) if known else (None, None)
    return record(PageFacts, table, ipa=hexed(table.ia), page_count=count, page_state=state)


def entry_facts(entry: Entry) -> EntryFacts:
    """An entry as documents have it."""
    return EntryFacts(hexed(entry.table_pa), entry.index, entry.level, hexed(entry.ia), *parts(entry.descriptor))


def tree_document(views: Sequence[View], window: Window) -> DumpTree:
    """`inspector dump --tree`."""
    return DumpTree(
        tables=rows(
            EntriesOfTable(
                **table_name(view),
                pages=rows(_page(view, table) for table in view.tree.tables),
                entries=rows(map(entry_facts, _shown_entries(view, window))),
                problems=rows(_problems(view)),
            )
            for view in views
        )
    )


def tree_lines(paint: Painter, views: Sequence[View], window: Window) -> Lines:
    """Each table page with its PA, reference count and non-zero entries, in the order of the kernel's walk."""
    for view in views:
        yield paint(view.title, "bold") + f": root {address(view.root_pa)}, {view.shape}"
        for root in view.root_pages():
            yield "  " + _table_text(view, root, view.geometry.start_level)
        start = view.geometry.start_level
        rest = ByPattern(view.geometry, attributes)
        for entry in _shown_entries(view, window):
            indent = "  " * (2 + entry.level - start)
            yield f"{indent}{entry_text(entry, rest, view.addresses)}"
            child = entry.descriptor.output_address
            if entry.descriptor.kind is Kind.TABLE and child is not None:
                yield "  " * (2 + entry.level - start) + paint("  " + _table_text(view, child, entry.level + 1), "cyan")
        for problem in view.tree.problems:
            yield "  " + paint(problem_text(problem), "red")


def _table_text(view: View, pa: int, level: int) -> str:
    """``level 2 table at 0x48001000, page_count 3``."""
    known = view.capture.page_info.get(pa)
    if known is None:
        return f"level {level} table at {address(pa)}, page_count unknown"
    state = "" if known.state is PageState.USED else f", page is {known.state}"
    return f"level {level} table at {address(pa)}, page_count {known.refcount}{state}"


def entry_text(entry: Entry, rest: Callable[[Descriptor], str] = attributes, addresses: str = "IPA") -> str:
    """``L3 0x48002000[1] 0x00400000481237db IPA 0x40001000: page PA …``."""
    place = f"{address(entry.table_pa)}[{entry.index}]"
    found = entry.descriptor
    said = f"{found.kind.value} PA {found.output_address:#x}{rest(found)}" if found.kind.is_leaf else found.describe()
    return f"L{entry.level} {place:20} {raw(found.raw)} {addresses} {address(entry.ia)}: {said}"
