"""The page store: table pages with their entries, reference counts, and the events of taking and giving them.

Stands for what ``kvm_pgtable_mm_ops`` reaches in a kernel: pages, ``page_count``, ``get_page``, ``put_page``,
``zalloc_page``, the memory cache.  Addresses are bytes; an entry's address is the page's plus eight times its index.
"""

from __future__ import annotations

from array import array
from typing import Final, TypeVar

from inspector.events import ALLOC, ALLOC_EXACT, ALLOCFAIL, FREE, FREE_EXACT, GET, PUT, RawEvent

FIRST_ADDRESS = 0x4000_0000
"""Where the store's own addresses begin."""

T = TypeVar("T")


class NoSuchPage(Exception):
    """A table entry, or a caller, leads to a page that is not allocated: the kernel's code would run on into it."""

    def __init__(self, page: int) -> None:
        super().__init__(f"{page:#x} is not a table page that is allocated")


class _Allocated(dict[int, T]):
    """Something of every allocated page; asking for another page raises :class:`NoSuchPage`."""

    def __missing__(self, page: int) -> T:
        raise NoSuchPage(page)


class MemoryCache:
    """``struct kvm_mmu_memory_cache``: how many pages are still in it (``nobjs``)."""

    __slots__ = ("nobjs",)

    def __init__(self, nobjs: int) -> None:
        self.nobjs = nobjs


class PageStore:
    """Table pages by physical address.

    ``pages`` maps a page's address to its entries, ``counts`` to its reference count; ``events`` is the list that
    everything appends raw events to (the same list object for the life of the store).  A freed page is gone from
    both; its address is not used again, so that a name means one page only.  Addresses count up from
    ``FIRST_ADDRESS``.
    ``deferred`` are the detached tables that wait for a grace period, with the level of the entry they came from.
    ``fail_in`` = n lets the n-th allocation from now give NULL (1 = the next; 0 = none).
    """

    __slots__ = ("counts", "deferred", "emit", "events", "fail_in", "granule", "next_address", "pages", "zero")

    def __init__(self, granule: int) -> None:
        self.granule = granule
        self.pages: _Allocated[array[int]] = _Allocated()
        self.counts: _Allocated[int] = _Allocated()
        self.events: list[RawEvent] = []
        self.emit = self.events.append
        self.deferred: list[tuple[int, int]] = []
        self.fail_in = 0
        self.next_address = FIRST_ADDRESS
        self.zero = array("Q", bytes(granule))

    def take_events(self) -> list[RawEvent]:
        """The raw events since the last call."""
        taken = self.events[:]
        self.events.clear()
        return taken

    def _refused(self) -> bool:
        self.fail_in -= 1
        return self.fail_in == 0

    def zalloc(self, cache: MemoryCache | None = None) -> int:
        """A zeroed page with one reference, from ``cache`` if given; 0 when there is none."""
        if (self.fail_in and self._refused()) or (cache is not None and cache.nobjs <= 0):
            self.emit((ALLOCFAIL,))
            return 0
        if cache is not None:
            cache.nobjs -= 1
        page = self.next_address
        self.next_address = page + self.granule
        self.pages[page] = self.zero[:]
        self.counts[page] = 1
        self.emit((ALLOC, page))
        return page

    def zalloc_exact(self, count: int) -> int:
        """``count`` consecutive zeroed pages, one reference each; 0 when there are none."""
        if self.fail_in and self._refused():
            self.emit((ALLOCFAIL,))
            return 0
        size = count * self.granule
        first = -(-self.next_address // size) * size
        self.next_address = first + size
        for page in range(first, first + size, self.granule):
            self.pages[page] = self.zero[:]
            self.counts[page] = 1
        self.emit((ALLOC_EXACT, first, size))
        return first

    def free_exact(self, first: int, count: int) -> None:
        """Give back what :meth:`zalloc_exact` gave; a page that somebody else still refers to stays.

        Raises :class:`NoSuchPage`.
        """
        size = count * self.granule
        for page in range(first, first + size, self.granule):
            self.counts[page] = self.page_count(page) - 1
            if self.counts[page] == 0:
                del self.pages[page]
                del self.counts[page]
        self.emit((FREE_EXACT, first, size))

    def entries(self, page: int) -> array[int]:
        """The entries of a table page.  Raises :class:`NoSuchPage`."""
        return self.pages[page]

    def get(self, page: int) -> None:
        """Take a reference.  Raises :class:`NoSuchPage`."""
        self.counts[page] += 1
        self.emit((GET, page))

    def page_count(self, page: int) -> int:
        """The references on a table page.  Raises :class:`NoSuchPage`."""
        return self.counts[page]

    def count_or_none(self, page: int) -> int:
        """The references on a page that may be gone: then 0."""
        return self.counts.get(page, 0)

    def put(self, page: int) -> None:
        """Drop a reference; at 0 the page is freed.  Putting a page that is gone already shows as count -1."""
        counts = self.counts
        count = counts.get(page, 0) - 1
        self.emit((PUT, page, count))
        if count > 0:
            counts[page] = count
        elif count == 0:
            del self.pages[page]
            del self.counts[page]
            self.emit((FREE, page))


class TooLarge(Exception):
    """More was asked for than an `Effort` allows."""


class Effort:
    """What may be spent, in table entries: a visit of a table page costs its entries, an event or a line `LINE`."""

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        self.left = most

    def spend(self, entries: int) -> None:
        """Raises :class:`TooLarge` when it is more than is left."""
        self.left -= entries
        if self.left < 0:
            raise TooLarge("this is too large: the script visits too many entries or performs too many events")


LINE: Final = 64
"""Table entries that cost about the memory and time of an event, or of a line of a table that is shown."""


class BoundedStore(PageStore):
    """A store for operations that anybody may have written: a table that leads to itself is walked for ever."""

    __slots__ = ("effort",)

    def __init__(self, granule: int, effort: Effort) -> None:
        super().__init__(granule)
        self.effort = effort
        self.emit = self._emit_bounded

    def _emit_bounded(self, event: RawEvent) -> None:
        self.effort.spend(LINE)
        self.events.append(event)

    def entries(self, page: int) -> array[int]:
        """As of the base; raises :class:`TooLarge` too."""
        self.effort.spend(self.granule // 8)
        return super().entries(page)
