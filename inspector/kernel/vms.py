"""Every VM of the host: found by ``vm_list`` where it can be named and by open files, and its MMUs and vCPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inspector.codec import Geometry
from inspector.kernel.hyp_vms import HypVms, hyp_vms, mappings, part
from inspector.kernel.memslots import memslots
from inspector.kernel.nested import virtual_el2
from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.space import BadPointer, pointers_in
from inspector.kernel.tasks import open_files
from inspector.snapshot import Mmu, MmuKind, Vcpu, Vm
from inspector.symbols.api import TypeKind
from inspector.target.dump import LEFT_OUT

_MOST_VMID_BITS = 16
_PROTECTED = "kvm.arch.pkvm.is_protected"
_VTTBR_CNP = 1  # "invalid" mark in kvm_s2_mmu.tlb_vttbr (arch/arm64/kvm/nested.c 6.12: kvm_s2_mmu_valid)
_XA_MARKS = (256 << 2 | 2, 257 << 2 | 2)  # XA_RETRY_ENTRY, XA_ZERO_ENTRY: xa_mk_internal(256), (257)
_XA_DEPTH = 12  # 64 bits in steps of XA_CHUNK_SHIFT, 6, and one to spare
_NESTED_BOUND = 4096
_VCPU_BOUND = 4096


@dataclass
class _FoundBy:
    """How a ``struct kvm`` was found, and by whom."""

    ways: list[str] = field(default_factory=list)
    owner: tuple[int, int] | None = None  # tgid, lowest fd of the VM or one of its vCPUs
    command: str | None = None
    fd: int | None = None


def _add(found: dict[int, _FoundBy], kvm: int, way: str) -> _FoundBy:
    entry = found.setdefault(kvm, _FoundBy())
    if way not in entry.ways:
        entry.ways.append(way)
    return entry


def _pointers_to(kernel: HostKernel, function: str) -> frozenset[int | None]:
    """What a pointer to ``function`` may hold: with clang's CFI of up to 6.0, its entry in a table of jumps."""
    return frozenset((kernel.symbol(function), kernel.symbol(f"{function}.cfi_jt")))


def find_vms(kernel: HostKernel, notes: list[str]) -> dict[int, _FoundBy]:
    """Addresses of every ``struct kvm``, with how each was found.

    ``vm_list`` (virt/kvm/kvm_main.c) is a static variable: it has a name only in a vmlinux or with KALLSYMS_ALL.  A
    VM's and a vCPU's open file are recognised by their release function, whose text symbol every kernel has.
    """
    found: dict[int, _FoundBy] = {}
    head = kernel.symbol("vm_list")
    if head is not None:
        try:
            for kvm in kernel.list_of(head, "kvm", "vm_list"):
                _add(found, kvm, "vm_list")
        except BadPointer as e:
            notes.append(f"vm_list cannot be followed to its end: {e}")
            head = None
    vm_release, vcpu_release = _pointers_to(kernel, "kvm_vm_release"), _pointers_to(kernel, "kvm_vcpu_release")
    for file in open_files(kernel, notes):
        if file.release in vm_release:
            entry = _add(found, file.private_data, "files")
            entry.fd = file.fd if entry.fd is None else min(entry.fd, file.fd)
        elif file.release in vcpu_release:
            try:
                kvm = kernel.at("kvm_vcpu", file.private_data).u("kvm")
            except BadPointer as e:
                notes.append(f"the vCPU behind file {file.fd} of pid {file.tgid} cannot be read: {e}")
                continue
            entry = _add(found, kvm, "vcpu-files")
        else:
            continue
        if entry.owner is None or (file.tgid, file.fd) < entry.owner:
            entry.owner = (file.tgid, file.fd)
            entry.command = file.command
    if head is not None:
        _explain_differences(found, notes)
    return found


def _explain_differences(found: Mapping[int, _FoundBy], notes: list[str]) -> None:
    for kvm, entry in found.items():
        if entry.ways == ["vm_list"]:
            notes.append(
                f"the VM at {kvm:#x} is on vm_list but no open file names it: it is being created, or is kept alive "
                "by a device file or a mapping alone"
            )
        elif "vm_list" not in entry.ways:
            notes.append(
                f"the VM at {kvm:#x} has an open file but is not on vm_list: it was not yet added, or is going away"
            )
        elif "files" not in entry.ways:
            notes.append(f"the VM at {kvm:#x} is kept alive by a vCPU's file; its own file is closed")


def _vmid(kernel: HostKernel, mmu: KernelObject, bits: int) -> tuple[int | None, int]:
    """``(VMID, raw)``: 6.1+ ``atomic64 id`` with the generation above the VMID; 5.10/5.15 ``{vmid_gen, vmid}``."""
    if mmu.has("vmid.id"):
        raw = mmu.u("vmid.id")
        return (raw & ((1 << bits) - 1) if raw else None), raw
    generation = mmu.u("vmid.vmid_gen")
    vmid = mmu.u("vmid.vmid")
    return (vmid if generation else None), (generation << 32) | vmid


def _geometry(vtcr: int) -> Geometry | None:
    try:
        return Geometry.from_vtcr(vtcr)
    except ValueError:
        return None


def read_mmu(kernel: HostKernel, address: int, kind: MmuKind, vtcr: int | None, vmid_bits: int) -> Mmu:
    """One ``struct kvm_s2_mmu`` (kernel.md 13.2).  ``vtcr`` is the VM's where the structure has none (before 6.12)."""
    mmu = kernel.at("kvm_s2_mmu", address)
    pgt = mmu.u("pgt")
    found = _mmu(kernel, mmu, kind, vtcr, vmid_bits)
    if not pgt:
        return replace(
            found, unreadable="pgt is NULL: the table is not made yet, or is being torn down (kvm_free_stage2_pgd)"
        )
    try:
        table = kernel.at("kvm_pgtable", pgt)
        return _with_table(found, table, kernel.space.pa(table.u("pgd")))
    except BadPointer as e:
        return replace(found, unreadable=f"its kvm_pgtable cannot be followed: {e}", damaged=LEFT_OUT not in str(e))


def _mmu(kernel: HostKernel, mmu: KernelObject, kind: MmuKind, vtcr: int | None, vmid_bits: int) -> Mmu:
    """What the structure itself holds."""
    vmid, vmid_raw = _vmid(kernel, mmu, vmid_bits)
    value = mmu.u("vtcr") if mmu.has("vtcr") else (vtcr or 0)
    nested = kind is MmuKind.SHADOW
    return Mmu(
        address=mmu.address,
        kind=kind,
        vmid=vmid,
        vmid_raw=vmid_raw,
        pgd_phys=mmu.u("pgd_phys"),
        pgd_pa=None,
        vtcr=value,
        ia_bits=None,
        start_level=None,
        pgt_flags=None,
        geometry=_geometry(value),
        nested_valid=not mmu.u("tlb_vttbr") & _VTTBR_CNP if nested else None,
        nested_vttbr=mmu.u("tlb_vttbr") if nested else None,
        nested_vtcr=mmu.u("tlb_vtcr") if nested else None,
        nested_stage2=_flag(mmu, "nested_stage2_enabled") if nested else None,
        pending_unmap=_flag(mmu, "pending_unmap") if nested else None,
        pgt=mmu.u("pgt"),
    )


def _with_table(mmu: Mmu, table: KernelObject, pgd_pa: int) -> Mmu:
    """With what its ``struct kvm_pgtable`` holds."""
    flags = table.u("flags") if table.has("flags") else None
    return replace(mmu, ia_bits=table.u("ia_bits"), start_level=table.s("start_level"), pgt_flags=flags, pgd_pa=pgd_pa)


def _hypervisors_mmu(kernel: HostKernel, kvm: KernelObject, hypervisor: HypVms | None, vmid_bits: int) -> Mmu:
    """The MMU that guests of a VM run with under pKVM, which the host has no table of (6.18 and later)."""
    own = kernel.at("kvm_s2_mmu", kvm.addr("arch.mmu"))
    if hypervisor is None:
        why = "protected mode: the hypervisor owns this table, and where it has it is not to be found"
        return replace(_mmu(kernel, own, MmuKind.VM, None, vmid_bits), unreadable=why)
    hyp_vm = hypervisor.of(kvm)
    if isinstance(hyp_vm, str):
        return replace(_mmu(kernel, own, MmuKind.VM, None, vmid_bits), unreadable=hyp_vm)
    mmu = _mmu(kernel, part(hyp_vm, "kvm.arch.mmu", "kvm_s2_mmu"), MmuKind.VM, None, vmid_bits)
    table = part(hyp_vm, "pgt", "kvm_pgtable")
    mmu = replace(
        _with_table(mmu, table, hypervisor.pa(table.u("pgd"))),
        handle=hyp_vm.u("kvm.arch.pkvm.handle"),
        protected=hyp_vm.has(_PROTECTED) and bool(hyp_vm.u(_PROTECTED)),
        mappings=mappings(kernel, own.u("pgt")),
    )
    return mmu if mmu.pgd_phys else replace(mmu, unreadable="the hypervisor has not made this table, or has ended it")


def _flag(of: KernelObject, path: str) -> bool | None:
    return bool(of.u(path)) if of.has(path) else None


def _shadow_mmus(kernel: HostKernel, kvm: KernelObject) -> list[int]:
    """Addresses of the nested MMUs: an array of structs (6.18.2) or of pointers (6.12.117, 7.3), by its type."""
    if not kvm.has("arch.nested_mmus"):
        return []
    base = kvm.u("arch.nested_mmus")
    count = min(kvm.u("arch.nested_mmus_size"), _NESTED_BOUND)
    if not base or not count:
        return []
    target = kernel.member("kvm", "arch.nested_mmus").type.target
    if target is not None and target.kind is TypeKind.POINTER:
        return [p for p in kernel.space.pointers(base, count) if p]
    size = kernel.sizeof("kvm_s2_mmu")
    return [base + i * size for i in range(count)]


def _vcpu_addresses(kernel: HostKernel, kvm: KernelObject) -> list[int]:
    """vCPUs: the ``vcpu_array`` xarray (5.16 and later) or the ``vcpus[]`` array before."""
    if kvm.has("vcpu_array"):
        return list(_xarray(kernel, kvm.u("vcpu_array.xa_head")))
    member = kernel.member("kvm", "vcpus")
    raw = kvm.data[member.offset : member.offset + 8 * min(member.type.count, _VCPU_BOUND)]
    return [p for p in pointers_in(raw) if p]


def _xarray(kernel: HostKernel, entry: int, depth: int = 0) -> list[int]:
    """The pointers in an xarray; raises `BadPointer` on an entry that no array of pointers holds.

    Bits 1:0 of an entry: 00 a pointer, 10 internal (include/linux/xarray.h: xa_is_internal), and then above 4096 a
    node (xa_is_node), below it a mark for an entry that is being made or moved (XA_RETRY_ENTRY, XA_ZERO_ENTRY).
    """
    if not entry or entry in _XA_MARKS:
        return []
    if entry & 3 == 0:
        return [entry]
    if entry & 3 != 2 or entry <= 4096 or depth > _XA_DEPTH:
        raise BadPointer(entry, "not an entry of an xarray of pointers")
    node = kernel.at("xa_node", entry - 2)
    member = kernel.member("xa_node", "slots")
    raw = node.data[member.offset : member.offset + 8 * member.type.count]
    result: list[int] = []
    for slot in pointers_in(raw):
        result.extend(_xarray(kernel, slot, depth + 1))
    return result


def _vcpu(kernel: HostKernel, address: int, running: Mapping[int, int]) -> Vcpu:
    vcpu = kernel.at("kvm_vcpu", address)
    return Vcpu(
        address=address,
        id=vcpu.u("vcpu_id"),
        cpu=vcpu.s("cpu"),
        loaded_on=next((cpu for cpu, loaded in running.items() if loaded == address), None),
        hw_mmu=vcpu.u("arch.hw_mmu"),
        preempted=bool(vcpu.u("preempted")),
        el2=virtual_el2(kernel, vcpu),
    )


def _invalidating(kvm: KernelObject) -> bool:
    """MMU-notifier invalidation in progress: ``mmu_invalidate_in_progress`` (6.0+), ``mmu_notifier_count`` before."""
    return any(kvm.has(name) and kvm.u(name) for name in ("mmu_invalidate_in_progress", "mmu_notifier_count"))


def _slots_locked(kvm: KernelObject) -> bool | None:
    """Whether ``slots_lock`` has an owner; ``None`` where a mutex is another thing (PREEMPT_RT)."""
    return bool(kvm.u("slots_lock.owner")) if kvm.has("slots_lock.owner") else None


#: The word of ``kvm->mmu_lock`` that is zero while nobody holds it: a ``rwlock_t`` (``struct qrwlock``, 6.1 and later),
#: before that a ``spinlock_t`` (``struct qspinlock``).  PREEMPT_RT's locks have other members.
_LOCK_WORDS = ("mmu_lock.raw_lock.cnts.counter", "mmu_lock.rlock.raw_lock.val.counter")


def _mmu_lock_held(kvm: KernelObject) -> bool | None:
    """Whether ``kvm->mmu_lock`` is held, by a reader or a writer (or waited for); ``None``: not a known lock."""
    for path in _LOCK_WORDS:
        if kvm.has(path):
            return kvm.u(path) != 0
    return None


def look_at(kernel: HostKernel, vm: Vm) -> tuple[bool | None, dict[int, int]]:
    """``mmu_lock_held`` of ``vm`` as it is now, and the ``pgd_phys`` of each of its MMUs, by the MMU's address.

    ``kvm_free_stage2_pgd`` leaves 0.  Raises `BadPointer` when the VM's memory is no longer mapped.
    """
    kvm = kernel.at("kvm", vm.address)
    lock = _mmu_lock_held(kvm)
    if any(mmu.at_el2 for mmu in vm.mmus):
        now = _hypervisors_mmu(kernel, kvm, hyp_vms(kernel), _MOST_VMID_BITS)
        return lock, {now.address: now.pgd_phys}
    return lock, {mmu.address: kernel.at("kvm_s2_mmu", mmu.address).u("pgd_phys") for mmu in vm.mmus}


@dataclass(frozen=True)
class ReadVm:
    """A VM and the address of its VMM's ``mm_struct`` (0 when it has none)."""

    vm: Vm
    mm: int


def read_vms(
    kernel: HostKernel, running: Mapping[int, int], vmid_bits: int, notes: list[str], *, pkvm: bool
) -> list[ReadVm]:
    """Every VM, named ``vm0`` … by process and file number.

    ``running`` maps CPU index to the address of the vCPU loaded there.  A VM that cannot be read is there all the
    same, with the reason.
    """
    found = find_vms(kernel, notes)
    at_el2 = pkvm and kernel.has("kvm_pgtable", "pkvm_mappings")
    hypervisor = hyp_vms(kernel) if at_el2 else None
    order = sorted(found, key=lambda kvm: (found[kvm].owner or (1 << 62, 0), kvm))
    result = []
    for number, address in enumerate(order):
        how = found[address]
        vm = Vm(
            name=f"vm{number}",
            address=address,
            pid=how.owner[0] if how.owner else None,
            command=how.command,
            found_by=tuple(how.ways),
            mmus=(),
            memslots=(),
            vcpus=(),
            invalidating=False,
            fd=how.fd,
        )
        try:
            result.append(_read_vm(kernel, vm, running, vmid_bits, at_el2=at_el2, hypervisor=hypervisor))
        except BadPointer as e:
            result.append(ReadVm(replace(vm, unreadable=str(e)), 0))
    return result


def _read_vm(
    kernel: HostKernel,
    vm: Vm,
    running: Mapping[int, int],
    vmid_bits: int,
    *,
    at_el2: bool,
    hypervisor: HypVms | None,
) -> ReadVm:
    """``vm`` with what its ``struct kvm`` holds."""
    kvm = kernel.at("kvm", vm.address)
    vtcr = kvm.u("arch.vtcr") if kvm.has("arch.vtcr") else None
    if at_el2:
        own, shadows = _hypervisors_mmu(kernel, kvm, hypervisor, vmid_bits), []
    else:
        own = read_mmu(kernel, kvm.addr("arch.mmu"), MmuKind.VM, vtcr, vmid_bits)
        shadows = [read_mmu(kernel, a, MmuKind.SHADOW, vtcr, vmid_bits) for a in _shadow_mmus(kernel, kvm)]
    pa = kernel.space.pa(vm.address)
    vm = replace(
        vm,
        mmus=(own, *shadows),
        memslots=memslots(kernel, kvm),
        vcpus=tuple(_vcpu(kernel, a, running) for a in _vcpu_addresses(kernel, kvm)),
        invalidating=_invalidating(kvm),
        slots_locked=_slots_locked(kvm),
        mmu_lock_held=_mmu_lock_held(kvm),
        object_pa=(pa, pa + min(len(kvm.data), kernel.space.geometry.granule - pa % kernel.space.geometry.granule)),
    )
    return ReadVm(vm, kvm.u("mm"))
