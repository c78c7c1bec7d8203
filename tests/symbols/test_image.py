"""Images, packed and plain, written here in every layout of kallsyms that there has been."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.budget import Budget
from inspector.findings import BadInput
from inspector.symbols import open_symbols, packing
from inspector.symbols.image import open_image
from inspector.symbols.kallsyms import NoKallsyms, decode_kallsyms
from inspector.symbols.ksymtab import decode_ksymtab
from inspector.symbols.linkbase import find_link_base
from inspector.symbols.notes import image_banner, image_build_id
from tests.symbols.build import DATA, EXPORTS, FUNCTIONS, types
from tests.symbols.synth import BANNER, BUILD_ID, LINK, Data, Entry, image, packed_gzip, zboot

LAYOUTS = ("6.1", "6.12", "7.3")
# A 7.x table has no relative base to store; an older one without a stored base always has relocations.
CASES = [("6.1", "stored"), ("6.1", "rela"), ("6.12", "stored"), ("6.12", "rela"), ("7.3", "rela"), ("7.3", "pointers")]


def entries(layout: str, link: str = "stored") -> list[Entry]:
    """6.1 as Debian builds it, without KALLSYMS_ALL: no data.  With relocations the base is _stext, and no
    _text.
    """
    every = FUNCTIONS if layout == "6.1" else [*FUNCTIONS, *DATA]
    relative = link == "rela" and layout != "7.3"
    return sorted((entry for entry in every if entry.offset or not relative), key=lambda entry: entry.offset)


@pytest.mark.parametrize(("layout", "link"), CASES)
def test_kallsyms_in_every_layout(layout: str, link: str) -> None:
    known = entries(layout, link)
    data = bytes(image(known, EXPORTS, None, layout, link=link).bytes)
    table = decode_kallsyms(data)
    base = find_link_base(data, 0, table)
    assert base is not None
    assert base.text == LINK
    found = [
        (base.relative_base + offset - LINK, kind, name)
        for offset, kind, name in zip(table.offsets, table.kinds, table.names, strict=True)
    ]
    assert found == [(entry.offset, entry.kind, entry.name) for entry in known]


@pytest.mark.parametrize("strays", [1, 14])
def test_strays_among_the_relocations_are_outvoted_and_told(tmp_path: Path, strays: int) -> None:
    """Kernels of vendors have some: places behind the stored bytes, or words that hold something else."""
    data = image(entries("6.12", "rela"), EXPORTS, types(), "6.12", link="rela")
    count = len(entries("6.12", "rela")) + 1
    for number in range(strays):
        at = data.labels["rela"] + 24 * (100 + number)
        struct.pack_into("<Q", data.bytes, at, LINK + (len(data.bytes) + 8 if number % 2 == 0 else 0x38))
    path = tmp_path / "Image"
    path.write_bytes(data.bytes)
    symbols = open_symbols(image=path, cache_dir=tmp_path / "cache")
    assert symbols.link_text == LINK
    assert symbols.require("kvm_vm_release") == LINK + 0x20100
    assert symbols.description.endswith(f", {strays} of {count} relocations disagree on its link address)")


def test_relocations_that_fit_two_places_tell_nothing() -> None:
    """Every word is zero here and 2 MiB further on."""
    small = image(entries("6.12", "rela"), EXPORTS, None, "6.12", link="rela")
    table = decode_kallsyms(bytes(small.bytes))
    assert find_link_base(bytes(small.bytes), 0, table) is not None
    assert find_link_base(bytes(small.bytes) + bytes(4 << 20), 0, table) is None


def test_kallsyms_is_not_seen_where_there_is_none() -> None:
    data = bytes(image(FUNCTIONS, EXPORTS, None, "6.12", with_kallsyms=False).bytes)
    with pytest.raises(NoKallsyms):
        decode_kallsyms(data)


def test_exports() -> None:
    data = image(FUNCTIONS, EXPORTS, None, "6.12")
    expected = {entry.name: entry.offset for entry in EXPORTS}
    assert decode_ksymtab(bytes(data.bytes), len(data.bytes) + 0x100000) == expected
    assert decode_ksymtab(bytes(image(FUNCTIONS, [], None, "6.12").bytes), 1 << 24) == {}


def test_build_id_is_the_kernels_not_the_vdsos() -> None:
    data = bytes(image(FUNCTIONS, EXPORTS, None, "6.12").bytes)
    assert image_build_id(data) == BUILD_ID.hex()
    assert image_banner(data) == BANNER.decode().rstrip("\n")
    assert image_build_id(bytes(4096)) is None
    assert image_banner(bytes(4096)) is None


@pytest.fixture(scope="module")
def plain() -> bytes:
    return bytes(image(entries("6.12"), EXPORTS, types(), "6.12").bytes)


def packed(data: bytes, *command: str) -> bytes:
    assert shutil.which(command[0]), f"install {command[0]}"
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def zstd(data: bytes) -> bytes:
    return packed(data, "zstd", "-qc")


#: As the kernel packs them (scripts/Makefile.lib, arch/arm64/boot/Makefile: Image.lz4, Image.xz, …); then by others.
PACKINGS = {
    "Image.bz2": ("bzip2", "-9"),
    "Image.lz4": ("lz4", "-l", "-9", "-", "-"),
    "Image.lzma": ("xz", "--format=lzma", "-9"),
    "Image.xz": ("xz", "--check=crc32", "--lzma2=dict=32MiB"),
    "Image.zst": ("zstd", "-q", "-19"),
    "lz4 frame": ("lz4", "-q", "-", "-"),
    "xz with CRC-64": ("xz", "-9"),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_an_image_in_every_compression(plain: bytes, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(plain, *PACKINGS[name]))
    assert open_image(path).data == plain
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match=r"is damaged|is cut short"):
        open_image(path)


@pytest.mark.parametrize(("compression", "command"), [("none", ()), ("gzip", ("gzip", "-n")), ("bzip2", ("bzip2",))])
def test_a_uimage(plain: bytes, tmp_path: Path, compression: str, command: tuple[str, ...]) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(packed(plain, *command) if command else plain)
    path = tmp_path / "uImage"
    make = ["mkimage", "-A", "arm64", "-O", "linux", "-T", "kernel", "-C", compression, "-a", "0x80080000"]
    assert shutil.which("mkimage"), "install u-boot-tools"
    subprocess.run([*make, "-d", str(payload), str(path)], check=True, capture_output=True)
    assert open_image(path).data == plain
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match="cut short"):
        open_image(path)


@pytest.mark.parametrize("command", [("gzip",), ("xz",), ("bzip2",), ("zstd", "-q")])
def test_a_small_file_does_not_unpack_to_a_huge_one(tmp_path: Path, command: tuple[str, ...]) -> None:
    """These pack zeros a thousand times smaller and more; `packing.bound` is 256 times the file's size and 1 MiB."""
    path = tmp_path / "Image"
    path.write_bytes(packed(bytes(32 << 20), *command))
    with pytest.raises(BadInput, match=f"unpacks to more than the {packing.bound(path.stat().st_size)} bytes"):
        open_image(path)


@pytest.mark.parametrize("name", ["xz", "lzma"])
def test_a_file_that_wants_a_huge_dictionary(tmp_path: Path, name: str) -> None:
    """A few bytes that state a dictionary of 4 GiB (the .lzma header's second field, the .xz filter's property 40)."""
    form = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
    small = [{"id": lzma.FILTER_LZMA2 if name == "xz" else lzma.FILTER_LZMA1, "dict_size": 1 << 16}]
    data = bytearray(lzma.compress(b"MZ" * 100, form, filters=small, check=lzma.CHECK_CRC32 if name == "xz" else -1))
    if name == "lzma":
        data[1:5] = b"\xff\xff\xff\xff"
    else:  # .xz 1.0.4, 3.1 and 5.3.1: after the stream's 12 bytes size, flags, filter id, size of properties, property
        header = data[12 : 12 + 4 * (data[12] + 1)]
        header[4] = 40
        header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
        data[12 : 12 + len(header)] = header
    with pytest.raises(BadInput, match="emory usage limit"):
        packing.unpack("it", bytes(data), name, Budget())


def test_an_image_however_packed_answers_alike(plain: bytes, tmp_path: Path) -> None:
    assert shutil.which("zstd"), "install zstd"
    packings = {
        "Image": plain,
        "Image.gz": packed_gzip(plain),
        "vmlinuz.efi": zboot(packed_gzip(plain), b"gzip"),
        "zstd.efi": zboot(zstd(plain), b"zstd22"),
        "lz4.efi": zboot(packed(plain, *PACKINGS["Image.lz4"]), b"lz4"),
    }
    for name, content in packings.items():
        path = tmp_path / name
        path.write_bytes(content)
        for _ in range(2):  # the second time from the cache
            symbols = open_symbols(image=path, cache_dir=tmp_path / "cache")
            assert symbols.build_id == BUILD_ID.hex()
            assert symbols.link_text == LINK
            assert symbols.image_size == len(plain) + 0x400000
            assert symbols.require("init_task") == LINK + 0x30010
            assert symbols.address("absent") is None
            assert symbols.nearest(LINK + 0x20104) == ("kvm_vm_release", 4)
            assert symbols.nearest(LINK + 0x30014) is None, "data is not text"
            assert symbols.nearest(LINK - 1) is None
            assert symbols.member("outer", "arch.more").bit_offset == 99
            assert symbols.banner == BANNER.decode().rstrip("\n")
            at = symbols.find_bytes(BANNER)
            assert at is not None
            assert symbols.text(at, len(BANNER)) == BANNER
            assert symbols.text(LINK - 1, 2) is None
            assert symbols.text(LINK + len(plain) - 1, 2) is None
            assert symbols.description == f"Image {path} (BTF, kallsyms, ksymtab)"


def test_a_signature_behind_the_image_is_no_part_of_it(plain: bytes, tmp_path: Path) -> None:
    signed = bytearray(plain) + b"signature" * 20
    struct.pack_into("<I", signed, 0x3C, 0x40)
    signed[0x40:0x44] = b"PE\0\0"
    signed[0x58:0x5A] = b"\x0b\x02"
    struct.pack_into("<I", signed, 0x58 + 108, 6)
    struct.pack_into("<II", signed, 0x58 + 112 + 32, len(plain), 180)
    path = tmp_path / "vmlinuz"
    path.write_bytes(signed)
    assert len(open_image(path).data) == len(plain)
    symbols = open_symbols(image=path, cache_dir=tmp_path / "cache")
    assert symbols.find_bytes(b"signaturesignature") is None
    assert symbols.text(LINK + len(plain) - 4, 4) == bytes(4)
    assert symbols.text(LINK + len(plain), 4) is None


def test_zstd_that_is_not_installed(plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(zboot(zstd(plain), b"zstd22"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="packed with zstd: install that program"):
        open_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an arm64 kernel Image"),
        (bytes(4096), "is not an arm64 kernel Image"),
        (b"MZ" + bytes(4094), "is an EFI executable but not an arm64 kernel Image"),
        (b"\xd0\x0d\xfe\xed" + bytes(100), "is a FIT image"),
        (b"ANDROID!" + bytes(100), "is an Android boot image"),
        (b"\x89LZO\0\r\n\x1a\n" + bytes(100), "lzop"),
        (b"\x7fELF" + bytes(100), "--vmlinux"),
        (b"\x1f\x8b" + bytes(100), "damaged: its gzip data"),
        (packed_gzip(bytes(5000))[:-9], "cut short"),
        (packed_gzip(bytes(5000)), "is not an arm64 kernel Image"),
        (b"MZ\0\0zimg" + bytes(20), "EFI zboot header"),
        (zboot(bytes(100), b"gzip")[:-1], "cut short"),
        (zboot(bytes(100), b"rot13"), "packed with 'rot13'"),
        (zboot(lzma.compress(bytes(5000)), b"xzkern")[:-9], "cut short"),
        (zboot(b"no xz at all" * 9, b"xzkern"), "damaged: its xz data"),
        (zboot(bytes(100), b"zstd"), "damaged: zstd says"),
        (bytes(0x38) + b"ARM\x64" + bytes(4), "damaged Image header"),
        (bytes(8) + struct.pack("<QQQ", 0, 4096, 1) + bytes(24) + b"ARM\x64" + bytes(4), "big-endian"),
    ],
)
def test_what_is_not_an_image_is_refused_in_a_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        open_symbols(image=path, cache_dir=tmp_path / "cache")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_an_image_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "Image"
    path.write_bytes(image(FUNCTIONS, EXPORTS, None, "6.12").bytes)
    with pytest.raises(BadInput, match=r"no BTF .*--vmlinux"):
        open_symbols(image=path, cache_dir=tmp_path / "cache")
    path.write_bytes(image(FUNCTIONS, EXPORTS, types(), "6.12", with_kallsyms=False).bytes)
    with pytest.raises(BadInput, match=r"no kallsyms .*--vmlinux"):
        open_symbols(image=path, cache_dir=tmp_path / "cache")


def test_cut_images_are_refused(plain: bytes, tmp_path: Path) -> None:
    """At every 64th byte: an Image has no checksum, so what is cut behind the last table it needs still
    serves.
    """
    path = tmp_path / "Image"
    served = 0
    for size in range(0, len(plain), 64):
        path.write_bytes(plain[:size])
        try:
            open_symbols(image=path, cache_dir=tmp_path / "cache")
            served += 1
        except BadInput as error:
            assert "\n" not in str(error)
    end_of_types = plain.index(types()) + len(types())
    assert served <= (len(plain) - end_of_types) // 64 + 1


@cache
def _built(layout: str) -> Data:
    return image(entries(layout), EXPORTS, types(), layout, link="pointers" if layout == "7.3" else "stored")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_tables_are_refused_or_answered_but_nothing_else(data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(LAYOUTS))
    built = _built(layout)
    blob = bytearray(built.bytes)
    first = min(at for name, at in built.labels.items() if name.startswith("kallsyms"))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(first, built.labels["pointers"]))
        blob[at] = data.draw(st.integers(0, 255))
    decode_ksymtab(bytes(blob), len(blob))
    try:
        table = decode_kallsyms(bytes(blob))
    except NoKallsyms:
        return
    find_link_base(bytes(blob), 0, table)
