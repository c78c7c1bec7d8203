"""`KernelSymbols`: one kernel's addresses, types and image, whatever they were read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from inspector.findings import BadInput
from inspector.symbols.api import Member, MissingSymbol, StructType
from inspector.symbols.btf import BadBtf, Btf
from inspector.symbols.table import SymbolTable


@dataclass(frozen=True)
class FileContent:
    """What one file told: ``sources`` names the providers (``BTF``, ``kallsyms``)."""

    sources: tuple[str, ...]
    build_id: str | None
    banner: str | None
    link_text: int
    image_size: int
    table: SymbolTable = field(repr=False)
    types: Btf = field(repr=False)


class KernelSymbols:
    """`inspector.symbols.api.Symbols` for one kernel build, and where its image is linked.

    ``link_text`` is the link-time address of the Image's first byte (``_text``), ``image_size`` the bytes it takes in
    memory, .bss included; ``table`` has every symbol.  `find_bytes` and `image_bytes` serve to recognise the image in
    physical memory.
    """

    def __init__(
        self,
        found: FileContent,
        description: str,
        image: Callable[[], bytes],
        search: Callable[[str], Btf | None] = lambda _: None,
    ) -> None:
        """``image`` loads the unpacked Image; ``search`` looks elsewhere for a type, or enumerator, by its name."""
        self._found = found
        self.description = description
        self.build_id, self.banner, self.table = found.build_id, found.banner, found.table
        self.link_text, self.image_size = found.link_text, found.image_size
        self._load = image
        self._search = search
        self._searched: dict[str, Btf | None] = {}

    def with_image(self, image: Callable[[], bytes]) -> KernelSymbols:
        """The same symbols with another place to read the Image from."""
        return KernelSymbols(self._found, self.description, image, self._search)

    @cached_property
    def _image(self) -> bytes:
        return self._load()

    def address(self, name: str) -> int | None:
        symbols = self.table.named(name)
        return symbols[0].address if symbols else None

    def require(self, name: str) -> int:
        address = self.address(name)
        if address is None:
            raise MissingSymbol(f"symbol {name} is not in {self.description}: give the kernel's vmlinux with --vmlinux")
        return address

    def addresses(self, name: str) -> tuple[int, ...]:
        """Every address of ``name``: static functions of different files may share a name."""
        return tuple(symbol.address for symbol in self.table.named(name))

    def nearest(self, va: int) -> tuple[str, int] | None:
        if not self.link_text <= va < self.link_text + self.image_size:
            return None
        return self.table.nearest_text(va)

    def struct(self, name: str) -> StructType | None:
        with self._reading():
            return self._types(name).struct(name)

    def member(self, struct: str, path: str) -> Member:
        with self._reading():
            member = self._types(struct).member(struct, path)
        if member is None:
            raise MissingSymbol(f"struct {struct} has no member {path} in {self.description}")
        return member

    def has_member(self, struct: str, path: str) -> bool:
        with self._reading():
            return self._types(struct).member(struct, path) is not None

    def sizeof(self, struct: str) -> int:
        found = self.struct(struct)
        if found is None:
            raise MissingSymbol(f"struct {struct} is not in {self.description}")
        return found.size

    def enumerator(self, enum_name: str, name: str) -> int | None:
        with self._reading():
            value = self._found.types.enumerator(enum_name, name)
            other = self._elsewhere(name) if value is None else None
            return value if other is None else other.enumerator(enum_name, name)

    def text(self, va: int, size: int) -> bytes | None:
        return self.image_bytes(va - self.link_text, size)

    def image_bytes(self, offset: int, size: int) -> bytes | None:
        """``size`` bytes at ``offset`` bytes into the Image, or ``None`` when it does not store them all."""
        if offset < 0 or size < 0 or offset + size > len(self._image):
            return None
        return self._image[offset : offset + size]

    def find_bytes(self, pattern: bytes) -> int | None:
        """The link-time address where ``pattern`` first occurs in the Image, or ``None``."""
        at = self._image.find(pattern)
        return None if at < 0 else self.link_text + at

    def _types(self, struct: str) -> Btf:
        """The types that define ``struct``, or `FileContent.types` when none do."""
        types = self._found.types
        if types.struct(struct) is None:
            types = self._elsewhere(struct) or types
        return types

    def _elsewhere(self, name: str) -> Btf | None:
        if name not in self._searched:
            self._searched[name] = self._search(name)
        return self._searched[name]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except BadBtf as error:
            raise BadInput(f"the types of {self.description} are damaged: {error}") from error
