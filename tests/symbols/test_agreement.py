"""All providers agree, on every type, enumerator and symbol that is used, with each other, with gdb and with
nm.

Collected only for kernels whose debug vmlinux is in ``INSPECTOR_KERNELS`` too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inspector.symbols import KernelSymbols, Member, TypeKind, open_symbols
from inspector.symbols.btf import Btf
from inspector.symbols.dwarf import DwarfTypes
from inspector.symbols.elf import Elf
from inspector.symbols.opening import read_vmlinux
from inspector.symbols.table import SymbolTable
from tests.symbols import gdb_oracle
from tests.symbols.conftest import debug_kernels
from tests.symbols.used import ALWAYS, DATA_SYMBOLS, ENUMERATORS, MEMBERS, SYMBOLS

pytestmark = pytest.mark.kernels


@dataclass(frozen=True)
class Providers:
    """One kernel as every provider sees it; ``dwarf`` answers as `KernelSymbols` does for a vmlinux without
    BTF.
    """

    image: KernelSymbols
    vmlinux: KernelSymbols
    dwarf: KernelSymbols
    gdb: gdb_oracle.Answer
    nm: dict[str, set[int]]
    path: Path


class WithoutBtf(Elf):
    """A vmlinux whose .BTF nobody sees."""

    def section(self, name: str):  # type: ignore[no-untyped-def]
        return None if name == ".BTF" else super().section(name)


def dwarf_symbols(path: Path) -> KernelSymbols:
    with WithoutBtf(path) as elf:
        found = read_vmlinux(elf)

    def search(name: str) -> Btf | None:
        with Elf(path) as again:
            blob = DwarfTypes(again).search(name)
        return None if blob is None else Btf(blob)

    assert found.sources == ("DWARF", "symtab")
    return KernelSymbols(found, f"{path} (DWARF)", bytes, search)


@pytest.fixture(scope="module", params=debug_kernels(), ids=lambda path: path.name)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Providers:
    folder: Path = request.param
    cache = tmp_path_factory.mktemp("cache")
    vmlinux = folder / "vmlinux"
    listing = subprocess.run(["aarch64-linux-gnu-nm", str(vmlinux)], check=True, capture_output=True, text=True).stdout
    nm: dict[str, set[int]] = {}
    for line in listing.splitlines():
        address, _, name = line.partition(" ")[0], *line.partition(" ")[2].split(" ", 1)
        nm.setdefault(name, set()).add(int(address, 16))
    return Providers(
        open_symbols(image=folder / "vmlinuz", cache_dir=cache),
        open_symbols(vmlinux=vmlinux, cache_dir=cache),
        dwarf_symbols(vmlinux),
        gdb_oracle.ask(vmlinux, MEMBERS, ENUMERATORS),
        nm,
        folder,
    )


def used() -> Iterator[tuple[str, str]]:
    return ((name, path) for name, paths in MEMBERS.items() for path in paths)


def answer(symbols: KernelSymbols, name: str, path: str) -> Member | None:
    return symbols.member(name, path) if symbols.has_member(name, path) else None


def test_members(kernel: Providers) -> None:
    compared = 0
    for name, path in used():
        expected = answer(kernel.image, name, path)
        assert answer(kernel.vmlinux, name, path) == expected, (name, path)
        assert answer(kernel.dwarf, name, path) == expected, (name, path)
        place = kernel.gdb["members"].get(f"{name} {path}")
        assert (place is None) == (expected is None), (name, path)
        if expected is not None:
            first = 8 * expected.offset if expected.bit_offset is None else expected.bit_offset
            flexible = expected.type.kind is TypeKind.ARRAY and expected.type.count == 0
            size = place[2] if flexible else expected.type.size
            assert [first, expected.bit_size or 0, size] == place, (name, path)
            compared += 1
    assert compared > sum(map(len, ALWAYS.values()))


def test_sizes_and_whole_structs(kernel: Providers) -> None:
    for name in MEMBERS:
        expected = kernel.image.struct(name)
        assert kernel.vmlinux.struct(name) == expected, name
        assert kernel.dwarf.struct(name) == expected, name
        assert kernel.gdb["sizes"].get(name) == (None if expected is None else expected.size), name


def test_no_type_used_has_a_double(kernel: Providers) -> None:
    """BTF keeps different structs of one name apart; the tool takes the first, so there must be one."""
    with Elf(kernel.path / "vmlinux") as elf:
        section = elf.section(".BTF")
        assert section is not None
        types = Btf(bytes(elf.raw(section)))
    assert [name for name in MEMBERS if len(types.definitions(name)) > 1] == []


def test_every_type_of_the_units_read(kernel: Providers) -> None:
    """All structs of the units that the DWARF reader converts, not only those used, against pahole's BTF."""
    with Elf(kernel.path / "vmlinux") as elf:
        types = DwarfTypes(elf)
        converted = Btf(types.convert(types.kernel_units(SymbolTable.build(elf.symbols()))))
        section = elf.section(".BTF")
        assert section is not None
        known = Btf(bytes(elf.raw(section)))
    names = converted.struct_names()
    assert len(names) > 500
    assert [name for name in names if converted.struct(name) not in known.definitions(name)] == []


def test_enumerators(kernel: Providers) -> None:
    found = 0
    for enum, name in ENUMERATORS:
        expected = kernel.image.enumerator(enum, name)
        assert kernel.vmlinux.enumerator(enum, name) == expected, name
        assert kernel.dwarf.enumerator(enum, name) == expected, name
        assert kernel.gdb["enumerators"].get(name) == expected, name
        found += expected is not None
    assert found > len(ENUMERATORS) // 2


def test_symbols(kernel: Providers) -> None:
    for name in (*SYMBOLS, "kvm_get_mode"):  # not yet in 5.10
        assert {kernel.image.require(name)} == {kernel.vmlinux.require(name)} == kernel.nm[name], name
    for name in DATA_SYMBOLS:
        assert {kernel.vmlinux.require(name)} == kernel.nm[name], name
        assert kernel.image.address(name) in (None, kernel.vmlinux.address(name)), name


def test_every_symbol_of_the_image_is_one_of_nms(kernel: Providers) -> None:
    table = kernel.image.table
    assert len(table) > 40_000
    wrong = [each for each in (table[index] for index in range(len(table))) if each.address not in kernel.nm[each.name]]
    assert wrong == []


def test_every_function_of_the_vmlinux_is_in_the_image(kernel: Providers) -> None:
    """Between _stext and _etext, which is what kallsyms covers whatever its configuration."""
    first, last = kernel.vmlinux.require("_stext"), kernel.vmlinux.require("_etext")
    known = {(each.address, each.name) for each in map(kernel.image.table.__getitem__, range(len(kernel.image.table)))}
    table = kernel.vmlinux.table
    missing = [
        each.name
        for each in map(table.__getitem__, range(len(table)))
        if each.kind in "tTwW" and first <= each.address < last and (each.address, each.name) not in known
    ]
    assert missing == []


def test_the_same_image_and_identity(kernel: Providers) -> None:
    image, vmlinux = kernel.image, kernel.vmlinux
    assert (image.build_id, image.link_text, image.image_size) == (
        vmlinux.build_id,
        vmlinux.link_text,
        vmlinux.image_size,
    )
    assert image.banner == vmlinux.banner
    note = subprocess.run(
        ["aarch64-linux-gnu-readelf", "-n", str(kernel.path / "vmlinux")], check=True, capture_output=True, text=True
    ).stdout
    assert f"Build ID: {image.build_id}\n" in note


def test_the_vmlinux_laid_out_by_address_is_the_image(kernel: Providers) -> None:
    """Byte for byte, but for the PE checksum and the certificate table's entry, which signing the Image
    wrote.
    """
    size = len((kernel.path / "vmlinuz").read_bytes())
    stored, made = (_longest(symbols, size) for symbols in (kernel.image, kernel.vmlinux))
    assert len(stored) == len(made) > 20 << 20
    differ = [at for at in range(0, len(made), 4) if stored[at : at + 4] != made[at : at + 4]]
    assert set(differ) <= {0x98, 0xE8, 0xEC}


def _longest(symbols: KernelSymbols, size: int) -> bytes:
    """The whole stored image, at most ``size`` bytes."""
    while (content := symbols.image_bytes(0, size)) is None:
        size -= 4
    return content


def test_nearest_agrees(kernel: Providers) -> None:
    """At the start, and in the middle, of every 97th function."""
    table = kernel.image.table
    asked = 0
    for index in range(0, len(table), 97):
        symbol = table[index]
        if symbol.kind in "tT":
            for address in (symbol.address, symbol.address + 4):
                expected = kernel.vmlinux.nearest(address)
                assert kernel.image.nearest(address) == expected, symbol
            asked += 1
    assert asked > 200
