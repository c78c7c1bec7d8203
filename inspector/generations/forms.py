"""The forms that page-table code takes: each a closed set of which a generation has one."""

from __future__ import annotations

import enum


class MapScheme(enum.Enum):
    """How map replaces entries, and how a table gives way to a block (kernel.md 4.3-4.5).

    One choice, because the forms do not mix: the marker, the order of put, store and get, who counts the PA on, and
    whether an identical or permission-only map is refused, all come with it.
    """

    ANCHOR_IN_PLACE = (
        "5.10: page put early, break-before-make only over a different valid entry, any difference is one; no"
        " cache maintenance (the fault handler's business); the anchor's child is found again in the entry's stale bits"
    )
    ANCHOR = (
        "5.15, 6.1: stage2_put_pte then store then get; anchor and childp; identical or permission-only gives -EAGAIN;"
        " the PA is a running counter"
    )
    UNLINK = (
        "6.6+: LOCKED between break and make; tables replaced in TABLE_PRE and handed to free_unlinked_table; identical"
        " or permission-only gives -EAGAIN; the PA follows from the distance walked"
    )


class Eagain(enum.Enum):
    """What the walker does with -EAGAIN from a visitor (kernel.md 3.4)."""

    STOPS = "like any error"
    STOPS_IN_FAULT = "stops only with KVM_PGTABLE_WALK_HANDLE_FAULT, else forgotten"
    STOPS_UNLESS_IGNORED = "forgotten only with KVM_PGTABLE_WALK_IGNORE_EAGAIN"


class Annotation(enum.Enum):
    """How a page without mapping is annotated (kernel.md 1.6, 5)."""

    NONE = "not possible"
    OWNER_BY_INVALID_PA = "owner id in [9:2], the walk told apart by an impossible PA"
    OWNER_BY_FLAG = "owner id in [9:2], the walk told apart by a flag"
    TYPED = "type in [63:60], payload in [59:1]"


class TableTlbi(enum.Enum):
    """The level hint when unmap clears a table entry (kernel.md 6)."""

    OWN_LEVEL = "the level of the entry"
    ZERO = "0, which those releases take as no hint"
    UNKNOWN = "TLBI_TTL_UNKNOWN"


class WalkFlags(enum.Enum):
    """Who chooses the walk flags of relax_perms and mkyoung (kernel.md 7.3, 7.4)."""

    NONE = "there are none"
    FAULT_SHARED = "always HANDLE_FAULT and SHARED"
    CALLER = "an argument"


class ProtLayout(enum.Enum):
    """Where a generation keeps its ``enum kvm_pgtable_prot`` bits (kernel.md 1.4)."""

    SINGLE_X = "X W R DEVICE from BIT(0)"
    SINGLE_X_NC = "X W R DEVICE NORMAL_NC from BIT(0)"
    SPLIT_X = "PX UX W R DEVICE NORMAL_NC from BIT(0)"


class PgtFlags(enum.Enum):
    """What ``pgt->flags`` says (``enum kvm_pgtable_stage2_flags``; kernel.md 1.3, 4.1), in order from BIT(0)."""

    # No tuples: Python 3.11.2, Debian 12's, loses an empty one.
    NONE = "none"
    NOFWB_IDMAP = "NOFWB IDMAP"
    IDMAP_AS_S1 = "IDMAP AS_S1"

    def bit(self, name: str) -> int:
        """The bit of the flag called ``name``; 0 where there is none."""
        names = self.value.split()
        return 1 << names.index(name) if name in names else 0
