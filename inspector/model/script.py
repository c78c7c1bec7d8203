"""Running a script on the model, with the table and the events after each operation.

The grammar is in :mod:`inspector.model.operations`.  ``run_script`` is what the command line calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from errno import errorcode
from typing import Final

from inspector.codec import Format, Kind, Regime, decode
from inspector.events import CACHE, CASFAIL, STORE, TLBI, PageNames, RawEvent, format_raw
from inspector.generations import Generation
from inspector.model.operations import Operation, ScriptError, format_operation, parse_operation
from inspector.model.pages import LINE, Effort, NoSuchPage, TooLarge
from inspector.model.prot import SW_MASK, kernel_prot
from inspector.model.session import NoSuchEntry, Outcome, Session, Setup, parse_setup
from inspector.model.stage2 import Stage2
from inspector.model.state import Pgtable

__all__ = ["ScriptError", "StepResult", "render_events", "render_table", "run_script"]

_NO_RETURN_CODE: Final = frozenset({"mkyoung", "mkold"})


@dataclass(frozen=True)
class StepResult:
    """One operation of a script and what it did.

    ``line`` is its number in the script, ``comment`` the comment lines just before it (what a teaching script says),
    ``operation`` is ``None`` for the ``machine`` line.  ``table`` is the whole table afterwards, ``events`` the
    events, both as lines with page names in place of addresses; ``raw_events`` the events with addresses.
    """

    line: int
    text: str
    comment: tuple[str, ...]
    setup: Setup
    operation: Operation | None
    outcome: Outcome | None
    table: tuple[str, ...]
    events: tuple[str, ...]
    raw_events: tuple[RawEvent, ...]

    def result_text(self) -> str:
        """What the operation returned, in words."""
        if self.outcome is None or self.operation is None:
            return self.setup.behaviours.standing
        ret, value, level = self.outcome
        if self.operation.name in _NO_RETURN_CODE:
            return f"entry {value:#x}"
        text = f"-{errorcode.get(-ret, str(-ret))}" if ret < 0 else str(ret)
        if self.operation.name == "get_leaf" and ret == 0:
            text += f", entry {value:#x} at level {level}"
        return text

    def lines(self, limit: int = 40) -> Iterator[str]:
        """The step as a person reads it; of more than ``limit`` events the middle is left out (0: never)."""
        for comment in self.comment:
            yield f"# {comment}".rstrip()
        yield f"{self.line}: {self.text}"
        yield f"  returns {self.result_text()}" if self.operation else f"  {self.result_text()}"
        shown = self.events
        if limit and len(shown) > limit:
            half = limit // 2
            shown = (*shown[:half], f"... {len(shown) - 2 * half} more ...", *shown[-half:])
        for event in shown:
            yield f"    {event}"
        for row in self.table:
            yield f"  | {row}"


def format_of(pgt: Pgtable) -> Format:
    """How the codec has to read this table's entries."""
    behaviours, machine = pgt.behaviours, pgt.machine
    if isinstance(pgt, Stage2):
        return behaviours.format(Regime.STAGE2, fwb=pgt.attributes.fwb, xnx=machine.xnx)
    return behaviours.format(Regime.HYP_STAGE1, hvhe=machine.hvhe)


def _size_text(size: int) -> str:
    for shift, letter in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if not size & ((1 << shift) - 1):
            return f"{size >> shift}{letter}"
    return str(size)


def _follows(pgt: Pgtable, before: int, entry: int, level: int) -> bool:
    """The entry maps the memory after ``before`` with the same attributes, or is the same invalid entry."""
    if not before & 1 or not entry & 1:
        return before == entry
    step = 1 << pgt.shifts[level]
    rest = before & ~pgt.pte_of(pgt.pa_of(before)) == entry & ~pgt.pte_of(pgt.pa_of(entry))
    return rest and pgt.pa_of(entry) == pgt.pa_of(before) + step


def render_table(pgt: Pgtable, names: PageNames) -> Iterator[str]:
    """One line per table page and per run of like entries, in walk order; empty entries are left out."""
    if not pgt.root:
        yield "no table"
        return
    fmt = format_of(pgt)
    for page, level, base, _, _ in pgt.tables():
        depth = "  " * (level - pgt.start_level)
        yield f"{depth}{names.page(page)} level {level} ia {base:#x} refs {pgt.store.page_count(page)}"
        entries = pgt.store.entries(page)
        index = 0
        while index < len(entries):
            entry = entries[index]
            if not entry:
                index += 1
                continue
            end = index + 1
            table = pgt.is_table(entry, level)
            while (
                not table
                and end < len(entries)
                and entries[end]
                and not pgt.is_table(entries[end], level)
                and _follows(pgt, entries[end - 1], entries[end], level)
            ):
                end += 1
            size = (end - index) << pgt.shifts[level]
            place = f"[{index}]" if end == index + 1 else f"[{index}..{end - 1}]"
            start = base + (index << pgt.shifts[level])
            descriptor = decode(entry, level, pgt.geometry, fmt)
            if descriptor.kind is Kind.TABLE:
                meaning = f"table {names.page(pgt.pa_of(entry))}"
            else:
                meaning = descriptor.describe()
            yield f"{depth}  {place} {start:#x} {_size_text(size)} {entry:#018x} {meaning}"
            index = end


def render_events(raws: list[RawEvent], names: PageNames) -> Iterator[str]:
    """The events as lines, table pages by name; ``names`` learns new pages on the way."""
    for raw in raws:
        names.learn(raw)
        if raw[0] == STORE:
            how = " (cmpxchg)" if raw[5] else " (release)" if raw[4] else ""
            yield f"store {names.entry(raw[1])} {names.descriptor(raw[2])} -> {names.descriptor(raw[3])}{how}"
        elif raw[0] == CASFAIL:
            yield f"casfail {names.entry(raw[1])} expected {names.descriptor(raw[2])}"
        elif raw[0] in (TLBI, CACHE):
            yield format_raw(raw)
        else:
            yield " ".join(_named(word, names) for word in format_raw(raw).split())


def _named(word: str, names: PageNames) -> str:
    key, _, value = word.partition("=")
    return f"{key}={names.page(int(value, 16))}" if key == "page" else word


def _counted(lines: Iterator[str], effort: Effort) -> Iterator[str]:
    for line in lines:
        effort.spend(LINE)
        yield line


def _check_prot(operation: Operation, behaviours: Generation) -> None:
    """Refuse what the generation has no enumerator for (``ValueError``)."""
    kernel_prot(operation.prot, behaviours)
    if operation.prot & SW_MASK and not behaviours.software_bits:
        raise ValueError("this kernel has no software bits")


EFFORT: Final = 1 << 26
"""What a script may spend, in table entries: some hundred thousand visits of tables, or a million events, a minute."""


def run_script(text: str, generation: str | None = None, most: int = EFFORT) -> Iterator[StepResult]:
    """Run a script, one step a line; with ``generation``, on the model of that, whatever its ``machine`` lines say.

    ``most`` is what the script may spend (see `Effort`).

    Raises :class:`ScriptError` with the line's number when a line is not in the grammar or cannot be run.
    """
    setup = Setup() if generation is None else Setup(generation=generation)
    effort = Effort(most)
    session = Session(setup, effort)
    names = PageNames(session.store.granule)
    comment: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        body, _, note = line.partition("#")
        body = body.strip()
        if not body:
            if note.strip() or line.strip() == "#":
                comment.append(note.strip())
            else:
                comment.clear()
            continue
        try:
            if body.split()[0] == "machine":
                if generation is not None:
                    kept = [word for word in body.split() if not word.startswith("generation=")]
                    body = " ".join((*kept, f"generation={generation}"))
                setup = parse_setup(body)
                session = Session(setup, effort)
                names = PageNames(session.store.granule)
                yield StepResult(number, body, tuple(comment), setup, None, None, (), (), ())
                comment.clear()
                continue
            operation = parse_operation(body)
            _check_prot(operation, setup.behaviours)
            outcome = session.apply(operation)
            raws = session.store.take_events()
            events = tuple(render_events(raws, names))
            table = tuple(_counted(render_table(session.table, names), effort))
        except (ScriptError, ValueError, NoSuchEntry, NoSuchPage, TooLarge) as error:
            raise ScriptError(f"line {number}: {error}") from None
        yield StepResult(
            number, format_operation(operation), tuple(comment), setup, operation, outcome, table, events, tuple(raws)
        )
        comment.clear()
