"""Memory slots of a VM, in both generations of the kernel's bookkeeping (kernel.md 13.3)."""

from __future__ import annotations

from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.space import BadPointer, pointers_in
from inspector.snapshot import Memslot

_SLOT_BOUND = 1 << 16


def memslots(kernel: HostKernel, kvm: KernelObject) -> tuple[Memslot, ...]:
    """The slots of address space 0 (arm64 has no other), ascending by guest frame."""
    set_address = _first(kernel, kvm)
    if not set_address:
        return ()
    slots = kernel.at("kvm_memslots", set_address)
    found = _hashed(kernel, slots) if slots.has("id_hash") and slots.has("node_idx") else _array(kernel, slots)
    ring = kvm.has("dirty_ring_size") and bool(kvm.u("dirty_ring_size"))
    return tuple(sorted((_memslot(kernel, s, ring) for s in found), key=lambda s: (s.base_gfn, s.id)))


def _first(kernel: HostKernel, kvm: KernelObject) -> int:
    offset = kernel.member("kvm", "memslots").offset
    return pointers_in(kvm.data[offset : offset + 8])[0]


def _hashed(kernel: HostKernel, slots: KernelObject) -> list[int]:
    """5.17 and later: ``id_hash[]`` of hlists through ``id_node[node_idx]`` of the active set."""
    member = kernel.member("kvm_memslots", "id_hash")
    index = slots.u("node_idx")
    node = kernel.member("kvm_memory_slot", "id_node")
    node_offset = node.offset + index * kernel.sizeof("hlist_node")
    found: list[int] = []
    for at in pointers_in(slots.data[member.offset :][: 8 * member.type.count]):
        while at:
            found.append(at - node_offset)
            if len(found) > _SLOT_BOUND:
                raise BadPointer(slots.address, "the hash of memory slots does not end")
            at = kernel.space.pointer(at)
    return found


def _array(kernel: HostKernel, slots: KernelObject) -> list[int]:
    """5.10, 5.15: ``memslots[used_slots]``."""
    size = kernel.sizeof("kvm_memory_slot")
    start = slots.addr("memslots")
    return [start + i * size for i in range(min(slots.u("used_slots"), _SLOT_BOUND))]


def _dirty_pages(kernel: HostKernel, slot: KernelObject, ring: bool) -> bytes | None:
    """The first half of ``dirty_bitmap``, which is the log; the second is where KVM_GET_DIRTY_LOG copies it.

    With a dirty ring the bitmap holds only what was written without a running vCPU (``mark_page_dirty_in_slot``).
    """
    at = slot.u("dirty_bitmap")
    if not at or ring:
        return None
    try:
        return kernel.space.read(at, -(-slot.u("npages") // 8))
    except BadPointer:
        return None


def _memslot(kernel: HostKernel, address: int, ring: bool) -> Memslot:
    slot = kernel.at("kvm_memory_slot", address)
    return Memslot(
        id=slot.s("id"),
        as_id=slot.u("as_id"),
        base_gfn=slot.u("base_gfn"),
        npages=slot.u("npages"),
        userspace_addr=slot.u("userspace_addr"),
        flags=slot.u("flags"),
        dirty_bitmap=slot.u("dirty_bitmap"),
        dirty_pages=_dirty_pages(kernel, slot, ring),
    )
