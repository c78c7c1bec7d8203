"""The ELF reader against files written here, and against binutils."""

from __future__ import annotations

import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.symbols import open_symbols
from inspector.symbols.elf import Elf
from inspector.symbols.table import Symbol
from tests.symbols.build import EXPORTS, FUNCTIONS, types
from tests.symbols.compiled import FORMS, compile_shapes
from tests.symbols.synth import BANNER, BUILD_ID, LINK, Section, elf, image, note, symtab

ALLOC, EXEC, WRITE = 2, 4, 1
GLOBAL, WEAK, OBJECT, FUNC = 1 << 4, 2 << 4, 1, 2


def vmlinux(*extra: Section, symbols: bool = True) -> bytes:
    """A small vmlinux: text, data, .bss, a build id, symbols, and what ``extra`` adds."""
    table, strings = symtab(
        [
            ("_text", LINK, GLOBAL, 1),
            ("kvm_vm_release", LINK + 0x40, FUNC, 1),
            ("weak_function", LINK + 0x50, WEAK | FUNC, 1),
            ("$x", LINK, 0, 1),
            ("linux_banner", LINK + 0x1000, GLOBAL | OBJECT, 2),
            ("vm_list", LINK + 0x1100, GLOBAL | OBJECT, 2),
            ("zeroed", LINK + 0x2000, OBJECT, 3),
            ("constant", 0x1234, 0, 0xFFF1),
            ("elsewhere", 0, GLOBAL, 0),
            ("__crc_vm_list", LINK, 0, 1),
        ]
    )
    header = bytes(16) + (0x3000).to_bytes(8, "little") + bytes(32) + b"ARM\x64" + bytes(4)
    sections = [
        Section(".text", header.ljust(0x100, b"\x1f"), flags=ALLOC | EXEC, address=LINK),
        Section(".data", (BANNER + b"\0").ljust(0x200, b"\0"), flags=ALLOC | WRITE, address=LINK + 0x1000),
        Section(".bss", type=8, flags=ALLOC | WRITE, address=LINK + 0x2000, size=0x1000),
        Section(".notes", note(BUILD_ID), type=7, flags=ALLOC, address=LINK + 0x1800),
    ]
    if symbols:
        sections += [Section(".symtab", table, type=2, link=len(sections) + 2), Section(".strtab", strings, type=3)]
    return elf([*sections, *extra])


BTF = Section(".BTF", types(), flags=ALLOC, address=LINK + 0x1900)
BTF_OUTSIDE = Section(".BTF", types())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vmlinux"


def test_symbols_have_the_letters_of_nm(path: Path) -> None:
    path.write_bytes(vmlinux())
    with Elf(path) as read:
        assert read.symbols() == [
            Symbol(LINK, "T", "_text"),
            Symbol(LINK + 0x40, "t", "kvm_vm_release"),
            Symbol(LINK + 0x50, "W", "weak_function"),
            Symbol(LINK + 0x1000, "D", "linux_banner"),
            Symbol(LINK + 0x1100, "D", "vm_list"),
            Symbol(LINK + 0x2000, "b", "zeroed"),
            Symbol(0x1234, "a", "constant"),
        ]
        assert read.build_id() == BUILD_ID.hex()


def test_nm_agrees_on_a_compiled_object(tmp_path: Path) -> None:
    shapes = compile_shapes(tmp_path, *FORMS["DWARF 5"])
    listed = subprocess.run(["aarch64-linux-gnu-nm", str(shapes)], check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in listed.splitlines()]
    expected = {(int(address, 16), kind, name) for address, kind, name in lines}
    with Elf(shapes) as read:
        found = {(symbol.address, symbol.kind, symbol.name) for symbol in read.symbols()}
    assert {each for each in expected if not each[2].startswith("$")} == found
    assert len(found) > 20


def test_a_vmlinux_answers(path: Path, tmp_path: Path) -> None:
    path.write_bytes(vmlinux(BTF))
    for _ in range(2):  # the second time from the cache
        symbols = open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")
        assert symbols.description == f"vmlinux {path} (BTF, symtab)"
        assert symbols.build_id == BUILD_ID.hex()
        assert symbols.banner == BANNER.decode().rstrip("\n")
        assert symbols.link_text == LINK
        assert symbols.image_size == 0x3000
        assert symbols.nearest(LINK + 0x48) == ("kvm_vm_release", 8)
        assert symbols.text(LINK + 0x80, 4) == b"\x1f" * 4
        assert symbols.text(LINK + 0x1000, len(BANNER)) == BANNER
        assert symbols.text(LINK + 0x2000, 4) is None, ".bss is not in the file"
        assert symbols.find_bytes(BANNER) == LINK + 0x1000
        assert symbols.sizeof("outer") == 96


def test_a_stripped_vmlinux_with_btf_answers_as_its_image(path: Path, tmp_path: Path) -> None:
    content = bytes(image(FUNCTIONS, EXPORTS, None, "6.12").bytes)
    path.write_bytes(elf([Section(".head.text", content, flags=ALLOC | EXEC, address=LINK), BTF_OUTSIDE]))
    symbols = open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")
    assert symbols.description == f"vmlinux {path} (BTF, kallsyms, ksymtab)"
    assert symbols.require("init_task") == LINK + 0x30010
    assert symbols.image_size == len(content) + 0x400000
    assert symbols.text(LINK, 4096) == content[:4096]
    assert symbols.sizeof("outer") == 96


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"MZ" + bytes(100), "is not an ELF file"),
        (b"\x7fELF", "cut short"),
        (elf([], machine=62), "not a little-endian 64-bit arm64 ELF file"),
        (elf([], bits=1), "not a little-endian 64-bit arm64 ELF file"),
        (vmlinux(), "is stripped and holds no BTF"),
        (vmlinux(symbols=False), "holds no kallsyms"),
        (elf([BTF]), "stripped of its symbols"),
        (vmlinux(Section(".BTF", b"\x9f\xeb\x01\0" + bytes(30), flags=ALLOC)), "BTF in .* cannot be read"),
        (vmlinux(Section(".debug_info", bytes(40))), "no DWARF"),
        (vmlinux(Section(".debug_info", bytes(40)), Section(".debug_abbrev", bytes(4))), "damaged"),
        (vmlinux(Section(".debug_info", bytes(4), flags=0x800)), "compression header"),
        (vmlinux(Section(".debug_info", bytes(40), flags=0x800)), "compressed in an unknown way"),
        (vmlinux(Section(".zdebug_info", bytes(40))), "no ZLIB header"),
    ],
)
def test_what_is_no_usable_vmlinux_is_refused_in_a_sentence(
    content: bytes, message: str, path: Path, tmp_path: Path
) -> None:
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(path: Path, tmp_path: Path) -> None:
    content = vmlinux(BTF)
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(BadInput):
            open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("kind", "pack"), [(1, zlib.compress), (2, None)], ids=["zlib", "zstd"])
@pytest.mark.parametrize("stated", [8 << 30, 1 << 20], ids=["as it is", "less"])
def test_a_section_that_unpacks_to_gigabytes(
    tmp_path: Path, kind: int, pack: Callable[[bytes], bytes] | None, stated: int
) -> None:
    """Elf64_Chdr states the size: what no such section can have, or what the data goes beyond, is refused unread."""
    zeros = bytes(64 << 20)
    data = pack(zeros) if pack else subprocess.run(["zstd", "-qc"], input=zeros, capture_output=True, check=True).stdout
    info = Section(".debug_info", struct.pack("<IIQQ", kind, 0, stated, 8) + data, flags=0x800)
    path = tmp_path / "bomb"
    path.write_bytes(vmlinux(info, Section(".debug_abbrev", bytes(4))))
    with pytest.raises(
        BadInput, match=r"do not unpack to the \d+ that it states|unpacks to more than the 1048576 bytes"
    ):
        open_symbols(vmlinux=path, cache_dir=tmp_path / "cache")


def test_names_that_are_one_long_string_cost_little(path: Path) -> None:
    """Each of 40,000 symbols has a name of a megabyte, which all share: none of them is a name."""
    strings = b"\0" + b"x" * (1 << 20) + b"\0"
    table = b"".join(struct.pack("<IBBHQQ", 1 + number, GLOBAL, 0, 1, LINK, 0) for number in range(40_000))
    sections = [
        Section(".text", bytes(0x100), flags=ALLOC | EXEC, address=LINK),
        Section(".symtab", table, type=2, link=3),
        Section(".strtab", strings, type=3),
    ]
    path.write_bytes(elf(sections))
    with Elf(path) as found:
        assert found.symbols() == []


def test_sections_that_share_their_bytes_are_refused(path: Path) -> None:
    made = bytearray(elf([Section(".text", bytes(0x1000), flags=ALLOC | EXEC, address=LINK), Section(".data", b"x")]))
    (table,) = struct.unpack_from("<Q", made, 0x28)
    struct.pack_into("<QQ", made, table + 2 * 64 + 24, *struct.unpack_from("<QQ", made, table + 64 + 24))
    path.write_bytes(made)
    with pytest.raises(BadInput, match="its sections overlap"):
        Elf(path)
