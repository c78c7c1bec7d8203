"""The BTF reader against blobs whose meaning is known from the format's definition."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.symbols import TypeKind, TypeRef, btf
from inspector.symbols.btf import BadBtf, Btf, find_btf
from inspector.symbols.btfwrite import BtfWriter, MemberSpec
from tests.symbols.build import types

INT = TypeRef(TypeKind.INT, "unsigned int", 4)
LONG = TypeRef(TypeKind.INT, "long int", 8, signed=True)


def test_members_of_anonymous_structs_are_flattened() -> None:
    found = Btf(types()).struct("inner")
    assert found is not None
    assert {name: (member.offset, member.bit_offset, member.bit_size) for name, member in found.members.items()} == {
        "first": (0, None, None),
        "whole": (8, None, None),
        "deep": (8, None, None),
        "bits": (12, 96, 3),
        "more": (12, 99, 5),
    }
    assert found.size == 24


def test_a_path_leads_through_typedefs_and_counts_from_the_outer_struct() -> None:
    blob = Btf(types())
    more = blob.member("outer", "arch.more")
    assert more is not None
    assert (more.name, more.offset, more.bit_offset, more.bit_size) == ("more", 12, 99, 5)
    assert blob.member("outer", "arch.absent") is None
    assert blob.member("outer", "link.first") is None, "a path does not follow pointers"
    assert blob.member("absent", "arch") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arch", TypeRef(TypeKind.STRUCT, "inner", 24)),
        ("link", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.STRUCT, "inner"))),
        ("table", TypeRef(TypeKind.ARRAY, size=24, count=6, target=INT)),
        ("mode", TypeRef(TypeKind.ENUM, "mode", 4)),
        ("wide", TypeRef(TypeKind.ENUM, "wide", 8, signed=True)),
        ("hidden", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.STRUCT, "hidden"))),
        ("call", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.FUNCTION))),
    ],
)
def test_types_of_members(name: str, expected: TypeRef) -> None:
    member = Btf(types()).member("outer", name)
    assert member is not None
    assert member.type == expected


def test_a_typedef_of_a_struct_answers_like_the_struct() -> None:
    blob = Btf(types())
    by_typedef, by_name = blob.struct("inner_t"), blob.struct("inner")
    assert by_typedef is not None and by_name is not None
    assert by_typedef.members == by_name.members


def test_enumerators() -> None:
    blob = Btf(types())
    assert blob.enumerator("mode", "MODE_B") == 5
    assert blob.enumerator("", "MODE_B") == 5
    assert blob.enumerator("wide", "WIDE") == 1 << 40
    assert blob.enumerator("", "MINUS") == -1
    assert blob.enumerator("mode", "WIDE") is None
    assert blob.enumerator("", "ABSENT") is None


@pytest.mark.parametrize(("modern", "expected"), [(False, -1), (True, 0xFFFF_FFFF)])
def test_the_sign_of_an_enum_without_kind_flag_depends_on_the_encoder(modern: bool, expected: int) -> None:
    """kind_flag tells signed enums since pahole 1.24, which then sets it on some; before, all values were
    __s32.
    """
    writer = BtfWriter()
    writer.enumeration("plain", 4, [("ALL_ONES", 0xFFFF_FFFF)], signed=False)
    if modern:
        writer.enumeration("other", 4, [("NEGATIVE", -2)], signed=True)
    assert Btf(writer.blob()).enumerator("plain", "ALL_ONES") == expected


def test_bit_fields_of_before_kind_flag() -> None:
    """The INT holds the number of bits and an offset (btf.rst, BTF_INT_BITS and BTF_INT_OFFSET)."""
    writer = BtfWriter()
    three = writer.integer("unsigned int", 4, bits=3 | 2 << 16)
    writer.compound(btf.STRUCT, "old", 4, [MemberSpec("field", three, 8)])
    member = Btf(writer.blob()).member("old", "field")
    assert member is not None
    assert (member.offset, member.bit_offset, member.bit_size) == (1, 10, 3)


def with_layout(blob: bytes, kinds: list[tuple[int, int]]) -> bytes:
    """``blob`` with the header of 7.x: a layout section after the strings, two more header words."""
    fields = list(struct.unpack_from("<HBBIIIII", blob))
    layout = b"".join(struct.pack("<BBH", size, each, 0) for size, each in kinds)
    body = blob[24:] + bytes(-len(blob[24:]) % 4)
    fields[3] = 32
    return struct.pack("<HBBIIIII", *fields) + struct.pack("<II", len(body), len(layout)) + body + layout


def test_a_type_of_an_unknown_kind_is_stepped_over_by_the_layout_section() -> None:
    writer = BtfWriter()
    writer.reference(20, 0)  # a kind of the future, which takes 8 bytes more than struct btf_type
    blob = bytearray(writer.blob())
    head, body = blob[:24], blob[24:36] + bytes(8)
    later = BtfWriter()
    number = later.integer("unsigned int", 4)
    later.compound(btf.STRUCT, "after", 4, [MemberSpec("value", number + 1, 0)])
    rest = later.blob()
    (type_len,) = struct.unpack_from("<I", rest, 12)
    strings = rest[24 + type_len :]
    fields = list(struct.unpack_from("<HBBIIIII", head))
    fields[5] = fields[6] = len(body) + type_len
    fields[7] = len(strings)
    joined = struct.pack("<HBBIIIII", *fields) + bytes(body) + rest[24 : 24 + type_len] + strings
    with pytest.raises(BadBtf, match="kind 20"):
        Btf(joined)
    member = Btf(with_layout(joined, [(0, 0)] * 20 + [(8, 0)])).member("after", "value")
    assert member is not None
    assert member.type == INT


def test_the_blob_is_found_among_other_bytes() -> None:
    blob = types()
    assert find_btf(b"\x9f\xeb\x01\0\x18\0\0\0" + bytes(500) + b"\0\0\0" + blob + bytes(100)) == blob
    assert find_btf(bytes(1000)) is None


def test_every_truncation_is_refused() -> None:
    blob = types()
    for size in range(len(blob)):
        with pytest.raises(BadBtf):
            Btf(blob[:size])


def ask_everything(blob: Btf) -> None:
    for name in ("outer", "inner", "inner_t", "mode"):
        blob.struct(name)
        blob.definitions(name)
        blob.member(name, "arch.bits")
        blob.enumerator(name, "MODE_A")
    blob.enumerator("", "WIDE")


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(types()) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_refused_or_answered_but_nothing_else(changes: list[tuple[int, int]]) -> None:
    blob = bytearray(types())
    for at, value in changes:
        blob[at] = value
    try:
        ask_everything(Btf(bytes(blob)))
    except BadBtf as error:
        assert str(error)


@pytest.mark.parametrize("named", [True, False])
def test_a_struct_that_doubles_with_every_level_is_refused(named: bool) -> None:
    """Eight of eight of eight … anonymous structs: a thousand million million members in a few kilobytes."""
    writer = BtfWriter()
    number = writer.integer("unsigned int", 4)
    inner = writer.compound(btf.STRUCT, "", 4, [MemberSpec("x", number, 0)] if named else [])
    for _ in range(15):
        inner = writer.compound(btf.STRUCT, "", 4, [MemberSpec("", inner, 0)] * 8)
    writer.compound(btf.STRUCT, "wide", 4, [MemberSpec("", inner, 0)])
    blob = Btf(writer.blob())
    for ask in (lambda: blob.struct("wide"), lambda: blob.member("wide", "y"), lambda: blob.definitions("wide")):
        with pytest.raises(BadBtf, match="more than 65536 members"):
            ask()


def test_a_struct_that_contains_itself_is_refused() -> None:
    writer = BtfWriter()
    writer.compound(btf.STRUCT, "", 8, [MemberSpec("", 1, 0), MemberSpec("", 1, 0)])
    writer.compound(btf.STRUCT, "round", 8, [MemberSpec("", 1, 0)])
    writer.reference(btf.TYPEDEF, 3, "self")
    blob = Btf(writer.blob())
    with pytest.raises(BadBtf, match="contains itself"):
        blob.struct("round")
    with pytest.raises(BadBtf, match="circle"):
        blob.struct("self")
