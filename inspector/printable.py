"""The one place through which text of foreign origin passes on its way to a person.

A task's name, a symbol, a stub's answer or a string in a file may hold control characters that move the reader's
cursor, set titles or turn the direction of writing.  Documents (JSON, HTML) escape by rules of their own.

Ground floor: standard library only, imports no other room.
"""

from __future__ import annotations

SHORT = 200
"""Characters of a foreign string that a sentence quotes."""


def printable(text: str, limit: int | None = None) -> str:
    r"""``text`` with everything that does not print as escapes (``\x1b``, ``\u202e``), cut to ``limit`` characters.

    What prints is what `str.isprintable` says: no control, format (bidi, zero-width), surrogate, private or unassigned
    code point, and no separator but the space.
    """
    cut = limit is not None and len(text) > limit
    if cut:
        text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text + "…" if cut else text
