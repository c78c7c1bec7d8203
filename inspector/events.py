"""The event grammar: one line per thing that page-table code does, shared by model, harness, trace and gdb agent.

Ground floor: standard library only, imports no other room.

A line is ``<kind> key=value ...``; addresses and descriptors are hexadecimal, counts, levels and flags decimal::

    store pa=0x40001018 old=0x0 new=0x40002003 release=1 cas=0
    tlbi kind=ipa ipa=0x80000000 level=3
    put page=0x40002000 count=0

Three forms of the same event, each for its use:

- *raw*: a plain tuple ``(KIND, field, ...)``, what hot loops append (nothing is built but the tuple);
- *event*: one frozen dataclass per kind, what readable code matches on;
- *text*: the line, what files hold.

``EVENT_TYPES`` is the whole grammar as a table; every conversion is driven by it.  Addresses are bytes.

What each kind stands for in the kernel (``arch/arm64/kvm/hyp/pgtable.c``): ``store`` a descriptor store that took
effect (``WRITE_ONCE``: release=0, ``smp_store_release``: release=1, successful ``cmpxchg``: cas=1); ``casfail`` a
``cmpxchg`` that lost; ``tlbi`` a call of a TLB helper; ``cache``, ``get``, ``put``, ``alloc``, ``defer`` the
``kvm_pgtable_mm_ops`` callbacks (``dcache_clean_inval_poc`` and ``icache_inval_pou``, ``get_page``, ``put_page``,
``zalloc_page``, ``free_unlinked_table``); ``free`` a page whose count reached 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

TTL_UNKNOWN: Final = 0x7FFFFFFF
"""``TLBI_TTL_UNKNOWN``: the kernel's INT_MAX, "no level hint" (asm/tlbflush.h, 6.6.y and later)."""

LEVEL_UNDEFINED: Final = -128
"""A level the kernel read from an uninitialised variable (``relax_perms`` of 6.18 on -EAGAIN)."""

STORE: Final = 0
CASFAIL: Final = 1
TLBI: Final = 2
CACHE: Final = 3
GET: Final = 4
PUT: Final = 5
ALLOC: Final = 6
ALLOCFAIL: Final = 7
ALLOC_EXACT: Final = 8
FREE_EXACT: Final = 9
FREE: Final = 10
DEFER: Final = 11
BARRIER: Final = 12
CALL: Final = 13
RET: Final = 14
WARN: Final = 15

RawEvent: TypeAlias = tuple[Any, ...]
"""``(KIND, field, ...)``, the fields in the order of the dataclass of that kind."""


@dataclass(frozen=True, slots=True)
class Store:
    """A descriptor store that took effect; ``pa`` is the address of the entry."""

    pa: int
    old: int
    new: int
    release: int
    cas: int


@dataclass(frozen=True, slots=True)
class CasFail:
    """A ``cmpxchg`` that found something else than ``old`` and stored nothing."""

    pa: int
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Tlbi:
    """A call of a TLB helper, with the arguments as passed.

    ``kind``: ``ipa`` (``__kvm_tlb_flush_vmid_ipa``), ``ipa_nsh`` (``..._ipa_nsh``), ``vmid``
    (``__kvm_tlb_flush_vmid``), ``range`` (``__kvm_tlb_flush_vmid_range``), ``vae2is`` and ``vale2is`` (the
    instructions of hyp stage-1).  ``level`` and ``pages`` are ``None`` where the helper has no such argument.
    """

    kind: str
    ipa: int | None
    level: int | None
    pages: int | None


@dataclass(frozen=True, slots=True)
class Cache:
    """Cache maintenance of ``size`` bytes of memory at ``pa``; ``kind`` is ``dcache`` or ``icache``."""

    kind: str
    pa: int
    size: int


@dataclass(frozen=True, slots=True)
class Get:
    """A reference taken on a table page."""

    page: int


@dataclass(frozen=True, slots=True)
class Put:
    """A reference dropped; ``count`` is what is left."""

    page: int
    count: int


@dataclass(frozen=True, slots=True)
class Alloc:
    """A table page taken from the memory cache, zeroed, with one reference."""

    page: int


@dataclass(frozen=True, slots=True)
class AllocFail:
    """An allocation that gave NULL."""


@dataclass(frozen=True, slots=True)
class AllocExact:
    """The root tables, ``size`` bytes at ``page``."""

    page: int
    size: int


@dataclass(frozen=True, slots=True)
class FreeExact:
    """The root tables given back."""

    page: int
    size: int


@dataclass(frozen=True, slots=True)
class Free:
    """A table page whose reference count reached 0."""

    page: int


@dataclass(frozen=True, slots=True)
class Defer:
    """A detached table handed to ``free_unlinked_table``; ``level`` is that of the entry that pointed to it."""

    page: int
    level: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """A barrier; ``kind`` is ``ishst`` (``dsb(ishst)``), ``ish`` or ``isb``."""

    kind: str


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel function entered; ``args`` is free text without spaces (``addr=0x0,size=0x1000``)."""

    fn: str
    args: str


@dataclass(frozen=True, slots=True)
class Ret:
    """A kernel function's result."""

    value: int


@dataclass(frozen=True, slots=True)
class Warn:
    """A ``WARN_ON`` whose condition held (``WARN_ON_ONCE`` counts each time)."""


Event: TypeAlias = (
    Store
    | CasFail
    | Tlbi
    | Cache
    | Get
    | Put
    | Alloc
    | AllocFail
    | AllocExact
    | FreeExact
    | Free
    | Defer
    | Barrier
    | Call
    | Ret
    | Warn
)

_HEX, _DEC, _WORD, _LEVEL = "hex", "dec", "word", "level"

EVENT_TYPES: Final[tuple[tuple[str, type[Any], tuple[tuple[str, str], ...]], ...]] = (
    # word, dataclass, (key, form of the value) in the order of the raw tuple; the position is the KIND constant
    ("store", Store, (("pa", _HEX), ("old", _HEX), ("new", _HEX), ("release", _DEC), ("cas", _DEC))),
    ("casfail", CasFail, (("pa", _HEX), ("old", _HEX), ("new", _HEX))),
    ("tlbi", Tlbi, (("kind", _WORD), ("ipa", _HEX), ("level", _LEVEL), ("pages", _DEC))),
    ("cache", Cache, (("kind", _WORD), ("pa", _HEX), ("size", _DEC))),
    ("get", Get, (("page", _HEX),)),
    ("put", Put, (("page", _HEX), ("count", _DEC))),
    ("alloc", Alloc, (("page", _HEX),)),
    ("allocfail", AllocFail, ()),
    ("alloc_exact", AllocExact, (("page", _HEX), ("size", _DEC))),
    ("free_exact", FreeExact, (("page", _HEX), ("size", _DEC))),
    ("free", Free, (("page", _HEX),)),
    ("defer", Defer, (("page", _HEX), ("level", _DEC))),
    ("barrier", Barrier, (("kind", _WORD),)),
    ("call", Call, (("fn", _WORD), ("args", _WORD))),
    ("ret", Ret, (("value", _DEC),)),
    ("warn", Warn, ()),
)

_KIND_OF_WORD: Final = {word: kind for kind, (word, _, _) in enumerate(EVENT_TYPES)}
_KIND_OF_TYPE: Final = {cls: kind for kind, (_, cls, _) in enumerate(EVENT_TYPES)}
_OPTIONAL: Final = frozenset({(TLBI, "ipa"), (TLBI, "level"), (TLBI, "pages"), (CALL, "args")})
_LEVEL_WORDS: Final = {TTL_UNKNOWN: "unknown", LEVEL_UNDEFINED: "undefined"}
_LEVEL_VALUES: Final = {word: value for value, word in _LEVEL_WORDS.items()}


class BadEvent(ValueError):
    """A line that is not in the grammar; the message says which line and what is wrong."""


def _value_text(form: str, value: Any) -> str:
    if form == _HEX:
        return f"{value:#x}"
    if form == _LEVEL:
        return _LEVEL_WORDS.get(value, str(value))
    return str(value)


def _text_value(form: str, text: str) -> Any:
    if form == _WORD:
        return text
    if form == _LEVEL and text in _LEVEL_VALUES:
        return _LEVEL_VALUES[text]
    return int(text, 0)


def format_raw(raw: RawEvent) -> str:
    """The line of a raw event."""
    word, _, fields = EVENT_TYPES[raw[0]]
    parts = [word]
    for (key, form), value in zip(fields, raw[1:], strict=True):
        if value is not None and value != "":
            parts.append(f"{key}={_value_text(form, value)}")
    return " ".join(parts)


def parse_raw(line: str) -> RawEvent:
    """The raw event of a line.  Raises :class:`BadEvent`."""
    words = line.split()
    if not words or words[0] not in _KIND_OF_WORD:
        raise BadEvent(f"not an event: {line!r}")
    kind = _KIND_OF_WORD[words[0]]
    given = dict(word.partition("=")[::2] for word in words[1:])
    values: list[Any] = [kind]
    for key, form in EVENT_TYPES[kind][2]:
        text = given.pop(key, None)
        if text is None:
            if (kind, key) not in _OPTIONAL:
                raise BadEvent(f"{key}= is missing in {line!r}")
            values.append("" if form == _WORD else None)
            continue
        try:
            values.append(_text_value(form, text))
        except ValueError:
            raise BadEvent(f"{key}={text} is no number in {line!r}") from None
    if given:
        raise BadEvent(f"{next(iter(given))}= does not belong in {line!r}")
    return tuple(values)


def to_event(raw: RawEvent) -> Event:
    """The dataclass of a raw event."""
    event: Event = EVENT_TYPES[raw[0]][1](*raw[1:])
    return event


def to_raw(event: Event) -> RawEvent:
    """The raw tuple of an event."""
    kind = _KIND_OF_TYPE[type(event)]
    return (kind, *(getattr(event, key) for key, _ in EVENT_TYPES[kind][2]))


def format_event(event: Event) -> str:
    """The line of an event; :func:`parse_event` is the inverse."""
    return format_raw(to_raw(event))


def parse_event(line: str) -> Event:
    """The event of a line.  Raises :class:`BadEvent`."""
    return to_event(parse_raw(line))


def to_events(raws: Iterable[RawEvent]) -> Iterator[Event]:
    """The dataclasses of raw events, lazily."""
    return map(to_event, raws)


class PageNames:
    """Names for table pages in order of first sight, so that two runs with other addresses can be compared.

    Root pages are ``P0``, ``P1`` ... (all pages of an ``alloc_exact``), others ``T0``, ``T1`` ...; a page that was
    freed and allocated again gets a new name.  ``granule`` is the size of a table page in bytes.
    """

    def __init__(self, granule: int) -> None:
        self._granule = granule
        self._names: dict[int, str] = {}
        self._tables = 0

    def learn(self, raw: RawEvent) -> None:
        """Take note of an allocation."""
        if raw[0] == ALLOC:
            self._names[raw[1]] = f"T{self._tables}"
            self._tables += 1
        elif raw[0] == ALLOC_EXACT:
            for number in range(raw[2] // self._granule):
                self._names[raw[1] + number * self._granule] = f"P{number}"

    def page(self, pa: int) -> str:
        """The name of the page at ``pa``, or the address itself when it is no table page."""
        return self._names.get(pa, f"{pa:#x}")

    def entry(self, pa: int) -> str:
        """The name of the entry at ``pa``: ``T3[17]``."""
        offset = pa % self._granule
        return f"{self.page(pa - offset)}[{offset // 8}]"

    def descriptor(self, value: int) -> str:
        """A descriptor with the address of a known table page replaced by its name."""
        page = value & ~(self._granule - 1) & 0x000F_FFFF_FFFF_FFFF
        if value & 3 == 3 and page in self._names:
            return f"{self._names[page]}|{value - page:#x}"
        return f"{value:#x}"
