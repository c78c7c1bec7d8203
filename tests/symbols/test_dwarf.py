"""The DWARF reader against the compiler: where gcc put a member is read out of the objects it made."""

from __future__ import annotations

import shutil
import struct
import subprocess
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.findings import BadInput
from inspector.symbols import StructType, TypeKind, TypeRef, dwarf, open_symbols
from inspector.symbols.btf import Btf
from inspector.symbols.dwarf import DwarfTypes
from inspector.symbols.elf import Elf
from inspector.symbols.table import SymbolTable
from tests.symbols.compiled import FORMS, OBJCOPY, compile_shapes

PROBES = {
    "leaf_first": "leaf.first",
    "leaf_low": "leaf.low",
    "leaf_high": "leaf.high",
    "leaf_byte": "leaf.byte",
    "leaf_whole": "leaf.whole",
    "leaf_tail": "leaf.tail",
    "named_inner": "named.inner",
    "named_level": "named.level",
    "either_number": "either.number",
    "colour": "colour",
    "sign": "sign",
}
OFFSETS = ("table", "pair", "far", "real", "wide", "flexible")
CHAR = TypeRef(TypeKind.INT, "unsigned char", 1)


@pytest.fixture(scope="module", params=FORMS, ids=list(FORMS))
def shapes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shapes(tmp_path_factory.mktemp("shapes"), *FORMS[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_shapes(tmp_path_factory.mktemp("plain"), *FORMS["DWARF 5"])


def probe(elf: Elf, table: SymbolTable, name: str, size: int) -> int:
    """The probe's bytes as one number: the bits of its member are set."""
    content = elf.read(table.named(f"probe_{name}")[0].address, size)
    assert content is not None
    return int.from_bytes(content, "little")


def constant(elf: Elf, table: SymbolTable, name: str) -> int:
    content = elf.read(table.named(name)[0].address, 8)
    assert content is not None
    return int.from_bytes(content, "little")


def test_members_lie_where_the_compiler_put_them(shapes: Path, tmp_path: Path) -> None:
    symbols = open_symbols(vmlinux=shapes, cache_dir=tmp_path)
    assert symbols.description == f"vmlinux {shapes} (DWARF, symtab)"
    with Elf(shapes) as elf:
        table = SymbolTable.build(elf.symbols())
        size = constant(elf, table, "size_of_shapes")
        assert symbols.sizeof("shapes") == size
        assert symbols.sizeof("leaf") == constant(elf, table, "size_of_leaf")
        for name in OFFSETS:
            assert symbols.member("shapes", name).offset == constant(elf, table, f"offset_of_{name}")
        for name, path in PROBES.items():
            member = symbols.member("shapes", path)
            first = 8 * member.offset if member.bit_offset is None else member.bit_offset
            bits = 8 * member.type.size if member.bit_size is None else member.bit_size
            assert probe(elf, table, name, size) == ((1 << bits) - 1) << first, path
            assert member.offset == first // 8


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("leaf", TypeRef(TypeKind.STRUCT, "leaf", 24)),
        ("named", TypeRef(TypeKind.STRUCT, "", 8)),
        ("pointer", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.STRUCT, "leaf"))),
        ("hidden", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.STRUCT, "hidden"))),
        ("call", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.FUNCTION))),
        ("nothing", TypeRef(TypeKind.POINTER, size=8, target=TypeRef(TypeKind.VOID))),
        ("table", TypeRef(TypeKind.ARRAY, size=15, count=15, target=CHAR)),
        ("pair", TypeRef(TypeKind.ARRAY, size=48, count=2, target=TypeRef(TypeKind.STRUCT, "leaf", 24))),
        ("either", TypeRef(TypeKind.STRUCT, "either", 16)),
        ("far", TypeRef(TypeKind.ENUM, "far", 8)),
        ("flag", TypeRef(TypeKind.INT, "_Bool", 1)),
        ("sign", TypeRef(TypeKind.INT, "signed char", 1, signed=True)),
        ("wide", TypeRef(TypeKind.INT, "__int128 unsigned", 16)),
        ("flexible", TypeRef(TypeKind.ARRAY, size=0, count=0, target=CHAR)),
    ],
)
def test_types_of_members(plain: Path, tmp_path: Path, path: str, expected: TypeRef) -> None:
    assert open_symbols(vmlinux=plain, cache_dir=tmp_path).member("shapes", path).type == expected


def test_enumerators(shapes: Path, tmp_path: Path) -> None:
    symbols = open_symbols(vmlinux=shapes, cache_dir=tmp_path)
    assert symbols.enumerator("colour", "GREEN") == 7
    assert symbols.enumerator("", "BLUE") == -3
    assert symbols.enumerator("far", "FAR") == 1 << 40
    assert symbols.enumerator("colour", "FAR") is None


def test_without_aranges_units_are_known_by_their_files(plain: Path, tmp_path: Path) -> None:
    """The object's own file is none of the kernel's, so that its types are only found by name."""
    bare = tmp_path / "bare"
    subprocess.run([OBJCOPY, "-R", ".debug_aranges", str(plain), str(bare)], check=True)
    with Elf(bare) as elf, Elf(plain) as whole:
        table = SymbolTable.build(elf.symbols())
        assert DwarfTypes(elf).kernel_units(table) == []
        assert DwarfTypes(whole).kernel_units(table) == [0]
        blob = DwarfTypes(elf).search("shapes")
        assert blob is not None
        assert Btf(blob).struct("shapes") is not None
        for absent in ("nowhere", "hidden", "flexible"):  # no string, only declared, a member's name
            assert DwarfTypes(elf).search(absent) is None
    with pytest.raises(BadInput, match="does not cover KVM"):
        open_symbols(vmlinux=bare, cache_dir=tmp_path / "cache")


def test_pahole_agrees(plain: Path, tmp_path: Path) -> None:
    """pahole's BTF of the same object, in its .BTF section, read by the reader of BTF."""
    assert shutil.which("pahole"), "install pahole"
    encoded = tmp_path / "encoded"
    blob = tmp_path / "btf"
    # Detached: putting the section in place itself, pahole needs llvm-objcopy.
    encode = ["pahole", "-J", "--btf_gen_floats", f"--btf_encode_detached={blob}", str(plain)]
    subprocess.run(encode, check=True, capture_output=True)
    subprocess.run([OBJCOPY, f"--add-section=.BTF={blob}", str(plain), str(encoded)], check=True)
    ours = open_symbols(vmlinux=plain, cache_dir=tmp_path / "cache")
    theirs = open_symbols(vmlinux=encoded, cache_dir=tmp_path / "cache")
    assert theirs.description.endswith("(BTF, symtab)")
    names = ("shapes", "leaf", "either")
    found: dict[str, StructType | None] = {name: ours.struct(name) for name in names}
    assert None not in found.values()
    assert found == {name: theirs.struct(name) for name in names}


def read_all(path: Path, cache: Path) -> None:
    symbols = open_symbols(vmlinux=path, cache_dir=cache)
    symbols.struct("shapes")
    symbols.struct("absent")
    symbols.enumerator("", "GREEN")


def test_truncation_is_refused(plain: Path, tmp_path: Path) -> None:
    """The section headers come last, so that no shorter file has them."""
    content = plain.read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content)
    with path.open("r+b") as file:
        for size in range(len(content) - 1, -1, -5):
            file.truncate(size)
            with pytest.raises(BadInput) as caught:
                read_all(path, tmp_path / "cache")
            assert str(path) in str(caught.value)
            assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_answered_but_nothing_else(plain: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(plain.read_bytes())
    with Elf(plain) as elf:
        places = [each for each in elf.sections if each.name.startswith((".debug_info", ".debug_abbrev", ".debug_ar"))]
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(places))
        content[section.offset + data.draw(st.integers(0, section.size - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with Elf(path) as elf:
        table = SymbolTable.build(elf.symbols())
        try:
            types = DwarfTypes(elf)
            blob = types.convert(types.kernel_units(table))
            Btf(blob).struct("shapes")
            types.search("leaf")
        except BadInput as error:
            assert "\n" not in str(error)


def _circle() -> DWARFInfo:
    """A unit with an entry that does not name the next one, below which an entry is its own sibling.

    DWARF 4, section 7.5: .debug_abbrev has code, tag, has-children, (attribute, form) pairs; .debug_info the entries.
    """
    unit, plain, ring = (1, 0x11, 1), (2, 0x13, 1), (3, 0x13, 1)
    abbrevs = bytes([*unit, 0, 0, *plain, 0, 0, *ring, 0x01, 0x13, 0, 0, 0])  # DW_AT_sibling, DW_FORM_ref4
    at = 11 + 1 + 1  # after the unit's header, its own entry and the one that names no sibling
    entries = bytes([1, 2, 3]) + struct.pack("<I", at) + bytes([0, 0, 0, 0])
    header = struct.pack("<IHIB", 7 + len(entries), 4, 0, 8)
    sections: dict[str, Any] = {name: None for name in signature(DWARFInfo).parameters if name != "config"}
    for name, data in (("debug_info_sec", header + entries), ("debug_abbrev_sec", abbrevs)):
        sections[name] = DebugSectionDescriptor(BytesIO(data), name, 0, len(data), 0)
    return DWARFInfo(DwarfConfig(True, "AArch64", 8), **sections)


def test_siblings_that_go_round_are_no_type_information() -> None:
    """Found by fuzzing: pyelftools looks for the next entry below one that does not name it, and there for ever."""
    with pytest.raises(dwarf._Damaged, match="circle"):
        for unit in _circle().iter_CUs():
            for _ in dwarf._each(unit.get_top_DIE()):
                pass
