"""The fields in which two entries differ, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from inspector.codec import Descriptor, Kind

AF: Final = 1 << 10
"""The access flag of a leaf (DDI 0487 D8.5.1)."""

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


def text(entry: Descriptor) -> str:
    """An entry with its meaning; ``no entry`` for zero."""
    return f"{entry.raw:#018x}, {entry.describe()}" if entry.raw else "no entry"


def _changed(live: Descriptor, model: Descriptor) -> Mapping[str, str]:
    """The fields that differ: name to the words for it."""
    left, found = live.raw ^ model.raw, dict[str, str]()
    for field in live.layout:
        if field.mask & left:
            left &= ~field.mask
            value = field.get(live.raw)
            shown = f"{value:#x}" if value > 9 else f"{value}"
            found[field.name] = f"{field.name}={shown}, the model's is {field.get(model.raw):#x}"
    if left:
        found[""] = f"bits without a name: {', '.join(str(bit) for bit in range(64) if left >> bit & 1)}"
    return found


def what_differs(live: Descriptor, model: Descriptor) -> str:
    """The fields in which two entries differ."""
    return "; ".join(_changed(live, model).values()) if model.raw else "the model has none there"


def reason(live: Descriptor, model: Descriptor) -> tuple[str | None, str]:
    """Why a difference matters (``None``: nothing of its own), and what writes it (a name of `kernel.functions`)."""
    names = _changed(live, model)
    if not model.raw:
        return None, "leaf"
    if live.kind is Kind.TABLE:
        return _STRAY, "table-entry"
    why = "; ".join(dict.fromkeys(_WHY.get(name, _STRAY) for name in names))
    return why, "leaf" if "output_address" in names else "xn" if "xn" in names else "attributes"
