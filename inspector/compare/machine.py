"""The CPU and the format under which the model builds a captured table anew."""

from __future__ import annotations

from dataclasses import replace

from inspector.capture.view import TableView
from inspector.codec import Format
from inspector.findings import BadInput
from inspector.generations import KernelCode
from inspector.model import Machine


def format_of(code: KernelCode, view: TableView) -> Format:
    """How ``view``'s entries are read: as the checks do, unless another generation was asked for."""
    if not code.chosen:
        return view.format
    xnx = code.behaviours.two_bit_xn and bool(view.capture.host.features.get("xnx"))
    return replace(view.format, invalid=code.behaviours.invalid, xnx=xnx)


def machine_of(code: KernelCode, view: TableView) -> Machine:
    """The CPU and flags under which ``view``'s table was made.  Raises `BadInput` when they contradict."""
    if view.geometry.lpa2 and not code.behaviours.lpa2:
        raise BadInput(f"a {code.label} kernel makes no 52-bit tables (LPA2), and {view.title} is one")
    flags = view.mmu.pgt_flags or 0
    return Machine(
        fwb=view.format.fwb,  # KVM_PGTABLE_S2_NOFWB is taken into account there
        tlb_range=bool(view.capture.host.features.get("tlbirange")),
        xnx=format_of(code, view).xnx,
        as_s1=bool(flags & code.behaviours.pgt_flags.bit("AS_S1")),
    )
