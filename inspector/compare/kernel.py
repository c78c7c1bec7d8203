"""Which model stands for the kernel of a capture: its generation, the CPU it runs on, how its entries are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from inspector.behaviours import GENERATIONS, Generation, invalid_form, recognise, xn_two_bits
from inspector.capture.view import TableView
from inspector.codec import Format, InvalidForm
from inspector.findings import BadInput
from inspector.model import Machine, ModelBehaviours, generation
from inspector.snapshot import Host

_AS_S1: Final = 1 << 1
"""``KVM_PGTABLE_S2_AS_S1`` in ``pgt->flags`` (7.3)."""

_LOCKED: Final = {
    InvalidForm.STALE: (0, 0),
    InvalidForm.OWNER: (0, 0),
    InvalidForm.LOCKED_BIT10: (1 << 10, 1 << 10),
    InvalidForm.TYPED: (0xF << 60, 1 << 60),
}
"""Mask and value of a LOCKED entry by the form of invalid entries (kernel.md 1.6)."""


@dataclass(frozen=True)
class Kernel:
    """The model that a host's tables are compared with.

    ``generation`` says how it was recognised, or that it was asked for (``chosen``); ``behaviours`` is that
    generation, put right by what this very kernel is known to do.
    """

    generation: Generation
    behaviours: ModelBehaviours
    chosen: bool

    @property
    def label(self) -> str:
        return self.generation.label

    @property
    def proven(self) -> bool:
        """Compared with the compiled code of a kernel of this very series."""
        return generation(self.label).proven and (self.chosen or self.generation.as_read)

    @property
    def standing(self) -> str:
        """``proven`` or ``from facts only``."""
        return "proven" if self.proven else "from facts only"

    @property
    def text(self) -> str:
        """``6.12 (recognised by …), proven``."""
        if self.chosen:
            known = "as asked for"
        else:
            known = f"{'assumed: ' if self.generation.assumed else 'recognised by: '}{self.generation.how}"
            series = self.generation.series
            if series is not None and not self.generation.as_read and not self.generation.assumed:
                known += f"; the kernel is a {series}"
        return f"{self.label} ({known}), {self.standing}"

    def format(self, view: TableView) -> Format:
        """How ``view``'s entries are read: as the checks do, unless another generation was asked for."""
        if not self.chosen:
            return view.format
        form = InvalidForm.OWNER
        if self.behaviours.stale_invalid:
            form = InvalidForm.STALE
        elif self.behaviours.locked_mask:
            form = InvalidForm.TYPED if self.behaviours.locked_value >> 60 else InvalidForm.LOCKED_BIT10
        xnx = self.behaviours.two_bit_xn and bool(view.capture.host.features.get("xnx"))
        return replace(view.format, invalid=form, xnx=xnx)

    def machine(self, view: TableView) -> Machine:
        """The CPU and flags under which ``view``'s table was made.  Raises `BadInput` when they contradict."""
        if view.geometry.lpa2 and not self.behaviours.lpa2:
            raise BadInput(f"a {self.label} kernel makes no 52-bit tables (LPA2), and {view.title} is one")
        features, flags = view.capture.host.features, view.mmu.pgt_flags or 0
        return Machine(
            fwb=view.format.fwb,  # KVM_PGTABLE_S2_NOFWB is taken into account there
            tlb_range=bool(features.get("tlbirange")),
            xnx=self.format(view).xnx,
            as_s1=self.behaviours.as_s1 and bool(flags & _AS_S1),
        )


def kernel_of(host: Host, label: str | None = None) -> Kernel:
    """The model for ``host``'s kernel, or the generation ``label`` whatever the kernel.

    Raises `BadInput` for a label that does not exist.
    """
    found = recognise(host)
    if label is not None:
        if label not in GENERATIONS:
            raise BadInput(f"there is no generation '{label}': the model knows {', '.join(GENERATIONS)}")
        return Kernel(replace(found, label=label, how="asked for", assumed=False), generation(label), True)
    read = generation(found.label)
    if found.assumed:
        return Kernel(found, read, False)
    mask, value = _LOCKED[invalid_form(host.traits)]
    # A kernel between two that were read may have one of these and not yet the other.
    put_right = replace(
        read,
        two_bit_xn=xn_two_bits(host.traits),
        locked_mask=mask,
        locked_value=value,
        lpa2=read.lpa2 or bool(host.traits.get("signed_level")),
    )
    return Kernel(found, put_right, False)
