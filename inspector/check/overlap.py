"""Saying a thing once: M10 holds whole tables against the model, and so sees again what a more specific check saw."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.findings import Finding, Where

GENERAL = "M10"


def without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """``findings`` without those of `GENERAL` whose every entry (or table page) another check has reported."""
    others = [one.where for one in findings if one.check != GENERAL]
    return [one for one in findings if one.check != GENERAL or not _said(one.where, others)]


def _said(place: Where, others: Sequence[Where]) -> bool:
    same = [one for one in others if (one.vm, one.regime) == (place.vm, place.regime)]
    if place.index is None:
        return any(one.table_pa == place.table_pa and one.index is None for one in same)
    if place.ipa is None:
        return False
    at, end = place.ipa, place.ipa + (place.size or 1)
    near = [one for one in same if one.level == place.level and one.index is not None]
    intervals = sorted((one.ipa, one.ipa + (one.size or 1)) for one in near if one.ipa is not None)
    for start, stop in intervals:
        if start > at:
            break
        at = max(at, stop)
    return at >= end
