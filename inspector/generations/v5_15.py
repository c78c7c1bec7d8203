"""Linux 5.15: mm_ops, owners in invalid entries, references held by whatever is not zero."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.generations.forms import TableTlbi
from inspector.generations.v6_1 import GENERATION as V6_1

GENERATION: Final = replace(
    V6_1,
    label="5.15",
    source="5.15.100",
    cross_checked=False,
    has=("mm_ops", "vmid_struct"),
    lacks=("visit_ctx",),
    unmap_table_tlbi=TableTlbi.OWN_LEVEL,
    permission_faults_share_lock=False,
    hyp_unmap=False,
    hyp_conflict_goes_on=False,
    ha_always=True,
)
