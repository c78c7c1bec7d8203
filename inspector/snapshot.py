"""One instant of a host kernel and its VMs, immutable, holding no guest contents.

Addresses and sizes are bytes; virtual addresses are as at run time (after KASLR).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from inspector.codec import Geometry

SCHEMA = 1
"""Version of the capture file (the JSON documents have their own: `inspector.report.document`)."""


class Scope(StrEnum):
    """What was read: VMs with their MMUs and slots; and tables and reference counts; and what backs the slots."""

    VMS = "vms"
    WALK = "walk"
    FULL = "full"


class Mode(StrEnum):
    """How KVM runs on the host; ``none``: it is not initialised."""

    VHE = "vhe"
    NVHE = "nvhe"
    HVHE = "hvhe"
    PROTECTED = "protected"
    NONE = "none"


class Running(StrEnum):
    """What a CPU was executing when it was stopped."""

    GUEST = "guest"
    HOST = "host"
    """The kernel."""
    USER = "user"
    HYP = "hyp"
    """EL2 of a hypervisor that is not the kernel itself (nVHE, hVHE, protected)."""
    WORLD_SWITCH = "world-switch"
    """A VHE kernel with a guest's stage-2 loaded."""
    TLB_HELPER = "tlb-helper"
    """The host, inside a TLB invalidation helper that has switched VTTBR_EL2."""


class MmuKind(StrEnum):
    """Whose stage-2 an MMU is: the VM's own, or the shadow of one that a nested hypervisor made."""

    VM = "vm"
    SHADOW = "shadow"


class PageState(StrEnum):
    """What the page allocator says of a page; ``free``: it is in the buddy allocator."""

    USED = "used"
    FREE = "free"
    SLAB = "slab"
    RESERVED = "reserved"


class BackingState(StrEnum):
    """What an address of the VMM has behind it; ``none`` is a hole, ``swap`` a swap or migration entry."""

    PRESENT = "present"
    NONE = "none"
    SWAP = "swap"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class CpuState:
    """One CPU's registers as the stub gave them; a register that QEMU lacks is absent.

    ``symbol`` is the kernel function at its PC, if any.
    ``vttbr_live`` tells whether VTTBR_EL2 names the stage-2 in force (HCR_EL2.VM=1, TGE=0, not in a TLB helper): a
    guest's, or under protected mode the host's own.
    """

    index: int
    registers: Mapping[str, int]
    running: Running
    symbol: str | None
    vttbr_live: bool

    @property
    def hosts_own_stage2(self) -> bool:
        """True when the stage-2 in force is the one that a protected host runs under."""
        return self.vttbr_live and self.running in (Running.HOST, Running.USER)


@dataclass(frozen=True)
class Host:
    """The host kernel.

    ``features`` are the CPU features that stage-2 depends on, from the ID registers all CPUs have: ``fwb``, ``ttl``,
    ``tlbirange``, ``lpa2`` (stage-2 4K), ``hafdbs`` (0-2), ``vmid16``, ``parange`` (the field), ``vhe``, ``xnx``.
    ``va_bits`` is the kernel's actual one.  ``image_pa`` is where the image was loaded, ``kernel_pa`` the parts of it
    that the kernel still holds (initial code and data are freed after boot and may be anybody's).  ``zero_page`` is the
    PA of ``empty_zero_page``, which a guest may be given to read.  ``traits`` are facts of this kernel build recognised
    by symbols and types, by name.
    """

    release: str
    banner: str
    build_id: str | None
    symbols: str
    kaslr_slide: int
    page_size: int
    va_bits: int
    mode: Mode
    cpus: tuple[CpuState, ...]
    features: Mapping[str, int]
    traits: Mapping[str, bool]
    ram: tuple[tuple[int, int], ...]
    image_pa: tuple[int, int]
    memory_backend: str
    notes: tuple[str, ...] = ()
    kernel_pa: tuple[tuple[int, int], ...] = ()
    zero_page: int | None = None


@dataclass(frozen=True)
class PageInfo:
    """``struct page`` of a table page: reference count and what the allocator says of it."""

    refcount: int
    state: PageState


@dataclass(frozen=True, order=True)
class PkvmMapping:
    """One ``struct pkvm_mapping``: ``npages`` pages from frame ``pfn`` at ``gfn``, in host pages."""

    gfn: int
    pfn: int
    npages: int


@dataclass(frozen=True)
class Mmu:
    """One ``struct kvm_s2_mmu``.

    ``vmid`` is the number in VTTBR, ``None`` before the first run; ``vmid_raw`` the kernel's ``atomic64`` or, on
    5.10/5.15, the generation in the upper half.  ``pgd_phys`` and ``pgd_pa`` are the two records of the root (the
    latter from ``pgt->pgd``; both ``None`` when ``pgt`` is NULL or not readable: ``unreadable`` then says why, and
    ``damaged`` whether that is a state no kernel puts it in).  ``vtcr`` is the kernel's stored value, ``geometry`` is
    derived from it, ``ia_bits``/``start_level`` are ``pgt``'s own record.  ``pgt`` is the address of that
    structure (``None`` in a file that was made before 2026-11-28).

    ``handle`` is the hypervisor's of a guest under pKVM whose table it keeps (6.18 and later): all of this is then as
    its ``struct pkvm_hyp_vm`` has it, ``mappings`` the host's record of what it holds (``None``: not known), and
    ``protected`` says that the guest's memory is its own, not shared by the host.

    Of a shadow: ``nested_valid`` tells whether it stands for a context of the guest hypervisor's, with
    ``nested_vttbr`` and ``nested_vtcr`` as that wrote them; ``nested_stage2``, whether HCR_EL2.VM was set there (else
    nothing but KVM's own translation is in it); ``pending_unmap``: its leaves are another context's, and go before it
    is used.  ``nested_tables`` are (IPA, PA) of the pages of the guest's own stage 2 that are in `Capture.pages`.
    """

    address: int
    kind: MmuKind
    vmid: int | None
    vmid_raw: int
    pgd_phys: int
    pgd_pa: int | None
    vtcr: int
    ia_bits: int | None
    start_level: int | None
    pgt_flags: int | None
    geometry: Geometry | None
    unreadable: str | None = None
    nested_valid: bool | None = None
    nested_vttbr: int | None = None
    nested_vtcr: int | None = None
    damaged: bool = False
    handle: int | None = None
    protected: bool = False
    mappings: tuple[PkvmMapping, ...] | None = None
    nested_stage2: bool | None = None
    pending_unmap: bool | None = None
    nested_tables: tuple[tuple[int, int], ...] = ()
    pgt: int | None = None

    @property
    def at_el2(self) -> bool:
        """The hypervisor keeps the table, not the host."""
        return self.handle is not None


@dataclass(frozen=True)
class Backing:
    """A run of pages of the VMM's address space with one physical extent.

    ``pa`` is ``None`` where nothing is mapped now.  ``protnone`` pages are ``present`` with ``readable`` false.
    ``entry_size`` is the size of the stage-1 entries that make the run (4K, 2M …).  ``special`` marks memory that is
    mapped by frame number alone (PFNMAP, DAX): no page of the allocator's, as far as the VMM's tables tell.
    """

    hva: int
    size: int
    pa: int | None
    state: BackingState
    readable: bool = False
    writable: bool = False
    entry_size: int = 0
    special: bool = False


@dataclass(frozen=True)
class Memslot:
    """One memory slot; ``base_gfn`` and ``npages`` are in host pages, ``userspace_addr`` is the HVA of its start.

    ``dirty_bitmap`` is the kernel's pointer.  ``dirty_pages`` is what it points to, one bit a page, the first page in
    bit 0 of the first byte; ``None`` without a bitmap, where it cannot be read, and where a dirty ring replaces it.
    """

    id: int
    as_id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int
    dirty_bitmap: int
    backing: Sequence[Backing] = ()
    dirty_pages: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Vcpu:
    """One vCPU; ``loaded_on`` is the CPU it is loaded on now (``None``: not loaded, or not known: see notes).

    ``preempted``: its thread lost the CPU while it was runnable, in the guest or anywhere in the kernel.
    ``el2`` are the EL2 registers of one that runs a guest hypervisor, by name (HCR_EL2, VTTBR_EL2, VTCR_EL2,
    SCTLR_EL2); empty for any other.
    """

    address: int
    id: int
    cpu: int
    loaded_on: int | None
    hw_mmu: int
    preempted: bool = False
    el2: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Vm:
    """One VM.  ``found_by`` names the ways it was found: ``vm_list``, ``files``, ``vcpu-files``.

    ``name`` is ``vm0``, ``vm1`` … in order of creation as far as ``vm_list`` or pid and fd tell it.
    ``invalidating`` is true while an MMU-notifier invalidation is in progress.  ``fd`` is the number of the VM's open
    file in process ``pid``, ``None`` where only a vCPU's file or ``vm_list`` names the VM.  ``slots_locked`` is true
    while somebody holds ``kvm->slots_lock``, that is, changes a memslot or reads or clears a dirty log; ``None``: not
    known.  ``mmu_lock_held`` tells whether ``kvm->mmu_lock`` was held, by a reader or a writer: nobody walks to change
    the VM's tables without it; ``None``: not known.
    """

    name: str
    address: int
    pid: int | None
    command: str | None
    found_by: tuple[str, ...]
    mmus: tuple[Mmu, ...]
    memslots: tuple[Memslot, ...]
    vcpus: tuple[Vcpu, ...]
    invalidating: bool
    object_pa: tuple[int, int] = (0, 0)
    fd: int | None = None
    unreadable: str | None = None
    slots_locked: bool | None = None
    mmu_lock_held: bool | None = None


class OwnKind(StrEnum):
    """A table that is no VM's; the value is the name of its regime."""

    HYP = "hyp stage-1"
    """EL2's own, of a host that does not run there (nVHE, hVHE, protected)."""
    HOST = "host stage-2"
    """What pKVM keeps the host under: VMID 0."""


@dataclass(frozen=True)
class Area:
    """Memory that the kernel maps at EL2 with ``permissions`` (``R-X``, ``RW-``, ``R--``): PAs ``[start, end)``."""

    name: str
    start: int
    end: int
    permissions: str


class Share(IntEnum):
    """``enum pkvm_page_state``: how a page stands with the host, or with the hypervisor.

    The numbers are those of ``struct hyp_page`` and of software bits [56:55] (kernel.md 12.2); ``NOPAGE`` is stored in
    the former alone.
    """

    OWNED = 0
    SHARED_OWNED = 1
    SHARED_BORROWED = 2
    NOPAGE = 3


@dataclass(frozen=True)
class PageStates:
    """Pages, PAs ``[start, end)``, that stand otherwise than ``OWNED`` by the host and ``NOPAGE`` to the hypervisor.

    ``guests`` is to how many entries of guests' tables the host has lent each (``host_share_guest_count``); ``None``:
    that kernel does not count (before 6.14).
    """

    start: int
    end: int
    host: int
    hyp: int
    guests: int | None = None


@dataclass(frozen=True)
class OwnTable:
    """A table of the host's own.

    ``root`` is what the CPUs' registers hold (TTBR0_EL2, VTTBR_EL2 while the host runs), or the kernel's record where
    none holds one; ``recorded`` is that record (``hyp_pgtable``, ``pkvm_pgtable``, ``host_mmu``), ``None`` where it
    cannot be found.  ``offset`` is ``hyp_physvirt_offset``, PA minus hyp VA, where the kernel names it.  ``areas`` are
    the parts of the kernel's image that are mapped at EL2.  ``states`` is what pKVM's ``hyp_vmemmap`` says of pages,
    in order, ``None`` where nothing is known; ``states_in_entries``: there is nothing of the kind in it (up to 6.12),
    and the software bits of the tables have the states.  ``guests`` is how many VMs' tables the hypervisor keeps (6.18
    and later), ``None`` where it keeps none or it is not known.
    """

    kind: OwnKind
    root: int
    geometry: Geometry
    recorded: int | None = None
    offset: int | None = None
    areas: tuple[Area, ...] = ()
    states: tuple[PageStates, ...] | None = None
    states_in_entries: bool = False
    guests: int | None = None


@dataclass(frozen=True)
class Look:
    """Some table pages once more, after the machine has run for ``seconds`` since the capture's own stop.

    ``cpus`` are the CPUs as they were stopped this time.  ``mmu_locks`` is `Vm.mmu_lock_held` by name of the VM, of
    those that were still there; ``roots`` the ``pgd_phys`` of each of their MMUs, by the address of the MMU.  A page
    that could not be read is not in ``pages``.
    """

    seconds: float
    cpus: tuple[CpuState, ...]
    mmu_locks: Mapping[str, bool | None]
    roots: Mapping[int, int]
    page_info: Mapping[int, PageInfo]
    pages: Mapping[int, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Capture:
    """Everything that dump, walk and the checks need.

    ``pages`` holds every table page that was reached, by PA (one granule of bytes each; a small root less), those of
    guest hypervisors' own stage 2 that shadow tables were made of too;
    ``page_info`` their ``struct page``; ``unreadable`` the table addresses that could not be read, with the reason.
    ``stopped_seconds`` is how long the machine stood still.  ``looks`` are the later looks at the pages of which one
    instant did not tell enough, in order.  ``own`` are the tables of the host itself (none in a file that was made
    before 2026-11-28).
    """

    tool: str
    made: str
    command: str
    stopped_seconds: float
    host: Host
    vms: tuple[Vm, ...]
    pages: Mapping[int, bytes] = field(repr=False)
    page_info: Mapping[int, PageInfo] = field(repr=False)
    unreadable: Mapping[int, str]
    scope: Scope = Scope.FULL
    looks: tuple[Look, ...] = ()
    own: tuple[OwnTable, ...] = ()
