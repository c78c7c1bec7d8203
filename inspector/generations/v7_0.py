"""Linux 7.0: no flag turns FWB off any more, and one forces what stage 1 says."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.generations.forms import PgtFlags
from inspector.generations.v6_19 import GENERATION as V6_19

GENERATION: Final = replace(
    V6_19,
    label="7.0",
    has=("as_s1",),
    lacks=("invalid_pte_type",),
    pgt_flags=PgtFlags.IDMAP_AS_S1,
)
