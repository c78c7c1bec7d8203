"""What a trace tells of single operations, single entries, and of the tables at any operation's end."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from inspector.codec import Descriptor, Format, Geometry, Kind, Regime, decode
from inspector.events import (
    ALLOC,
    ALLOC_EXACT,
    CALL,
    CHAIN,
    DEFER,
    FREE,
    FREE_EXACT,
    GET,
    PUT,
    RET,
    STORE,
    TLBI,
    RawEvent,
)
from inspector.findings import BadInput
from inspector.generations import Generation
from inspector.protocol.facts import operation_name
from inspector.tables.shapes import Tree
from inspector.tables.walk import reader_of, walk_tree
from inspector.trace.file import Trace
from inspector.trace.functions import PROTECTING
from inspector.trace.performed import (
    CALLBACK,
    ENDS,
    NONSENSE,
    bounded,
    generation_of,
    geometry_of,
    words_of,
)
from inspector.trace.taken import Taken, taken_over

_LAST: Final = 3
_OWNED: Final = frozenset({GET, PUT, FREE, DEFER, STORE})


class Change(NamedTuple):
    """A store to an entry of a table: ``ia`` is the first address that the entry covers, ``size`` how many bytes.

    ``old`` and ``new`` are `None` where the page is of no level yet: it is linked later.
    """

    pa: int
    level: int
    ia: int
    size: int
    old: Descriptor
    new: Descriptor


@dataclass(slots=True)
class _Page:
    entries: array[int]
    level: int | None = None
    base: int = 0


@dataclass
class KnownTable:
    """A table as it is at this point: ``pages`` by physical address."""

    number: int
    geometry: Geometry
    format: Format
    root: int = 0
    pages: dict[int, _Page] = field(default_factory=dict)

    def tree(self) -> Tree:
        """All of it, walked."""
        held = {pa: page.entries.tobytes() for pa, page in self.pages.items()}
        return walk_tree(reader_of(held), self.root, self.geometry, self.format)


class Told(NamedTuple):
    """One event: the number of its operation, the table where that is known, the entry that it changes if it does.

    ``callers``, of a call: the functions that called it, the innermost first, as far as they were told.
    """

    operation: int
    lane: int
    table: KnownTable | None
    raw: RawEvent
    change: Change | None
    callers: tuple[str, ...] = ()


class Story:
    """A trace file read event by event; ``tables`` are those that are there so far, by the address of their pgt."""

    def __init__(self, path: Path) -> None:
        """Raises `BadInput`."""
        self._trace = Trace(path)
        self.generation: Generation = generation_of(self._trace.header)
        self._page_shift: int = self._trace.header["page_shift"]
        self._mask = -(1 << self._page_shift)
        self.tables: dict[int, KnownTable] = {}
        self.operations = 0
        self._made = 0
        self._lanes: dict[int, tuple[int, KnownTable | None]] = {}
        self._owners: dict[int, KnownTable] = {}
        self._chains: dict[int, tuple[str, ...]] = {}
        if self._trace.capture is not None:
            for taken in taken_over(self._trace.capture, self._trace.header).tables:
                self._take_over(taken)

    def _take_over(self, taken: Taken) -> None:
        """A table that was there when the trace began."""
        table = self.tables[taken.pgt] = self._new_table(taken.words, hyp=taken.is_hyp)
        table.root = taken.root
        for pa, entries in taken.truth.pages.items():
            table.pages[pa] = _Page(entries)
            self._owners[pa] = table
        granule, start = 1 << self._page_shift, table.geometry.start_level
        for at in range(table.geometry.root_pages):
            self._place(table, table.root + at * granule, start, at << self._shift(start - 1))

    def _place(self, table: KnownTable, pa: int, level: int, base: int) -> None:
        """A page that is in the table has its place there, and those below it."""
        page = table.pages[pa]
        page.level, page.base = level, base
        for index, value in enumerate(page.entries):
            if value & 3 == 3 and level < _LAST:
                self._link(
                    table, decode(value, level, table.geometry, table.format), base + (index << self._shift(level))
                )

    def events(self) -> Iterator[Told]:
        """In order.  Raises `BadInput`."""
        try:
            yield from self._events()
        except NONSENSE as error:
            raise BadInput(
                f"{self._trace.path}: after operation {self.operations} it makes no sense: {error}"
            ) from None

    def _events(self) -> Iterator[Told]:
        for lane, raw in self._trace.events():
            bounded(raw)
            callers: tuple[str, ...] = ()
            if raw[0] == CHAIN:
                self._chains[raw[1]] = tuple(str(raw[2]).split("<"))
            elif raw[0] == CALL:
                callers = self._chains.get(words_of(raw[2]).get("by", 0), ())
                if raw[1] == PROTECTING:
                    continue
                self._begin(lane, raw)
            running = self._lanes.get(lane)
            if running is None:
                continue
            number, table = running
            if table is None and raw[0] in _OWNED:
                table = self._owners.get(raw[1] & self._mask)
                self._lanes[lane] = number, table
            yield Told(number, lane, table, raw, self._happens(table, raw), callers)
            if raw[0] == RET:
                del self._lanes[lane]

    def _begin(self, lane: int, raw: RawEvent) -> None:
        self.operations += 1
        words = words_of(raw[2])
        pgt = words.get("pgt", 0)
        if "ia_bits" in words:
            self.tables[pgt] = self._new_table(words, hyp=operation_name(raw[1]) == "hyp_init")
        if operation_name(raw[1]).startswith("hyp_") and 0 in self.tables:
            self.tables[pgt] = self.tables.pop(0)
        table = self.tables.get(pgt) if raw[1] != CALLBACK else None
        self._lanes[lane] = self.operations, table
        if table is not None and operation_name(raw[1]) in ENDS:
            del self.tables[pgt]

    def _new_table(self, words: Mapping[str, int], *, hyp: bool) -> KnownTable:
        self._made += 1
        geometry = geometry_of(words, self._page_shift)
        xnx, fwb = bool(words.get("xnx", 0)), bool(words.get("fwb", 0))
        fmt = self.generation.format(Regime.HYP_STAGE1 if hyp else Regime.STAGE2, fwb=fwb and not hyp, xnx=xnx)
        return KnownTable(self._made, geometry, fmt)

    def _happens(self, table: KnownTable | None, raw: RawEvent) -> Change | None:
        kind = raw[0]
        if table is None:
            return None
        if kind in (ALLOC, ALLOC_EXACT):
            size = 1 << self._page_shift
            for at, page in enumerate(range(raw[1], raw[1] + (raw[2] if kind == ALLOC_EXACT else size), size)):
                table.pages[page] = _Page(array("Q", bytes(size)))
                self._owners[page] = table
                # The first page of hyp stage-1 is its root; a guest's root is made of exact pages.
                if kind == ALLOC_EXACT or not table.root:
                    table.root = table.root or raw[1]
                    start = table.geometry.start_level
                    table.pages[page].level = start
                    table.pages[page].base = at << self._shift(start - 1)
        elif kind in (FREE, FREE_EXACT):
            for page in range(raw[1], raw[1] + (raw[2] if kind == FREE_EXACT else 1), 1 << self._page_shift):
                table.pages.pop(page, None)
                self._owners.pop(page, None)
        elif kind == STORE:
            return self._stored(table, raw)
        return None

    def _shift(self, level: int) -> int:
        return self._page_shift + (self._page_shift - 3) * (_LAST - level)

    def _stored(self, table: KnownTable, raw: RawEvent) -> Change | None:
        page = table.pages.get(raw[1] & self._mask)
        if page is None:
            return None
        index = (raw[1] & ~self._mask) >> 3
        page.entries[index] = raw[3]
        if page.level is None:
            return None
        level = page.level
        shift = self._shift(level)
        ia = page.base + (index << shift)
        new = decode(raw[3], level, table.geometry, table.format)
        self._link(table, new, ia)
        return Change(raw[1], level, ia, 1 << shift, decode(raw[2], level, table.geometry, table.format), new)

    def _link(self, table: KnownTable, entry: Descriptor, ia: int) -> None:
        """The page that a table entry leads to, and those below it, have their places now."""
        if entry.kind is not Kind.TABLE or entry.output_address is None:
            return
        child = table.pages.get(entry.output_address)
        if child is None or child.level is not None:
            return
        self._place(table, entry.output_address, entry.level + 1, ia)


def explain(path: Path, number: int) -> list[Told]:
    """Operation ``number`` event by event.  Raises `BadInput` when there is none of that number."""
    story = Story(path)
    found: list[Told] = []
    for told in story.events():
        if told.operation == number:
            found.append(told)
            if told.raw[0] == RET:
                break
    if not found:
        raise BadInput(f"{path} has no operation {number}: it has {story.operations}")
    return found


def life(path: Path, ipa: int, table: int | None = None) -> list[tuple[str, Told]]:
    """What happened to the translation of ``ipa``: each store to an entry that covers it, each TLBI that names it.

    With each event its operation's call.  ``table`` is the number of the one that is meant, `None`: of every one.
    """
    story = Story(path)
    calls: dict[int, str] = {}
    sizes: dict[int, int] = {}
    found = []
    for told in story.events():
        if told.raw[0] == CALL:
            calls[told.lane] = f"{told.raw[1]} {told.raw[2]}"
        if told.table is None or (table is not None and told.table.number != table):
            continue
        change = told.change
        if change is not None and change.ia <= ipa < change.ia + change.size:
            # Below a table it is a page, until something else is seen there.
            below = change.new.kind is Kind.TABLE
            sizes[told.table.number] = 1 << told.table.geometry.granule_shift if below else change.size
        elif told.raw[0] != TLBI or not _covers(told, ipa, sizes.get(told.table.number, 1)):
            continue
        found.append((calls[told.lane], told))
    return found


def _covers(told: Told, ipa: int, size: int) -> bool:
    """A TLBI of stage 2 that takes ``ipa``'s translation: of the whole VMID, of a range around it, or of an address in
    what ``size`` bytes the entry last covered that was stored to.
    """
    _, name, start, _, pages = told.raw
    if "s2" not in name:
        return False
    if start is None or told.table is None:
        return bool(name.startswith("vmalls12"))
    shift = told.table.geometry.granule_shift
    if pages is not None:
        return bool(start <= ipa < start + (pages << shift))
    return bool(ipa & -size <= start < (ipa & -size) + size)


def state(path: Path, number: int) -> Mapping[int, KnownTable]:
    """The tables when operation ``number`` returned, by their numbers.  Raises `BadInput`."""
    story = Story(path)
    for told in story.events():
        if told.operation == number and told.raw[0] == RET:
            return {table.number: table for table in story.tables.values()}
    raise BadInput(f"{path} has no operation {number} that returned: it has {story.operations}")
