"""What a caller asks for: permissions and memory type, in one layout for all kernel generations.

``enum kvm_pgtable_prot`` moved between releases (X is BIT(0) up to 6.18, PX and UX are BIT(0) and BIT(1) in 7.3,
W and R moved up with it); :func:`kernel_prot` gives the value a given kernel's enumerators have.
Facts: kernel.md 1.4; asm/kvm_pgtable.h of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

import enum
from typing import Final

from inspector.generations import Generation, ProtLayout

SW_MASK: Final = 0b1111 << 55
"""``KVM_PTE_LEAF_ATTR_HI_SW``: software bits travel in their PTE position, in every generation."""


class Prot(enum.IntFlag):
    """Requested permissions; ``X`` is both execute bits, the only form generations before 7.3 have."""

    NONE = 0
    R = 1
    W = 2
    PX = 4
    UX = 8
    X = PX | UX
    RW = R | W
    RWX = R | W | X
    DEVICE = 16
    NORMAL_NC = 32


def kernel_prot(prot: int, behaviours: Generation) -> int:
    """The kernel's own value for ``prot`` (software bits unchanged).

    Raises ``ValueError`` for what that kernel has no enumerator for: one execute bit alone before 7.3,
    NORMAL_NC before 6.12.
    """
    layout = behaviours.prot_layout
    value = prot & SW_MASK
    if layout is ProtLayout.SPLIT_X:
        order: tuple[Prot, ...] = (Prot.PX, Prot.UX, Prot.W, Prot.R, Prot.DEVICE, Prot.NORMAL_NC)
    else:
        if prot & Prot.X not in (0, Prot.X):
            raise ValueError("this kernel has one execute bit, not two")
        order = (Prot.X, Prot.W, Prot.R, Prot.DEVICE, Prot.NORMAL_NC)
        if layout is ProtLayout.SINGLE_X and prot & Prot.NORMAL_NC:
            raise ValueError("this kernel has no normal non-cacheable mappings")
    for position, bit in enumerate(order):
        if prot & bit:
            value |= 1 << position
    return value
