"""A page table's state, and what is done to it: addresses, stores, references, TLB invalidation.

The ground floor of the model: the walker and every operation stand on it, and it knows none of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from errno import ENOMEM
from typing import Final

from inspector.codec import Geometry
from inspector.events import BARRIER, CACHE, CASFAIL, DEFER, STORE, TLBI, WARN
from inspector.generations import Annotation, Generation
from inspector.model.attributes import Attributes
from inspector.model.machine import Machine
from inspector.model.pages import PageStore

LEAF: Final = 1
TABLE_PRE: Final = 2
TABLE_POST: Final = 4
SHARED: Final = 8
HANDLE_FAULT: Final = 16
"""6.6 to 6.18.  In 7.3 the same bit is ``IGNORE_EAGAIN``, with the reverse meaning; here they are two."""
SKIP_BBM_TLBI: Final = 32
SKIP_CMO: Final = 64
IGNORE_EAGAIN: Final = 128

LAST_LEVEL: Final = 3
U64: Final = (1 << 64) - 1
MAX_RANGE_PAGES: Final = 1 << 21
"""``MAX_TLBI_RANGE_PAGES``: what one range invalidation can cover (asm/tlbflush.h)."""


class Visit:
    """One entry as a visitor sees it: ``const struct kvm_pgtable_visit_ctx``.

    Only the walker makes and changes one (for speed it is one object a table page, moved from entry to entry), so a
    visitor must not keep it; to a visitor it is read-only.

    ``table`` is the address of the table page, ``entries`` its contents, ``idx`` the entry's place in it; ``old`` the
    entry as the walker read it; ``addr`` where the walk stands, which for the first entry visited may lie inside the
    entry's range; ``start``, ``end`` and ``flags`` are the walk's.
    """

    __slots__ = ("addr", "end", "entries", "flags", "idx", "level", "old", "start", "table")

    table: int
    entries: array[int]
    idx: int
    level: int
    old: int
    addr: int
    start: int
    end: int
    flags: int

    @property
    def ptep(self) -> int:
        """The address of the entry."""
        return self.table + 8 * self.idx


class Pgtable:
    """A page table of either kind: ``struct kvm_pgtable`` with the store it lives in.

    ``root`` is the address of the first root page, 0 before init and after destroy.  ``shifts`` holds log2 of the
    bytes an entry covers for levels 0..3, with level -1 last, where Python's index -1 finds it.  ``phys_limit`` is the
    first number that is not a PA (``kvm_phys_is_valid``), by which some generations tell annotations from leaves
    (``annotates_by_pa``).
    ``lose_cas`` = n (0: never) lets another CPU be faster at the n-th cmpxchg from now: just before it, that CPU sets
    or clears the bits ``race_value``, or stores that value (``race_mode`` ``set``, ``clear``, ``value``); the cmpxchg
    then fails if the entry changed.
    ``each_read``: walks read every entry as often as the kernel's do, empty ones too, for who watches the reads.
    """

    __slots__ = (
        "addr_mask",
        "annotates_by_pa",
        "behaviours",
        "each_read",
        "emit",
        "geometry",
        "ia_bits",
        "index_mask",
        "lose_cas",
        "lpa2",
        "machine",
        "min_block_level",
        "page_mask",
        "page_size",
        "phys_limit",
        "race_mode",
        "race_value",
        "root",
        "root_pages",
        "root_shift",
        "shifts",
        "split_addresses",
        "start_level",
        "store",
    )

    def __init__(
        self, behaviours: Generation, machine: Machine, geometry: Geometry, store: PageStore | None = None
    ) -> None:
        shift = geometry.granule_shift
        if geometry.lpa2 and not behaviours.lpa2:
            raise ValueError(f"{behaviours.label} has no LPA2")
        self.behaviours = behaviours
        self.machine = machine
        self.geometry = geometry
        self.store = store if store is not None else PageStore(1 << shift)
        self.emit = self.store.emit
        self.root = 0
        self.ia_bits = geometry.ia_bits
        self.start_level = geometry.start_level
        self.root_pages = geometry.root_pages
        self.page_size = 1 << shift
        self.page_mask = U64 & ~(self.page_size - 1)
        self.index_mask = (1 << (shift - 3)) - 1
        levels = [(shift - 3) * (4 - level) + 3 for level in (0, 1, 2, 3, -1)]
        self.shifts = tuple(levels)
        self.root_shift = self.shifts[self.start_level] + shift - 3
        self.min_block_level = 1 if shift == 12 else 2
        self.lpa2 = geometry.lpa2
        self.split_addresses = self.lpa2 or shift == 16
        self.addr_mask = (1 << (50 if self.lpa2 else 48)) - self.page_size
        self.phys_limit = 1 << (52 if self.split_addresses else 48)
        self.annotates_by_pa = behaviours.annotation is Annotation.OWNER_BY_INVALID_PA
        self.each_read = False
        self.lose_cas = 0
        self.race_mode = "set"
        self.race_value = 0

    def may_be_block(self, ctx: Visit, phys: int) -> bool:
        """``kvm_block_mapping_supported`` above the last level: by level, range and alignment.

        Where owners are told by an impossible PA, such a one is of any alignment: a hyp map of it makes a block too.
        """
        addr, size = ctx.addr, 1 << self.shifts[ctx.level]
        if ctx.level < self.min_block_level or size > ctx.end - addr or addr & (size - 1):
            return False
        return not phys & (size - 1) or (self.annotates_by_pa and phys >= self.phys_limit)

    # --- addresses in descriptors (kvm_pte_to_phys, kvm_phys_to_pte)

    def pa_of(self, pte: int) -> int:
        """The physical address a descriptor holds."""
        pa = pte & self.addr_mask
        if self.split_addresses:
            if self.lpa2:
                return pa | (pte >> 8 & 3) << 50
            return pa | (pte >> 12 & 0xF) << 48
        return pa

    def pte_of(self, pa: int) -> int:
        """The address bits of a descriptor for ``pa``."""
        pte = pa & self.addr_mask
        if self.split_addresses:
            if self.lpa2:
                return pte | (pa >> 50 & 3) << 8
            return pte | (pa >> 48 & 0xF) << 12
        return pte

    def is_table(self, pte: int, level: int) -> bool:
        """``kvm_pte_table``: valid, of table type, and not at the last level."""
        return level != LAST_LEVEL and pte & 3 == 3

    # --- stores and references

    def write(self, ctx: Visit, new: int, release: int = 0) -> None:
        """A plain store of a descriptor."""
        entries, idx = ctx.entries, ctx.idx
        self.emit((STORE, ctx.table + 8 * idx, entries[idx], new, release, 0))
        entries[idx] = new

    def try_set(self, ctx: Visit, new: int) -> bool:
        """``stage2_try_set_pte``: cmpxchg if the walk is shared, else a plain store; ``False`` = lost the race."""
        entries, idx, old = ctx.entries, ctx.idx, ctx.old
        shared = ctx.flags & SHARED
        if shared:
            if self.lose_cas:
                self.lose_cas -= 1
                if self.lose_cas == 0:
                    self._other_cpu(entries, idx)
            if entries[idx] != old:
                self.emit((CASFAIL, ctx.table + 8 * idx, old, new))
                return False
        elif self.each_read:
            old = entries[idx]  # nobody else wrote it, or this store hides what they wrote
        self.emit((STORE, ctx.table + 8 * idx, old, new, 0, 1 if shared else 0))
        entries[idx] = new
        return True

    def _other_cpu(self, entries: array[int], index: int) -> None:
        if self.race_mode == "set":
            entries[index] |= self.race_value
        elif self.race_mode == "clear":
            entries[index] &= ~self.race_value
        else:
            entries[index] = self.race_value

    # --- TLB invalidation

    def flush_va(self, instruction: str, va: int, level: int) -> None:
        """A TLBI of hyp stage-1: ``vae2is`` or ``vale2is``."""
        self.emit((TLBI, instruction, va, level, None))

    def flush_ipa(self, ipa: int, level: int) -> None:
        """``__kvm_tlb_flush_vmid_ipa``."""
        self.emit((TLBI, "ipa", ipa, level, None))

    def flush_all(self) -> None:
        """``__kvm_tlb_flush_vmid``."""
        self.emit((TLBI, "vmid", None, None, None))

    def flush_range(self, ipa: int, size: int) -> None:
        """``kvm_tlb_flush_vmid_range``: by range in chunks, or everything on a CPU without FEAT_TLBIRANGE."""
        if not self.machine.tlb_range:
            self.flush_all()
            return
        pages = size // self.page_size
        while pages > 0:
            chunk = min(pages, MAX_RANGE_PAGES)
            self.emit((TLBI, "range", ipa, None, chunk))
            ipa = (ipa + chunk * self.page_size) & U64
            pages -= chunk

    def barrier(self, kind: str = "ishst") -> None:
        """``dsb(kind)``, or ``isb``."""
        self.emit((BARRIER, kind))

    def warn(self) -> None:
        """A ``WARN_ON``."""
        self.emit((WARN,))

    def defer(self, page: int, level: int) -> None:
        """``free_unlinked_table``: the subtree under ``page`` is freed after a grace period."""
        self.emit((DEFER, page, level))
        self.store.deferred.append((page, level))

    # --- the table as it is

    def entry_at(self, addr: int, level: int) -> tuple[int, int] | None:
        """``(table page, index)`` of the entry for ``addr`` at ``level``; ``None`` when the walk ends above it."""
        if not self.root or level < self.start_level or level > LAST_LEVEL or addr >> self.ia_bits:
            return None
        table = self.root + (addr >> self.root_shift) * self.page_size
        at = self.start_level
        while table in self.store.pages:
            index = addr >> self.shifts[at] & self.index_mask
            if at == level:
                return (table, index)
            pte = self.store.pages[table][index]
            if not self.is_table(pte, at):
                return None
            table = self.pa_of(pte)
            at += 1
        return None

    def tables(self) -> Iterator[tuple[int, int, int, int, int]]:
        """``(page, level, input address, parent page, index there)`` of every linked table page, in walk order.

        A root page's parent is 0 and its index its number.
        """
        for number in range(self.root_pages if self.root else 0):
            yield from self._under(
                self.root + number * self.page_size, self.start_level, number << self.root_shift, 0, number
            )

    def _under(
        self, page: int, level: int, base: int, parent: int, number: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        yield (page, level, base, parent, number)
        if level == LAST_LEVEL:
            return
        shift = self.shifts[level]
        for index, pte in enumerate(self.store.entries(page)):
            if pte & 3 == 3:
                yield from self._under(self.pa_of(pte), level + 1, base + (index << shift), page, index)


class Stage2Table(Pgtable):
    """``struct kvm_pgtable`` of a stage-2 table, empty until :meth:`init`.

    ``attributes`` are the leaf rules.
    """

    __slots__ = (
        "attributes",
        "counts_nonzero",
        "locked_mask",
        "locked_value",
        "stale_invalid",
    )

    def __init__(
        self, behaviours: Generation, machine: Machine, geometry: Geometry, store: PageStore | None = None
    ) -> None:
        super().__init__(behaviours, machine, geometry, store)
        self.attributes = Attributes(behaviours, machine, self.lpa2)
        # What the walks ask at every entry, without the detour over a derived property of the generation.
        self.counts_nonzero = behaviours.counts_nonzero
        self.locked_mask = behaviours.locked_mask
        self.locked_value = behaviours.locked_value
        self.stale_invalid = behaviours.stale_invalid

    def init(self) -> int:
        """``kvm_pgtable_stage2_init``: root pages, one reference each."""
        self.root = self.store.zalloc_exact(self.root_pages)
        if not self.root:
            return -ENOMEM
        self.barrier()
        return 0

    def is_counted(self, pte: int) -> bool:
        """``stage2_pte_is_counted`` (5.10: validity)."""
        return pte != 0 if self.counts_nonzero else bool(pte & 1)

    def cache_maintenance(self, new: int, size: int) -> None:
        """What the memory of a leaf about to be stored needs: ``dcache`` if cacheable, ``icache`` if executable."""
        machine, attributes = self.machine, self.attributes
        if machine.dcache_op and attributes.cacheable(new):
            self.emit((CACHE, "dcache", self.pa_of(new), size))
        if machine.icache_op and attributes.executable(new):
            self.emit((CACHE, "icache", self.pa_of(new), size))
