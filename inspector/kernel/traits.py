"""Facts of a kernel build recognised by its symbols and types, never by its release (kernel.md 0)."""

from __future__ import annotations

from inspector.symbols.api import Symbols


def traits(symbols: Symbols) -> dict[str, bool]:
    """Name of the trait to whether this build has it; `inspector.behaviours` says what follows from each."""

    def has_symbol(name: str) -> bool:
        return symbols.address(name) is not None

    return {
        "mm_ops": symbols.has_member("kvm_pgtable", "mm_ops"),
        "visit_ctx": symbols.struct("kvm_pgtable_visit_ctx") is not None,
        "signed_level": symbols.has_member("kvm_pgtable", "start_level")
        and symbols.member("kvm_pgtable", "start_level").type.signed,
        "vmid_struct": symbols.has_member("kvm_vmid", "vmid_gen"),
        "mmu_vtcr": symbols.has_member("kvm_s2_mmu", "vtcr"),
        "pkvm_mappings": symbols.has_member("kvm_pgtable", "pkvm_mappings"),
        "invalid_pte_type": symbols.enumerator("kvm_invalid_pte_type", "KVM_INVALID_PTE_TYPE_LOCKED") is not None,
        "prot_normal_nc": symbols.enumerator("kvm_pgtable_prot", "KVM_PGTABLE_PROT_NORMAL_NC") is not None,
        "xn_two_bits": has_symbol("stage2_set_xn_attr"),
        "nested_mmus": symbols.has_member("kvm_arch", "nested_mmus"),
        "present_invalid_bit11": present_invalid_bit11(symbols),
    }


def present_invalid_bit11(symbols: Symbols) -> bool:
    """How Linux marks stage-1 entries that are present but not valid: bit 11, or bits 58 and 59 before.

    The marks are macros (PTE_PRESENT_INVALID; PTE_PROT_NONE and PMD_PRESENT_INVALID before,
    arch/arm64/include/asm/pgtable-prot.h) and leave no trace in types; of the kernels read, 6.1 has the old and 6.12
    the new form, and the byte-sized page types (enum pagetype) tell these apart.
    """
    return symbols.enumerator("pagetype", "PGTY_buddy") is not None
