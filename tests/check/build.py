"""Synthetic captures: good stage-2 tables with every bit written by hand, to be spoiled by the tests.

The encodings come from DDI 0487 D8.3 (descriptor formats), D8.4.3 (S2AP, XN), D8.6 (MemAttr, SH) and the VTCR_EL2 and
VTTBR_EL2 register descriptions, and agree with the kernel's test vectors in kernel.md 1.7 and 2.1; nothing here calls
our own encoder.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inspector.codec import Geometry
from inspector.snapshot import (
    Backing,
    BackingState,
    Capture,
    CpuState,
    Host,
    Memslot,
    Mmu,
    MmuKind,
    Mode,
    PageInfo,
    PageState,
    Running,
    Vcpu,
    Vm,
)

PAGE = 0x1000
BLOCK = 0x20_0000
GIB = 0x4000_0000
RAM = (0x4000_0000, 0x2_4000_0000)
IMAGE = (0x4100_0000, 0x4300_0000)
ZERO_PAGE = IMAGE[0] + 0x5000
HVA = 0xFFFF_8000_0000

# Stage-2 attribute bits.
VALID, TYPE = 1 << 0, 1 << 1
NORMAL_FWB, NORMAL_NO_FWB, DEVICE = 0x6 << 2, 0xF << 2, 0x1 << 2
READ, WRITE, INNER, AF = 1 << 6, 1 << 7, 3 << 8, 1 << 10
XN = 1 << 54
RWX = NORMAL_FWB | READ | WRITE | INNER | AF
RW = RWX | XN
GICV = DEVICE | READ | WRITE | INNER | AF | XN

#: VTCR_EL2 for each IPA size with 4K pages: RES1, HA, VS, PS=48 bits, SH0/ORGN0/IRGN0, SL0 and T0SZ.
VTCR = {32: 0x802D_3520, 36: 0x802D_355C, 40: 0x802D_3558, 44: 0x802D_3594, 48: 0x802D_3590}
START_LEVEL = {32: 2, 36: 1, 40: 1, 44: 0, 48: 0}
ROOT_PAGES = {32: 4, 36: 1, 40: 2, 44: 1, 48: 1}
SHIFT = {0: 39, 1: 30, 2: 21, 3: 12}

TRAITS_510 = {"pgtable": True}
TRAITS_61 = {"mm_ops": True}
TRAITS_612 = {"mm_ops": True, "visit_ctx": True, "signed_level": True, "mmu_vtcr": True}
TRAITS_73 = {**TRAITS_612, "invalid_pte_type": True, "xn_two_bits": True, "pkvm_mappings": True}
FEATURES = {
    "fwb": 1,
    "ttl": 1,
    "tlbirange": 1,
    "lpa2": 0,
    "hafdbs": 2,
    "vmid16": 1,
    "parange": 5,
    "vhe": 1,
    "xnx": 1,
}


@dataclass
class Guest:
    """One VM under construction."""

    world: World
    number: int
    vmid: int
    ia_bits: int
    root: int
    slots: list[Memslot] = field(default_factory=list)
    vm_changes: dict[str, Any] = field(default_factory=dict)
    mmu_changes: dict[str, Any] = field(default_factory=dict)
    more_mmus: list[Mmu] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"vm{self.number}"

    @property
    def address(self) -> int:
        return 0xFFFF_0000_1000_0000 + self.number * 0x10_0000

    def slot(
        self, ipa: int, size: int, pa: int | None, flags: int = 0, state: BackingState = BackingState.PRESENT
    ) -> Memslot:
        """A memslot whose memory is one physical extent at ``pa`` (``None``: nothing behind it)."""
        number = len(self.slots)
        hva = HVA + self.number * 0x100_0000_0000 + number * 0x1_0000_0000
        run = Backing(hva, size, pa, state if pa is not None else BackingState.NONE, True, True, PAGE)
        made = Memslot(number, 0, ipa // PAGE, size // PAGE, hva, flags, 0, (run,))
        self.slots.append(made)
        return made

    def place(self, ipa: int, level: int) -> tuple[int, int]:
        """(table PA, index) of the entry for ``ipa`` at ``level``; tables on the way are made."""
        start = START_LEVEL[self.ia_bits]
        table = self.root + (ipa >> SHIFT[start] + 9) * PAGE
        for above in range(start, level):
            index = ipa >> SHIFT[above] & 511
            entry = self.world.pages[table][index]
            if not entry & VALID:
                entry = self.world.new_table() | VALID | TYPE
                self.world.pages[table][index] = entry
            table = entry & 0xFFFF_FFFF_F000
        return table, ipa >> SHIFT[level] & 511

    def map(self, ipa: int, pa: int, attributes: int = RW, level: int = 3) -> tuple[int, int]:
        """A leaf; returns its place."""
        table, index = self.place(ipa, level)
        self.world.pages[table][index] = pa | attributes | VALID | (TYPE if level == 3 else 0)
        return table, index

    def vcpu(self, number: int, loaded_on: int | None = None) -> None:
        """A vCPU of the VM's own MMU."""
        made = Vcpu(self.address + 0x8000 + number * 0x4000, number, loaded_on or 0, loaded_on, self.address)
        self.vm_changes.setdefault("vcpus", ())
        self.vm_changes["vcpus"] += (made,)

    def mmu(self) -> Mmu:
        geometry = Geometry(12, self.ia_bits, START_LEVEL[self.ia_bits], ROOT_PAGES[self.ia_bits], 48, False)
        mmu = Mmu(
            address=self.address,
            kind=MmuKind.VM,
            vmid=self.vmid,
            vmid_raw=0x1_0000 | self.vmid,
            pgd_phys=self.root,
            pgd_pa=self.root,
            vtcr=VTCR[self.ia_bits],
            ia_bits=self.ia_bits,
            start_level=START_LEVEL[self.ia_bits],
            pgt_flags=0,
            geometry=geometry,
        )
        return replace(mmu, **self.mmu_changes)

    def vm(self) -> Vm:
        vm = Vm(
            name=self.name,
            address=self.address - 2504,
            pid=100 + self.number,
            command="vmm",
            found_by=("files", "vm_list"),
            mmus=(self.mmu(), *self.more_mmus),
            memslots=tuple(self.slots),
            vcpus=(),
            invalidating=False,
            object_pa=(0x4400_0000 + self.number * 0x1_0000, 0x4400_3000 + self.number * 0x1_0000),
        )
        return replace(vm, **self.vm_changes)


class World:
    """A host with guests; tables are handed out from one region of RAM."""

    def __init__(self, traits: Mapping[str, bool] = TRAITS_612) -> None:
        self.pages: dict[int, list[int]] = {}
        self.guests: list[Guest] = []
        self.next_table = 0x4800_0000
        self.refcounts: dict[int, int] = {}
        self.states: dict[int, str] = {}
        self.cpus: list[CpuState] = []
        self.traits = dict(traits)
        self.features = dict(FEATURES)
        self.host_changes: dict[str, Any] = {}

    def new_table(self, pages: int = 1) -> int:
        """Zeroed table pages, aligned to their size."""
        size = pages * PAGE
        self.next_table = -(-self.next_table // size) * size
        made = self.next_table
        self.next_table += size
        for number in range(pages):
            self.pages[made + number * PAGE] = [0] * 512
        return made

    def guest(self, vmid: int, ia_bits: int = 40) -> Guest:
        made = Guest(self, len(self.guests), vmid, ia_bits, self.new_table(ROOT_PAGES[ia_bits]))
        self.guests.append(made)
        return made

    def cpu(
        self, running: str = Running.USER, symbol: str | None = None, vttbr: int | None = None, vtcr: int = 0
    ) -> None:
        """A CPU; with ``vttbr`` its stage-2 is in force."""
        registers = {} if vttbr is None else {"VTTBR_EL2": vttbr, "VTCR_EL2": vtcr, "HCR_EL2": 1}
        self.cpus.append(CpuState(len(self.cpus), registers, Running(running), symbol, vttbr is not None))

    def counts(self) -> dict[int, int]:
        """The right reference count of every table page, but for those that were fixed."""
        old = not self.traits.get("mm_ops")
        right = {pa: 1 + sum(1 for w in words if (w & VALID if old else w)) for pa, words in self.pages.items()}
        return right | self.refcounts

    def freeze_counts(self) -> None:
        """Fix the reference counts at what the tables say now; later changes to the tables leave them alone."""
        self.refcounts = self.counts()

    def capture(self, **changes: Any) -> Capture:
        counts = self.counts()
        host = Host(
            release="6.12.0-synthetic",
            banner="Linux version 6.12.0-synthetic",
            build_id="00" * 20,
            symbols="synthetic",
            kaslr_slide=0x1234_0000,
            page_size=PAGE,
            va_bits=48,
            mode=Mode.VHE,
            cpus=tuple(self.cpus) or (CpuState(0, {}, Running.USER, None, False),),
            features=self.features,
            traits=self.traits,
            ram=(RAM,),
            image_pa=(IMAGE[0] - 0x10_0000, IMAGE[1] + 0x10_0000),
            kernel_pa=(IMAGE,),
            zero_page=ZERO_PAGE,
            memory_backend="process",
        )
        capture = Capture(
            tool="kvm-stage2-inspector 0.1.0",
            made="2026-01-01T00:00:00+00:00",
            command="synthetic",
            stopped_seconds=0.01,
            host=replace(host, **self.host_changes),
            vms=tuple(guest.vm() for guest in self.guests),
            pages={pa: struct.pack("<512Q", *words) for pa, words in self.pages.items()},
            page_info={pa: PageInfo(counts[pa], PageState(self.states.get(pa, PageState.USED))) for pa in self.pages},
            unreadable={},
        )
        return replace(capture, **changes)


def good_world(traits: Mapping[str, bool] = TRAITS_612) -> World:
    """Three correct guests: 40-bit with pages and blocks, 32-bit with four roots at level 2, 48-bit from level 0.

    vm0 runs on CPU 0; everybody else sleeps.
    """
    world = World(traits)
    first = world.guest(vmid=1)
    first.slot(0x4000_0000, 0x100_0000, 0x8000_0000)
    first.slot(0x8000_0000, GIB, 0xC000_0000)
    for number in (0, 1, 2, 5, 300):
        first.map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    first.map(0x4000_3000, 0x8000_3000, RWX & ~WRITE)
    first.map(0x4020_0000, 0x8020_0000, RWX, level=2)
    first.map(0x4040_0000, 0x8040_0000, RW, level=2)
    first.map(0x8000_0000, 0xC000_0000, RW, level=1)
    first.map(0x0804_0000, 0x0804_0000, GICV)  # GICv2's virtual CPU interface, in no slot and not RAM
    first.vcpu(0, loaded_on=0)
    second = world.guest(vmid=2, ia_bits=32)
    second.slot(0xC000_0000, BLOCK * 2, 0x9000_0000)
    second.map(0xC000_0000, 0x9000_0000, RWX, level=2)
    second.map(0xC020_7000, 0x9020_7000)
    third = world.guest(vmid=3, ia_bits=48)
    third.slot(0x4000_0000, BLOCK, 0xA000_0000)
    third.map(0x4000_1000, 0xA000_1000)
    world.cpu("guest", None, vttbr=1 << 48 | first.root | 1, vtcr=VTCR[40])
    world.cpu("host", "cpu_do_idle")
    return world
