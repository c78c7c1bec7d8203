"""One difference between a live table and the model's, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inspector.codec import Descriptor
from inspector.findings import Severity, Where


@dataclass(frozen=True)
class Side:
    """One side: the entry (``None``: about a whole table page) decoded, and its table's reference count."""

    entry: Descriptor | None
    page_count: int | None


@dataclass(frozen=True)
class Difference:
    """``entries`` neighbouring entries (or one table page) that differ in the same way; the place is the first's.

    ``kind`` is one word: ``leaf``, ``table``, ``invalid``, ``extra`` (an entry where the model has none), ``empty``,
    ``count``, ``page``, ``shared``, ``split``, ``aged``, ``unread``.  ``what`` says what differs, ``why`` why it
    matters, or for a note what explains it.  ``function`` is the kernel function that writes such an entry or count.
    """

    kind: str
    severity: Severity
    where: Where
    entries: int
    live: Side
    model: Side
    what: str
    why: str
    function: str | None


#: Why each field of a leaf matters when the model's map writes another value.
_WHY: Final[Mapping[str, str]] = {
    "memattr": "guest and host use the same memory with different cacheability, and lose each other's writes",
    "s2ap": "KVM gives a guest nothing that it may not read: an abort that no fault handler expects",
    "sh": "other CPUs' caches are not kept coherent with the guest's accesses",
    "af": "the CPU does not set the flag here: the guest takes an access flag fault",
    "xn": "KVM never asks for that combination: a guest that executes from a device can hang the machine",
    "sw": "no guest of an unprotected host has software bits: a later map compares them, and rewrites the entry",
    "contiguous": "the TLB may take 16 entries for one, and KVM changes them one by one",
    "dbm": "the CPU would make the page writable by itself, past dirty logging",
    "nt": "the CPU may not cache the block while the bit is set; KVM does not know it",
    "oa_res0": "the bits are RES0 in a block: the CPU ignores them or does not",
}
_STRAY: Final = "KVM never sets the bit: the entry was written by something else, or by a KVM that does more"


def _value(name: str, number: int) -> str:
    return f"{name}={number:#x}" if number > 9 else f"{name}={number}"


def leaf_difference(live: Descriptor, model: Descriptor) -> tuple[str, str, str]:
    """(what differs, why it matters, which of `functions`) for two leaves at one place with one address."""
    changed = live.raw ^ model.raw
    parts, whys, where = [], [], "attributes"
    for field in live.layout:
        if not field.mask & changed:
            continue
        changed &= ~field.mask
        parts.append(f"{_value(field.name, field.get(live.raw))}, the model's is {field.get(model.raw):#x}")
        whys.append(_WHY.get(field.name, _STRAY))
        if field.name == "xn":
            where = "xn"
        elif field.name == "output_address":
            where = "leaf"
    if changed:
        bits = ", ".join(str(bit) for bit in range(64) if changed >> bit & 1)
        parts.append(f"bits without a name: {bits}")
        whys.append(_STRAY)
    return "; ".join(parts), "; ".join(dict.fromkeys(whys)), where
