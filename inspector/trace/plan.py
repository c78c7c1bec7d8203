"""Where the probe looks in one kernel build, and what its records mean."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from inspector.events import TLBI
from inspector.findings import InspectorError, Untestable
from inspector.generations import recognise
from inspector.kernel.traits import traits
from inspector.symbols.kernel import KernelSymbols
from inspector.trace.functions import (
    ABORTING,
    FLUSHING,
    FUNCTIONS,
    HYP_PREFIX,
    INVALIDATING,
    NEEDED,
    OF_HYP,
    RELEASING_FRAMES,
    SWITCHING,
    WALKERS,
    Function,
    Role,
)
from inspector.trace.instructions import event_of

EXIT: Final = 1000
"""Added to a function's number at its return: ``EXIT`` of probe.c."""

REGISTERS: Final = ("ID_AA64ISAR0_EL1", "ID_AA64MMFR1_EL1", "ID_AA64MMFR2_EL1", "CTR_EL0")
"""What the CPU can do, in the order of the probe's record."""

_RETURNS: Final = frozenset({0xD65F03C0, 0xD65F0BFF, 0xD65F0FFF})
"""RET, RETAA and RETAB (DDI 0487 C6.2)."""

_TRANSLATING: Final = "__kvm_at_"
_RANGE: Final = "__kvm_tlb_flush_vmid_range"
_HYP_INIT: Final = "__kvm_nvhe____kvm_hyp_init"
_HYP_VECTORS: Final = "__kvm_nvhe___kvm_hyp_host_vector"
_FRAMES: Final = 12
"""Callers of an operation that are told of; at most ``MOST_FRAMES`` of probe.c."""
_MOST: Final = 1 << 16
"""Bytes of a function: beyond this the symbols are wrong."""
_BESIDE = 6
"""Functions beside those known to be pgtable.c's among which more of its own are looked for."""


@dataclass(frozen=True)
class Plan:
    """``functions`` by number; ``probes`` are (address, number, registers to tell); ranges are of instruction
    addresses, ``walkers`` those of pgtable.c and ``invalidating`` those whose TLBI are told too.

    ``linear`` is the range of addresses that stores are told of: the kernel's linear map.  ``release_stores`` are the
    instructions of `walkers` that store with release, ``compare_and_swaps`` those that do so on a condition.
    ``members`` are (offset, size) of what is read out of ``struct kvm_pgtable``; ``shared`` is the bit of a walk flag,
    ``hyp`` is the code that invalidates at EL2 in nVHE, whose vectors are ``vectors`` (0: none is there);
    ``anchor`` is the address of a function that every boot runs, and its first three instructions.
    ``contexts`` are like ``invalidating``: what is in no operation, and each instruction that writes VTTBR_EL2.
    ``walk_flags`` are all that the model knows, by their names without KVM_PGTABLE_WALK_.  ``syndrome`` is the offset
    of the fault's ESR_EL2 in ``struct kvm_vcpu`` (0: not known).  ``initialising`` are the TLBI of what each CPU runs
    at EL2 first in nVHE, before anything can be followed there.  ``ranges``: the kernel was built to invalidate by
    range (CONFIG_ARM64_TLB_RANGE): its function for that has such an instruction.
    """

    release: str
    generation: str
    build_id: str
    functions: tuple[str, ...]
    probes: tuple[tuple[int, int, int], ...]
    walkers: tuple[int, int]
    invalidating: tuple[tuple[int, int], ...]
    linear: tuple[int, int]
    release_stores: frozenset[int]
    compare_and_swaps: frozenset[int]
    members: Mapping[str, tuple[int, int]]
    shared: int
    page_shift: int
    missing: tuple[str, ...] = field(default=())
    walk_flags: Mapping[str, int] = field(default_factory=dict)
    hyp: tuple[tuple[int, int], ...] = ()
    vectors: int = 0
    anchor: tuple[int, ...] = ()
    contexts: tuple[tuple[int, int], ...] = ()
    syndrome: int = 0
    initialising: tuple[str, ...] = ()
    ranges: bool = True

    def config(self) -> str:
        """What the probe reads."""
        lines = [f"p {address:x} {number} {words} {self._frames(number)}" for address, number, words in self.probes]
        lines += [f"s {self.walkers[0]:x} {self.walkers[1]:x}", f"m {self.linear[0]:x} {self.linear[1]:x}"]
        lines += [f"i {low:x} {high:x}" for low, high in (self.walkers, *self.invalidating)]
        lines += [f"i {low:x} {high:x}" for low, high in self.contexts]
        lines += [f"r {name}" for name in REGISTERS]
        lines += [
            f"o {address:x} {self.syndrome:x}" for address, number, _ in self.probes if self.tells_syndrome(number)
        ]
        lines += [f"h {low:x} {high:x}\ni {low:x} {high:x}" for low, high in self.hyp]
        if self.hyp:
            lines.append(f"v {self.vectors:x}")
            lines += [f"h {low:x} {high:x}" for low, high in self.contexts]
        if self.anchor:
            lines.append("a " + " ".join(f"{each:x}" for each in self.anchor))
        return "\n".join([*lines, ""])

    def tells_syndrome(self, number: int) -> bool:
        """The record of this function's entry has, after its arguments, what the fault is for."""
        return bool(self.syndrome) and number < EXIT and self.functions[number] == ABORTING

    def _frames(self, number: int) -> int:
        """How many callers are told of."""
        return _FRAMES if number < EXIT and FUNCTIONS[self.functions[number]].role is Role.OPERATION else 0

    def header(self) -> dict[str, Any]:
        """As JSON: `of_header` reads it back."""
        return {
            **self.__dict__,
            "release_stores": sorted(self.release_stores),
            "compare_and_swaps": sorted(self.compare_and_swaps),
            "members": dict(self.members),
            "walk_flags": dict(self.walk_flags),
        }


def of_header(header: Mapping[str, Any]) -> Plan:
    """The plan that a trace was made by.  Raises ``KeyError`` or ``TypeError`` when it is none."""
    return Plan(
        header["release"],
        header["generation"],
        header["build_id"],
        tuple(header["functions"]),
        tuple((address, number, registers) for address, number, registers in header["probes"]),
        (header["walkers"][0], header["walkers"][1]),
        tuple((low, high) for low, high in header["invalidating"]),
        (header["linear"][0], header["linear"][1]),
        frozenset(header["release_stores"]),
        frozenset(header["compare_and_swaps"]),
        {name: (at, size) for name, (at, size) in header["members"].items()},
        header["shared"],
        header["page_shift"],
        tuple(header["missing"]),
        dict(header["walk_flags"]),
        tuple((low, high) for low, high in header["hyp"]),
        header["vectors"],
        tuple(header["anchor"]),
        tuple((low, high) for low, high in header["contexts"]),
        header.get("syndrome", 0),
        tuple(header.get("initialising", ())),
        bool(header.get("ranges", True)),
    )


def make_plan(symbols: KernelSymbols, page_shift: int = 12) -> Plan:
    """The plan for a kernel, by the addresses where it is linked.

    Raises `Untestable` when what has to be followed is not there.
    """
    missing = [name for name in NEEDED if symbols.address(name) is None]
    if missing:
        raise Untestable(
            f"{symbols.description} has no symbol {missing[0]}: its operations cannot be followed; give another build"
        )
    banner = symbols.banner or ""
    found = re.search(r"Linux version (\S+)", banner)
    release = found[1] if found else ""
    functions = [function for name, function in FUNCTIONS.items() if symbols.address(name) is not None]
    if not all(symbols.address(name) is not None and _returns(symbols, name) for name in OF_HYP):
        functions = [each for each in functions if not each.name.startswith(HYP_PREFIX) and each.name not in OF_HYP]
    if symbols.address(RELEASING_FRAMES) is not None:
        functions = [each for each in functions if each.role is not Role.RELEASE or each.name == RELEASING_FRAMES]
    low, high = _walkers(symbols)
    text = symbols.text(low, high - low) or b""
    code = struct.unpack(f"<{len(text) // 4}I", text)
    return Plan(
        release,
        recognise(release, traits(symbols)).label,
        symbols.build_id or "",
        tuple(function.name for function in functions),
        tuple(_probes(symbols, functions)),
        (low, high),
        tuple(_extent(symbols, name) for name in INVALIDATING if symbols.address(name) is not None),
        linear_map(symbols.link_text),
        frozenset(low + 4 * at for at, word in enumerate(code) if is_release(word)),
        frozenset(low + 4 * at for at, word in enumerate(code) if is_conditional(word)),
        _members(symbols),
        symbols.enumerator("kvm_pgtable_walk_flags", "KVM_PGTABLE_WALK_SHARED") or 0,
        page_shift,
        tuple(name for name in FUNCTIONS if symbols.address(name) is None),
        _walk_flags(symbols),
        _hyp(symbols),
        symbols.address(_HYP_VECTORS) or 0,
        _anchor(symbols),
        tuple(_contexts(symbols)),
        _syndrome(symbols),
        tuple(_tlbis(symbols, _HYP_INIT)),
        any(name.startswith("ripas2") for name in _tlbis(symbols, _RANGE)),
    )


def linear_map(link_text: int) -> tuple[int, int]:
    """Where the linear map is: below the kernel's image, whatever the bits of virtual addresses are.

    arch/arm64/include/asm/memory.h: PAGE_OFFSET is the lowest address, at most 52 bits; KIMAGE_VADDR begins the upper
    half of VA_BITS_MIN (47 with 16K pages, 48 with 4K and 64K).
    """
    top = 1 << 64
    return top - (1 << 52), top - (1 << (top - 1 - link_text).bit_length())


def is_release(word: int) -> bool:
    """STLR of 64 bits, or its exclusive forms and CASL (DDI 0487 C4.1.94): ``L`` or ``o0`` of a store is set."""
    return word & 0xFFFFFC00 == 0xC89FFC00 or (is_conditional(word) and bool(word & 1 << 15))


def is_conditional(word: int) -> bool:
    """CAS in all orders, and STXR: what is stored only if something holds (64 bits)."""
    return word & 0xFFA07C00 == 0xC8A07C00 or word & 0xFFE00000 == 0xC8000000


def _hyp(symbols: KernelSymbols) -> tuple[tuple[int, int], ...]:
    names = [f"__kvm_nvhe_{name}" for name in (*FLUSHING, *SWITCHING)]
    if symbols.address(_HYP_VECTORS) is None:
        return ()
    return tuple(_extent(symbols, name) for name in names if symbols.address(name) is not None)


def _contexts(symbols: KernelSymbols) -> Iterator[tuple[int, int]]:
    names = (*FLUSHING[len(INVALIDATING) :], *SWITCHING)
    yield from (_extent(symbols, name) for name in names if symbols.address(name) is not None)
    yield from ((at, at + 4) for at in _switches(symbols))


def _switches(symbols: KernelSymbols) -> Iterator[int]:
    """Every MSR VTTBR_EL2 (DDI 0487 C5.2: op0 3, op1 4, CRn 2, CRm 1, op2 0), from the text itself."""
    low, high = symbols.link_text, symbols.address("_etext") or symbols.link_text
    text = symbols.text(low, high - low) or b""
    for found in re.finditer(rb"[\x00-\x1f]\x21\x1c\xd5", text, re.DOTALL):
        # arch/arm64/kvm/at.c puts another table there for one AT instruction, and runs no guest with it.
        near = symbols.nearest(low + found.start()) if not found.start() % 4 else None
        if near is not None and not near[0].startswith(_TRANSLATING):
            yield low + found.start()


def _anchor(symbols: KernelSymbols) -> tuple[int, ...]:
    """``__primary_switched`` of arch/arm64/kernel/head.S, run once the kernel is where KASLR put it: its ADRP is
    relative, so its code is what it was linked as.
    """
    address = symbols.address("__primary_switched")
    text = symbols.text(address, 12) if address is not None else None
    return () if address is None or text is None else (address, *struct.unpack("<3I", text))


def _members(symbols: KernelSymbols) -> dict[str, tuple[int, int]]:
    """What init writes into ``struct kvm_pgtable`` and is told of; 5.10 has no flags."""
    found = {}
    for name in ("ia_bits", "start_level", "flags"):
        try:
            member = symbols.member("kvm_pgtable", name)
        except InspectorError:
            if name != "flags":
                raise
            continue
        found[name] = member.offset, member.type.size
    return found


def _syndrome(symbols: KernelSymbols) -> int:
    return symbols.member("kvm_vcpu", "arch.fault.esr_el2").offset if symbols.address(ABORTING) is not None else 0


def _tlbis(symbols: KernelSymbols, function: str) -> Iterator[str]:
    """The TLBI in a function, if there is one."""
    if symbols.address(function) is None:
        return
    low, high = _extent(symbols, function)
    text = symbols.text(low, high - low) or b""
    for word in struct.unpack(f"<{len(text) // 4}I", text):
        event = event_of(word, 0)
        if event is not None and event[0] == TLBI:
            yield event[1]


def _walk_flags(symbols: KernelSymbols) -> dict[str, int]:
    names = ("SHARED", "HANDLE_FAULT", "IGNORE_EAGAIN", "SKIP_BBM_TLBI", "SKIP_CMO")
    found = {name: symbols.enumerator("kvm_pgtable_walk_flags", f"KVM_PGTABLE_WALK_{name}") for name in names}
    return {name: bit for name, bit in found.items() if bit}


def _extent(symbols: KernelSymbols, name: str) -> tuple[int, int]:
    """Where a function begins, and the next one."""
    low = symbols.require(name)
    return low, _end(symbols, low)


def _end(symbols: KernelSymbols, low: int) -> int:
    high = low + 4
    while high - low < _MOST:
        nearest = symbols.nearest(high)
        if nearest is None or nearest[1] == 0:
            return high
        high += 4
    raise Untestable(f"{symbols.description}: the function at {low:#x} has no end")


def _returns(symbols: KernelSymbols, name: str) -> list[int]:
    low, high = _extent(symbols, name)
    text = symbols.text(low, high - low) or b""
    words = struct.unpack(f"<{len(text) // 4}I", text)
    return [low + 4 * at for at, word in enumerate(words) if word in _RETURNS]


def _probes(symbols: KernelSymbols, functions: list[Function]) -> Iterator[tuple[int, int, int]]:
    """At the entry of each function, and where it is to be seen, at each of its returns."""
    for number, function in enumerate(functions):
        low, _ = _extent(symbols, function.name)
        yield low, number, len(function.arguments)
        if not function.ends:
            continue
        returns = _returns(symbols, function.name)
        if not returns and function.role not in (Role.FLUSH, Role.SECTION, Role.OBTAIN):
            raise Untestable(f"{function.name} of {symbols.description} never returns by itself: it cannot be followed")
        yield from ((address, EXIT + number, 1) for address in returns)


def _walkers(symbols: KernelSymbols) -> tuple[int, int]:
    """The stretch of pgtable.c's text around kvm_pgtable_stage2_map.

    From its first function known by name to its last, whatever stands between, and what these branch to right beside: a
    patch may split a helper and call the part what it likes, and the compiler puts it where it likes.
    """
    low = symbols.require("kvm_pgtable_stage2_map")
    high = _end(symbols, low)
    while True:
        called = set(_branches(symbols, low, high))

        def is_part(at: int, called: set[int] = called) -> bool:
            nearest = symbols.nearest(at)
            return at in called or (nearest is not None and nearest[0].startswith(WALKERS))

        below = [at for at in _before(symbols, low) if is_part(at)]
        above = [_end(symbols, at) for at in _after(symbols, high) if is_part(at)]
        if not below and not above:
            return low, high
        low, high = min([low, *below]), max([high, *above])


def _before(symbols: KernelSymbols, low: int) -> Iterator[int]:
    """Where the functions right before begin."""
    for _ in range(_BESIDE):
        nearest = symbols.nearest(low - 4)
        if nearest is None:
            return
        low -= 4 + nearest[1]
        yield low


def _after(symbols: KernelSymbols, high: int) -> Iterator[int]:
    """Where the functions right behind begin."""
    for _ in range(_BESIDE):
        if symbols.nearest(high) is None:
            return
        yield high
        high = _end(symbols, high)


def _branches(symbols: KernelSymbols, low: int, high: int) -> Iterator[int]:
    """Where B and BL lead (DDI 0487 C6.2.25, C6.2.34: imm26 words from the instruction)."""
    text = symbols.text(low, high - low) or b""
    for at, word in enumerate(struct.unpack(f"<{len(text) // 4}I", text)):
        if word >> 26 & 0x1F == 5:
            imm26 = word & 0x3FFFFFF
            yield low + 4 * at + 4 * (imm26 - (imm26 >> 25 << 26))
