"""A difference as a kernel engineer wants to see it: the script run once more, with an eye on everything."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from inspector.crosscheck.differ import Difference, Open, Sides, What, run_on
from inspector.crosscheck.harness import Fault, Place
from inspector.crosscheck.layout import beside, folded, marked
from inspector.crosscheck.tree import ASM, HEADERS, PGTABLE, Tree
from inspector.events import ALLOC, CACHE, CASFAIL, FREE, GET, PUT, STORE, TLBI, WARN, PageNames, RawEvent, format_raw
from inspector.model.pages import NoSuchPage, PageStore
from inspector.model.script import render_table
from inspector.model.session import Setup, parse_setup
from inspector.protocol.rules import Violation

_MOST_ROWS = 16
"""Rows of a table that are shown."""


@dataclass(frozen=True)
class Site:
    """A line of a kernel's source and its text ("" when the file is not one of the tree's that are read)."""

    place: Place
    text: str

    def lines(self, who: str, indent: str) -> Iterator[str]:
        """``kernel: pgtable.c:1046 stage2_map_walker_try_leaf`` and below it the text."""
        callers = "".join(f", inlined into {caller}" for caller in self.place.callers[:1])
        where = f"{who}: {self.place.file}:{self.place.line} {self.place.function}{callers}"
        yield from folded(where, indent, indent + "    ")
        if self.text:
            yield from folded(self.text, indent + "    ", indent + "        ")


@dataclass(frozen=True)
class Explained:
    """A difference with everything around it.

    ``names`` are those of the sides; ``events`` what each did in the last operation, as text, and ``at`` the number of
    the first that differs or that breaks a rule; ``sites`` the source of
    the first event that differs, by side (``None``: a model, or not known); tables are rows as ``inspector model``
    prints them.
    """

    names: tuple[str, str]
    difference: Difference
    script: tuple[str, ...]
    events: tuple[Sequence[str], Sequence[str]]
    sites: tuple[Site | None, Site | None]
    before: Sequence[str]
    after: tuple[Sequence[str], Sequence[str]]
    at: int

    @property
    def headline(self) -> str:
        """What differs, in a phrase."""
        if self.difference.what is What.FAULT:
            return f"fault of the kernel's code in '{self.difference.operation}'"
        if self.difference.what in (What.WARNING, What.LEAK):
            return f"{self.difference.what}, in '{self.difference.operation}'"
        if self.difference.broken is not None and self.difference.what is What.PROTOCOL:
            return f"rule {self.difference.broken.rule} is broken in '{self.difference.operation}'"
        return f"{self.difference.what} differ after '{self.difference.operation}'"

    def lines(self) -> Iterator[str]:
        """The text, as wide as a mail may be."""
        yield "Script:"
        for line in self.script:
            yield from folded(line, "  ", "      ")
        if self.difference.broken is not None:
            yield ""
            yield "What the protocol says:"
            yield from broken_rule(self.difference.broken)
        if self.difference.what not in (What.EVENTS, What.PROTOCOL):
            yield ""
            fault = self.difference.what is What.FAULT
            yield "What the kernel's code does:" if fault else f"{str(self.difference.what).capitalize()}:"
            for name, text in zip(self.names, (self.difference.model, self.difference.kernel), strict=True):
                if not name:
                    continue
                for number, line in enumerate(text.strip("\n").splitlines() or ["nothing"]):
                    yield from folded(line.strip(), f"  {name}: " if not number else "    ", "      ")
        yield ""
        left, right = self.events
        if self.difference.what is What.PROTOCOL:
            yield "Events of the last line, on both sides alike, the one that breaks the rule marked:"
            yield from marked(right, self.at)
        elif not self.names[0]:
            yield "Events of the last line:"
            yield from marked(right, self.at)
        elif left == right:
            yield f"Events of the last line: {len(left)}, on both sides alike"
        else:
            yield "Events of the last line, the first that differs marked:"
            yield from beside(self.names, left, right)
        if any(self.sites):
            yield ""
            yield "Where it comes from:"
            for name, site in zip(self.names, self.sites, strict=True):
                if site is not None:
                    yield from site.lines(name, "  ")
        yield ""
        yield "Table before:"
        yield from _table(self.before)
        if self.after[0] == self.after[1]:
            yield "Table after, on both sides alike:" if self.names[0] else "Table after:"
            yield from _table(self.after[0], self.before)
        else:
            for name, after in zip(self.names, self.after, strict=True):
                yield f"Table after, {name}:"
                yield from _table(after, self.before)


def _table(rows: Sequence[str], before: Sequence[str] | None = None) -> Iterator[str]:
    if before is not None and rows == before:
        yield "  as before"
        return
    for row in rows[:_MOST_ROWS]:
        indent = " " * (len(row) - len(row.lstrip()) + 2)
        yield from folded(row.strip(), indent, indent + "    ")
    if len(rows) > _MOST_ROWS:
        yield f"  ... {len(rows) - _MOST_ROWS} more rows ..."


def broken_rule(broken: Violation) -> Iterator[str]:
    """A broken rule with what led to it."""
    for line in broken.lines():
        indent = "  " + " " * (len(line) - len(line.lstrip()))
        yield from folded(line.strip(), indent, indent + "    ")


class _Watch:
    """Looks at both sides after each operation of a script."""

    def __init__(self, granule: int) -> None:
        self.names = PageNames(granule)
        self.tables: list[tuple[Sequence[str], Sequence[str]]] = []
        self.events: tuple[list[RawEvent], list[RawEvent]] = ([], [])
        self.texts: tuple[list[str], list[str]] = ([], [])
        self.places: list[list[Place | None]] = []
        self.faults: list[list[Fault]] = []

    def __call__(self, sides: Sides) -> None:
        if not self.tables:
            for kernel in sides.kernels:
                kernel.harness.set("places", True)
        else:
            self.events = list(sides.events), list(sides.theirs)
            self.places = [kernel.harness.places()[1:] for kernel in sides.kernels]
            self.faults = [kernel.harness.faults() for kernel in sides.kernels]
        for raw in dict.fromkeys((*self.events[1], *self.events[0])):
            self.names.learn(raw)
        left, right = (short_events(raws, self.names) for raws in self.events)
        self.texts = list(left), list(right)
        one, other = (self._rows(sides, *store) for store in sides.stores())
        self.tables.append((one, other))

    def _rows(self, sides: Sides, store: PageStore, root: int) -> Sequence[str]:
        if sides.session.pgt is None:
            return ("no table",)
        pgt = copy.copy(sides.session.pgt)
        pgt.store, pgt.root = store, root
        rows: list[str] = []
        try:
            rows.extend(render_table(pgt, self.names))
        except (NoSuchPage, KeyError, IndexError) as error:
            rows.append(f"here the table cannot be followed: {error}")
        return rows


def explain(script: Sequence[str], open_sides: Open, names: tuple[str, str], trees: Sequence[Tree]) -> Explained | None:
    """Run a script again and say all about the first difference; ``None`` when there is none.

    ``trees`` are those of the sides that are kernels, in the order of ``Sides.kernels``.
    """
    setup = parse_setup(script[0])
    watch = _Watch(int(setup.granule[:-1]) << 10)
    difference = run_on(list(script), open_sides, look=watch)
    if difference is None:
        return None
    left, right = watch.events
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    if difference.what is What.PROTOCOL and difference.broken is not None:
        event = difference.broken.event
        at = next((i for i, raw in enumerate(right) if raw is event), len(right))
    if difference.what is What.WARNING:
        at = next((i for i, raw in enumerate(right) if raw[0] == WARN), len(right))
    sites: list[Site | None] = [None] * (2 - len(watch.places))
    if difference.what is What.FAULT:
        firsts = [faults[0].place if faults else None for faults in watch.faults]
        sites += [_site_at(place, tree) for place, tree in zip(firsts, trees, strict=True)]
    elif difference.what in (What.EVENTS, What.PROTOCOL, What.WARNING):
        sites += [_site(places[:-1], at, tree) for places, tree in zip(watch.places, trees, strict=True)]
    return Explained(
        names,
        difference,
        (short_setup(setup), *script[1:]),
        watch.texts,
        (sites[0], sites[1] if len(sites) > 1 else None),
        watch.tables[-2][1] if len(watch.tables) > 1 else (),
        watch.tables[-1],
        at,
    )


def _site(places: Sequence[Place | None], at: int, tree: Tree) -> Site | None:
    """The source of event ``at``; where a side has no such event, of its last one."""
    return _site_at(places[min(at, len(places) - 1)] if places else None, tree)


def _site_at(place: Place | None, tree: Tree) -> Site | None:
    if place is None:
        return None
    paths = [PGTABLE, *(f"{ASM}/{name}" for name in HEADERS)]
    lines = next((tree.text.get(path, "").splitlines() for path in paths if path.endswith(f"/{place.file}")), [])
    text = lines[place.line - 1].strip() if 0 < place.line <= len(lines) else ""
    return Site(place, text)


def short_setup(setup: Setup) -> str:
    """The ``machine`` line without the words that say what holds anyway."""
    words = setup.text().split()
    usual = set(Setup().text().split())
    return " ".join(
        word for word in words if word not in usual or word.startswith(("machine", "generation", "granule"))
    )


def short_events(raws: Iterable[RawEvent], names: PageNames) -> Iterator[str]:
    """Events in few columns: ``store.rel T0[3] 0x0 -> 0x17ff``, ``tlbi ipa 0x1000 level 3``, ``put T0, 1 left``."""
    for raw in raws:
        kind = raw[0]
        if kind == STORE:
            how = ".cas" if raw[5] else ".rel" if raw[4] else ""
            yield f"store{how} {names.entry(raw[1])} {names.descriptor(raw[2])} -> {names.descriptor(raw[3])}"
        elif kind == CASFAIL:
            yield f"casfail {names.entry(raw[1])} {names.descriptor(raw[2])} -> {names.descriptor(raw[3])}"
        elif kind in (TLBI, CACHE):
            words = format_raw(raw).split()
            yield " ".join([words[1].partition("=")[2] if kind == CACHE else "tlbi", *_values(words, kind)])
        elif kind in (GET, ALLOC, FREE):
            yield f"{('get', 'alloc', 'free')[(GET, ALLOC, FREE).index(kind)]} {names.page(raw[1])}"
        elif kind == PUT:
            yield f"put {names.page(raw[1])}, {raw[2]} left"
        else:
            yield " ".join(
                f"{names.page(int(word[5:], 16))}" if word.startswith("page=") else word.replace("kind=", "")
                for word in format_raw(raw).split()
            )


def _values(words: Sequence[str], kind: int) -> Iterator[str]:
    for word in words[2:] if kind == CACHE else words[1:]:
        key, _, value = word.partition("=")
        yield f"{key} {value}" if key in ("level", "pages", "size") else value
