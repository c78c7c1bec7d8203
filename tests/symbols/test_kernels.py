"""Real Images, alone: what a kernel without its debug information must still tell.

Collected only with Images in ``INSPECTOR_KERNELS``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.generations import recognise, series_of
from inspector.kernel.traits import traits
from inspector.symbols import open_symbols
from inspector.symbols.image import open_image
from inspector.symbols.kallsyms import decode_kallsyms
from inspector.symbols.ksymtab import decode_ksymtab
from inspector.symbols.linkbase import find_link_base
from tests.symbols.conftest import kernels
from tests.symbols.synth import packed_gzip, zboot
from tests.symbols.used import ALWAYS, SYMBOLS

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.parametrize("kernel", kernels(), ids=lambda path: path.name),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_symbols_every_image_has(kernel: Path, cache: Path) -> None:
    symbols = open_symbols(image=kernel / "vmlinuz", cache_dir=cache)
    end = symbols.link_text + symbols.image_size
    assert symbols.require("_text") == symbols.link_text
    for name in SYMBOLS:
        assert symbols.link_text <= symbols.require(name) < end, name
    release = symbols.require("kvm_vm_release")
    assert symbols.nearest(release + 4) == ("kvm_vm_release", 4)
    assert symbols.build_id is not None and re.fullmatch("[0-9a-f]{40}", symbols.build_id)
    assert symbols.banner is not None and re.match(r"Linux version \d+\.\d+\S* .*#\d", symbols.banner)
    at = symbols.find_bytes(symbols.banner.encode() + b"\n\0")
    assert at is not None
    linux_banner = symbols.address("linux_banner")
    assert linux_banner in (None, at)


def test_members_every_kernel_has(kernel: Path, cache: Path) -> None:
    symbols = open_symbols(image=kernel / "vmlinuz", cache_dir=cache)
    missing = [(name, path) for name, paths in ALWAYS.items() for path in paths if not symbols.has_member(name, path)]
    assert missing == []


def test_its_page_table_code_is_recognised(kernel: Path, cache: Path) -> None:
    """By types alone; its release only chooses between generations that are alike (7.2 and 7.3)."""
    symbols = open_symbols(image=kernel / "vmlinuz", cache_dir=cache)
    release = (symbols.banner or "").split()[2]
    code = recognise(release, traits(symbols))
    assert (code.label, code.assumed) == (series_of(release), False)
    alike = recognise("unknown", traits(symbols)).behaviours
    assert (alike.has, alike.lacks) == (code.behaviours.has, code.behaviours.lacks)


def test_the_kernels_two_tables_agree(kernel: Path) -> None:
    """An exported function is in kallsyms too: two tables the kernel built apart, decoded apart."""
    image = open_image(kernel / "vmlinuz")
    table = decode_kallsyms(image.data)
    base = find_link_base(image.data, image.text_offset, table)
    assert base is not None
    places: dict[str, set[int]] = {}
    for name, offset in zip(table.names, table.offsets, strict=True):
        places.setdefault(name, set()).add(base.relative_base + offset - base.text)
    exports = decode_ksymtab(image.data, image.image_size)
    shared = [name for name in exports if name in places]
    assert len(shared) > 5000
    assert [name for name in shared if exports[name] not in places[name]] == []


def test_a_stray_relocation_is_outvoted(kernel: Path) -> None:
    """A relocatable kernel without RELR has some 100,000; one of them moved behind the stored bytes changes nothing."""
    image = open_image(kernel / "vmlinuz")
    table = decode_kallsyms(image.data)
    base = find_link_base(image.data, image.text_offset, table)
    assert base is not None and base.strays == 0
    if not base.relocations:
        assert table.relative_base != 0, "nothing else tells where this kernel is linked"
        return
    assert base.relocations > 100_000
    # R_AARCH64_RELATIVE's r_info, the second of the three words of a record (ELF gABI, Elf64_Rela).
    info = b"\3\4\0\0\0\0\0\0"
    at = image.data.index(info)
    while any(not image.data.startswith(info, at + 24 * n) for n in (1, 1000, 50_000)):
        at = image.data.index(info, at + 1)
    some = at - 8 + 24 * 1000
    moved = bytearray(image.data)
    moved[some : some + 8] = (base.text + len(moved) + 4096).to_bytes(8, "little")
    again = find_link_base(bytes(moved), image.text_offset, table)
    assert again is not None
    assert (again.text, again.relative_base, again.strays) == (base.text, base.relative_base, 1)


def test_packed_images_answer_alike(kernel: Path, cache: Path, tmp_path: Path) -> None:
    plain = open_symbols(image=kernel / "vmlinuz", cache_dir=cache)
    payload = packed_gzip((kernel / "vmlinuz").read_bytes())
    for name, content in (("Image.gz", payload), ("zboot.efi", zboot(payload, b"gzip"))):
        path = tmp_path / name
        path.write_bytes(content)
        packed = open_symbols(image=path, cache_dir=tmp_path / "cache")
        assert (packed.build_id, packed.banner) == (plain.build_id, plain.banner)
        assert (packed.link_text, packed.image_size) == (plain.link_text, plain.image_size)
        assert [packed.address(each) for each in SYMBOLS] == [plain.address(each) for each in SYMBOLS]
        assert packed.struct("kvm") == plain.struct("kvm")
        at = plain.require("kvm_vm_release")
        assert packed.text(at, 64) == plain.text(at, 64)


def test_a_second_start_reads_nothing_again(kernel: Path, cache: Path) -> None:
    said: list[str] = []
    open_symbols(image=kernel / "vmlinuz", cache_dir=cache)
    again = open_symbols(image=kernel / "vmlinuz", cache_dir=cache, progress=said.append)
    assert again.sizeof("page") == 64
    assert said == []
