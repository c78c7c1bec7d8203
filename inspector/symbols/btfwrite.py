"""Writing BTF: types appended one by one, ids counting from 1 (`Documentation/bpf/btf.rst`)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from inspector.symbols import btf


@dataclass(frozen=True)
class MemberSpec:
    """A member: type id and offset in bits from the struct's start; ``bit_size`` for a bit-field."""

    name: str
    type: int
    bit_offset: int
    bit_size: int | None = None


class BtfWriter:
    """Collects types; each method returns the new type's id.

    An id may be used before its type is added: the types are checked by nobody until the blob is read.
    """

    def __init__(self) -> None:
        self._strings: dict[str, int] = {"": 0}
        self._string_bytes = bytearray(b"\0")
        self._types = bytearray()
        self._count = 0

    def integer(self, name: str, size: int, *, signed: bool = False, bits: int | None = None) -> int:
        """An integer of ``size`` bytes, ``bits`` of them used (all by default)."""
        encoding = (1 << 24 if signed else 0) | (8 * size if bits is None else bits)
        return self._add(name, btf.INT, size, struct.pack("<I", encoding))

    def real(self, name: str, size: int) -> int:
        """A floating-point number of ``size`` bytes."""
        return self._add(name, btf.FLOAT, size)

    def reference(self, kind: int, target: int, name: str = "") -> int:
        """A type that is little more than a reference: PTR, TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG,
        FUNC.
        """
        return self._add(name, kind, target)

    def array(self, element: int, count: int) -> int:
        """An array; the index type is not said."""
        return self._add("", btf.ARRAY, 0, struct.pack("<III", element, 0, count))

    def compound(self, kind: int, name: str, size: int, fields: Sequence[MemberSpec]) -> int:
        """A STRUCT or UNION of ``size`` bytes."""
        flag = any(each.bit_size is not None for each in fields)
        body = bytearray()
        for each in fields:
            offset = each.bit_offset | ((each.bit_size or 0) << 24 if flag else 0)
            body += struct.pack("<III", self._string(each.name), each.type, offset & 0xFFFF_FFFF)
        return self._add(name, kind, size, bytes(body), len(fields), flag)

    def forward(self, name: str, *, union: bool = False) -> int:
        """A struct (or union) that is only declared."""
        return self._add(name, btf.FWD, 0, flag=union)

    def enumeration(self, name: str, size: int, values: Sequence[tuple[str, int]], *, signed: bool) -> int:
        """An enum: ENUM up to 4 bytes, else ENUM64."""
        body = bytearray()
        for each, value in values:
            body += struct.pack("<II", self._string(each), value & 0xFFFF_FFFF)
            if size > 4:
                body += struct.pack("<I", value >> 32 & 0xFFFF_FFFF)
        kind = btf.ENUM64 if size > 4 else btf.ENUM
        return self._add(name, kind, size, bytes(body), len(values), signed)

    def prototype(self) -> int:
        """A function type, its parameters left out."""
        return self._add("", btf.FUNC_PROTO, 0)

    def blob(self) -> bytes:
        """The finished blob."""
        header = struct.pack(
            "<HBBIIIII", btf.MAGIC, 1, 0, 24, 0, len(self._types), len(self._types), len(self._string_bytes)
        )
        return header + bytes(self._types) + bytes(self._string_bytes)

    def _add(self, name: str, kind: int, value: int, body: bytes = b"", count: int = 0, flag: bool = False) -> int:
        self._types += struct.pack("<III", self._string(name), int(flag) << 31 | kind << 24 | count, value)
        self._types += body
        self._count += 1
        return self._count

    def _string(self, text: str) -> int:
        place = self._strings.get(text)
        if place is None:
            place = self._strings[text] = len(self._string_bytes)
            self._string_bytes += text.encode("utf-8", "surrogateescape") + b"\0"
        return place
