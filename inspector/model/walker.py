"""The generic page-table walker: which entries are visited, in which order, and when they are read again.

Facts: kernel_stage2 3.1-3.4; ``kvm_pgtable_walk``, ``__kvm_pgtable_walk`` and ``__kvm_pgtable_visit`` of 6.1.192,
6.12.117 and 7.3.4.  A *visitor* is called as ``visit(table, entries, index, level, old, addr, which)`` with

- ``table`` the address of the table page, ``entries`` its contents, ``index`` the entry's place in it;
- ``old`` the entry as the walker read it; ``addr`` where the walk stands, which for the first entry visited may lie
  inside the entry's range; ``which`` one of ``LEAF``, ``TABLE_PRE``, ``TABLE_POST``.

It returns 0 or a negative errno.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from errno import EAGAIN, EINVAL, EPERM, ERANGE
from typing import TYPE_CHECKING, Final, TypeAlias

from inspector.events import BARRIER, CASFAIL, DEFER, GET, STORE, TLBI, WARN
from inspector.generations import Eagain, Generation
from inspector.model.machine import Machine
from inspector.model.pages import MemoryCache, PageStore

if TYPE_CHECKING:
    from inspector.codec import Geometry

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

_STRIDE: Final = 64
_STRIDE_MASK: Final = _STRIDE - 1
_EMPTY: Final = array("Q", bytes(8 * _STRIDE))
# How far one comparison passes over empty entries; tables have a multiple of it.

Visitor: TypeAlias = Callable[[int, "array[int]", int, int, int, int, int], int]


class Walk:
    """One walk: its flags, its visitor, and where it stands (``addr``; ``start`` and ``end`` are constant).

    ``ignores_empty``: the visitor does nothing with an entry that is 0, so the walker may pass over it.
    """

    __slots__ = ("addr", "end", "flags", "ignores_empty", "start", "tolerant", "visit")

    def __init__(
        self, visit: Visitor, flags: int, start: int, end: int, tolerant: bool, ignores_empty: bool = False
    ) -> None:
        self.ignores_empty = ignores_empty
        self.visit = visit
        self.flags = flags
        self.start = start
        self.addr = start
        self.end = end
        self.tolerant = tolerant


class Pgtable:
    """A page table of either kind: ``struct kvm_pgtable`` with the store it lives in.

    ``root`` is the address of the first root page, 0 before init and after destroy.  ``shifts`` holds log2 of the
    bytes an entry covers for levels 0..3, with level -1 last, where Python's index -1 finds it.
    ``lose_cas`` = n (0: never) lets another CPU be faster at the n-th cmpxchg from now: just before it, that CPU sets
    or clears the bits ``race_value``, or stores that value (``race_mode`` ``set``, ``clear``, ``value``); the cmpxchg
    then fails if the entry changed.
    """

    __slots__ = (
        "addr_mask",
        "behaviours",
        "emit",
        "geometry",
        "ia_bits",
        "index_mask",
        "lose_cas",
        "lpa2",
        "machine",
        "min_block_level",
        "odd_addresses",
        "page_mask",
        "page_size",
        "race_mode",
        "race_value",
        "root",
        "root_pages",
        "shifts",
        "start_level",
        "store",
    )

    def __init__(
        self, behaviours: Generation, machine: Machine, geometry: Geometry, store: PageStore | None = None
    ) -> None:
        shift = geometry.granule_shift
        if geometry.lpa2 and not behaviours.lpa2:
            raise ValueError(f"{behaviours.label} knows no LPA2")
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
        self.min_block_level = 1 if shift == 12 else 2
        self.lpa2 = geometry.lpa2
        self.odd_addresses = self.lpa2 or shift == 16
        self.addr_mask = (1 << (50 if self.lpa2 else 48)) - self.page_size
        self.lose_cas = 0
        self.race_mode = "set"
        self.race_value = 0

    # --- addresses in descriptors (kvm_pte_to_phys, kvm_phys_to_pte)

    def pa_of(self, pte: int) -> int:
        """The physical address a descriptor holds."""
        pa = pte & self.addr_mask
        if self.odd_addresses:
            if self.lpa2:
                return pa | (pte >> 8 & 3) << 50
            return pa | (pte >> 12 & 0xF) << 48
        return pa

    def pte_of(self, pa: int) -> int:
        """The address bits of a descriptor for ``pa``."""
        pte = pa & self.addr_mask
        if self.odd_addresses:
            if self.lpa2:
                return pte | (pa >> 50 & 3) << 8
            return pte | (pa >> 48 & 0xF) << 12
        return pte

    def is_table(self, pte: int, level: int) -> bool:
        """``kvm_pte_table``: valid, of table type, and not at the last level."""
        return level != LAST_LEVEL and pte & 3 == 3

    def is_counted(self, pte: int) -> bool:
        """``stage2_pte_is_counted`` (5.10: validity)."""
        return pte != 0 if self.behaviours.counts_nonzero else bool(pte & 1)

    # --- stores and references

    def write(self, table: int, entries: array[int], index: int, new: int, release: int = 0) -> None:
        """A plain store of a descriptor."""
        self.emit((STORE, table + 8 * index, entries[index], new, release, 0))
        entries[index] = new

    def try_set(self, table: int, entries: array[int], index: int, old: int, new: int, shared: bool) -> bool:
        """``stage2_try_set_pte``: cmpxchg if the walk is shared, else a plain store; ``False`` = lost the race."""
        if shared:
            if self.lose_cas:
                self.lose_cas -= 1
                if self.lose_cas == 0:
                    self._other_cpu(entries, index)
            if entries[index] != old:
                self.emit((CASFAIL, table + 8 * index, old, new))
                return False
        self.emit((STORE, table + 8 * index, old, new, 0, 1 if shared else 0))
        entries[index] = new
        return True

    def _other_cpu(self, entries: array[int], index: int) -> None:
        if self.race_mode == "set":
            entries[index] |= self.race_value
        elif self.race_mode == "clear":
            entries[index] &= ~self.race_value
        else:
            entries[index] = self.race_value

    def get(self, page: int) -> None:
        """Take a reference on a table page."""
        self.store.counts[page] += 1
        self.emit((GET, page))

    def put(self, page: int) -> None:
        """Drop a reference on a table page."""
        self.store.put(page)

    def zalloc(self, cache: MemoryCache | None) -> int:
        """A table page, or 0."""
        return self.store.zalloc(cache)

    # --- TLB invalidation

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

    def entry_at(self, addr: int, level: int) -> tuple[int, int] | None:
        """``(table page, index)`` of the entry for ``addr`` at ``level``; ``None`` when the walk ends above it."""
        if not self.root or level < self.start_level or level > LAST_LEVEL or addr >> self.ia_bits:
            return None
        root_shift = self.shifts[self.start_level] + self.index_mask.bit_length()
        table = self.root + (addr >> root_shift) * self.page_size
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
        reach = self.shifts[self.start_level] + self.index_mask.bit_length()
        for number in range(self.root_pages if self.root else 0):
            yield from self._under(self.root + number * self.page_size, self.start_level, number << reach, 0, number)

    def _under(
        self, page: int, level: int, base: int, parent: int, number: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        yield (page, level, base, parent, number)
        if level == LAST_LEVEL:
            return
        shift = self.shifts[level]
        for index, pte in enumerate(self.store.pages[page]):
            if pte & 3 == 3:
                yield from self._under(self.pa_of(pte), level + 1, base + (index << shift), page, index)

    def leaves(self) -> Iterator[tuple[int, int, int]]:
        """``(input address, level, entry)`` of every entry that is neither 0 nor a table, in walk order."""
        if not self.root:
            return
        reach = self.shifts[self.start_level] + self.index_mask.bit_length()
        for number in range(self.root_pages):
            yield from self._leaves(self.root + number * self.page_size, self.start_level, number << reach)

    def _leaves(self, page: int, level: int, base: int) -> Iterator[tuple[int, int, int]]:
        shift = self.shifts[level]
        for index, pte in enumerate(self.store.pages[page]):
            if not pte:
                continue
            if self.is_table(pte, level):
                yield from self._leaves(self.pa_of(pte), level + 1, base + (index << shift))
            else:
                yield (base + (index << shift), level, pte)

    # --- the walk

    def _tolerates_eagain(self, flags: int) -> bool:
        eagain = self.behaviours.eagain
        if eagain is Eagain.STOPS_IN_FAULT:
            return not flags & HANDLE_FAULT
        if eagain is Eagain.STOPS_UNLESS_IGNORED:
            return bool(flags & IGNORE_EAGAIN)
        return False

    def begin(self, visit: Visitor, flags: int, addr: int, size: int, ignores_empty: bool = False) -> Walk:
        """``kvm_pgtable_walk``'s range: ``size`` is counted from the page that ``addr`` lies in (kernel.md 3.1)."""
        start = addr & self.page_mask
        end = (start + size + self.page_size - 1) & self.page_mask
        return Walk(visit, flags, start, end, self._tolerates_eagain(flags), ignores_empty)

    def run(self, walk: Walk) -> int:
        """Walk the range through the root pages; 0 or a negative errno."""
        if walk.flags & SHARED and self.machine.hyp_build:
            return -EPERM
        limit = 1 << self.ia_bits
        if walk.addr > limit or walk.end > limit:
            return -ERANGE
        if not self.root:
            return -EINVAL
        root_shift = self.shifts[self.start_level] + self.page_size.bit_length() - 4
        page = (walk.addr & (limit - 1)) >> root_shift
        while walk.addr < walk.end:
            ret = self.walk_table(walk, self.root + page * self.page_size, self.start_level)
            if ret:
                return ret
            page += 1
        return 0

    def walk(self, visit: Visitor, flags: int, addr: int, size: int, ignores_empty: bool = False) -> int:
        """``kvm_pgtable_walk``."""
        return self.run(self.begin(visit, flags, addr, size, ignores_empty))

    def walk_table(self, walk: Walk, table: int, level: int) -> int:
        """``__kvm_pgtable_walk``: one table page from where the walk stands, descending as it goes."""
        if level > LAST_LEVEL or level < self.behaviours.first_level:
            self.warn()
            return -EINVAL
        entries = self.store.pages[table]
        shift = self.shifts[level]
        flags = walk.flags
        visit = walk.visit
        end = walk.end
        ignores_empty = walk.ignores_empty
        last_index = self.index_mask
        index = walk.addr >> shift & last_index
        above_last = level != LAST_LEVEL
        while index <= last_index:
            addr = walk.addr
            if addr >= end:
                break
            old = entries[index]
            if not old and ignores_empty:
                next_index = index + 1
                if not next_index & _STRIDE_MASK:
                    while next_index <= last_index and entries[next_index : next_index + _STRIDE] == _EMPTY:
                        next_index += _STRIDE
                walk.addr = ((addr >> shift) + next_index - index) << shift
                index = next_index
                continue
            descend = above_last and old & 3 == 3
            if descend:
                if flags & TABLE_PRE:
                    ret = visit(table, entries, index, level, old, addr, TABLE_PRE)
                    if ret and not (ret == -EAGAIN and walk.tolerant):
                        return ret
                    if self.behaviours.reload_after_pre:
                        old = entries[index]
                        descend = old & 3 == 3
            elif flags & LEAF:
                ret = visit(table, entries, index, level, old, addr, LEAF)
                if ret and not (ret == -EAGAIN and walk.tolerant):
                    return ret
                old = entries[index]
                descend = above_last and old & 3 == 3
            if descend:
                ret = self.walk_table(walk, self.pa_of(old), level + 1)
                if ret:
                    return ret
                if flags & TABLE_POST:
                    ret = visit(table, entries, index, level, old, addr, TABLE_POST)
                    if ret and not (ret == -EAGAIN and walk.tolerant):
                        return ret
            else:
                walk.addr = ((addr >> shift) + 1) << shift
            index += 1
        return 0
