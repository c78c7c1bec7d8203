"""Linux 7.3."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.codec import InvalidForm
from inspector.events import TTL_UNKNOWN
from inspector.generations.forms import Annotation, Eagain, PgtFlags, ProtLayout
from inspector.generations.v6_18 import GENERATION as V6_18

GENERATION: Final = replace(
    V6_18,
    label="7.3",
    source="7.3.4",
    cross_checked=True,
    has=("invalid_pte_type",),
    lacks=(),
    invalid=InvalidForm.TYPED,
    pgt_flags=PgtFlags.IDMAP_AS_S1,
    eagain=Eagain.STOPS_UNLESS_IGNORED,
    two_bit_xn=True,
    prot_layout=ProtLayout.SPLIT_X,
    annotation=Annotation.TYPED,
    wrprotect_ignores_eagain=True,
    relax_eagain_level=TTL_UNKNOWN,
    destroy_in_ranges=True,
    hyp_two_bit_xn=True,
)
