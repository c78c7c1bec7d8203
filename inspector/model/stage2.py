"""A guest's (or the pKVM host's) stage-2 table: the operations of ``kvm_pgtable_stage2_*``.

Each operation returns what the kernel function returns (0 or a negative errno, or as its docstring says) and appends
the events it performs to ``store.events``.  Addresses and sizes are bytes, and may be unaligned where the kernel
accepts that.  ``cache`` is the memory cache, ``None`` for the NULL some callers pass.
"""

from __future__ import annotations

from errno import ENOMEM
from typing import TYPE_CHECKING

from inspector.generations import Generation
from inspector.model import attrs, destroy, split, unmap
from inspector.model import map as map_
from inspector.model.attributes import Attributes
from inspector.model.machine import Machine
from inspector.model.pages import MemoryCache, PageStore
from inspector.model.walker import Pgtable

if TYPE_CHECKING:
    from inspector.codec import Geometry


class Stage2(Pgtable):
    """``struct kvm_pgtable`` of a stage-2 table, empty until :meth:`init`.

    ``attributes`` are the leaf rules; ``phys_limit`` the first PA that is no PA (``kvm_phys_is_valid``), which only
    generations that tell annotations apart by an impossible PA look at.
    """

    __slots__ = ("attributes", "phys_limit")

    def __init__(
        self, behaviours: Generation, machine: Machine, geometry: Geometry, store: PageStore | None = None
    ) -> None:
        super().__init__(behaviours, machine, geometry, store)
        self.attributes = Attributes(behaviours, machine, self.lpa2)
        self.phys_limit = 1 << (52 if self.odd_addresses else 48)

    def init(self) -> int:
        """``kvm_pgtable_stage2_init``: root pages, one reference each."""
        root = self.store.zalloc_exact(self.root_pages)
        if not root:
            return -ENOMEM
        self.root = root
        self.barrier()
        return 0

    def map(self, addr: int, size: int, phys: int, prot: int, cache: MemoryCache | None = None, flags: int = 0) -> int:
        """``kvm_pgtable_stage2_map``."""
        return map_.stage2_map(self, addr, size, phys, prot, cache, flags)

    def set_owner(self, addr: int, size: int, cache: MemoryCache | None, owner: int) -> int:
        """``kvm_pgtable_stage2_set_owner`` (5.15 to 6.18)."""
        return map_.stage2_set_owner(self, addr, size, cache, owner)

    def annotate(self, addr: int, size: int, cache: MemoryCache | None, kind: int, payload: int) -> int:
        """``kvm_pgtable_stage2_annotate`` (7.3)."""
        return map_.stage2_annotate(self, addr, size, cache, kind, payload)

    def unmap(self, addr: int, size: int) -> int:
        """``kvm_pgtable_stage2_unmap``."""
        return unmap.stage2_unmap(self, addr, size)

    def wrprotect(self, addr: int, size: int) -> int:
        """``kvm_pgtable_stage2_wrprotect``."""
        return attrs.stage2_wrprotect(self, addr, size)

    def relax_perms(self, addr: int, prot: int, flags: int = 0) -> int:
        """``kvm_pgtable_stage2_relax_perms``."""
        return attrs.stage2_relax_perms(self, addr, prot, flags)

    def mkyoung(self, addr: int, flags: int = 0) -> int:
        """``kvm_pgtable_stage2_mkyoung``: the old entry where the kernel returns it, else 0."""
        return attrs.stage2_mkyoung(self, addr, flags)

    def mkold(self, addr: int) -> int:
        """``kvm_pgtable_stage2_mkold`` (5.10 to 6.1): the old entry."""
        return attrs.stage2_mkold(self, addr)

    def is_young(self, addr: int) -> int:
        """``kvm_pgtable_stage2_is_young`` (5.10 to 6.1): 1 or 0."""
        return attrs.stage2_is_young(self, addr)

    def test_clear_young(self, addr: int, size: int, mkold: bool) -> int:
        """``kvm_pgtable_stage2_test_clear_young`` (6.6+): 1 or 0."""
        return attrs.stage2_test_clear_young(self, addr, size, mkold)

    def flush(self, addr: int, size: int) -> int:
        """``kvm_pgtable_stage2_flush``."""
        return attrs.stage2_flush(self, addr, size)

    def get_leaf(self, addr: int) -> tuple[int, int, int]:
        """``kvm_pgtable_get_leaf``: ``(errno, entry, level)``."""
        return attrs.get_leaf(self, addr)

    def split(self, addr: int, size: int, cache: MemoryCache) -> int:
        """``kvm_pgtable_stage2_split`` (6.6+)."""
        return split.stage2_split(self, addr, size, cache)

    def create_unlinked(self, phys: int, level: int, prot: int, cache: MemoryCache, force_pte: bool = False) -> int:
        """``kvm_pgtable_stage2_create_unlinked`` (6.6+): a page address or a negative errno."""
        return split.create_unlinked(self, phys, level, prot, cache, force_pte)

    def free_unlinked(self, page: int, level: int) -> None:
        """``kvm_pgtable_stage2_free_unlinked`` (6.6+)."""
        destroy.free_unlinked(self, page, level)

    def destroy(self) -> None:
        """``kvm_pgtable_stage2_destroy``."""
        destroy.stage2_destroy(self)

    def destroy_range(self, addr: int, size: int) -> None:
        """``kvm_pgtable_stage2_destroy_range`` (7.3)."""
        destroy.stage2_destroy_range(self, addr, size)

    def destroy_pgd(self) -> None:
        """``kvm_pgtable_stage2_destroy_pgd`` (7.3)."""
        destroy.stage2_destroy_pgd(self)

    def defer(self, page: int, level: int) -> None:
        """``free_unlinked_table``: later under RCU, at once in the hypervisor."""
        super().defer(page, level)
        if not self.machine.rcu:
            self.grace_period()

    def grace_period(self) -> None:
        """The RCU callbacks run: every deferred table is freed, in order."""
        waiting = self.store.deferred[:]
        self.store.deferred.clear()
        for page, level in waiting:
            destroy.free_unlinked(self, page, level)
