"""The event grammar: one line per thing that page-table code does, shared by model, harness, trace and gdb agent.

Ground floor: standard library only, imports no other room.

An event is ``<kind> key=value ...``; addresses and descriptors are hexadecimal, counts, levels and flags decimal::

    store pa=0x40001018 old=0x0 new=0x40002003 release=1 cas=0
    tlbi kind=ipa ipa=0x80000000 level=3
    put page=0x40002000 count=0

In memory it is a plain tuple ``(KIND, field, ...)`` (:data:`RawEvent`), which hot loops append.  ``EVENT_TYPES`` is
the whole grammar as a table; every conversion is driven by it.  Addresses are bytes.

Where events of several CPUs and sources meet, or a stream may lose a piece, each travels in an :class:`Envelope`::

    @17 cpu=2 source=plugin store pa=0x40001018 old=0x0 new=0x40002003 release=1 cas=0 ;17;

The ``@`` and the ``;`` are in no event and the number stands at both ends, so that of a stream that was cut at any
bytes, its pieces joined or not, :func:`read_envelopes` gives the events that are there as a whole; a gap in the numbers
says how many are missing.

What each kind stands for in the kernel (``arch/arm64/kvm/hyp/pgtable.c``):

- ``store``: a descriptor store that took effect, ``pa`` the address of the entry (``WRITE_ONCE``: release=0,
  ``smp_store_release``: release=1, successful ``cmpxchg``: cas=1); ``casfail``: a ``cmpxchg`` that found something else
  than ``old`` and stored nothing.
- ``tlbi``: a call of a TLB helper with the arguments as passed: ``ipa`` (``__kvm_tlb_flush_vmid_ipa``), ``ipa_nsh``
  (``..._ipa_nsh``), ``vmid`` (``__kvm_tlb_flush_vmid``), ``range`` (``__kvm_tlb_flush_vmid_range``), ``vae2is`` and
  ``vale2is`` (the instructions of hyp stage-1); what a helper has no argument for is left out.
- the ``kvm_pgtable_mm_ops`` callbacks: ``cache`` (``dcache_clean_inval_poc``, ``icache_inval_pou``: ``size`` bytes of
  memory at ``pa``), ``get`` and ``put`` (a reference on a table page; ``count`` is what is left), ``alloc`` and
  ``allocfail`` (``zalloc_page``; NULL), ``alloc_exact`` and ``free_exact`` (the root pages), ``defer``
  (``free_unlinked_table``; ``level`` is that of the entry that pointed there).
- ``free``: a page whose count reached 0.  ``barrier``: ``ishst`` (``dsb(ishst)``), ``ish`` or ``isb``; in a trace any
  DSB, and ``hvc``, a call into the hypervisor.
- ``call`` and ``ret``: a kernel function entered (``args`` is free text without spaces, ``addr=0x0,size=0x1000``), and
  its result.  ``warn``: a ``WARN_ON`` whose condition held (``WARN_ON_ONCE`` counts each time).
- in a trace also ``enter`` and ``leave``: of a function that is no operation, which an operation may call (a TLB
  function), or be called by (an ioctl); and ``sysreg``: VTTBR_EL2 or HCR_EL2 is written on a CPU.
  ``obtain`` and ``release``: in a guest's fault KVM takes a reference on a page of the host, frame ``pfn``, and lets
  one go, ``what`` the frame up to 6.12, later the address of its ``struct page``.
  ``chain``: functions that called one another, the innermost first (``a<b<c``), which a ``call``'s ``by=`` refers to.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

TTL_UNKNOWN: Final = 0x7FFFFFFF
"""``TLBI_TTL_UNKNOWN``: the kernel's INT_MAX, "no level hint" (asm/tlbflush.h, 6.6.y and later)."""

LEVEL_UNDEFINED: Final = -128
"""A level the kernel read from an uninitialised variable (``relax_perms`` of 6.18 on -EAGAIN)."""

STORE, CASFAIL, TLBI, CACHE, GET, PUT, ALLOC, ALLOCFAIL = range(8)
ALLOC_EXACT, FREE_EXACT, FREE, DEFER, BARRIER, CALL, RET, WARN = range(8, 16)
ENTER, LEAVE, SYSREG, CHAIN, OBTAIN, RELEASE = range(16, 22)

RawEvent: TypeAlias = tuple[Any, ...]
"""``(KIND, field, ...)``, the fields in the order of ``EVENT_TYPES``."""

_HEX, _DEC, _WORD, _LEVEL = "hex", "dec", "word", "level"

EVENT_TYPES: Final[tuple[tuple[str, tuple[tuple[str, str], ...]], ...]] = (
    # word, (key, form of the value) in the order of the raw tuple; the position is the KIND constant
    ("store", (("pa", _HEX), ("old", _HEX), ("new", _HEX), ("release", _DEC), ("cas", _DEC))),
    ("casfail", (("pa", _HEX), ("old", _HEX), ("new", _HEX))),
    ("tlbi", (("kind", _WORD), ("ipa", _HEX), ("level", _LEVEL), ("pages", _DEC))),
    ("cache", (("kind", _WORD), ("pa", _HEX), ("size", _DEC))),
    ("get", (("page", _HEX),)),
    ("put", (("page", _HEX), ("count", _DEC))),
    ("alloc", (("page", _HEX),)),
    ("allocfail", ()),
    ("alloc_exact", (("page", _HEX), ("size", _DEC))),
    ("free_exact", (("page", _HEX), ("size", _DEC))),
    ("free", (("page", _HEX),)),
    ("defer", (("page", _HEX), ("level", _DEC))),
    ("barrier", (("kind", _WORD),)),
    ("call", (("fn", _WORD), ("args", _WORD))),
    ("ret", (("value", _DEC),)),
    ("warn", ()),
    ("enter", (("fn", _WORD), ("args", _WORD))),
    ("leave", (("fn", _WORD),)),
    ("sysreg", (("cpu", _DEC), ("reg", _WORD), ("value", _HEX))),
    ("chain", (("number", _DEC), ("functions", _WORD))),
    ("obtain", (("pfn", _HEX),)),
    ("release", (("what", _HEX),)),
)

_KIND_OF_WORD: Final = {word: kind for kind, (word, _) in enumerate(EVENT_TYPES)}
_OPTIONAL: Final = frozenset({(TLBI, "ipa"), (TLBI, "level"), (TLBI, "pages"), (CALL, "args"), (ENTER, "args")})
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
    word, fields = EVENT_TYPES[raw[0]]
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
    for key, form in EVENT_TYPES[kind][1]:
        text = given.pop(key, None)
        if text is None:
            if (kind, key) not in _OPTIONAL:
                raise BadEvent(f"{key}= is missing in {line!r}")
            values.append("" if form == _WORD else None)
            continue
        try:
            values.append(_text_value(form, text))
        except ValueError:
            raise BadEvent(f"{key}={text} is not a number in {line!r}") from None
    if given:
        raise BadEvent(f"{next(iter(given))}= does not belong in {line!r}")
    return tuple(values)


class Source(enum.StrEnum):
    """Who saw the event."""

    MODEL = "model"
    HARNESS = "harness"
    PLUGIN = "plugin"
    GDB = "gdb"


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event with its place among others: ``seq`` counts up by one within a source, over all CPUs."""

    seq: int
    cpu: int
    source: Source
    event: RawEvent

    def __str__(self) -> str:
        return f"@{self.seq} cpu={self.cpu} source={self.source} {format_raw(self.event)} ;{self.seq};"


_ENVELOPE: Final = re.compile(r"@(\d+) cpu=(\d+) source=(\w+) ([^@;\n]*) ;\1;")


def parse_envelope(line: str) -> Envelope:
    """The envelope of a line.  Raises :class:`BadEvent`, also for a line that was cut."""
    found = _ENVELOPE.fullmatch(line.strip())
    if found is None or found[3] not in tuple(Source):
        raise BadEvent(f"not an event in its envelope: {line!r}")
    return Envelope(int(found[1]), int(found[2]), Source(found[3]), parse_raw(found[4]))


def read_envelopes(text: str) -> Iterator[Envelope]:
    """Every event that is there as a whole, of a stream that may be cut anywhere.  Raises :class:`BadEvent`."""
    return (parse_envelope(found[0]) for found in _ENVELOPE.finditer(text))


def enveloped(events: Iterable[RawEvent], source: Source, cpu: int = 0, first: int = 0) -> Iterator[Envelope]:
    """The events of one CPU in their order, numbered from ``first``."""
    return (Envelope(seq, cpu, source, event) for seq, event in enumerate(events, first))


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
        """The name of the page at ``pa``, or the address itself when it is not a table page."""
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
