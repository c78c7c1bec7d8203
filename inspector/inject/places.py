"""Where in a kernel a fault is: the instructions, by the addresses where they are linked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from inspector.findings import Untestable
from inspector.inject.catalogue import Place
from inspector.inject.instructions import At, base, is_plain_store, target
from inspector.symbols.kernel import KernelSymbols

EL2: Final = "__kvm_nvhe_"
"""How the functions of EL2's own code begin (nVHE, hVHE)."""
_COPIES: Final = ("isra", "constprop", "llvm")
_MOST_CODE: Final = 1 << 12
"""Bytes of a function that are looked at."""


@dataclass(frozen=True)
class Found:
    """One instruction of ``function`` at ``address``: the registers that it stores (``source``) and stores to
    (``base``); ``is_entry``: it is the function's first."""

    address: int
    function: str
    source: int = 0
    base: int = 0
    is_entry: bool = False


def places(symbols: KernelSymbols, place: Place, name: str) -> tuple[Found, ...]:
    """All instructions that ``place`` means, of the first of its functions that has one.

    Raises `Untestable` when this kernel has no such function or instruction; ``name`` is the fault's.
    """
    there = [each for each in place.function.split() if symbols.address(each) is not None]
    there = there or [copy for each in place.function.split() for copy in copies_of(symbols, each)]
    if not there:
        who = " or ".join(place.function.split())
        raise Untestable(f"{symbols.description} has no {who}: '{name}' cannot be injected")
    for each in there:
        found = _in_function(symbols, each, place)
        if found:
            return found
    raise Untestable(f"{' or '.join(there)} of {symbols.description} has no such instruction: '{name}'")


def copies_of(symbols: KernelSymbols, function: str) -> list[str]:
    """What a compiler made of a function that it did not keep as it was: ``.isra.0``, ``.constprop.0``."""
    names = (symbols.table[at].name for at in range(len(symbols.table.addresses)))
    return [name for name in names if name.startswith(f"{function}.") and name.split(".")[1] in _COPIES]


def plain_store(symbols: KernelSymbols, functions: str) -> Found:
    """A ``STR Xt, [Xn]`` that can be made to store anything anywhere.  Raises `Untestable` when there is none."""
    for name in functions.split():
        start = symbols.address(name)
        for address, word in _code(symbols, start) if start is not None else ():
            if is_plain_store(word):
                return Found(address, name, target(word), base(word))
    raise Untestable(f"{symbols.description} has no plain store in {' or '.join(functions.split())}")


def _in_function(symbols: KernelSymbols, name: str, place: Place) -> tuple[Found, ...]:
    start = symbols.require(name)
    if place.at is At.ENTRY:
        return (Found(start, name, is_entry=True),)
    code = _code(symbols, start)
    if place.after is not None:
        first = next((at for at, (_, word) in enumerate(code) if place.after.matches(word)), len(code))
        code = code[first:]
    found = [Found(address, name, target(word), base(word)) for address, word in code if place.at.matches(word)]
    return tuple(found) if place.number is None else tuple(found[place.number : place.number + 1])


def _code(symbols: KernelSymbols, start: int) -> list[tuple[int, int]]:
    """Address and word of each instruction of the function that begins there."""
    end = start + 4
    while end - start < _MOST_CODE and (near := symbols.nearest(end)) is not None and near[1]:
        end += 4
    text = symbols.text(start, end - start) or b""
    return [(start + 4 * at, word) for at, (word,) in enumerate(struct.iter_unpack("<I", text[: len(text) & -4]))]
