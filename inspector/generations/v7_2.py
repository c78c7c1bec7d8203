"""Linux 7.2: invalid entries have a type.  Its pgtable.c and kvm_pgtable.h are those of 7.3, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inspector.codec import InvalidForm
from inspector.events import TTL_UNKNOWN
from inspector.generations.forms import Annotation
from inspector.generations.v7_0 import GENERATION as V7_0

GENERATION: Final = replace(
    V7_0,
    label="7.2",
    source="7.2.12",
    cross_checked=True,
    has=("invalid_pte_type",),
    lacks=(),
    invalid=InvalidForm.TYPED,
    annotation=Annotation.TYPED,
    relax_eagain_level=TTL_UNKNOWN,
)
