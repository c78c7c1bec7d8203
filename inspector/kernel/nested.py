"""A guest hypervisor's view of EL2: its virtual registers, and the pages of its own stage 2 in its memory.

A shadow table is what KVM makes of that stage 2 and of its own for the VM.  The hypervisor's tables lie in the VM's
memory, which KVM reads by way of memslot and host virtual address (``read_guest_s2_desc``): they need not be mapped in
the VM's stage 2, so they are found here in the same way, through the VMM's page tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inspector.codec import Format, InvalidForm, Regime
from inspector.codec.nested import guest_stage2, root_bytes
from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.space import BadPointer
from inspector.kernel.vmm import backing
from inspector.snapshot import Backing, Memslot, Mmu, Vm
from inspector.tables import Tree, walk_tree
from inspector.tables.columns import columns_of
from inspector.tables.intervals import Intervals

_REGISTERS = ("HCR_EL2", "VTTBR_EL2", "VTCR_EL2", "SCTLR_EL2")

#: MAX_BYTES of a walk is for a host's table; of a guest's no more is read than translates the leaves of its shadow.
_MOST = 1 << 26


def virtual_el2(kernel: HostKernel, vcpu: KernelObject) -> dict[str, int]:
    """The EL2 registers of a vCPU that has an EL2, as its memory copy has them; empty for any other.

    ``__ctxt_sys_reg`` (asm/kvm_host.h): from ``__VNCR_START__`` of ``enum vcpu_sysreg`` on they are in the VNCR page.
    """
    if not vcpu.has("arch.ctxt.vncr_array") or not (page := vcpu.u("arch.ctxt.vncr_array")):
        return {}
    start = kernel.enumerator("vcpu_sysreg", "__VNCR_START__")
    plain = kernel.member("kvm_vcpu", "arch.ctxt.sys_regs").offset
    found = {}
    for name in _REGISTERS:
        number = kernel.enumerator("vcpu_sysreg", name)
        if number is None or start is None:
            continue
        if number >= start:
            found[name] = kernel.space.u64(page + 8 * (number - start))
        else:
            found[name] = int.from_bytes(vcpu.data[plain + 8 * number :][:8], "little")
    return found


@dataclass(frozen=True)
class GuestPage:
    """A piece of a table of a guest's own: where it is for the guest, where in memory, and what it holds."""

    ipa: int
    pa: int
    data: bytes


def guest_tables(kernel: HostKernel, vm: Vm, mm: int, mmu: Mmu, shadow: Tree) -> list[GuestPage]:
    """The tables of the guest's own stage 2 that translate what ``shadow``, the tree of ``mmu``, has leaves for.

    Nothing else of the guest's memory is read.  A piece is at most a page of the host's; what cannot be read is left
    out.
    """
    if not mmu.nested_valid or not mmu.nested_stage2 or mmu.nested_vttbr is None or mmu.nested_vtcr is None:
        return []
    known = guest_stage2(mmu.nested_vttbr, mmu.nested_vtcr)
    columns = columns_of(shadow)
    leaves = columns.at(columns.leaf)
    if known is None or not len(leaves.ia):
        return []
    root, geometry = known
    pages = _Pages(kernel, vm.memslots, mm, {root: root_bytes(geometry)} if geometry.root_pages == 1 else {})
    fmt = Format(Regime.STAGE2, invalid=InvalidForm.STALE, xnx=True)
    within = Intervals.union(leaves.ia, leaves.ia + leaves.size)
    walk_tree(pages.read_many, root, geometry, fmt, within=within, max_bytes=_MOST)
    return pages.found


class _Pages:
    """Reads by address of the guest, remembering the pieces."""

    def __init__(self, kernel: HostKernel, slots: Sequence[Memslot], mm: int, small: dict[int, int]) -> None:
        self.kernel, self.slots, self.mm, self.small = kernel, slots, mm, small
        self.found: list[GuestPage] = []

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """The tables at ``(ipa, size)``; what a small root does not use of its granule is zeros."""
        page = self.kernel.space.geometry.granule
        pieces = [
            (at, min(page - at % page, ipa + need - at))
            for ipa, size in requests
            if (need := self.small.get(ipa, size))
            for at in _steps(ipa, need, page)
        ]
        data = dict(zip((at for at, _ in pieces), self._pieces(pieces), strict=True))
        answers: list[bytes | None] = []
        for ipa, size in requests:
            parts = [data[at] for at in _steps(ipa, self.small.get(ipa, size), page)]
            whole = [part for part in parts if part is not None]
            answers.append(b"".join(whole).ljust(size, b"\0") if len(whole) == len(parts) else None)
        return answers

    def _pieces(self, pieces: Sequence[tuple[int, int]]) -> list[bytes | None]:
        addresses = [self._hva(ipa, size) for ipa, size in pieces]
        ranges = [(hva, size) for hva, (_, size) in zip(addresses, pieces, strict=True) if hva is not None]
        try:
            behind = iter(backing(self.kernel, self.mm, ranges) if ranges else ())
        except BadPointer:
            return [None] * len(pieces)
        answers: list[bytes | None] = []
        for (ipa, size), hva in zip(pieces, addresses, strict=True):
            runs: Sequence[Backing] = () if hva is None else next(behind)
            pa = runs[0].pa if len(runs) == 1 else None
            data = None if pa is None else self.kernel.space.memory.read_many([(pa, size)])[0]
            answers.append(data)
            if data is not None and pa is not None:
                self.found.append(GuestPage(ipa, pa, data))
        return answers

    def _hva(self, ipa: int, size: int) -> int | None:
        page = self.kernel.space.geometry.granule
        for slot in self.slots:
            offset = ipa - slot.base_gfn * page
            if offset >= 0 and offset + size <= slot.npages * page:
                return slot.userspace_addr + offset
        return None


def _steps(start: int, size: int, page: int) -> list[int]:
    """``start``, and each multiple of ``page`` after it in ``size`` bytes."""
    return [start, *range(start - start % page + page, start + size, page)]
