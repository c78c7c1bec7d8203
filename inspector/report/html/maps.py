"""What the script that draws gets: see ``assets/map.js``."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from inspector.report.html.picture import Picture


class Mark(Struct, frozen=True):
    """Something that is marked in a picture; ``ipa`` is ``None`` where it has no address."""

    kind: str
    ipa: int | None
    size: int
    text: str


class Map(Struct, frozen=True, kw_only=True):
    """What is drawn on one axis: a panel, or two that are compared."""

    name: str
    panels: Sequence[Picture | None]
    marks: Sequence[Mark]
    notice: Sequence[str] = ()


class Maps(Struct, frozen=True, kw_only=True):
    """What the script gets."""

    maps: Sequence[Map]
    mark_name: str
    sides: Sequence[str] = ()
