"""The stage 2 that a guest hypervisor made, as a capture holds it: the one that a shadow table was made of.

Its addresses are the hypervisor's: what the reports call L1. What goes in is an IPA of its own guest, L2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from inspector.capture.view import TableView, View
from inspector.codec import Format, InvalidForm, Regime, decode_register
from inspector.codec.nested import guest_stage2, root_bytes
from inspector.snapshot import Mmu, Vcpu, Vm

_VTTBR_CNP = 1
_SCTLR_EE = 1 << 25
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class GuestView(View):
    """The table behind ``shadow``; ``root_pa`` and every table's address in it are addresses of L1."""

    shadow: TableView

    @property
    def regime(self) -> str:
        return "the guest's own stage-2"

    @property
    def title(self) -> str:
        """``the guest's own stage-2 (VTTBR_EL2 0x…, VTCR_EL2 0x…)``."""
        mmu = self.shadow.mmu
        return f"{self.regime} (VTTBR_EL2 {mmu.nested_vttbr or 0:#018x}, VTCR_EL2 {mmu.nested_vtcr or 0:#018x})"

    @cached_property
    def format(self) -> Format:
        """XN has two bits where KVM shows the guest FEAT_XNX: as from when it writes them itself."""
        hcr = next((vcpu.el2.get("HCR_EL2", 0) for vcpu in users(self.shadow.vm, self.shadow.mmu)), 0)
        fwb = bool(decode_register("hcr_el2", hcr & _WORD)["FWB"])
        return Format(Regime.STAGE2, fwb=fwb, xnx=self.shadow.format.xnx, invalid=InvalidForm.STALE)

    @cached_property
    def _places(self) -> dict[int, int]:
        return dict(self.shadow.mmu.nested_tables)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Captured bytes at each address of L1; of a root that is smaller than its granule the rest is zeros."""
        return [self._at(ipa, size) for ipa, size in requests]

    def _at(self, ipa: int, size: int) -> bytes | None:
        out = b""
        while len(out) < size:
            at = ipa + len(out)
            starts = (at - at % self.capture.host.page_size, self.root_pa)
            start = next((one for one in starts if self._holds(one, at)), None)
            if start is None:
                rest = ipa == self.root_pa and len(out) == root_bytes(self.geometry)
                return out.ljust(size, b"\0") if rest else None
            piece = self.capture.pages[self._places[start]]
            out += piece[at - start :][: size - len(out)]
        return out

    def _holds(self, start: int, at: int) -> bool:
        piece = self.capture.pages.get(self._places.get(start, -1))
        return piece is not None and start <= at < start + len(piece)


def guest_view(shadow: TableView) -> GuestView | None:
    """What ``shadow`` was made of; ``None`` where that is no table: no context, HCR_EL2.VM clear, no shape."""
    mmu = shadow.mmu
    if not mmu.nested_valid or not mmu.nested_stage2 or mmu.nested_vttbr is None or mmu.nested_vtcr is None:
        return None
    known = guest_stage2(mmu.nested_vttbr, mmu.nested_vtcr)
    return None if known is None else GuestView(shadow.capture, known[1], known[0], shadow)


def users(vm: Vm, mmu: Mmu) -> Iterator[Vcpu]:
    """The vCPUs for which the context of a shadow is in force: so its tables are not given up.

    One runs L2 on it (``hw_mmu``), or its registers, HCR_EL2.VM set and TGE clear, name it (``lookup_s2_mmu``).
    """
    for vcpu in vm.vcpus:
        hcr = decode_register("hcr_el2", vcpu.el2.get("HCR_EL2", 0) & _WORD)
        named = (vcpu.el2.get("VTTBR_EL2", 0) & ~_VTTBR_CNP, vcpu.el2.get("VTCR_EL2"))
        if vcpu.hw_mmu == mmu.address or (
            hcr["VM"] and not hcr["TGE"] and named == (mmu.nested_vttbr, mmu.nested_vtcr) and mmu.nested_stage2
        ):
            yield vcpu


def big_endian(vm: Vm) -> bool:
    """Whether some vCPU's SCTLR_EL2.EE is set: its descriptors are then the other way round, and are not read."""
    return any(vcpu.el2.get("SCTLR_EL2", 0) & _SCTLR_EE for vcpu in vm.vcpus)
