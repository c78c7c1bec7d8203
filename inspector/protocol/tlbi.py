"""The invalidations by the words of ``tlbi kind=``: helpers of KVM, and single instructions."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Reach(enum.Enum):
    """Which entries an invalidation is for."""

    ALL = enum.auto()
    ADDRESS = enum.auto()
    RANGE = enum.auto()


class Stages(enum.Enum):
    """What it removes: entries of stage 2 alone, combined ones and stage 1 alone, or everything."""

    TWO = enum.auto()
    ONE = enum.auto()
    BOTH = enum.auto()


@dataclass(frozen=True, slots=True)
class Tlbi:
    """``helper``: barriers and stage 1 are included (kernel.md 15.4); ``local``: this CPU alone; ``last``: entries of
    the last level of a walk only, no tables."""

    reach: Reach
    stages: Stages
    helper: bool = False
    local: bool = False
    last: bool = False


_HELPERS = {
    "ipa": Tlbi(Reach.ADDRESS, Stages.BOTH, helper=True),
    "ipa_nsh": Tlbi(Reach.ADDRESS, Stages.BOTH, helper=True, local=True),
    "vmid": Tlbi(Reach.ALL, Stages.BOTH, helper=True),
    "range": Tlbi(Reach.RANGE, Stages.BOTH, helper=True),
}
_WITHOUT_SHAREABILITY = {
    "ipas2e1": Tlbi(Reach.ADDRESS, Stages.TWO, local=True),
    "ipas2le1": Tlbi(Reach.ADDRESS, Stages.TWO, local=True, last=True),
    "ripas2e1": Tlbi(Reach.RANGE, Stages.TWO, local=True),
    "ripas2le1": Tlbi(Reach.RANGE, Stages.TWO, local=True, last=True),
    "vmalle1": Tlbi(Reach.ALL, Stages.ONE, local=True),
    "vmalls12e1": Tlbi(Reach.ALL, Stages.BOTH, local=True),
    "alle1": Tlbi(Reach.ALL, Stages.BOTH, local=True),
    "vae2": Tlbi(Reach.ADDRESS, Stages.BOTH, local=True),
    "vale2": Tlbi(Reach.ADDRESS, Stages.BOTH, local=True, last=True),
    "rvae2": Tlbi(Reach.RANGE, Stages.BOTH, local=True),
    "rvale2": Tlbi(Reach.RANGE, Stages.BOTH, local=True, last=True),
    "alle2": Tlbi(Reach.ALL, Stages.BOTH, local=True),
}

TLBIS: Final[Mapping[str, Tlbi]] = {
    **_HELPERS,
    **_WITHOUT_SHAREABILITY,
    **{
        name + domain: Tlbi(each.reach, each.stages, last=each.last)
        for name, each in _WITHOUT_SHAREABILITY.items()
        for domain in ("is", "os")
    },
}
"""DDI 0487 C5.5 (TLB maintenance instructions); ``is`` and ``os`` reach all CPUs that run a VM."""


def is_of_el2(word: str) -> bool:
    """The instruction is of EL2's own regime (VAE2, VALE2, ALLE2 and their like): no guest's.

    In a guest's operation it is the workaround of an erratum: ``vale2is`` of 0, after the others (ARM64_WORKAROUND_
    REPEAT_TLBI; ``__tlbi_sync_s1ish_hyp``).
    """
    return "ae2" in word or "le2" in word
