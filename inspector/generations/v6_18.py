"""Linux 6.18: tables of protected guests are the hypervisor's."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.events import LEVEL_UNDEFINED
from inspector.generations.forms import Annotation, WalkFlags
from inspector.generations.v6_12 import GENERATION as V6_12

GENERATION: Final = replace(
    V6_12,
    label="6.18",
    source="6.18.2",
    cross_checked=False,
    has=("pkvm_mappings",),
    lacks=("xn_two_bits", "invalid_pte_type"),
    annotation=Annotation.OWNER_BY_FLAG,
    attr_walk_flags=WalkFlags.CALLER,
    relax_eagain_level=LEVEL_UNDEFINED,
    mkyoung_returns_pte=False,
    cacheable_pfnmap=True,
)
