"""M10: every table is what the model of its kernel makes of the same mappings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.ownership import Owned
from inspector.check.places import where_entry
from inspector.codec import Kind, decode
from inspector.compare.fields import AF, reason, text, what_differs
from inspector.compare.rebuild import Rebuilt
from inspector.compare.splits import BLOCK_LEVEL, blocks
from inspector.findings import Finding, History


@invariant(
    "M10",
    "Every entry is what the model of this kernel's map writes for the same mappings; what a more specific check says "
    "of an entry is said there only; a kernel whose types are not known is not judged.",
    "kvm_pgtable_stage2_map, compared operation by operation with the model",
    why="no mapping that can be asked for leaves this entry: the CPU faults on it, or KVM takes it for another",
    form=True,
    general=True,
)
def model_equality(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned, model in context.models:
        columns = owned.columns
        unlike, aged = (np.zeros(len(columns.raw), dtype=bool) for _ in range(2))
        for here, made in model.pieces():
            unlike[here] = columns.raw[here] != made
            aged[here] = columns.raw[here] ^ made == np.uint64(AF)
        # Invalid entries are S6's, and pointers to what is not a table of this tree S3's.
        left = columns.followed | columns.leaf | columns.matching(lambda d: d.kind is Kind.RESERVED)
        left &= owned.mine & ~columns.spread(owned.contested) & ~owned.marked
        aged &= left & columns.leaf
        for span in owned.spans(left & unlike & ~aged, model.apart):
            live, mine = columns.decoded(span.first), model.decoded(span.first)
            yield rule.error(span, text(mine), f"{text(live)}: {what_differs(live, mine)}", *reason(live, mine))
        for span in owned.spans(aged):
            yield rule.note(
                span,
                "AF set, as it is mapped",
                f"{span.raw}, the access flag is clear",
                "ageing clears the flag, and the guest's next access takes a fault that sets it",
                "age",
                history=History.AGED,
            )
        yield from _splits(rule, owned, model)


def _splits(rule: Judge, owned: Owned, model: Rebuilt) -> Iterator[Finding]:
    view, columns = owned.view, owned.columns
    for first, count in blocks(owned.view, columns, model.mapped & owned.mine):
        size = view.geometry.block_size(BLOCK_LEVEL)
        block = decode(int(columns.raw[first]) & ~2, BLOCK_LEVEL, view.geometry, columns.format)
        yield rule.note(
            where_entry(view, columns, first, count * size),
            text(block),
            f"{count} x {view.geometry.entries} pages where {'a block' if count == 1 else 'blocks'} would do",
            "dirty logging splits blocks, and pages that were touched before their neighbours stay pages until "
            "somebody faults on the whole; KVM merges them lazily",
            "split",
            history=History.SPLIT,
        )
