"""The hypervisor's own records of guests under pKVM (6.18 and later), whose stage-2 tables it keeps.

``vm_table`` (arch/arm64/kvm/hyp/nvhe/pkvm.c) has a ``struct pkvm_hyp_vm`` for each handle that the host's
``kvm->arch.pkvm`` names; its addresses are EL2's, ``hyp_physvirt_offset`` below their PA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.physvirt import hyp_physvirt_offset
from inspector.kernel.space import BadPointer, pointers_in
from inspector.snapshot import PkvmMapping

_TABLE = "__kvm_nvhe_vm_table"
_OFFSET = 0x1000  # HANDLE_OFFSET (nvhe/pkvm.c)
_MOST = 255  # KVM_MAX_PVMS (asm/kvm_pkvm.h)
_RESERVED = 0xA110CA7ED  # RESERVED_ENTRY: the handle is given out, the VM is not made (7.3)
_U64 = (1 << 64) - 1


@dataclass(frozen=True)
class HypVms:
    """How to find them in a kernel whose hypervisor keeps guests' tables."""

    kernel: HostKernel
    offset: int
    table_pa: int

    def pa(self, va: int) -> int:
        """Of EL2's address in its linear map."""
        return va + self.offset & _U64

    def count(self) -> int:
        """How many VMs there are, with those that are being ended."""
        words = pointers_in(self.kernel.space.memory.read(self.table_pa, 8 * _MOST))
        return sum(word not in (0, _RESERVED) for word in words)

    def of(self, kvm: KernelObject) -> KernelObject | str:
        """The ``struct pkvm_hyp_vm`` of a host's ``struct kvm``, or why there is none.

        Raises `BadPointer` when the two do not name each other.
        """
        handle = kvm.u("arch.pkvm.handle")
        if not handle:
            return "protected mode: the hypervisor has not been asked for this VM yet (no handle)"
        index = handle - _OFFSET
        if not 0 <= index < _MOST:
            raise BadPointer(kvm.address, f"kvm->arch.pkvm.handle is {handle:#x}, which is no VM's")
        memory, size = self.kernel.space.memory, self.kernel.sizeof("pkvm_hyp_vm")
        va = int.from_bytes(memory.read(self.table_pa + 8 * index, 8), "little")
        if va in (0, _RESERVED):
            return "protected mode: the hypervisor has not made this VM yet, or has ended it"
        found = KernelObject(self.kernel, "pkvm_hyp_vm", va, memory.read(self.pa(va), size))
        if self.pa(found.u("host_kvm")) != self.kernel.space.pa(kvm.address):
            raise BadPointer(va, f"the hypervisor's VM {handle:#x} is another struct kvm's")
        return found


def hyp_vms(kernel: HostKernel) -> HypVms | None:
    """``None`` where the host keeps the tables itself (before 6.18, or without protected mode)."""
    if not kernel.has("kvm_pgtable", "pkvm_mappings") or kernel.symbols.struct("pkvm_hyp_vm") is None:
        return None
    variable, offset = kernel.symbol(_TABLE), hyp_physvirt_offset(kernel)
    if variable is None or offset is None:
        return None
    table = kernel.space.u64(variable)
    return HypVms(kernel, offset, table + offset & _U64) if table else None


def part(whole: KernelObject, path: str, struct: str) -> KernelObject:
    """A member that is a structure of its own."""
    at = whole.kernel.member(whole.struct, path).offset
    size = whole.kernel.sizeof(struct)
    return KernelObject(whole.kernel, struct, whole.address + at, whole.data[at : at + size])


def mappings(kernel: HostKernel, pgt: int) -> tuple[PkvmMapping, ...] | None:
    """The host's ``pkvm_mappings`` of a VM in order of address: what it asked the hypervisor to map, and has not taken
    back (arch/arm64/kvm/pkvm.c).  ``None`` where the tree cannot be read: the kernel was stopped while it changed it.
    """
    if not kernel.has("pkvm_mapping", "node"):
        return None
    try:
        root = kernel.at("kvm_pgtable", pgt).u("pkvm_mappings.rb_root.rb_node")
        return tuple(sorted(_in_tree(kernel, root)))
    except BadPointer:
        return None


def _in_tree(kernel: HostKernel, root: int) -> Iterator[PkvmMapping]:
    at = kernel.member("pkvm_mapping", "node").offset
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if not node:
            continue
        if node in seen:
            raise BadPointer(node, "the tree of pkvm_mappings is none")
        seen.add(node)
        found = kernel.at("pkvm_mapping", node - at)
        yield PkvmMapping(found.u("gfn"), found.u("pfn"), found.u("nr_pages"))
        waiting += [found.u("node.rb_left"), found.u("node.rb_right")]
