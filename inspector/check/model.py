"""M10: every table is what the model of its kernel makes of the same mappings."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.check.catalogue import invariant
from inspector.check.context import Context, error
from inspector.compare import Difference, Side, compare_views
from inspector.findings import Finding, Severity

#: Differences that are about equality with the model; a page that is free, shared or unreadable is S3's and S1's.
_KINDS = ("leaf", "table", "invalid", "extra", "count")


@invariant(
    "M10",
    "Every entry and every reference count is what the model of this kernel's map writes for the same mappings; what a "
    "more specific check says of an entry is said there only; a kernel whose types are not known is not judged.",
    "kvm_pgtable_stage2_map, compared operation by operation with the model",
)
def model_equality(context: Context) -> Iterator[Finding]:
    kernel = context.code
    if kernel.assumed:
        return  # the model may be another kernel's: 'inspector diff' says that, and compares all the same
    for owned, compared in zip(context.owned, compare_views(context.views, kernel), strict=True):
        errors = [
            d
            for d in compared.differences
            if d.severity is Severity.ERROR and d.kind in _KINDS and d.where.table_pa not in owned.contested
        ]
        for one in errors[:64]:
            expected = _text(one, one.model)
            yield error("M10", one.where, expected, f"{_text(one, one.live)}: {one.what}", one.why, one.function)


def _text(one: Difference, side: Side) -> str:
    if side.entry is None:
        return f"page_count {side.page_count}"
    more = f" ({one.entries} entries)" if one.entries > 1 else ""
    return (f"{side.entry.raw:#018x}, {side.entry.describe()}" if side.entry.raw else "no entry") + more
