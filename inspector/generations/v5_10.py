"""Linux 5.10: page-table code of its own for guests, and nothing but bit 0 cleared in an invalid entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.codec import InvalidForm
from inspector.generations.forms import Annotation, MapScheme, PgtFlags
from inspector.generations.v5_15 import GENERATION as V5_15

GENERATION: Final = replace(
    V5_15,
    label="5.10",
    source="5.10.223",
    cross_checked=True,
    has=("pgtable",),
    lacks=("mm_ops",),
    invalid=InvalidForm.STALE,
    pgt_flags=PgtFlags.NONE,
    software_bits=False,
    map_scheme=MapScheme.ANCHOR_IN_PLACE,
    annotation=Annotation.NONE,
    attr_icache=False,
    get_leaf=False,
    hyp_device_index=5,
)
