"""What a map, set_owner or annotate walk carries, and the questions that every scheme of map asks.

Facts: kernel.md 4.1, 4.2; ``struct stage2_map_data``, ``stage2_leaf_mapping_allowed``,
``stage2_map_walk_leaf`` of 6.1.192, 6.12.117, 7.3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL, ENOMEM

from inspector.model.pages import MemoryCache
from inspector.model.state import LAST_LEVEL, Stage2Table, Visit


@dataclass(slots=True)
class MapData:
    """``struct stage2_map_data``.

    ``phys`` is the PA of the walk's start (or what stands for it), ``attr`` the attribute bits, ``annotation`` the
    invalid entry to write when the walk is an annotation.
    """

    pgt: Stage2Table
    phys: int
    attr: int
    cache: MemoryCache | None
    force_pte: bool
    annotation: int | None

    def annotates(self, phys: int) -> bool:
        """What is written is an annotation and no leaf."""
        pgt = self.pgt
        return phys >= pgt.phys_limit if pgt.annotates_by_pa else self.annotation is not None

    def leaf_allowed(self, ctx: Visit, phys: int) -> bool:
        """``stage2_leaf_mapping_allowed`` (kernel.md 4.2)."""
        level = ctx.level
        if level == LAST_LEVEL:
            return True
        if self.force_pte:
            return False
        pgt = self.pgt
        if self.annotation is not None and not pgt.annotates_by_pa:
            return True
        return pgt.may_be_block(ctx, phys)

    def new_leaf(self, level: int, phys: int) -> int:
        """``kvm_init_valid_leaf_pte``, or the annotation."""
        if self.annotates(phys):
            return self.annotation or 0
        return self.pgt.pte_of(phys) | self.attr | (3 if level == LAST_LEVEL else 1)

    def new_table(self, level: int) -> int:
        """The page of a table to install at ``level``, or a negative errno."""
        if level == LAST_LEVEL:
            self.pgt.warn()
            return -EINVAL
        return (self.cache and self.pgt.store.zalloc(self.cache)) or -ENOMEM
