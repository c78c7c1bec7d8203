"""A table of symbols in a few flat arrays, so that a cached one is usable without building anything.

Addresses are link-time virtual addresses; kinds are nm's letters (upper case: global).
"""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

_TEXT = frozenset("tTwW")
_WEAK = frozenset("wWvV")
# Symbols that stand for no object of the kernel: what scripts/mksysmap leaves out of kallsyms, by prefix (arm64), and
# those of EXPORT_SYMBOL.  Linker-made veneers it leaves out by suffix.
_NOISE = (
    "$",
    ".L",
    "__efistub_",
    "__pi_$",
    "__pi_.L",
    "__kvm_nvhe_$",
    "__kvm_nvhe_.L",
    "__AArch64ADRPThunk_",
    "__kcfi_typeid_",
    "__kvm_nvhe___kcfi_typeid_",
    "__pi___kcfi_typeid_",
    "__crc_",
    "__kstrtab",
    "__ksymtab_",
)
_VENEER = "_veneer"
# What a compiler appends to a static function or variable that it makes global, for another unit to use: it is still
# the one its source names.  ThinLTO's hash (kernel/kallsyms.c: cleanup_symbol_name), its older form (Android's 5.4 to
# 5.15), -funique-internal-linkage-names.  Other suffixes stay, for what has them is not the function: a clone for
# certain arguments (.isra.0, .constprop.0), a piece of it (.part.0, .cold), an entry of CFI's jump table (.cfi_jt).
_PROMOTED = re.compile(r"\.(?:__uniq\.[0-9]+(?:\.llvm\.[0-9a-f]+)?|llvm\.[0-9a-f]+|[0-9a-f]{32})(?=$|\.cfi_jt$)")


@dataclass(frozen=True)
class Symbol:
    """One symbol: its link-time address, nm's letter, its name."""

    address: int
    kind: str
    name: str


@dataclass(frozen=True)
class SymbolTable:
    """Symbols sorted by address; ``by_name`` holds their positions sorted by name.

    ``name_at`` are byte offsets of NUL-terminated names in ``names``.
    """

    addresses: Sequence[int] = field(repr=False)
    kinds: bytes = field(repr=False)
    name_at: Sequence[int] = field(repr=False)
    names: bytes = field(repr=False)
    by_name: Sequence[int] = field(repr=False)

    @classmethod
    def build(cls, symbols: Iterable[Symbol]) -> SymbolTable:
        """A table of ``symbols``, in any order; names that share an address keep the order of
        ``scripts/kallsyms.c`` (``compare_symbols``): weak ones last, then fewest leading underscores first.
        """
        ordered = sorted(map(_as_in_source, symbols), key=_order)
        encoded = [symbol.name.encode("utf-8", "surrogateescape") for symbol in ordered]
        name_at, at = array("I"), 0
        for name in encoded:
            name_at.append(at)
            at += len(name) + 1
        return cls(
            array("Q", [symbol.address for symbol in ordered]),
            "".join(symbol.kind for symbol in ordered).encode("latin-1"),
            name_at,
            b"".join(name + b"\0" for name in encoded),
            array("I", sorted(range(len(ordered)), key=encoded.__getitem__)),
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Symbol:
        name = self._name(index).decode("utf-8", "surrogateescape")
        return Symbol(self.addresses[index], chr(self.kinds[index]), name)

    def named(self, name: str) -> list[Symbol]:
        """Every symbol called ``name``, global ones first, then by address."""
        wanted = name.encode("utf-8", "surrogateescape")
        first = bisect_left(self.by_name, wanted, key=self._name)
        places = (self.by_name[place] for place in range(first, len(self.by_name)))
        found = [self[at] for at in takewhile(lambda at: self._name(at) == wanted, places)]
        return sorted(found, key=lambda symbol: (not symbol.kind.isupper(), symbol.kind in _WEAK, symbol.address))

    def nearest_text(self, address: int) -> tuple[str, int] | None:
        """The symbol at or below ``address`` and the distance, when the closest symbol is one of text."""
        index = bisect_right(self.addresses, address) - 1
        if index < 0:
            return None
        first = index
        while first > 0 and self.addresses[first - 1] == self.addresses[index]:
            first -= 1
        for candidate in range(first, index + 1):
            symbol = self[candidate]
            if symbol.kind in _TEXT:
                return symbol.name, address - symbol.address
        return None

    def to_sections(self) -> dict[str, bytes]:
        """The arrays as little-endian bytes, for the cache."""
        return {
            "addresses": struct.pack(f"<{len(self)}Q", *self.addresses),
            "kinds": self.kinds,
            "name_at": struct.pack(f"<{len(self)}I", *self.name_at),
            "names": self.names,
            "by_name": struct.pack(f"<{len(self)}I", *self.by_name),
        }

    @classmethod
    def from_sections(cls, sections: Mapping[str, memoryview]) -> SymbolTable:
        """The inverse of `to_sections`, copying nothing but names and kinds."""
        return cls(
            sections["addresses"].cast("Q"),
            bytes(sections["kinds"]),
            sections["name_at"].cast("I"),
            bytes(sections["names"]),
            sections["by_name"].cast("I"),
        )

    def _name(self, index: int) -> bytes:
        start = self.name_at[index]
        return self.names[start : self.names.index(b"\0", start)]


def _as_in_source(symbol: Symbol) -> Symbol:
    """The symbol of a promoted static function or variable under its own name, and local."""
    if "." not in symbol.name:
        return symbol
    name = _PROMOTED.sub("", symbol.name)
    return symbol if name == symbol.name else Symbol(symbol.address, symbol.kind.lower(), name)


def is_noise(name: str) -> bool:
    """Whether the name stands for no object: mapping symbols, local labels, what the linker or modpost made up.

    Kernels differ in which of them they leave out of their own kallsyms, so every provider leaves out all.
    """
    return name.startswith(_NOISE) or name.endswith(_VENEER)


def _order(symbol: Symbol) -> tuple[int, bool, bool, int, str]:
    name = symbol.name
    provided = name.startswith(("__start_", "__stop_", "__end_")) or (name[:2] == "__" and name.endswith("_end"))
    underscores = len(name) - len(name.lstrip("_"))
    return symbol.address, symbol.kind in "wW", provided, underscores, name  # by name: as `nm -n` feeds kallsyms
