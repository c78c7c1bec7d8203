"""Linux 6.19: execute-never in two bits, destroyed in ranges, -EAGAIN stops every walk that does not ignore it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.generations.forms import Eagain, ProtLayout
from inspector.generations.v6_18 import GENERATION as V6_18

GENERATION: Final = replace(
    V6_18,
    label="6.19",
    source=None,
    cross_checked=False,
    has=("xn_two_bits",),
    lacks=("as_s1", "invalid_pte_type"),
    eagain=Eagain.STOPS_UNLESS_IGNORED,
    two_bit_xn=True,
    prot_layout=ProtLayout.SPLIT_X,
    wrprotect_ignores_eagain=True,
    destroy_in_ranges=True,
    hyp_two_bit_xn=True,
)
