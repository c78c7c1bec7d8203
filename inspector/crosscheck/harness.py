"""The kernel's own pgtable.c, driven from Python: the second implementation that the model is compared with.

`inspector.crosscheck.build` compiles ``arch/arm64/kvm/hyp/pgtable.c`` of a kernel into a library for this
host; a :class:`Harness` is one page table in such a library.  Its methods are the kernel's functions without
their ``kvm_pgtable_`` prefix and return ``(ret, events)``: the kernel's return value, and what it did as raw
tuples of :mod:`inspector.events` (the framing ``call`` and ``ret`` left out).

Addresses and sizes are bytes.  A user's error raises ``BadInput``; code that uses a page that is not
allocated, or drops a reference that nobody holds, raises :class:`HarnessFault`.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from inspector import events as ev
from inspector.crosscheck.build import OURS
from inspector.findings import BadInput

AF: Final = 1 << 10
"""The access flag of a stage-2 leaf (DDI 0487, D8.3.2)."""

MC_PLENTY: Final = 1 << 20
"""A memory cache that does not run out."""

STORE_PA: Final = 0x4000_0000
STORE_PAGES: Final = 1 << 17

_U64: Final = (1 << 64) - 1
_OP: Final = struct.Struct("<Ii5Qq4IQ")
_RESULT: Final = struct.Struct("<qQi5I")
_EVENT: Final = struct.Struct("<II3QiHH")
_TABLE: Final = struct.Struct("<6Q")
_PAIR: Final = struct.Struct("<QQ")
_FAULT: Final = struct.Struct("<3Q")
_UNSUPPORTED, _NO_ENTRY = 1, 2
_NO_LEVEL: Final = -(1 << 31)

Raws = list[ev.RawEvent]


class FaultKind(enum.IntEnum):
    """``enum fault_kind`` of harness.c: what no correct code does to a page of the store."""

    PUT = 0
    GET = 1
    COUNT = 2
    READ = 3
    WRITE = 4
    FREE_EXACT = 5
    CRASH = 6
    STORE_FULL = 7
    ENDLESS = 8
    WILD_READ = 9
    WILD_WRITE = 10
    STACK = 11
    UNDEFINED = 12


_FAULT_TEXTS: Final = {
    FaultKind.PUT: "drops a reference that nobody holds: put_page of {pa:#x}, which is not allocated",
    FaultKind.GET: "takes a reference on a freed page: get_page of {pa:#x}, which is not allocated",
    FaultKind.COUNT: "asks for the count of a freed page: page_count of {pa:#x}, which is not allocated",
    FaultKind.READ: "reads the entry at {pa:#x}, in a page that is not allocated",
    FaultKind.WRITE: "stores to the entry at {pa:#x}, in a page that is not allocated",
    FaultKind.FREE_EXACT: "frees root pages that are not allocated: {pa:#x}",
    FaultKind.CRASH: "follows a wild pointer; the table is of no use any more",
    FaultKind.ENDLESS: "does not end: it was stopped after 4 million entries read and events, or seconds of work",
    FaultKind.STORE_FULL: "has used up the harness' page store",
    FaultKind.WILD_READ: "reads what is not its own, at {pa:#x}: beyond a page's end, or no table page",
    FaultKind.WILD_WRITE: "stores to what is not its own, at {pa:#x}: beyond a page's end, or no table page",
    FaultKind.STACK: "uses a local variable out of bounds or out of scope",
    FaultKind.UNDEFINED: "does what C leaves undefined: {undefined}",
}
_UNDEFINED: Final = (
    "a shift by as many bits as there are, or more",
    "a division by zero",
    "an index beyond an array's end",
    "a value that its type does not have",
    "a misaligned pointer",
    "an array without elements",
    "what was said to be unreachable is reached",
)
"""``enum undefined`` of sanitize.c."""


class Fault(NamedTuple):
    """One fault of the code under test; ``place`` is the source line and the functions it was inlined into."""

    kind: FaultKind
    pa: int
    place: Place | None

    def __str__(self) -> str:
        undefined = _UNDEFINED[self.pa] if self.kind is FaultKind.UNDEFINED else ""
        text = _FAULT_TEXTS[self.kind].format(pa=self.pa, undefined=undefined)
        return text + (f", in {self.place}" if self.place else "")


class HarnessFault(AssertionError):
    """The code under test used a page that is not allocated, or dropped a reference that nobody held."""


class StoreFull(Exception):
    """The harness has no page left to hand out: nothing the code under test can be blamed for."""


class Unsupported(Exception):
    """This kernel has no such function."""


class NoEntry(Exception):
    """There is no entry at that place: the walk ends above it."""


class Op(enum.IntEnum):
    """``enum op_kind`` of harness.c."""

    INIT = 1
    HYP_INIT = 2
    DESTROY = 3
    DESTROY_RANGE = 4
    DESTROY_PGD = 5
    HYP_DESTROY = 6
    MAP = 7
    UNMAP = 8
    WRPROTECT = 9
    MKYOUNG = 10
    MKOLD = 11
    IS_YOUNG = 12
    TEST_CLEAR_YOUNG = 13
    RELAX_PERMS = 14
    FLUSH = 15
    SET_OWNER = 16
    ANNOTATE = 17
    SPLIT = 18
    CREATE_UNLINKED = 19
    FREE_UNLINKED = 20
    GET_LEAF = 21
    HYP_MAP = 22
    HYP_UNMAP = 23
    RCU = 24
    PEEK = 25
    POKE = 26
    REF = 27


class Race(enum.IntEnum):
    """What another CPU does to the entry just before a cmpxchg (``enum race_mode``)."""

    VALUE = 0
    SET = 1
    CLEAR = 2


@dataclass(frozen=True, slots=True)
class Inject:
    """Faults for one operation: the ``fail_alloc``-th allocation gives NULL; just before the ``lose_cas``-th
    cmpxchg another CPU stores ``value`` into the entry, or sets or clears these bits (counted from 1, 0 is
    never)."""

    fail_alloc: int = 0
    lose_cas: int = 0
    race: Race = Race.SET
    value: int = AF


NOTHING: Final = Inject()


class Result(NamedTuple):
    """What one operation gave; ``value`` is an entry or a table's address, ``level`` goes with
    ``get_leaf``."""

    ret: int
    value: int
    level: int
    flags: int
    first_event: int
    event_count: int
    warnings: int
    faults: int


class Table(NamedTuple):
    """One table page: where it is, what it covers, who points to it, its reference count, its non-zero
    entries."""

    pa: int
    ia: int
    parent_pa: int
    parent_index: int
    level: int
    references: int
    entries: dict[int, int]


class Info(NamedTuple):
    """Shape of the tree as the kernel computed it; ``pgd`` is 0 when there is none."""

    ia_bits: int
    start_level: int
    root_pages: int
    pgd: int
    vtcr: int
    outstanding: int


RESULT_SIZE: Final = _RESULT.size


def unpack_results(data: bytes) -> list[Result]:
    """Results as they cross the interface."""
    return [Result._make(fields) for fields in _RESULT.iter_unpack(data)]


def pack(
    kind: Op,
    *,
    level: int = 0,
    addr: int = 0,
    size: int = 0,
    phys: int = 0,
    prot: int = 0,
    value: int = 0,
    mc: int | None = MC_PLENTY,
    flags: int = 0,
    inject: Inject = NOTHING,
) -> bytes:
    """One operation as ``struct op``; ``mc`` None passes no memory cache."""
    return _OP.pack(
        kind,
        level,
        addr & _U64,
        size & _U64,
        phys & _U64,
        prot & _U64,
        value & _U64,
        -1 if mc is None else mc,
        flags,
        inject.fail_alloc,
        inject.lose_cas,
        inject.race,
        inject.value & _U64,
    )


# ---- libraries -------------------------------------------------------------------------------------------


class Library:
    """A built library with its functions' types declared; ``name`` is what a message calls the kernel, ``variant`` how
    it was built (``4k-hyp``).

    Raises `BadInput` when the library is not of this harness.
    """

    def __init__(self, path: Path, granule: str, name: str) -> None:
        self.path = path
        self.granule = granule
        self.name = name
        self.variant = path.stem.partition("-")[2]
        self.functions = lib = ctypes.CDLL(str(path))
        u32, u64, handle = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
        out = ctypes.POINTER(u64)
        for function_name, result, arguments in (
            ("h_release", ctypes.c_char_p, []),
            ("h_sizes", None, [out]),
            ("h_constant", ctypes.c_bool, [ctypes.c_char_p, out]),
            ("h_new", handle, [u64, u64]),
            ("h_delete", None, [handle]),
            ("h_set", ctypes.c_bool, [handle, ctypes.c_char_p, ctypes.c_int64]),
            ("h_run", None, [handle, ctypes.c_char_p, u64, handle]),
            ("h_loop", None, [handle, ctypes.c_char_p, u64]),
            ("h_events", handle, [handle, out]),
            ("h_faults", handle, [handle, out]),
            ("h_places", handle, [handle, out]),
            ("h_text", handle, [handle, out]),
            ("h_dump", handle, [handle, u64, ctypes.c_int, out]),
            ("h_outstanding", handle, [handle, out]),
            ("h_deferred", handle, [handle, out]),
            ("h_memory", handle, [handle]),
            ("h_page", handle, [handle, u64]),
            ("h_interleave", ctypes.c_bool, [handle, ctypes.c_char_p, u32, u32, ctypes.c_bool, u32, u64, u64]),
            ("h_interleave_next", ctypes.c_int, [handle, u64]),
            ("h_interleave_replay", None, [handle, ctypes.c_char_p, u64]),
            ("h_interleave_end", None, [handle]),
            ("h_interleave_figures", None, [out]),
            ("h_interleave_accesses", handle, [out]),
            ("h_interleave_broken", handle, [out]),
            ("h_interleave_results", None, [handle]),
            ("h_info", None, [handle, ctypes.POINTER(ctypes.c_int64)]),
        ):
            function = getattr(lib, function_name)
            function.restype, function.argtypes = result, arguments
        sizes = (u64 * 3)()
        lib.h_sizes(sizes)
        if list(sizes) != [_OP.size, _RESULT.size, _EVENT.size]:
            raise BadInput(f"{path} speaks another version of the harness interface: build it again")


class Place(NamedTuple):
    """A line of the kernel's source, the function that it is in, and those that this one was inlined into."""

    file: str
    line: int
    function: str
    callers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``pgtable.c:1031, stage2_unmap_put_pte, inlined into stage2_unmap_walker``."""
        return ", inlined into ".join([f"{self.file}:{self.line}, {self.function}", *self.callers])


@functools.cache
def source_of(path: str, offset: int) -> Place | None:
    """Where an instruction of a library comes from, our own shims passed over; ``None`` when it is not known (no debug
    information, no binutils)."""
    if not offset or shutil.which("addr2line") is None:
        return None
    done = subprocess.run(
        ["addr2line", "-i", "-f", "-e", path, hex(offset)], capture_output=True, text=True, check=False
    )
    lines = done.stdout.split("\n")
    found = []
    for function, place in zip(lines[0::2], lines[1::2], strict=False):
        file, _, line = place.partition(" ")[0].rpartition(":")
        if line.isdigit():
            found.append((Path(file).name, int(line), function))
    while found and found[0][0] in _OURS:
        del found[0]
    if done.returncode or not found:
        return None
    return Place(*found[0], tuple(function for _, _, function in found[1:]))


_OURS: Final = frozenset(path.name for path in OURS.glob("*.[ch]"))


# ---- events ----------------------------------------------------------------------------------------------

_TLBI_WORDS: Final = ("ipa", "ipa_nsh", "vmid", "range", "vae2is", "vale2is")
_CACHE_WORDS: Final = ("dcache", "icache")
_BARRIER_WORDS: Final = ("ishst", "ish", "isb", "nshst", "nsh")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _tlbi(e: tuple[int, ...]) -> ev.RawEvent:
    kind = _TLBI_WORDS[e[1]]
    level = None if e[5] == _NO_LEVEL else e[5]
    return (ev.TLBI, kind, None if kind == "vmid" else e[2], level, e[3] if kind == "range" else None)


_DECODE: Final[tuple[Callable[[tuple[int, ...]], ev.RawEvent], ...]] = (
    # in the order of the KIND constants; e is (kind, sub, a, b, c, level, release, cas)
    lambda e: (ev.STORE, e[2], e[3], e[4], e[6], e[7]),
    lambda e: (ev.CASFAIL, e[2], e[3], e[4]),
    _tlbi,
    lambda e: (ev.CACHE, _CACHE_WORDS[e[1]], e[2], e[3]),
    lambda e: (ev.GET, e[2]),
    lambda e: (ev.PUT, e[2], _signed(e[3])),
    lambda e: (ev.ALLOC, e[2]),
    lambda e: (ev.ALLOCFAIL,),
    lambda e: (ev.ALLOC_EXACT, e[2], e[3]),
    lambda e: (ev.FREE_EXACT, e[2], e[3]),
    lambda e: (ev.FREE, e[2]),
    lambda e: (ev.DEFER, e[2], e[5]),
    lambda e: (ev.BARRIER, _BARRIER_WORDS[e[1]]),
    lambda e: (ev.CALL, "", ""),
    lambda e: (ev.RET, _signed(e[2])),
    lambda e: (ev.WARN,),
)


# ---- the harness -----------------------------------------------------------------------------------------


class Harness:
    """One page table in the kernel's own code.

    ``switches`` are CPU features and glue: ``fwb``, ``tlb_range``, ``lpa2``, ``xnx``, ``hvhe``, ``bti``,
    ``no_ha`` (the Ampere erratum that keeps VTCR.HA clear), ``dcache_op`` and ``icache_op`` (the callbacks
    exist; both do by default), ``rcu_at_once`` (``free_unlinked_table`` frees at once instead of waiting for
    :meth:`rcu`), ``reuse`` (a freed page is the next to be allocated; without it an address names one page
    for ever, as in the model). ``store_pa`` is where the table pages' "physical" addresses start,
    ``store_pages`` how many there may be.
    """

    def __init__(
        self,
        library: Library,
        *,
        store_pa: int = STORE_PA,
        store_pages: int = STORE_PAGES,
        check_faults: bool = True,
        **switches: bool,
    ) -> None:
        self.label = library.name
        self.granule = library.granule
        self.page_size = int(library.granule[:-1]) << 10
        self.check_faults = check_faults
        self.inject = NOTHING
        self.library = library
        self._lib = library.functions
        self._handle: int = self._lib.h_new(store_pa, store_pages)
        if not self._handle:
            raise MemoryError("no memory for the harness' page store")
        self._memory: int | None = self._lib.h_memory(self._handle)
        self._store_pa = store_pa
        self._result = ctypes.create_string_buffer(_RESULT.size)
        self._count = ctypes.c_uint64()
        self._constants: dict[str, int | None] = {}
        for name, value in switches.items():
            self.set(name, value)

    def close(self) -> None:
        """Give the page store back; the harness is of no use afterwards."""
        if self._handle:
            self._lib.h_delete(self._handle)
            self._handle = 0

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            self.close()

    @property
    def handle(self) -> int:
        """The harness as the library knows it."""
        return self._handle

    @property
    def release(self) -> str:
        """The release in the kernel's Makefile, e.g. ``6.12.117``."""
        text: bytes = self._lib.h_release()
        return text.decode()

    def set(self, name: str, value: int) -> None:
        """Turn a switch; takes effect at once.  Raises ``KeyError`` for an unknown name."""
        if not self._lib.h_set(self._handle, name.encode(), int(value)):
            raise KeyError(name)

    def constant(self, name: str) -> int | None:
        """The value of an enumerator or macro (``PROT_X``, ``WALK_SHARED``, ``S2_IDMAP``, ``LOCKED``) in this
        kernel, ``None`` where it has none."""
        if name not in self._constants:
            value = ctypes.c_uint64()
            known = self._lib.h_constant(name.encode(), ctypes.byref(value))
            self._constants[name] = value.value if known else None
        return self._constants[name]

    def bits(self, prefix: str, names: str) -> int:
        """The bitwise or of named constants: ``bits("WALK_", "SHARED HANDLE_FAULT")``.  Raises
        :class:`Unsupported`."""
        total = 0
        for name in names.split():
            value = self.constant(prefix + name)
            if value is None:
                raise Unsupported(f"{self.label} has no KVM_PGTABLE_{prefix}{name}")
            total |= value
        return total

    def prot(self, text: str) -> int:
        """Permissions in words: letters ``rwx``, then any of ``device``, ``nc``, ``px``, ``ux``, ``sw0`` …
        ``sw3``."""
        names = {"device": "DEVICE", "nc": "NORMAL_NC"}
        words = []
        for word in text.split():
            words += list(word.upper()) if set(word) <= set("rwx") else [names.get(word, word.upper())]
        return self.bits("PROT_", " ".join(words))

    # ---- running

    def run(self, ops: Sequence[bytes] | bytes) -> list[Result]:
        """Run packed operations (see :func:`pack`) in one call; :meth:`events` and :meth:`text` then give
        what they did, and each result says which of those events are its own."""
        data = ops if isinstance(ops, bytes) else b"".join(ops)
        count = len(data) // _OP.size
        buffer = ctypes.create_string_buffer(count * _RESULT.size)
        self._lib.h_run(self._handle, data, count, buffer)
        results = [Result._make(fields) for fields in _RESULT.iter_unpack(buffer.raw)]
        for result in results:
            self._check(result)
        return results

    def loop(self, ops: bytes) -> None:
        """Packed operations with nothing kept of them: what running them costs by itself (for benchmarks)."""
        self._lib.h_loop(self._handle, ops, len(ops) // _OP.size)

    def _check(self, result: Result) -> None:
        if result.faults and self.check_faults:
            faults = self.faults()
            if any(fault.kind is FaultKind.STORE_FULL for fault in faults):
                raise StoreFull(f"{self.label}: {faults[0]}")
            raise HarnessFault("\n".join([*(f"the kernel's code {fault}" for fault in faults), self.text()]))
        if result.flags & _UNSUPPORTED:
            raise Unsupported(f"{self.label} has no such function")

    def one(self, kind: Op, **fields: Any) -> tuple[Result, Raws]:
        """Run one operation, with the faults of :attr:`inject`, which are used up by it."""
        data = pack(kind, inject=self.inject, **fields)
        self.inject = NOTHING
        self._lib.h_run(self._handle, data, 1, self._result)
        result = Result._make(_RESULT.unpack(self._result.raw))
        if result.faults or result.flags:
            self._check(result)
        return result, self.events()[1:-1]

    def _bytes(self, function: Any, width: int, *arguments: int) -> bytes:
        at = function(self._handle, *arguments, ctypes.byref(self._count))
        return ctypes.string_at(at, self._count.value * width) if self._count.value else b""

    def events(self) -> Raws:
        """Everything the last run did, as raw events, ``call`` and ``ret`` included (``call`` without its
        text)."""
        return [_DECODE[e[0]](e) for e in _EVENT.iter_unpack(self._bytes(self._lib.h_events, _EVENT.size))]

    def places(self) -> list[Place | None]:
        """Where each event of the last run was called for, `events` for `events`: while the switch ``places`` is on."""
        found = memoryview(self._bytes(self._lib.h_places, 8)).cast("Q")
        return [source_of(self._lib._name, place) for place in found]

    def tagged_events(self) -> list[tuple[int, ev.RawEvent]]:
        """The events of fibers: each with the number of its fiber."""
        unpacked = _EVENT.iter_unpack(self._bytes(self._lib.h_events, _EVENT.size))
        return [(e[0] >> 8, _DECODE[e[0] & 0xFF](e)) for e in unpacked]

    def faults(self) -> list[Fault]:
        """What the last run did that no correct code does, with the place in the kernel's source."""
        found = list(_FAULT.iter_unpack(self._bytes(self._lib.h_faults, _FAULT.size)))
        return [Fault(FaultKind(kind), pa, source_of(self._lib._name, place)) for kind, pa, place in found]

    def text(self) -> str:
        """The same in the text form of :mod:`inspector.events`, one event a line."""
        return self._bytes(self._lib.h_text, 1).decode()

    # ---- stage-2, by the kernel's names

    def stage2_init(
        self,
        ia_bits: int,
        *,
        pa_bits: int = 48,
        vmid_bits: int = 16,
        flags: int = 0,
        force_pte: bool | None = None,
    ) -> tuple[int, Raws]:
        """``__kvm_pgtable_stage2_init`` with the VTCR that ``kvm_get_vtcr`` computes; ``force_pte`` is what
        ``force_pte_cb`` answers, ``None``: there is none."""
        self.set("force_pte", bool(force_pte))
        result, raws = self.one(
            Op.INIT, size=ia_bits, phys=pa_bits, level=vmid_bits, flags=flags, value=force_pte is not None
        )
        return result.ret, raws

    def stage2_map(
        self, addr: int, size: int, phys: int, prot: int, mc: int | None = MC_PLENTY, flags: int = 0
    ) -> tuple[int, Raws]:
        """``mc``: pages in the memory cache, ``None`` for no cache; ``flags`` (6.6+): ``bits("WALK_",
        "SHARED")``."""
        result, raws = self.one(Op.MAP, addr=addr, size=size, phys=phys, prot=prot, mc=mc, flags=flags)
        return result.ret, raws

    def stage2_unmap(self, addr: int, size: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.UNMAP, addr=addr, size=size)
        return result.ret, raws

    def stage2_wrprotect(self, addr: int, size: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.WRPROTECT, addr=addr, size=size)
        return result.ret, raws

    def stage2_mkyoung(self, addr: int, flags: int = 0) -> tuple[int, Raws]:
        """The old entry (0 in kernels whose function returns nothing); ``flags`` only where the kernel takes
        them."""
        result, raws = self.one(Op.MKYOUNG, addr=addr, flags=flags)
        return result.value, raws

    def stage2_mkold(self, addr: int) -> tuple[int, Raws]:
        """The old entry."""
        result, raws = self.one(Op.MKOLD, addr=addr)
        return result.value, raws

    def stage2_is_young(self, addr: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.IS_YOUNG, addr=addr)
        return result.ret, raws

    def stage2_test_clear_young(self, addr: int, size: int, mkold: bool) -> tuple[int, Raws]:
        result, raws = self.one(Op.TEST_CLEAR_YOUNG, addr=addr, size=size, flags=mkold)
        return result.ret, raws

    def stage2_relax_perms(self, addr: int, prot: int, flags: int = 0) -> tuple[int, Raws]:
        result, raws = self.one(Op.RELAX_PERMS, addr=addr, prot=prot, flags=flags)
        return result.ret, raws

    def stage2_flush(self, addr: int, size: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.FLUSH, addr=addr, size=size)
        return result.ret, raws

    def stage2_set_owner(self, addr: int, size: int, owner: int, mc: int | None = MC_PLENTY) -> tuple[int, Raws]:
        result, raws = self.one(Op.SET_OWNER, addr=addr, size=size, value=owner, mc=mc)
        return result.ret, raws

    def stage2_annotate(
        self, addr: int, size: int, kind: int, annotation: int, mc: int | None = MC_PLENTY
    ) -> tuple[int, Raws]:
        result, raws = self.one(Op.ANNOTATE, addr=addr, size=size, flags=kind, value=annotation, mc=mc)
        return result.ret, raws

    def stage2_split(self, addr: int, size: int, mc: int = MC_PLENTY) -> tuple[int, Raws]:
        result, raws = self.one(Op.SPLIT, addr=addr, size=size, mc=mc)
        return result.ret, raws

    def stage2_create_unlinked(
        self, phys: int, level: int, prot: int, mc: int | None = MC_PLENTY, force_pte: bool = False
    ) -> tuple[int, Raws]:
        """The new table's address, or a negative error; ``level`` is that of the entry it could replace."""
        result, raws = self.one(Op.CREATE_UNLINKED, phys=phys, level=level, prot=prot, mc=mc, flags=force_pte)
        return result.ret or result.value, raws

    def stage2_free_unlinked(self, table: int, level: int) -> tuple[int, Raws]:
        """Raises :class:`NoEntry` when there is no page at ``table``."""
        result, raws = self.one(Op.FREE_UNLINKED, phys=table, level=level)
        if result.flags & _NO_ENTRY:
            raise NoEntry(f"no table page at {table:#x}")
        return result.ret, raws

    def stage2_destroy(self) -> tuple[int, Raws]:
        result, raws = self.one(Op.DESTROY)
        return result.ret, raws

    def stage2_destroy_range(self, addr: int, size: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.DESTROY_RANGE, addr=addr, size=size)
        return result.ret, raws

    def stage2_destroy_pgd(self) -> tuple[int, Raws]:
        result, raws = self.one(Op.DESTROY_PGD)
        return result.ret, raws

    def get_leaf(self, addr: int) -> tuple[int, int, int]:
        """``(ret, entry, level)``; the last two mean nothing when ``ret`` is not 0."""
        result, _ = self.one(Op.GET_LEAF, addr=addr)
        return result.ret, result.value, result.level

    # ---- hyp stage-1

    def hyp_init(self, va_bits: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.HYP_INIT, size=va_bits)
        return result.ret, raws

    def hyp_map(self, addr: int, size: int, phys: int, prot: int) -> tuple[int, Raws]:
        result, raws = self.one(Op.HYP_MAP, addr=addr, size=size, phys=phys, prot=prot)
        return result.ret, raws

    def hyp_unmap(self, addr: int, size: int) -> tuple[int, Raws]:
        """The number of bytes unmapped."""
        result, raws = self.one(Op.HYP_UNMAP, addr=addr, size=size)
        return result.ret, raws

    def hyp_destroy(self) -> tuple[int, Raws]:
        result, raws = self.one(Op.HYP_DESTROY)
        return result.ret, raws

    # ---- what else happens to a table

    def rcu(self) -> tuple[int, Raws]:
        """The grace period ends: detached tables are freed as mmu.c's callback does; how many there were."""
        result, raws = self.one(Op.RCU)
        return result.ret, raws

    def peek(self, addr: int, level: int) -> int:
        """The entry for ``addr`` in the table of that level.  Raises :class:`NoEntry`."""
        return self._on_entry(Op.PEEK, addr, level).value

    def poke(self, addr: int, level: int, value: int, references: int = 0) -> int:
        """Another CPU changes an entry, and the references on its table by so many; the old entry."""
        return self._on_entry(Op.POKE, addr, level, value=value, size=references).value

    def reference(self, addr: int, level: int, change: int) -> int:
        """A foreign reference (a speculative ``get_page``) on the table that holds that entry; the new
        count."""
        return self._on_entry(Op.REF, addr, level, size=change).ret

    def _on_entry(self, kind: Op, addr: int, level: int, **fields: Any) -> Result:
        result, _ = self.one(kind, addr=addr, level=level, **fields)
        if result.flags & _NO_ENTRY:
            raise NoEntry(f"no entry of level {level} for {addr:#x}")
        return result

    # ---- what there is

    def info(self) -> Info:
        """The shape of the tree."""
        values = (ctypes.c_int64 * 6)()
        self._lib.h_info(self._handle, values)
        return Info(*values)

    def dump(self, root: int = 0, level: int = 0) -> list[Table]:
        """Every table below the PGD, depth first in the order of the entries; or below an unlinked table
        ``root`` whose entries are of ``level``."""
        data = self.dump_bytes(root, level)
        tables, at = [], 0
        while at < len(data):
            pa, ia, parent, index, shape, count = _TABLE.unpack_from(data, at)
            at += _TABLE.size
            end = at + count * _PAIR.size
            entries = dict(_PAIR.iter_unpack(data[at:end]))
            at = end
            level_of = shape & 0xFFFF_FFFF
            level_of -= (level_of >> 31) << 32
            tables.append(Table(pa, ia, parent, index, level_of, shape >> 32, entries))
        return tables

    def dump_bytes(self, root: int = 0, level: int = 0) -> bytes:
        """The same as little-endian 64-bit words: per table pa, ia, parent pa, parent index, level | count <<
        32, n, then n times (index, entry)."""
        return self._bytes(self._lib.h_dump, 8, root, level)

    def outstanding(self) -> dict[int, int]:
        """Every page allocated and not freed, with its reference count."""
        return dict(_PAIR.iter_unpack(self._bytes(self._lib.h_outstanding, 8)))

    def page(self, pa: int) -> bytes:
        """The contents of the page of the store at ``pa``, which must be one that was allocated at some time."""
        at = self._memory + pa - self._store_pa if self._memory else self._lib.h_page(self._handle, pa)
        return ctypes.string_at(at, self.page_size)

    def deferred(self) -> list[tuple[int, int]]:
        """Tables that wait for :meth:`rcu`: address, and level of the entry that pointed there."""
        pairs = _PAIR.iter_unpack(self._bytes(self._lib.h_deferred, 8))
        return [(pa, _signed(level)) for pa, level in pairs]


class Replay:
    """Table pages as the logged events alone make them: page address → index → entry, zero left out.

    Pages come with ``alloc`` and ``alloc_exact``, zeroed, and go with ``free`` and ``free_exact``.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self.pages: dict[int, dict[int, int]] = {}

    def take(self, raws: Iterable[ev.RawEvent]) -> None:
        """Let these events happen.  Raises ``KeyError`` for a store into a page that is not there."""
        for raw in raws:
            kind = raw[0]
            if kind == ev.STORE:
                page, offset = raw[1] & -self._page_size, raw[1] & (self._page_size - 1)
                entries = self.pages[page]
                if raw[3]:
                    entries[offset >> 3] = raw[3]
                else:
                    entries.pop(offset >> 3, None)
            elif kind == ev.ALLOC:
                self.pages[raw[1]] = {}
            elif kind == ev.FREE:
                del self.pages[raw[1]]
            elif kind in (ev.ALLOC_EXACT, ev.FREE_EXACT):
                for page in range(raw[1], raw[1] + raw[2], self._page_size):
                    if kind == ev.ALLOC_EXACT:
                        self.pages[page] = {}
                    else:
                        del self.pages[page]
