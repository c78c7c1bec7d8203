"""What the bits of a descriptor mean beyond geometry: regime, CPU features, kernel generation."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Regime(enum.StrEnum):
    """Which kind of table the entry belongs to.

    ``HYP_STAGE1`` is KVM's own stage 1 at EL2 (EL2 regime, or EL2&0 with hVHE); ``LINUX_STAGE1`` is a table of the
    Linux kernel or one of its processes (EL1&0, or EL2&0 on a VHE host: the descriptors are the same).
    """

    STAGE2 = "stage-2"
    HYP_STAGE1 = "hyp stage-1"
    LINUX_STAGE1 = "Linux stage-1"


class InvalidForm(enum.StrEnum):
    """What a kernel generation writes into stage-2 entries whose bit 0 is clear.

    ``STALE`` (5.10): ``kvm_set_invalid_pte`` only clears bit 0, the rest is whatever was there.
    ``OWNER`` (5.15, 6.1): zero, or an owner id in [9:2] (``KVM_INVALID_PTE_OWNER_MASK``).
    ``LOCKED_BIT10`` (6.2 to 7.0): the same, and bit 10 while a break-before-make is under way
    (``KVM_INVALID_PTE_LOCKED``).
    ``TYPED`` (7.1 and later): a type in [63:60] (``enum kvm_invalid_pte_type``).
    """

    STALE = "stale"
    OWNER = "owner"
    LOCKED_BIT10 = "locked-bit10"
    TYPED = "typed"


class Kind(enum.StrEnum):
    """What an entry is.

    For stage 2 and hyp stage 1 the first bit decides what the hardware sees.  ``ANNOTATED`` and ``LOCKED`` are invalid
    to the hardware and mean something to the kernel.  In a Linux stage-1 table an entry that is present but not
    valid (PROT_NONE, a block being split) is the ``PAGE`` or ``BLOCK`` that Linux takes it for, with its field
    ``valid`` 0 (see `Descriptor.valid`); a swap or migration entry is ``ANNOTATED`` and has no output address.
    """

    INVALID = "invalid"
    ANNOTATED = "annotated"
    LOCKED = "locked"
    TABLE = "table"
    BLOCK = "block"
    PAGE = "page"
    RESERVED = "reserved"

    @property
    def is_leaf(self) -> bool:
        """Maps memory: a block or a page."""
        return self is Kind.BLOCK or self is Kind.PAGE


class Shareability(enum.StrEnum):
    """SH[1:0] of a leaf (DDI 0487 D8.6.2), in the order of its values."""

    NON = "non"
    RESERVED = "reserved"
    OUTER = "outer"
    INNER = "inner"


class Execute(enum.StrEnum):
    """Where a leaf may be executed: everywhere, at EL1 only, at EL0 only, or nowhere."""

    ALL = "X"
    PRIVILEGED = "PX"
    UNPRIVILEGED = "UX"
    NEVER = "-"


class MemoryType(enum.StrEnum):
    """The memory types that KVM writes (``KVM_S2_MEMATTR``, ``MT_S2_*``; DDI 0487 D8.6)."""

    NORMAL = "normal"
    NORMAL_NC = "normal-nc"
    DEVICE = "device-nGnRE"
    AS_S1 = "as-s1"


@dataclass(frozen=True)
class Format:
    """How to read the attribute bits.

    ``fwb``: the stage 2 runs with HCR_EL2.FWB, which changes MemAttr.  ``xnx``: the CPU has FEAT_XNX and the kernel
    writes the two-bit XN field (from 6.19); otherwise XN is bit 54 alone and bit 53 must be zero.  ``invalid``: see
    `InvalidForm`.  ``hvhe``: the hyp stage 1 is an EL2&0 one (PXN and UXN in place of XN).  ``shadow``: a nested
    guest's shadow stage 2 (software bits are a level hint).  ``protected``: under pKVM (software bits are a page
    state).  ``mair``: MAIR_EL2, which gives a hyp stage 1 its memory types (0: not known).
    ``linux_612``: Linux stage-1 entries as from 6.12 on (present-invalid is bit 11) and not as up to 6.1 (PROT_NONE
    bit 58, PMD_PRESENT_INVALID bit 59).
    """

    regime: Regime
    fwb: bool = False
    xnx: bool = False
    invalid: InvalidForm = InvalidForm.OWNER
    hvhe: bool = False
    shadow: bool = False
    protected: bool = False
    linux_612: bool = False
    mair: int = 0
