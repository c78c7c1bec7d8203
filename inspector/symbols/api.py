"""The one interface to a kernel's symbols and types, whichever provider answers.

Offsets and sizes are bytes unless a name says bits.  Addresses are link-time virtual addresses (before KASLR).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from inspector.findings import BadInput


class TypeKind(enum.Enum):
    """What a member holds."""

    INT = "int"
    POINTER = "pointer"
    STRUCT = "struct"  # and union
    ENUM = "enum"
    ARRAY = "array"
    FUNCTION = "function"
    VOID = "void"


@dataclass(frozen=True)
class TypeRef:
    """A member's type, typedefs and qualifiers stripped.

    ``name`` is the struct, enum or integer name (empty when anonymous); ``size`` in bytes (0 for void, functions
    and incomplete types); ``target`` is what a pointer points to (one level, itself without its own target beyond
    kind and name) or an array's element type; ``count`` an array's number of elements.
    """

    kind: TypeKind
    name: str = ""
    size: int = 0
    signed: bool = False
    count: int = 0
    target: TypeRef | None = None


@dataclass(frozen=True)
class Member:
    """A member at ``offset`` bytes; for a bit-field ``bit_offset`` counts from the start of the struct."""

    name: str
    offset: int
    type: TypeRef
    bit_offset: int | None = None
    bit_size: int | None = None


@dataclass(frozen=True)
class StructType:
    """A struct or union.  Members of anonymous structs and unions inside it are flattened into ``members``."""

    name: str
    size: int
    members: Mapping[str, Member] = field(repr=False)


class MissingSymbol(BadInput):
    """A symbol, type or member that no provider has; the message names it and what was asked."""


class Symbols(Protocol):
    """Addresses and types of one kernel build."""

    @property
    def description(self) -> str:
        """Where the answers come from (``vmlinux (DWARF, symtab)``, ``Image (BTF, kallsyms, ksymtab)``)."""

    @property
    def build_id(self) -> str | None:
        """The GNU build id, lower-case hex."""

    @property
    def banner(self) -> str | None:
        """The ``Linux version …`` line without its newline, when the file holds it."""

    def address(self, name: str) -> int | None:
        """The symbol's link-time address, or ``None``."""

    def require(self, name: str) -> int:
        """As `address`; raises `MissingSymbol`."""

    def nearest(self, va: int) -> tuple[str, int] | None:
        """The text symbol at or below link-time ``va`` and the distance in bytes, or ``None``."""

    def struct(self, name: str) -> StructType | None:
        """The struct or union ``name`` (without the word ``struct``), or ``None``."""

    def member(self, struct: str, path: str) -> Member:
        """The member at a dotted ``path`` (``arch.mmu.pgd_phys``), its offset counted from ``struct``'s start.

        Raises `MissingSymbol` naming struct and path.
        """

    def has_member(self, struct: str, path: str) -> bool: ...

    def sizeof(self, struct: str) -> int:
        """Raises `MissingSymbol`."""

    def enumerator(self, enum_name: str, name: str) -> int | None:
        """The value of enumerator ``name`` of ``enum_name`` (any enum when ``enum_name`` is empty), or ``None``."""

    @property
    def link_text(self) -> int:
        """Link address of the Image's first byte (`_text`)."""

    @property
    def image_size(self) -> int:
        """Bytes from `_text` to the end of the loaded image, the zeroed part included."""

    def find_bytes(self, pattern: bytes) -> int | None:
        """Link address of the first occurrence of ``pattern`` in the image, or ``None``."""

    def text(self, va: int, size: int) -> bytes | None:
        """``size`` bytes of the kernel image as linked at ``va`` (to decode a function), or ``None``."""
