"""The tables of the host's own: EL2's stage 1, and the stage 2 under which pKVM keeps the host."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from inspector.codec import Geometry, decode_register, has_e2h, table_address
from inspector.codec.registers import PS_BITS, TG0_SHIFT
from inspector.generations import code_of
from inspector.kernel.accessors import accessor_variable
from inspector.kernel.hyp_vms import hyp_vms
from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.physvirt import hyp_physvirt_offset
from inspector.kernel.space import BadPointer, stage1_geometry
from inspector.snapshot import Area, Host, Mode, OwnKind, OwnTable, PageStates, Share
from inspector.symbols.api import Member
from inspector.tables import translate


class Registers(Protocol):
    """One CPU's, as a capture or a target has them."""

    @property
    def registers(self) -> Mapping[str, int]: ...


_HYP_MODES = (Mode.NVHE, Mode.HVHE, Mode.PROTECTED)
_U64 = (1 << 64) - 1
_SCTLR_M = 1 << 0  # SCTLR_EL2.M: translation is on

#: What ``init_hyp_mode`` (arch/arm64/kvm/arm.c 6.1, 6.12, 7.3) maps of the kernel's image, by its symbols; the text
#: that is mapped to itself is ``kvm_map_idmap_text``'s.  Up to 6.18 there is no ``__hyp_data_start``.
_SECTIONS = (
    ("hyp text", "__hyp_text_start", "__hyp_text_end", "R-X"),
    ("hyp idmap text", "__hyp_idmap_text_start", "__hyp_idmap_text_end", "R-X"),
    ("hyp rodata", "__hyp_rodata_start", "__hyp_rodata_end", "R--"),
    ("hyp data", "__hyp_data_start", "__hyp_data_end", "RW-"),
    ("hyp bss", "__hyp_bss_start", "__hyp_bss_end", "RW-"),
)
_VECTORS = "__bp_harden_hyp_vecs"
_VECTORS_SIZE = 4 << 11  # a vector table of 2K for each enum arm64_hyp_spectre_vector, at most (asm/spectre.h)


_NO_STATES = "the hypervisor's page states are not known (hyp_vmemmap), so that P1, P2 and P4 are not judged by them"


def own_tables(kernel: HostKernel, host: Host, notes: list[str]) -> tuple[OwnTable, ...]:
    """Every table of the host's own; none where the kernel itself runs at EL2 (VHE), or has no KVM."""
    if host.mode not in _HYP_MODES:
        return ()
    found = []
    offset = hyp_physvirt_offset(kernel)
    for kind, read in ((OwnKind.HYP, _hyp), (OwnKind.HOST, _host_stage2)):
        if kind is OwnKind.HOST and host.mode is not Mode.PROTECTED:
            continue
        table = read(kernel, host, offset)
        if table is None:
            notes.append(f"the {kind} of the host cannot be found: no register and no variable of the kernel names it")
        else:
            if host.mode is Mode.PROTECTED and kind is OwnKind.HYP and table.states is None:
                notes += [] if table.states_in_entries else [_NO_STATES]
            found.append(table)
    return tuple(found)


# --- EL2's stage 1 ---


def _hyp(kernel: HostKernel, host: Host, offset: int | None) -> OwnTable | None:
    found = hyp_table(kernel, host.cpus, host.mode, offset)
    if found is None:
        return None
    root, geometry, recorded = found
    protected = host.mode is Mode.PROTECTED
    states = _states(kernel, host, root, geometry) if protected else None
    in_entries = protected and _states_in_entries(kernel)
    vms = hyp_vms(kernel) if protected else None
    guests = None if vms is None else vms.count()
    return OwnTable(OwnKind.HYP, root, geometry, recorded, offset, tuple(_areas(kernel)), states, in_entries, guests)


def hyp_table(
    kernel: HostKernel, cpus: Sequence[Registers], mode: Mode, offset: int | None
) -> tuple[int, Geometry, int | None] | None:
    """EL2's stage 1: the PA of its root, its shape, and the root that the kernel recorded; ``None`` where nothing
    names one."""
    pgt = _hyp_pgtable(kernel, mode)
    recorded = _pgd(kernel, pgt, mode, offset)
    # First what is in force: with the boot stub back (no VM is there), or of a CPU that KVM never saw, it may be stale.
    cpus = sorted(cpus, key=lambda cpu: not cpu.registers.get("SCTLR_EL2", 0) & _SCTLR_M)
    geometry = next(_hyp_geometries(cpus, kernel.space.geometry.pa_bits), None)
    roots = [table_address(cpu.registers["TTBR0_EL2"]) for cpu in cpus if cpu.registers.get("TTBR0_EL2")]
    if recorded is not None and not any(cpu.registers.get("SCTLR_EL2", 0) & _SCTLR_M for cpu in cpus):
        roots = []
    if geometry is None and pgt is not None:  # of a dump
        geometry = stage1_geometry(pgt.u("ia_bits"), kernel.space.geometry.granule_shift)
    root = next(iter(roots), recorded)
    return None if geometry is None or root is None else (root, geometry, recorded)


def _hyp_geometries(cpus: Sequence[Registers], pa_bits: int) -> Iterator[Geometry]:
    """The shapes by each CPU's TCR_EL2, which has the layout of TCR_EL1 with HCR_EL2.E2H.

    With E2H an output size may be reserved: 6.12 writes TCR_EL2.DS of the other layout into IPS (``arm.c``,
    ``cpu_prepare_hyp_mode``), and the CPU takes the largest it has.
    """
    for cpu in cpus:
        value = cpu.registers.get("TCR_EL2")
        if not value:
            continue
        e2h = has_e2h(cpu.registers)
        fields = decode_register("tcr_el2", value, e2h)
        shift, size = TG0_SHIFT.get(fields["TG0"]), fields["IPS" if e2h else "PS"]
        bits = 64 - fields["T0SZ"]
        if shift is not None and shift < bits <= 52:
            lpa2 = bool(fields["DS"]) and shift != 16
            output = PS_BITS[size] if size < len(PS_BITS) else max(pa_bits, 52 if lpa2 else 48)
            yield Geometry.for_stage1(bits, shift, output, lpa2)


def _hyp_pgtable(kernel: HostKernel, mode: Mode) -> KernelObject | None:
    """EL2's ``struct kvm_pgtable``: the kernel's ``hyp_pgtable``, or ``pkvm_pgtable``, which replaces it under pKVM.

    The former is static; ``kvm_mmu_get_httbr`` (arch/arm64/kvm/mmu.c) names it in any kernel.
    """
    try:
        if mode is Mode.PROTECTED:
            address = kernel.symbol("__kvm_nvhe_pkvm_pgtable")
            return None if address is None else kernel.at("kvm_pgtable", address)
        pointer = kernel.symbol("hyp_pgtable") or accessor_variable(kernel, "kvm_mmu_get_httbr")
        address = kernel.space.pointer(pointer) if pointer is not None else 0
        return kernel.at("kvm_pgtable", address) if address else None
    except BadPointer:
        return None


def _pgd(kernel: HostKernel, pgt: KernelObject | None, mode: Mode, offset: int | None) -> int | None:
    """PA of ``pgt->pgd``; under pKVM a hyp VA."""
    if pgt is None:
        return None
    if mode is Mode.PROTECTED:
        return None if offset is None else pgt.u("pgd") + offset & _U64
    try:
        return kernel.space.pa(pgt.u("pgd"))
    except BadPointer:
        return None


def _areas(kernel: HostKernel) -> Iterator[Area]:
    granule = kernel.space.geometry.granule
    for name, first, last, permissions in _SECTIONS:
        start, end = kernel.symbol(first), kernel.symbol(last)
        if start is not None and end is not None and start < end:
            low, high = kernel.space.pa(start), kernel.space.pa(end - 1) + 1
            yield Area(name, low & -granule, -(-high // granule) * granule, permissions)
    vectors = kernel.symbol(_VECTORS)
    if vectors is not None:
        low = kernel.space.pa(vectors)
        yield Area("spectre vectors", low & -granule, -(-(low + _VECTORS_SIZE) // granule) * granule, "R-X")


# --- pKVM's page states ---

_VMEMMAP = "__kvm_nvhe___hyp_vmemmap"
_MOST_PAGES = 1 << 23
"""So many pages have their states read: 32 GiB of 4K pages, 64 MiB of ``struct hyp_page``."""
_STATES = (("__host_state", "host_state"), ("__hyp_state_comp",))
"""Members of ``struct hyp_page`` (nvhe/memory.h 7.3): the host's state; the complement of the hypervisor's."""
_LENT = "host_share_guest_count"  # of the same (6.14 and later)


def _states_in_entries(kernel: HostKernel) -> bool:
    """``struct hyp_page`` has no states: the software bits of the tables have."""
    known = kernel.symbols.struct("hyp_page") is not None
    return known and not any(kernel.has("hyp_page", name) for name in _STATES[0])


def hyp_refcounts(kernel: HostKernel, host: Host, hyp: OwnTable, pas: Collection[int]) -> Mapping[int, int]:
    """``hyp_page_count`` of pages that the hypervisor has: ``refcount`` of their ``struct hyp_page`` (nvhe/memory.h).

    What cannot be read is left out.
    """
    variable = kernel.symbol(_VMEMMAP)
    if variable is None or not kernel.has("hyp_page", "refcount"):
        return {}
    memory, member, size = kernel.space.memory, kernel.member("hyp_page", "refcount"), kernel.sizeof("hyp_page")
    base, fmt = kernel.space.u64(variable), code_of(host).own_format(host, OwnKind.HYP)
    found = {}
    for pa in pas:
        at = translate(memory.read, hyp.root, hyp.geometry, fmt, base + pa // hyp.geometry.granule * size).pa
        if at is not None:
            found[pa] = int.from_bytes(memory.read(at + member.offset, member.type.size), "little")
    return found


def _states(kernel: HostKernel, host: Host, root: int, geometry: Geometry) -> tuple[PageStates, ...] | None:
    """What ``hyp_vmemmap`` says of each page of RAM; ``None`` where it holds no states, or cannot be read."""
    variable = kernel.symbol(_VMEMMAP)
    if variable is None or kernel.symbols.struct("hyp_page") is None:
        return None
    names = [next((name for name in each if kernel.has("hyp_page", name)), None) for each in _STATES]
    granule, memory = geometry.granule, kernel.space.memory
    pages = sum(end - start for start, end in host.ram) // granule
    if names[0] is None or pages > _MOST_PAGES:
        return None
    members = [None if name is None else kernel.member("hyp_page", name) for name in names]
    size, fmt = kernel.sizeof("hyp_page"), code_of(host).own_format(host, OwnKind.HYP)
    base = kernel.space.u64(variable)
    lent = kernel.member("hyp_page", _LENT) if kernel.has("hyp_page", _LENT) else None
    found: list[PageStates] = []
    for start, end in host.ram:
        first, last = base + start // granule * size, base + end // granule * size
        data = bytearray()
        at = first
        while at < last:
            length = min(granule - at % granule, last - at)
            pa = translate(memory.read, root, geometry, fmt, at).pa
            data += bytes(length) if pa is None else memory.read(pa, length)
            at += length
        found += _runs(bytes(data), size, members, lent, start, granule)
    return tuple(found)


def _runs(
    data: bytes, size: int, members: Sequence[Member | None], lent: Member | None, start: int, granule: int
) -> Iterator[PageStates]:
    """The runs of pages whose states are not the usual ones; a state without a member is taken for the usual one."""
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    words = rows[:, :4].copy().view("<u4").ravel()
    counts = rows[:, lent.offset : lent.offset + 4].copy().view("<u4").ravel() if lent else np.zeros_like(words)
    host, hyp = (
        np.zeros_like(words) if one is None else words >> _bit(one) & (1 << (one.bit_size or 8)) - 1 for one in members
    )
    hyp = hyp ^ Share.NOPAGE
    pages = (host | hyp << 8).astype(np.int64) | counts.astype(np.int64) << 16
    key = np.concatenate(([-1], pages, [-1]))
    edges = np.flatnonzero(key[1:] != key[:-1]).tolist()
    for a, b in pairwise(edges):
        states, guests = (int(host[a]), int(hyp[a])), int(counts[a])
        if states != (Share.OWNED, Share.NOPAGE) or guests:
            yield PageStates(start + a * granule, start + b * granule, *states, guests if lent else None)


def _bit(member: Member) -> int:
    return member.bit_offset if member.bit_offset is not None else 8 * member.offset


# --- the host's stage 2 ---


def _host_stage2(kernel: HostKernel, host: Host, offset: int | None) -> OwnTable | None:
    """By a CPU that runs the host, or by EL2's ``host_mmu`` (arch/arm64/kvm/hyp/nvhe/mem_protect.c)."""
    recorded, vtcr = _host_mmu(kernel, offset)
    roots = []
    for cpu in host.cpus:
        if cpu.hosts_own_stage2 and "VTTBR_EL2" in cpu.registers:
            roots.append(table_address(cpu.registers["VTTBR_EL2"]))
            vtcr = vtcr or cpu.registers.get("VTCR_EL2", 0)
    root = next(iter(roots), recorded)
    try:
        geometry = Geometry.from_vtcr(vtcr)
    except ValueError:
        return None
    return None if root is None else OwnTable(OwnKind.HOST, root, geometry, recorded, offset)


def _host_mmu(kernel: HostKernel, offset: int | None) -> tuple[int | None, int]:
    """``host_mmu``'s root and VTCR_EL2 (``host_mmu.arch.vtcr``, from 6.12 ``arch.mmu.vtcr``); 0 where not known."""
    address = kernel.symbol("__kvm_nvhe_host_mmu")
    if address is None or kernel.symbols.struct("host_mmu") is None:
        return None, 0
    try:
        mmu = kernel.at("host_mmu", address)
    except BadPointer:
        return None, 0
    pgd = mmu.u("pgt.pgd")
    recorded = pgd + offset & _U64 if offset is not None and pgd else None
    for path in ("arch.mmu.vtcr", "arch.vtcr"):
        if mmu.has(path):
            return recorded, mmu.u(path)
    return recorded, 0
