"""Named behaviours of kernel generations: what differs, since when, and how it is recognised.

A behaviour is decided from ``Host.traits`` (types, members and symbols that this kernel build has or has not) and CPU
features, never from a release number: stable releases carry back-ported changes.  `CATALOGUE` is the table that
people read; the functions below it are the same facts for the rest of the tool.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from inspector.codec import Format, InvalidForm, Regime

Traits = Mapping[str, bool]


class HostFacts(Protocol):
    """What is asked of a host (``inspector.snapshot.Host`` is one)."""

    @property
    def mode(self) -> str: ...

    @property
    def features(self) -> Mapping[str, int]: ...

    @property
    def traits(self) -> Traits: ...


class KernelFacts(Protocol):
    """What a kernel is recognised by (``inspector.snapshot.Host`` has it)."""

    @property
    def release(self) -> str: ...

    @property
    def traits(self) -> Traits: ...


class MmuFacts(Protocol):
    """What is asked of a ``struct kvm_s2_mmu`` (``inspector.snapshot.Mmu`` is one)."""

    @property
    def kind(self) -> str: ...

    @property
    def pgt_flags(self) -> int | None: ...


#: ``pgt->flags`` bit of ``KVM_PGTABLE_S2_NOFWB`` in 5.15-6.18 (7.3 dropped it and moved IDMAP to bit 0).
_NOFWB = 1 << 0


class Counted(enum.Enum):
    """Which entries of a table page hold a reference on it (``stage2_pte_is_counted``)."""

    VALID = "valid entries"
    NONZERO = "non-zero entries, a LOCKED one excepted"


@dataclass(frozen=True)
class Behaviour:
    """One difference between kernel generations.

    ``since`` is the release from which the later form is known, as far as sources were read; ``recognised`` says
    by what it is told in a kernel at hand.
    """

    name: str
    differs: str
    since: str
    recognised: str


CATALOGUE: tuple[Behaviour, ...] = (
    Behaviour(
        "invalid-form",
        "what an invalid entry may hold: stale bits (5.10); zero, or an owner in [9:2] under pKVM (5.15, 6.1); also "
        "LOCKED in bit 10 (6.2 to 6.18); a type in [63:60] (7.x)",
        "5.15, 6.2, 7.x",
        "kvm_pgtable.mm_ops exists; struct kvm_pgtable_visit_ctx exists; enum kvm_invalid_pte_type exists",
    ),
    Behaviour(
        "counted",
        "entries that hold a reference on their table page: valid ones (5.10), non-zero ones but LOCKED (5.15+)",
        "5.15",
        "kvm_pgtable.mm_ops exists",
    ),
    Behaviour(
        "xn-two-bits",
        "execute-never is bit 54, or the two bits [54:53] where the CPU has FEAT_XNX",
        "7.x",
        "stage2_set_xn_attr exists",
    ),
    Behaviour(
        "software-bits",
        "bits [58:55]: unused (5.10); page state in guests of protected mode; level hint in shadow tables of nested "
        "guests; otherwise zero",
        "5.15, 6.12",
        "host mode; whether the MMU is a shadow one",
    ),
    Behaviour(
        "ha-always",
        "VTCR_EL2.HA is always set (5.10, 5.15), or follows CONFIG_ARM64_HW_AFDBM and an erratum (6.1+)",
        "6.1",
        "kvm_vmid is a struct with a generation (up to 5.15), an atomic64 later",
    ),
    Behaviour(
        "vtcr-place",
        "VTCR_EL2 is kept per VM (kvm->arch.vtcr) or per MMU (mmu->vtcr)",
        "6.12",
        "kvm_s2_mmu.vtcr exists",
    ),
    Behaviour(
        "nofwb-flag",
        "kvm_pgtable.flags bit 0 turns FWB encodings off (5.15 to 6.18); later it means an identity map",
        "5.15, 7.x",
        "kvm_pgtable.mm_ops exists and enum kvm_invalid_pte_type does not",
    ),
    Behaviour(
        "pkvm-mappings",
        "under protected mode the hypervisor owns the guests' tables, and kvm_pgtable holds a tree of mappings",
        "6.18",
        "kvm_pgtable.pkvm_mappings exists",
    ),
)


def invalid_form(traits: Traits) -> InvalidForm:
    """The form of invalid entries (kernel.md 1.6: ``kvm_set_invalid_pte``, ``KVM_INVALID_PTE_LOCKED``)."""
    if traits.get("invalid_pte_type"):
        return InvalidForm.TYPED
    if traits.get("visit_ctx"):
        return InvalidForm.LOCKED_BIT10
    if traits.get("mm_ops"):
        return InvalidForm.OWNER
    return InvalidForm.STALE


def counted(traits: Traits) -> Counted:
    """Which entries hold a reference on their table page (5.15 ``stage2_pte_is_counted``)."""
    return Counted.VALID if invalid_form(traits) is InvalidForm.STALE else Counted.NONZERO


def xn_two_bits(traits: Traits) -> bool:
    """True when ``stage2_set_xn_attr`` writes the field [54:53]."""
    return bool(traits.get("xn_two_bits"))


def ha_always(traits: Traits) -> bool:
    """True when VTCR_EL2.HA is set whatever the configuration (5.10, 5.15)."""
    return invalid_form(traits) is InvalidForm.STALE or bool(traits.get("vmid_struct"))


def has_nofwb_flag(traits: Traits) -> bool:
    """True when bit 0 of ``pgt->flags`` is ``KVM_PGTABLE_S2_NOFWB``."""
    return bool(traits.get("mm_ops")) and not traits.get("invalid_pte_type")


def software_bits_used(host: HostFacts, mmu: MmuFacts) -> bool:
    """True when bits [58:55] of a leaf of ``mmu`` may be set (pKVM page states, nested level hints)."""
    return host.mode == "protected" or mmu.kind == "shadow"


def stage2_format(host: HostFacts, mmu: MmuFacts) -> Format:
    """What the bits of ``mmu``'s descriptors mean on ``host``."""
    fwb = bool(host.features.get("fwb"))
    if has_nofwb_flag(host.traits) and mmu.pgt_flags is not None and mmu.pgt_flags & _NOFWB:
        fwb = False
    return Format(
        regime=Regime.STAGE2,
        fwb=fwb,
        xnx=xn_two_bits(host.traits) and bool(host.features.get("xnx")),
        invalid=invalid_form(host.traits),
        shadow=mmu.kind == "shadow",
        protected=host.mode == "protected",
    )


# --- generations: the sets of behaviours that the model knows by the release they were read in ---

GENERATIONS: tuple[str, ...] = ("5.10", "5.15", "6.1", "6.6", "6.12", "6.18", "7.3")
"""Labels of the generations, oldest first (``inspector.model`` says how each behaves)."""


@dataclass(frozen=True)
class Generation:
    """Which generation a kernel is of, and how that is known.

    ``how`` is what it was recognised by, in words; ``assumed`` is true when only its release says so.  ``series`` is
    the kernel's own release series, which a generation may lie behind (a 6.9 behaves as 6.12 as far as we can tell).
    """

    label: str
    how: str
    assumed: bool
    series: str | None

    @property
    def as_read(self) -> bool:
        """True when the kernel is of the very series whose source was read for this generation."""
        return self.series == self.label


#: Newest first: the first row whose traits are all there is the generation (kernel.md 0, "how to detect in a vmlinux").
_RECOGNISED: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("7.3", ("invalid_pte_type",), "enum kvm_invalid_pte_type exists"),
    ("6.18", ("visit_ctx", "pkvm_mappings"), "kvm_pgtable.pkvm_mappings exists, enum kvm_invalid_pte_type does not"),
    ("6.12", ("visit_ctx", "signed_level"), "kvm_pgtable.start_level is signed, and it has no pkvm_mappings"),
    ("6.6", ("visit_ctx",), "struct kvm_pgtable_visit_ctx exists, and kvm_pgtable.start_level is unsigned"),
    ("5.15", ("mm_ops", "vmid_struct"), "kvm_pgtable.mm_ops and kvm_vmid.vmid_gen exist"),
    ("6.1", ("mm_ops",), "kvm_pgtable.mm_ops exists, struct kvm_pgtable_visit_ctx and kvm_vmid.vmid_gen do not"),
)


def series_of(release: str) -> str | None:
    """``6.12`` of ``6.12.107+deb13-cloud-arm64``; ``None`` when the text does not begin so."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return f"{int(found[1])}.{int(found[2])}" if found else None


def _number(series: str) -> tuple[int, int]:
    major, minor = series.split(".")
    return int(major), int(minor)


def recognise(host: KernelFacts) -> Generation:
    """The generation of ``host``'s kernel: from its types and symbols, else from its release, and then assumed."""
    series = series_of(host.release)
    for label, needed, how in _RECOGNISED:
        if all(host.traits.get(name) for name in needed):
            return Generation(label, how, False, series)
    if series is None:
        return Generation(GENERATIONS[-1], "neither its types nor its release are known: the newest", True, None)
    if _number(series) < _number("5.15"):
        # 5.10 has none of the traits; that its release says so too tells it from a kernel without type information.
        return Generation("5.10", "kvm_pgtable.mm_ops does not exist", False, series)
    older = [label for label in GENERATIONS if _number(label) <= _number(series)]
    return Generation(older[-1], f"its release is {series}, and its types are not known", True, series)
