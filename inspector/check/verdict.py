"""The two views of one list of findings: the verdict on a capture, and tables held against the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inspector.capture.view import TableView
from inspector.check.catalogue import CATALOGUE, judged, selected
from inspector.check.context import Context, title
from inspector.check.lasting import after_looks
from inspector.check.ownership import Owned
from inspector.check.places import LIMIT
from inspector.codec import Descriptor, decode
from inspector.compare.fields import what_differs
from inspector.compare.rebuild import Rebuilt
from inspector.compare.splits import BLOCK_LEVEL
from inspector.findings import BadInput, Finding, History, Severity, Where
from inspector.generations import KernelCode, code_of
from inspector.snapshot import Capture, Scope


def run_checks(capture: Capture, only: Iterable[str] | None = None, skip: Iterable[str] | None = None) -> list[Finding]:
    """Judge ``capture``: errors first, then notes, each in the order of the catalogue and of the tables.

    A kernel that is only assumed to be of its generation is not compared with the model.  Raises `BadInput` for an
    unknown id, and for a capture that was not taken in full.
    """
    chosen = selected(only, skip)
    if capture.scope is not Scope.FULL:
        raise BadInput(
            f"this capture holds only what '{capture.scope}' needs: checks need one made with 'inspector capture'"
        )
    code = code_of(capture.host)
    rules = [one for one in chosen if not (one.general and code.assumed)]
    context = Context(capture, code)
    return [one for one in after_looks(context, judged(context, rules)) if one.history is None]


@dataclass(frozen=True)
class Side:
    """One side: the entry (``None``: about a whole table page, or the same) and its page's reference count."""

    entry: Descriptor | None
    page_count: int | None


@dataclass(frozen=True)
class Sides:
    """A finding about ``entries`` neighbouring entries of a table (or a page of it), with what each side has there."""

    finding: Finding
    where: Where
    entries: int
    live: Side
    model: Side

    @property
    def what(self) -> str:
        """What differs: for two leaves their fields, else what the finding says."""
        live, model = self.live.entry, self.model.entry
        leaves = live is not None and model is not None and live.kind.is_leaf and model.kind.is_leaf
        if live is None or model is None or not leaves or self.finding.history is not None:
            return f"{self.finding.actual}; expected: {self.finding.expected}"
        return what_differs(live, model)


@dataclass(frozen=True)
class Comparison:
    """A table held against the model's: ``differences`` with errors first, then notes, each in order of address.

    ``leaves`` and ``tables`` count what was compared.  Reports show the first `LIMIT` differences and count the rest.
    """

    view: TableView
    code: KernelCode
    leaves: int
    tables: int
    differences: tuple[Sides, ...]

    @property
    def errors(self) -> int:
        """How many differences nothing explains."""
        return sum(one.finding.severity is Severity.ERROR for one in self.differences)

    @property
    def notes(self) -> int:
        """How many legal history explains."""
        return len(self.differences) - self.errors

    @property
    def identical(self) -> bool:
        return not self.differences

    @property
    def shown(self) -> tuple[Sides, ...]:
        return self.differences[:LIMIT]

    @property
    def omitted(self) -> int:
        return len(self.differences) - len(self.shown)


def compare_views(views: Sequence[TableView], code: KernelCode) -> list[Comparison]:
    """Each table against what the model makes of its mappings; other tables of the capture matter where they meet.

    Raises `BadInput` when the generation asked for cannot have made such a table.
    """
    if not views:
        return []
    context = Context(views[0].capture, code, {title(view) for view in views})
    # What a rule about more than the form says is shown where an entry differs: else it need not be asked.
    differ = any(owned.view.tree.problems or _differs(model) for owned, model in context.models)
    found = after_looks(context, judged(context, (one for one in CATALOGUE.values() if differ or one.form)))
    return [_comparison(context, owned, model, found) for owned, model in context.models]


def _differs(model: Rebuilt) -> bool:
    return any((model.columns.raw[here] != made).any() for here, made in model.pieces())


def _comparison(context: Context, owned: Owned, model: Rebuilt, findings: Iterable[Finding]) -> Comparison:
    view, columns = owned.view, owned.columns
    right = context.references[title(view)]
    pages = zip(columns.page_pa.tolist(), right.low.tolist(), right.high.tolist(), strict=True)
    counts = {pa: (low, high) for pa, low, high in reversed(list(pages))}
    here = (view.vm.name, view.regime)
    shown = []
    for one in findings:
        place = next((at for at in (one.where, one.other) if at is not None and (at.vm, at.regime) == here), None)
        if place is not None and (sides := _sides(context, owned, model, counts, one, place)) is not None:
            shown.append(sides)
    shown.sort(key=_order)
    return Comparison(view, context.code, int(columns.leaf.sum()), len(columns.page_pa), tuple(shown))


def _sides(
    context: Context,
    owned: Owned,
    model: Rebuilt,
    counts: dict[int, tuple[int, int]],
    finding: Finding,
    place: Where,
) -> Sides | None:
    """``finding`` at ``place``, if it is about what the table is made of, or the model has something else there."""
    columns = owned.columns
    form = CATALOGUE[finding.check].form
    info = None if place.table_pa is None else context.capture.page_info.get(place.table_pa)
    live = None if info is None else info.refcount
    low, high = counts.get(place.table_pa or 0, (None, None))
    expected = high if live is not None and high is not None and live > high else low
    if place.table_pa is None or place.index is None:
        same = live is None or live == expected
        sides = Side(None, live), Side(None, None if same else expected)
        return Sides(finding, place, 1, *sides) if form else None
    at = columns.find(place.table_pa, place.index)
    level = place.level or 0
    entries = (place.size or 0) >> columns.geometry.level_shift(level) or 1
    if at is None:  # an entry that no address reaches
        mine = decode(place.raw or 0, level, columns.geometry, columns.format)
        made: Descriptor | None = decode(0, level, columns.geometry, columns.format)
    else:
        mine, made = columns.decoded(at), model.decoded(at)
    if finding.history is History.SPLIT:
        made = decode(mine.raw & ~2, BLOCK_LEVEL, columns.geometry, columns.format)
    if made is not None and mine.raw == made.raw:
        if not form:
            return None
        made = None
    return Sides(finding, place, entries, Side(mine, live), Side(made, expected))


def _order(one: Sides) -> tuple[bool, int, int, bool]:
    where = one.where
    return one.finding.severity is not Severity.ERROR, where.ipa or 0, where.level or 0, where.index is not None
