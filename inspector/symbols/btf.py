"""Types out of BTF (`Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`), looked up without building them
all.

A vmlinux has some 60,000 to 150,000 types.  `Btf` keeps the blob and three flat indexes (where each type
lies, named types by name, enumerators by name), decodes what is asked for, and stays usable from a cache at
once.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from inspector.symbols.api import Member, StructType, TypeKind, TypeRef

MAGIC = 0xEB9F
VOID, INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE = range(10)
CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(10, 20)

# kind -> (bytes after struct btf_type, bytes for each of its vlen elements)
_LAYOUT = {
    **dict.fromkeys((PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG), (0, 0)),
    **dict.fromkeys((INT, VAR, DECL_TAG), (4, 0)),
    **dict.fromkeys((ENUM, FUNC_PROTO), (0, 8)),
    **dict.fromkeys((STRUCT, UNION, DATASEC, ENUM64), (0, 12)),
    ARRAY: (12, 0),
}
_TRANSPARENT = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
_NAMED = frozenset((STRUCT, UNION, ENUM, ENUM64, TYPEDEF))
_HEADER = struct.Struct("<HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_LAYOUT_HEADER = struct.Struct("<II")  # layout_off, layout_len: 7.x
_TYPE = struct.Struct("<III")
_MAX_DEPTH = 64  # of typedefs and arrays: deeper is a damaged blob going round in circles
_MAX_NESTING = 16  # of anonymous structs
_MAX_MEMBERS = 1 << 16  # of a struct with all that is anonymous in it: one of two of two of two … has any number
_LONGEST_NAME = 1 << 12  # the kernel allows 512 (KSYM_NAME_LEN)


class BadBtf(Exception):
    """The blob is not BTF, or is damaged; the message says how."""


@dataclass(frozen=True)
class Header:
    """Where the parts of a blob lie, in bytes from its start."""

    types: int
    types_end: int
    strings: int
    strings_end: int
    layout: int
    layout_end: int

    @property
    def size(self) -> int:
        return max(self.types_end, self.strings_end, self.layout_end)


def read_header(data: bytes, at: int = 0) -> Header:
    """The header at ``at``, checked against the size of ``data``; raises `BadBtf`."""
    if at + _HEADER.size > len(data):
        raise BadBtf("it is shorter than its header")
    magic, version, _flags, hdr_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data, at)
    if magic != MAGIC:
        raise BadBtf("it does not start with the BTF magic number")
    if version != 1:
        raise BadBtf(f"it has version {version}, this tool reads version 1")
    if hdr_len < _HEADER.size or hdr_len % 4 or hdr_len > 256 or type_off % 4:
        raise BadBtf("its header is damaged")
    layout_off = layout_len = 0
    if hdr_len >= _HEADER.size + _LAYOUT_HEADER.size and at + hdr_len <= len(data):
        layout_off, layout_len = _LAYOUT_HEADER.unpack_from(data, at + _HEADER.size)
    header = Header(
        hdr_len + type_off,
        hdr_len + type_off + type_len,
        hdr_len + str_off,
        hdr_len + str_off + str_len,
        hdr_len + layout_off,
        hdr_len + layout_off + layout_len,
    )
    if at + header.size > len(data):
        raise BadBtf(f"it is cut short: its header promises {header.size} bytes")
    if str_len == 0 or data[at + header.strings] != 0 or data[at + header.strings_end - 1] != 0:
        raise BadBtf("its string table is damaged")
    return header


def find_btf(data: bytes) -> bytes | None:
    """The BTF blob inside an unpacked Image: the largest one with a sane header."""
    best, size = 0, 0
    at = data.find(b"\x9f\xeb\x01")
    while at >= 0:
        try:
            header = read_header(data, at)
        except BadBtf:
            pass
        else:
            if header.size > size:
                best, size = at, header.size
        at = data.find(b"\x9f\xeb\x01", at + 1)
    return data[best : best + size] if size else None


@dataclass(frozen=True)
class Index:
    """Flat indexes of a blob.

    ``types``: byte offset of each type by id (0 for id 0, void).  ``named`` and ``enumerators``: pairs
    (string offset, type id) sorted by the string.  ``signed_enums``: the encoder knew of no unsigned enums
    (pahole < 1.24).
    """

    types: Sequence[int] = field(repr=False)
    named: Sequence[int] = field(repr=False)
    enumerators: Sequence[int] = field(repr=False)
    signed_enums: bool


def build_index(blob: bytes) -> Index:
    """Walk the whole type section once; raises `BadBtf`."""
    header = read_header(blob)
    layout = dict(_LAYOUT)
    for kind, at in enumerate(range(header.layout, header.layout_end - 3, 4)):
        layout.setdefault(kind, (blob[at], blob[at + 1]))
    types = array("I", [0])
    named: list[tuple[bytes, int, int]] = []
    enumerators: list[tuple[bytes, int, int]] = []
    signed_enums = True
    at, end = header.types, header.types_end
    while at < end:
        if at + _TYPE.size > end:
            raise BadBtf("its type section is cut short")
        name, info, _ = _TYPE.unpack_from(blob, at)
        kind, count = info >> 24 & 0x7F, info & 0xFFFFFF
        sizes = layout.get(kind)
        if sizes is None:
            raise BadBtf(f"it has a type of kind {kind}, unknown to this tool")
        number = len(types)
        types.append(at)
        if name and kind in _NAMED:
            named.append((_string(blob, header, name), name, number))
        after = at + _TYPE.size + sizes[0] + sizes[1] * count
        if after > end:
            raise BadBtf("its type section is cut short")
        if kind in (ENUM, ENUM64):
            signed_enums = signed_enums and kind == ENUM and not info >> 31
            for element in range(at + _TYPE.size, after, sizes[1]):
                (text,) = struct.unpack_from("<I", blob, element)
                enumerators.append((_string(blob, header, text), text, number))
        at = after
    return Index(types, _flatten(named), _flatten(enumerators), signed_enums)


def _flatten(entries: list[tuple[bytes, int, int]]) -> array[int]:
    flat = array("I")
    for _, name, number in sorted(entries, key=lambda entry: (entry[0], entry[2])):
        flat.append(name)
        flat.append(number)
    return flat


def _string(blob: bytes, header: Header, offset: int) -> bytes:
    start = header.strings + offset
    if start >= header.strings_end:
        raise BadBtf("a name lies outside its string table")
    end = blob.find(b"\0", start, start + _LONGEST_NAME + 1)
    if end < 0:
        raise BadBtf(f"a name has more than {_LONGEST_NAME} characters")
    return blob[start:end]


@dataclass(frozen=True)
class _Type:
    kind: int
    flag: bool
    name: str
    count: int
    value: int  # size or type id
    at: int  # of what follows struct btf_type


@dataclass(frozen=True)
class _Part:
    name: str
    bit_offset: int
    bit_size: int | None
    type: int


class Btf:
    """Types of one blob.  ``index`` comes from `build_index`, or from a cache of it."""

    def __init__(self, blob: bytes, index: Index | None = None) -> None:
        """Raises `BadBtf`."""
        self.blob = blob
        self.index = build_index(blob) if index is None else index
        self._header = read_header(blob)
        self._type = cache(self._decode)
        self._found: dict[str, StructType | None] = {}

    def struct(self, name: str) -> StructType | None:
        """The struct or union ``name`` (or a typedef of one), anonymous members flattened; the first one
        defined.
        """
        if name not in self._found:
            number = self._struct_id(name)
            self._found[name] = None if number is None else self._struct(number, name)
        return self._found[name]

    def member(self, struct_name: str, path: str) -> Member | None:
        """The member at a dotted ``path``, offsets counted from the start of ``struct_name``."""
        number = self._struct_id(struct_name)
        bits = 0
        found: _Part | None = None
        for part in path.split("."):
            if found is not None:
                number = self._strip(found.type)
            if number is None or self._type(number).kind not in (STRUCT, UNION):
                return None
            found = next((each for each in self._fields(number) if each.name == part), None)
            if found is None:
                return None
            bits += found.bit_offset
        if found is None:
            return None
        return self._member(replace(found, bit_offset=bits))

    def enumerator(self, enum_name: str, name: str) -> int | None:
        """The value of ``name`` in ``enum_name``, or in any enum when that is empty."""
        if enum_name:
            numbers = list(self._lookup(self.index.named, enum_name))
        else:
            numbers = list(self._lookup(self.index.enumerators, name))
        for number in numbers:
            stripped = self._strip(number)
            if self._type(stripped).kind in (ENUM, ENUM64):
                value = self._enumerators(stripped).get(name)
                if value is not None:
                    return value
        return None

    def struct_names(self) -> list[str]:
        """The name of every struct and union defined."""
        found = (self._type(number) for number in self.index.named[1::2])
        return sorted({each.name for each in found if each.kind in (STRUCT, UNION)})

    def definitions(self, name: str) -> list[StructType]:
        """Every different definition of the struct or union ``name``."""
        found: list[StructType] = []
        for number in self._lookup(self.index.named, name):
            if self._type(number).kind in (STRUCT, UNION):
                definition = self._struct(number, name)
                if definition not in found:
                    found.append(definition)
        return found

    def to_sections(self) -> dict[str, bytes]:
        """Blob and index as little-endian bytes, for the cache."""
        index = self.index
        return {
            "btf": self.blob,
            "btf_types": struct.pack(f"<{len(index.types)}I", *index.types),
            "btf_named": struct.pack(f"<{len(index.named)}I", *index.named),
            "btf_enumerators": struct.pack(f"<{len(index.enumerators)}I", *index.enumerators),
            "btf_signed_enums": b"\1" if index.signed_enums else b"\0",
        }

    @classmethod
    def from_sections(cls, sections: Mapping[str, memoryview]) -> Btf:
        """The inverse of `to_sections`; raises `BadBtf`."""
        index = Index(
            sections["btf_types"].cast("I"),
            sections["btf_named"].cast("I"),
            sections["btf_enumerators"].cast("I"),
            bytes(sections["btf_signed_enums"]) == b"\1",
        )
        return cls(bytes(sections["btf"]), index)

    def _decode(self, number: int) -> _Type:
        if number == 0:
            return _Type(VOID, False, "", 0, 0, 0)
        if number >= len(self.index.types):
            raise BadBtf(f"type id {number} does not exist")
        at = self.index.types[number]
        name, info, value = _TYPE.unpack_from(self.blob, at)
        text = _string(self.blob, self._header, name).decode("utf-8", "replace") if name else ""
        return _Type(info >> 24 & 0x7F, bool(info >> 31), text, info & 0xFFFFFF, value, at + _TYPE.size)

    def _text(self, offset: int) -> bytes:
        return _string(self.blob, self._header, offset)

    def _lookup(self, pairs: Sequence[int], name: str) -> Iterator[int]:
        wanted = name.encode("utf-8", "replace")
        places = range(0, len(pairs), 2)
        for at in places[bisect_left(places, wanted, key=lambda at: self._text(pairs[at])) :]:
            if self._text(pairs[at]) != wanted:
                break
            yield pairs[at + 1]

    def _struct_id(self, name: str) -> int | None:
        numbers = list(self._lookup(self.index.named, name))
        for number in numbers:
            if self._type(number).kind in (STRUCT, UNION):
                return number
        for number in numbers:
            stripped = self._strip(number)
            if self._type(stripped).kind in (STRUCT, UNION):
                return stripped
        return None

    def _struct(self, number: int, name: str) -> StructType:
        members: dict[str, Member] = {}
        for each in self._fields(number):
            members.setdefault(each.name, self._member(each))
        return StructType(name, self._type(number).value, members)

    def _strip(self, number: int) -> int:
        for _ in range(_MAX_DEPTH):
            each = self._type(number)
            if each.kind not in _TRANSPARENT:
                return number
            number = each.value
        raise BadBtf("a typedef goes round in a circle")

    def _fields(
        self, number: int, bits: int = 0, inside: tuple[int, ...] = (), seen: list[int] | None = None
    ) -> Iterator[_Part]:
        """Named members, those of anonymous structs and unions in their place."""
        if number in inside or len(inside) > _MAX_NESTING:
            raise BadBtf("an anonymous struct contains itself")
        seen = [0] if seen is None else seen
        seen[0] += 1 + self._type(number).count
        if seen[0] > _MAX_MEMBERS:
            raise BadBtf(f"a struct has more than {_MAX_MEMBERS} members, with those of its anonymous ones")
        each = self._type(number)
        for at in range(each.at, each.at + 12 * each.count, 12):
            name, type_id, offset = struct.unpack_from("<III", self.blob, at)
            size: int | None = None
            if each.flag:
                size, offset = offset >> 24 or None, offset & 0xFFFFFF
            stripped = self._strip(type_id)
            inner = self._type(stripped)
            if name:
                if size is None and inner.kind == INT:
                    size, offset = self._old_bit_field(inner, offset)
                text = _string(self.blob, self._header, name).decode("utf-8", "replace")
                yield _Part(text, bits + offset, size, type_id)
            elif inner.kind in (STRUCT, UNION):
                yield from self._fields(stripped, bits + offset, (*inside, number), seen)

    def _old_bit_field(self, integer: _Type, offset: int) -> tuple[int | None, int]:
        """Bit-fields before kind_flag: the INT has fewer bits than its size, at an offset of its own."""
        (encoding,) = struct.unpack_from("<I", self.blob, integer.at)
        bits, shift = encoding & 0xFF, encoding >> 16 & 0xFF
        return (None, offset) if bits == 8 * integer.value else (bits, offset + shift)

    def _member(self, each: _Part) -> Member:
        bit_offset = None if each.bit_size is None else each.bit_offset
        return Member(each.name, each.bit_offset // 8, self._ref(each.type), bit_offset, each.bit_size)

    def _ref(self, number: int, *, targets: bool = True, sized: bool = True) -> TypeRef:
        each = self._type(self._strip(number))
        if each.kind == INT:
            (encoding,) = struct.unpack_from("<I", self.blob, each.at)
            return TypeRef(TypeKind.INT, each.name, each.value, bool(encoding >> 24 & 1))
        if each.kind == FLOAT:
            return TypeRef(TypeKind.INT, each.name, each.value, True)
        if each.kind == PTR:
            return TypeRef(TypeKind.POINTER, size=8, target=self._pointed(each.value) if targets else None)
        if each.kind in (STRUCT, UNION):
            # Behind a pointer the size is not said: whether it is known depends on the provider.
            return TypeRef(TypeKind.STRUCT, each.name, each.value if sized else 0)
        if each.kind == FWD:
            return TypeRef(TypeKind.STRUCT, each.name)
        if each.kind in (ENUM, ENUM64):
            return TypeRef(TypeKind.ENUM, each.name, each.value, each.flag)
        if each.kind == ARRAY:
            number, count = self._elements(number)
            inner = self._ref(number, targets=False)
            return TypeRef(TypeKind.ARRAY, size=count * inner.size, count=count, target=inner if targets else None)
        if each.kind in (FUNC, FUNC_PROTO):
            return TypeRef(TypeKind.FUNCTION)
        return TypeRef(TypeKind.VOID)

    def _pointed(self, number: int) -> TypeRef:
        return self._ref(number, targets=False, sized=False)

    def _elements(self, number: int) -> tuple[int, int]:
        """An array's element type and number, all its dimensions as one: pahole makes one array of them."""
        count = 1
        for _ in range(_MAX_DEPTH):
            each = self._type(self._strip(number))
            if each.kind != ARRAY:
                return number, count
            number, _, elements = struct.unpack_from("<III", self.blob, each.at)
            count *= elements
        raise BadBtf("an array contains itself")

    def _enumerators(self, number: int) -> dict[str, int]:
        each = self._type(number)
        signed = each.flag or self.index.signed_enums
        values: dict[str, int] = {}
        for index in range(each.count):
            if each.kind == ENUM:
                name, value = struct.unpack_from("<Ii" if signed else "<II", self.blob, each.at + 8 * index)
            else:
                name, low, high = struct.unpack_from("<IIi" if each.flag else "<III", self.blob, each.at + 12 * index)
                value = high << 32 | low
            values[_string(self.blob, self._header, name).decode("utf-8", "replace")] = value
        return values
