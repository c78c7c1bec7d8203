"""A schedule for a reader: one column for each operation, one line for each access."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.codec import GRANULES
from inspector.crosscheck.interleave.outcome import RCU, Access, Outcome
from inspector.crosscheck.verdict import WIDTH
from inspector.model.session import Setup

_LONGEST = 60
"""Accesses that are shown; the middle of a longer schedule is left out."""


def _names(outcome: Outcome, shift: int) -> dict[int, str]:
    """Short names of the pages, in the order in which they are met."""
    pages = dict.fromkeys(access.pa >> shift for access in outcome.accesses)
    return {page: f"T{number}" for number, page in enumerate(pages)}


def _text(access: Access, names: dict[int, str], shift: int) -> str:
    name = names[access.pa >> shift]
    if access.kind in ("get", "put", "count"):
        return f"{access.kind} {name} ({access.old})"
    place = f"{name}[{(access.pa & (1 << shift) - 1) // 8}]"
    if access.kind == "read":
        return f"{place} {access.old:#x}"
    if access.kind == "store":
        return f"{place} = {access.new:#x}"
    if access.kind == "cas":
        return f"{place} {access.old:#x} => {access.new:#x}"
    return f"{place} {access.old:#x}: lost"


def columns(outcome: Outcome, setup: Setup) -> Iterator[str]:
    """Lines of at most `WIDTH` columns; operation A on the left, the RCU callback on the right."""
    shift = GRANULES[setup.granule]
    names = _names(outcome, shift)
    fibers = [*range(len(outcome.results)), *([RCU] if RCU in outcome.schedule else [])]
    width = (WIDTH - 4) // len(fibers)
    titles = ["RCU" if fiber == RCU else "ABC"[fiber] for fiber in fibers]
    yield "".join(f"{title:{width}}" for title in titles).rstrip()
    accesses = list(outcome.accesses)
    skipped = range(_LONGEST // 2, len(accesses) - _LONGEST // 2) if len(accesses) > _LONGEST else range(0)
    for at, access in enumerate(accesses):
        if at in skipped:
            if at == skipped.start:
                yield f"... {len(skipped)} accesses ..."
            continue
        before = " " * (width * fibers.index(access.fiber))
        yield f"{before}{_text(access, names, shift)}"
    for fiber, result in enumerate(outcome.results):
        yield f"{'ABC'[fiber]} returns {result.ret}"
