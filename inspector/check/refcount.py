"""R1: the reference count of every table page is what its entries say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check import excuses
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context, title
from inspector.check.ownership import Owned
from inspector.check.places import where_page, where_view
from inspector.findings import Finding
from inspector.snapshot import PageState


@invariant(
    "R1",
    "page_count of every table page is 1 plus its counted entries: valid ones (5.10), non-zero ones but LOCKED (5.15 "
    "and later); each page of a concatenated root is counted by itself.",
    "stage2_pte_is_counted, kvm_s2_mm_ops.get_page/put_page",
    function="kvm_s2_put_page",
    form=True,
    passing=True,
)
def counts(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        missing = 0
        right = context.references[title(owned.view)]
        rows = np.flatnonzero(owned.pages)
        pages = zip(
            rows.tolist(), *(c[rows].tolist() for c in (owned.columns.page_pa, right.low, right.high)), strict=True
        )
        for row, pa, low, high in pages:
            info = context.capture.page_info.get(pa)
            if info is None:
                missing += 1
            elif info.state is PageState.USED and not low <= info.refcount <= high:
                yield _count(rule, context, owned, row, low if info.refcount < low else high, info.refcount)
        if missing and not context.protected:
            yield rule.note(
                where_view(owned.view),
                "a struct page for every table",
                f"none for {missing} of {len(owned.view.tree.tables)}",
                "their reference counts are not judged",
                "",
            )


def _count(rule: Judge, context: Context, owned: Owned, row: int, expected: int, actual: int) -> Finding:
    vm, where = owned.view.vm, where_page(owned.view, owned.columns, row)
    if actual > expected:
        # Whoever else comes across a page (isolate_migratepages_block, page_idle_get_folio, do_migrate_range) takes a
        # reference to find that it is not on the LRU, as no table is, and puts it at once; /proc/kpagecount takes none.
        why = "a put was forgotten: the page is never freed; a foreign reference to a table would have passed"
        excuse: str | None = (
            "a foreign, passing reference (compaction, a scanner) or a walk in progress explains a count too high; "
            "if it stays, a put was forgotten and the page leaks"
        )
    else:
        why = "a put too many, or a get that was forgotten: the table is freed while entries still use it"
        excuse = excuses.missing_references(context.capture.host, vm, expected - actual)
    return rule.error(
        where,
        f"page_count {expected} (1 + {expected - 1} counted entries)",
        f"page_count {actual}",
        why,
        excuse=excuse,
    )
