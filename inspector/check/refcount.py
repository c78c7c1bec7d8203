"""R1: the reference count of every table page is what its entries say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.capture.view import TableView
from inspector.check.catalogue import invariant
from inspector.check.context import Context, error, note, where_view
from inspector.check.entries import Entries, Mask
from inspector.check.ownership import Owned
from inspector.findings import Finding
from inspector.snapshot import PageState


@invariant(
    "R1",
    "page_count of every table page is 1 plus its counted entries: valid ones (5.10), non-zero ones but LOCKED (5.15 "
    "and later); each page of a concatenated root is counted by itself.",
    "stage2_pte_is_counted, kvm_s2_mm_ops.get_page/put_page",
)
def counts(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, missing = owned.view, 0
        for pa, ia, level, counted, odd in _counted(context, owned):
            info = context.capture.page_info.get(pa)
            if info is None:
                missing += 1
            elif info.state is PageState.USED and not counted - odd < info.refcount <= counted:
                finding = _judge(context, view, pa, ia, level, 1 + counted, info.refcount)
                if finding is not None:
                    yield finding
        if missing and not context.protected:
            yield note(
                "R1",
                where_view(view),
                "a struct page for every table",
                f"none for {missing} of {len(view.tree.tables)}",
                "their reference counts are not judged",
            )


def _per_page(entries: Entries, mask: Mask) -> dict[int, int]:
    """How many masked entries each table page has, by PA."""
    pages, numbers = np.unique(entries.table_pa[mask], return_counts=True)
    return dict(zip(pages.tolist(), numbers.tolist(), strict=True))


def _counted(context: Context, owned: Owned) -> Iterator[tuple[int, int, int, int, int]]:
    """(PA, IPA, level, number of counted entries, how many of them are odd) of each table, in walk order.

    An invalid entry that is neither zero nor LOCKED is odd: the kernel's rule counts it, but nobody who wrote it beside
    the kernel took a reference.  `S6` reports the entry itself; here both numbers pass.
    """
    entries = owned.entries
    valid = (entries.raw & np.uint64(1)) != 0
    if not context.code.behaviours.counts_nonzero:
        counted, odd = _per_page(entries, valid), {}
    else:
        value = context.code.behaviours.locked_value
        locked = entries.raw == np.uint64(value) if value else np.zeros_like(valid)
        counted, odd = _per_page(entries, ~locked), _per_page(entries, ~locked & ~valid)
    for table in (owned.view.tree.tables[number] for number in owned.tables.values()):
        yield table.pa, table.ia, table.level, counted.get(table.pa, 0), odd.get(table.pa, 0)


def _judge(
    context: Context, view: TableView, pa: int, ia: int, level: int, expected: int, actual: int
) -> Finding | None:
    if actual == expected:
        return None
    where = where_view(view, ipa=ia, level=level, table_pa=pa)
    want = f"page_count {expected} (1 + {expected - 1} counted entries)"
    got = f"page_count {actual}"
    if actual > expected:
        return note(
            "R1",
            where,
            want,
            got,
            "a foreign, passing reference (compaction, a scanner) or a walk in progress explains a count too high; "
            "if it stays, a put was forgotten and the page leaks",
            "kvm_s2_put_page",
        )
    walkers = context.walk_in_progress(view.vm)
    if walkers is not None and expected - actual <= len(context.walkers):
        return note(
            "R1",
            where,
            want,
            got,
            f"a walk may have been in progress ({walkers}): it sets an entry and its reference one after the other",
            "kvm_s2_put_page",
        )
    return error(
        "R1",
        where,
        want,
        got,
        "a put too many: the table is freed while entries still use it",
        "kvm_s2_put_page",
    )
