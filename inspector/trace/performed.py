"""One operation that has been followed from its call to its return, and what its call says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inspector.codec import Geometry
from inspector.events import ALLOC_EXACT, FREE_EXACT, RawEvent
from inspector.findings import BadInput
from inspector.generations import GENERATIONS, Generation
from inspector.model.pages import NoSuchPage

CALLBACK: Final = "stage2_free_unlinked_table_rcu_cb"
"""Its pages say of which table it is."""
ENDS: Final = frozenset({"destroy", "destroy_pgd", "hyp_destroy"})
"""After these there is no table."""
BEGUN: Final = "begun"
"""A word of a call whose beginning was not seen, of an operation or a TLB function under way when a trace began."""
PROTECTED: Final = (
    "the host is in protected mode: its hypervisor owns tables, its own and guests', that are not followed"
)
_DS: Final = 32
"""VTCR_EL2.DS: descriptors of 52-bit addresses."""


def generation_of(header: Mapping[str, Any]) -> Generation:
    """Raises `BadInput` for a header of no kernel that is known."""
    label = header.get("generation")
    if label not in GENERATIONS or header.get("page_shift") not in (12, 14, 16):
        raise BadInput(f"the trace is of a kernel that is not known here: generation {label!r}")
    return GENERATIONS[label]


FEATURES: Final = ("fwb", "ttl", "xnx", "dic")
"""What the probe tells of the CPU: ARM64_HAS_STAGE2_FWB and so on, 0 or 1; ``tlb_range`` too where QEMU shows it."""


def features_of(header: Mapping[str, Any]) -> dict[str, int]:
    """What the CPU can do, of a trace that does not see each table made; nothing where it does not say all of it."""
    found = header.get("features")
    if not isinstance(found, dict) or any(found.get(name) not in (0, 1) for name in FEATURES):
        return {}
    told = [*FEATURES, *(["tlb_range"] if found.get("tlb_range") in (0, 1) else [])]
    return {name: int(found[name]) for name in told}


NONSENSE: Final = (ArithmeticError, AssertionError, LookupError, NoSuchPage, TypeError, ValueError)
"""What comes of events that no kernel performs, when they are followed: a trace may come from anywhere."""
_MOST_ROOTS: Final = 16 << 16
"""Bytes: sixteen tables of 64K (DDI 0487 D8.2.2)."""


def bounded(raw: RawEvent) -> None:
    """Raises ``ValueError`` for an allocation that no table makes."""
    if raw[0] in (ALLOC_EXACT, FREE_EXACT) and not 0 <= raw[2] <= _MOST_ROOTS:
        raise ValueError(f"root pages of {raw[2]} bytes")


def words_of(arguments: str) -> dict[str, int]:
    """The numbers of a ``call``'s arguments; a word without one is left out."""
    words = (word.partition("=") for word in arguments.split(","))
    return {name: int(value, 0) for name, _, value in words if value}


def geometry_of(words: Mapping[str, int], page_shift: int) -> Geometry:
    """The shape that a call of init tells.  Root tables beyond the first are concatenated (DDI 0487 D8.2.2).

    Raises ``ValueError`` for what no table has.
    """
    ia_bits, start_level = words["ia_bits"], words["start_level"]
    resolved = (page_shift - 3) * (4 - start_level) + page_shift
    if not (16 <= ia_bits <= 56 and -1 <= start_level <= 3 and ia_bits - resolved <= 4):
        raise ValueError(f"no table has {ia_bits} bits of IPA and starts at level {start_level}")
    lpa2 = bool(words.get("vtcr", 0) >> _DS & 1)
    return Geometry(page_shift, ia_bits, start_level, 1 << max(0, ia_bits - resolved), 48, lpa2)


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
