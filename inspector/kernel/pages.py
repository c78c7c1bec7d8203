"""``struct page``: where the array of them lies, reference counts, and what the allocator says of a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.kernel.vmemmap import find_vmemmap
from inspector.snapshot import PageInfo, PageState

_PAGE_TYPE_BASE = 0xF000_0000
_PG_BUDDY_BEFORE_ENUM = 0x80  # PG_buddy, a macro up to 6.10 (include/linux/page-flags.h 6.1)


@dataclass(frozen=True)
class PageMap:
    """``struct page`` of frame ``pfn`` is at ``base + pfn * size`` (the kernel's biased ``vmemmap``)."""

    kernel: HostKernel
    base: int
    size: int

    def struct_page(self, pa: int) -> int:
        return self.base + (pa >> self.kernel.space.geometry.granule_shift) * self.size

    def page_info(self, pas: Iterable[int]) -> dict[int, PageInfo]:
        """Reference count and state of each page at ``pas``; a page without a ``struct page`` is left out."""
        wanted: list[tuple[int, int]] = []
        for pa in pas:
            try:
                wanted.append((pa, self.kernel.space.pa(self.struct_page(pa))))
            except BadPointer:
                continue
        raw = self.kernel.space.memory.read_many([(where, self.size) for _, where in wanted])
        return {
            pa: PageInfo(self._field(data, "_refcount", signed=True), self._state(data))
            for (pa, _), data in zip(wanted, raw, strict=True)
            if data is not None
        }

    def reserved(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Runs of ``[start, end)`` (PAs) whose pages the kernel never gave to the allocator (PG_reserved).

        ``free_reserved_area`` clears the flag of the image's freed parts: initial code and data (``free_initmem``) and
        up to 6.6 the head before ``_stext``.
        """
        granule = self.kernel.space.geometry.granule
        flag = self.kernel.enumerator("pageflags", "PG_reserved")
        if flag is None:
            return ()
        count = -(-(end - start) // granule)
        data = np.frombuffer(self.kernel.space.read(self.struct_page(start), count * self.size), np.uint8)
        at = self.kernel.member("page", "flags").offset
        flags = np.ascontiguousarray(data.reshape(count, self.size)[:, at : at + 8]).view("<u8").ravel()
        held = np.concatenate(([False], (flags >> np.uint64(flag) & np.uint64(1)).astype(np.bool_), [False]))
        edges = np.nonzero(held[1:] != held[:-1])[0].tolist()
        return tuple((start + a * granule, start + b * granule) for a, b in zip(edges[::2], edges[1::2], strict=True))

    def _field(self, data: bytes, path: str, *, signed: bool = False) -> int:
        member = self.kernel.member("page", path)
        return int.from_bytes(data[member.offset : member.offset + member.type.size], "little", signed=signed)

    def _state(self, data: bytes) -> PageState:
        """``free`` or ``slab`` by page type or flag, ``reserved`` by flag, else ``used``.

        Page types: a byte in the top of ``page_type`` since 6.11/6.12 (enum pagetype: PGTY_buddy, PGTY_slab), a
        mask of cleared bits before; the slab was a page flag up to 6.9 (enum pageflags: PG_slab).
        """
        enumerator = self.kernel.enumerator
        flags = self._field(data, "flags")
        page_type = self._field(data, "page_type")
        buddy = enumerator("pagetype", "PGTY_buddy")
        if buddy is not None:
            if page_type >> 24 == buddy:
                return PageState.FREE
            if page_type >> 24 == enumerator("pagetype", "PGTY_slab"):
                return PageState.SLAB
        else:
            slab = enumerator("pageflags", "PG_slab")
            if slab is not None and flags >> slab & 1:
                return PageState.SLAB
            if page_type & (_PAGE_TYPE_BASE | _PG_BUDDY_BEFORE_ENUM) == _PAGE_TYPE_BASE:
                return PageState.FREE
        reserved = enumerator("pageflags", "PG_reserved")
        if reserved is not None and flags >> reserved & 1:
            return PageState.RESERVED
        return PageState.USED


def page_map(kernel: HostKernel) -> PageMap:
    """The array of ``struct page``; raises `UnknownVmemmap` when nothing tells, for certain, where it lies."""
    return PageMap(kernel, find_vmemmap(kernel), kernel.sizeof("page"))
