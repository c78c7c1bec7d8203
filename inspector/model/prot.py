"""What a caller asks for: permissions and memory type, in one layout for all kernel generations.

``enum kvm_pgtable_prot`` moved between releases (X is BIT(0) up to 6.18, PX and UX are BIT(0) and BIT(1) in 7.3,
W and R moved up with it); :func:`kernel_prot` gives the value a given kernel's enumerators have.
Facts: kernel.md 1.4; asm/kvm_pgtable.h of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
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


_ORDERS: Final[Mapping[ProtLayout, tuple[Prot, ...]]] = {
    ProtLayout.SINGLE_X: (Prot.X, Prot.W, Prot.R, Prot.DEVICE),
    ProtLayout.SINGLE_X_NC: (Prot.X, Prot.W, Prot.R, Prot.DEVICE, Prot.NORMAL_NC),
    ProtLayout.SPLIT_X: (Prot.PX, Prot.UX, Prot.W, Prot.R, Prot.DEVICE, Prot.NORMAL_NC),
}
"""The enumerators in order from BIT(0)."""


def kernel_prot(prot: int, behaviours: Generation) -> int:
    """The kernel's own value for ``prot`` (software bits unchanged).

    Raises ``ValueError`` for what that kernel has no enumerator for: one execute bit alone before 7.3,
    NORMAL_NC before 6.12.
    """
    value = prot & SW_MASK
    order = _ORDERS[behaviours.prot_layout]
    if Prot.X in order and prot & Prot.X not in (0, Prot.X):
        raise ValueError("this kernel has one execute bit, not two")
    if Prot.NORMAL_NC not in order and prot & Prot.NORMAL_NC:
        raise ValueError("this kernel has no normal non-cacheable mappings")
    for position, bit in enumerate(order):
        if prot & bit:
            value |= 1 << position
    return value


def model_prot(value: int, behaviours: Generation) -> int:
    """What a kernel's own ``enum kvm_pgtable_prot`` value asks for: the inverse of `kernel_prot`.

    Raises ``ValueError`` for a bit that is none of its enumerators.
    """
    prot = value & SW_MASK
    left = value & ~SW_MASK
    for position, bit in enumerate(_ORDERS[behaviours.prot_layout]):
        if left >> position & 1:
            prot |= int(bit)
            left &= ~(1 << position)
    if left:
        raise ValueError(f"{value:#x} has bits that are no enumerator of kvm_pgtable_prot")
    return prot
