"""What a live leaf stands for: the permissions and memory type that somebody asked ``map`` for.

Read from the bits that carry them and from nothing else, and put right where KVM cannot have asked for that: what
does not come back when the model maps it anew is a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inspector.capture.view import TableView
from inspector.compare.machine import format_of
from inspector.generations import KernelCode
from inspector.model import Prot
from inspector.model.attributes import MEMATTR_MASK, S2AP_R, S2AP_W, XN, XN_FIELD, Attributes
from inspector.model.prot import SW_MASK
from inspector.snapshot import MmuKind

_PX_UX: Final = {0b00: Prot.X, 0b01: Prot.UX, 0b10: Prot.NONE, 0b11: Prot.PX}
"""XN[1:0] with FEAT_XNX (DDI 0487 D8.4)."""


@dataclass(frozen=True)
class Reading:
    """How the leaves of one table are read: ``software`` bits count only where KVM uses them.

    ``always_readable``: KVM maps nothing that a guest may not read, but in shadow tables (kernel.md 11.4, 19.9).
    ``ram_is_normal``: memory that the kernel runs from is never mapped as a device or non-cacheable (kernel.md 11.4).
    """

    attributes: Attributes
    xnx: bool
    software: bool
    always_readable: bool
    ram_is_normal: bool
    memory: dict[int, Prot]

    @property
    def mask(self) -> int:
        """The bits of a leaf that are read."""
        xn = XN_FIELD if self.xnx else XN
        return MEMATTR_MASK | S2AP_R | S2AP_W | xn | (SW_MASK if self.software else 0)

    def prot(self, bits: int, in_ram: bool) -> int:
        """What was asked for, given the bits of `mask`; ``in_ram``: the leaf maps the kernel's own RAM."""
        prot = Prot.R if self.always_readable or bits & S2AP_R else Prot.NONE
        if bits & S2AP_W:
            prot |= Prot.W
        memory = self.memory.get(bits & MEMATTR_MASK, Prot.NONE)
        if in_ram and self.ram_is_normal:
            memory = Prot.NONE
        if memory is Prot.NONE:  # devices and non-cacheable memory are never executable
            prot |= _PX_UX[bits >> 53 & 3] if self.xnx else Prot.NONE if bits & XN else Prot.X
        return int(prot | memory) | (bits & SW_MASK if self.software else 0)


def reading_of(view: TableView, kernel: KernelCode, attributes: Attributes, software: bool) -> Reading:
    """How ``view``'s leaves are read."""
    kinds = [Prot.DEVICE]
    if kernel.behaviours.normal_nc:
        kinds.append(Prot.NORMAL_NC)
    memory = {attributes.of_prot(int(kind | Prot.R)) & MEMATTR_MASK: kind for kind in kinds}
    plain = view.mmu.kind is MmuKind.VM
    return Reading(attributes, format_of(kernel, view).xnx, software, plain, plain, memory)
