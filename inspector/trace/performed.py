"""One operation that has been followed from its call to its return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inspector.events import RawEvent


@dataclass(slots=True)
class Performed:
    """``number`` is the operation's in the trace, from 1; ``name`` as in scripts; ``text`` its ``call``.

    ``words`` are its arguments as they stood in registers; ``places`` where each of ``events`` stands among all.
    """

    number: int
    name: str
    text: str
    words: Mapping[str, int]
    events: list[RawEvent] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    ret: int = 0
