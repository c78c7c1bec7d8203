"""Linux 6.6: parallel faults, LOCKED entries, eager splitting."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.generations.forms import ProtLayout, TableTlbi
from inspector.generations.v6_12 import GENERATION as V6_12

GENERATION: Final = replace(
    V6_12,
    label="6.6",
    source="6.6.9",
    cross_checked=False,
    has=("visit_ctx",),
    lacks=("signed_level",),
    first_level=0,
    lpa2=False,
    prot_layout=ProtLayout.SINGLE_X,
    software_bits_store=False,
    span_flush_aligned=False,
    cmo_checks_valid=False,
    unmap_table_tlbi=TableTlbi.OWN_LEVEL,
    unmap_defers_tables_too=True,
    relax_flush_on_eagain=False,
    split_barrier_each=True,
    unlinked_double_put=True,
    init_all_vmids=False,
    present_invalid_bit11=False,
)
