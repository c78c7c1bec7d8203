"""What a build of the kernel is recognised by: its types, members, enumerators and exported functions.

Never its release: stable releases carry back-ported changes.  Never a static function either, which a compiler may
inline.  A capture file holds the traits by name, so a name stays what it is for ever.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Probe(enum.Enum):
    """What is looked for in a kernel's symbols and types; the value says it of one that is there, and is not."""

    STRUCT = ("struct {0} exists", "struct {0} does not exist")
    MEMBER = ("{0}.{1} exists", "{0}.{1} does not exist")
    SIGNED = ("{0}.{1} is signed", "{0}.{1} is unsigned")
    ENUM = ("enum {0} exists", "enum {0} does not exist")
    ENUMERATOR = ("{1} exists", "{1} does not exist")


@dataclass(frozen=True)
class Trait:
    """``type`` is the structure or enumeration, ``name`` its member or enumerator."""

    probe: Probe
    type: str
    name: str = ""

    def text(self, present: bool) -> str:
        """In words: ``kvm_pgtable.mm_ops exists``."""
        return self.probe.value[0 if present else 1].format(self.type, self.name)


TRAITS: Final[Mapping[str, Trait]] = {
    "pgtable": Trait(Probe.STRUCT, "kvm_pgtable"),
    "mm_ops": Trait(Probe.MEMBER, "kvm_pgtable", "mm_ops"),
    "visit_ctx": Trait(Probe.STRUCT, "kvm_pgtable_visit_ctx"),
    "signed_level": Trait(Probe.SIGNED, "kvm_pgtable", "start_level"),
    "vmid_struct": Trait(Probe.MEMBER, "kvm_vmid", "vmid_gen"),
    "pkvm_mappings": Trait(Probe.MEMBER, "kvm_pgtable", "pkvm_mappings"),
    "invalid_pte_type": Trait(Probe.ENUM, "kvm_invalid_pte_type", "KVM_INVALID_PTE_TYPE_LOCKED"),
    "prot_normal_nc": Trait(Probe.ENUMERATOR, "kvm_pgtable_prot", "KVM_PGTABLE_PROT_NORMAL_NC"),
    # Captures made before 2026-11-26 hold it from the symbol stage2_set_xn_attr, which came with the enumerator.
    "xn_two_bits": Trait(Probe.ENUMERATOR, "kvm_pgtable_prot", "KVM_PGTABLE_PROT_UX"),
    "as_s1": Trait(Probe.ENUMERATOR, "kvm_pgtable_stage2_flags", "KVM_PGTABLE_S2_AS_S1"),
    # How Linux marks stage-1 entries that are present but not valid is a macro (PTE_PRESENT_INVALID; PTE_PROT_NONE
    # and PMD_PRESENT_INVALID before) and leaves no trace in types.  Both 6.12 and the byte-sized page types have the
    # new form, 6.1 neither.
    "present_invalid_bit11": Trait(Probe.ENUMERATOR, "pagetype", "PGTY_buddy"),
}
