"""Makes the input files of cases: each function gets a folder and returns the path of the file that it made there."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inspector.capture.file import save
from tests.benchmarks.random_tables import random_tables
from tests.symbols import synth
from tests.symbols.build import DATA, EXPORTS, FUNCTIONS, types

CAPTURES = Path(__file__).parents[2] / "fixtures" / "captures"


def _script(folder: Path, *lines: str) -> Path:
    path = folder / "script.txt"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def script_underscores(folder: Path) -> Path:
    return _script(folder, "init", "map 0x_ 0x1000 pa=0 prot=RW")


def script_negative(folder: Path) -> Path:
    return _script(folder, "init", "poke 0 level=1 entry=-1")


def script_level(folder: Path) -> Path:
    return _script(folder, "init", "create_unlinked level=9")


def script_ipa(folder: Path) -> Path:
    return _script(folder, "machine ipa=1T", "init")


def script_memory(folder: Path) -> Path:
    return _script(folder, "machine ipa=48 force_pte=1", "init", "map 0 64T pa=0 prot=RW")


def script_destroyed_twice(folder: Path) -> Path:
    return _script(folder, "init", "destroy", "destroy")


def script_bits(folder: Path) -> Path:
    return _script(folder, "machine ipa=99999999999999999999999", "init")


def _capture(folder: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """A recorded capture with its members changed, checksums right."""
    path = folder / "made.s2cap"
    with zipfile.ZipFile(CAPTURES / "6.1-cortex-a57.s2cap") as good, zipfile.ZipFile(path, "w") as made:
        members = {name: good.read(name) for name in good.namelist()}
        change(members)
        for name, data in members.items():
            made.writestr(name, data, zipfile.ZIP_DEFLATED)
    return path


def _header(folder: Path, change: Callable[[Any], object]) -> Path:
    """A recorded capture with the ``capture`` object of its header changed."""

    def edit(members: dict[str, bytes]) -> None:
        header = json.loads(members["header.json"])
        change(header["capture"])
        members["header.json"] = json.dumps(header).replace('"5000 digits"', "9" * 5000).encode()

    return _capture(folder, edit)


_TOO_LARGE = hex(1 << 64)


def capture_with_a_number_of_5000_digits(folder: Path) -> Path:
    return _header(folder, lambda capture: capture["host"].update(kaslr_slide="5000 digits"))


def capture_with_a_count_of_65_bits(folder: Path) -> Path:
    return _header(folder, lambda capture: next(iter(capture["page_info"].values())).update(refcount=_TOO_LARGE))


def capture_with_a_gfn_of_65_bits(folder: Path) -> Path:
    return _header(folder, lambda capture: capture["vms"][0]["memslots"][0].update(base_gfn=_TOO_LARGE))


def capture_with_an_hva_of_65_bits(folder: Path) -> Path:
    return _header(folder, lambda capture: capture["vms"][0]["memslots"][0].update(userspace_addr=_TOO_LARGE))


def capture_whose_slots_share_their_backing(folder: Path) -> Path:
    """Five hundred slots, each backed by the same 200,000 records."""

    def change(members: dict[str, bytes]) -> None:
        header = json.loads(members["header.json"])
        slot = {**header["capture"]["vms"][0]["memslots"][0], "backing": [0, 200_000]}
        header["capture"]["vms"][0]["memslots"] = [{**slot, "id": number} for number in range(500)]
        members |= {"header.json": json.dumps(header).encode(), "backing.bin": bytes(34 * 200_000)}

    return _capture(folder, change)


def _index(*records: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QQI", *record) for record in records)


def capture_whose_pages_overlap(folder: Path) -> Path:
    """Twenty thousand table pages of 16 MiB, each a byte further into the same bytes."""
    blob = bytes((16 << 20) + 20_000)
    index = _index(*((number << 12, number, 16 << 20) for number in range(20_000)))
    return _capture(folder, lambda members: members.update({"pages.bin": blob, "pages.idx": index}))


def capture_whose_pages_are_all_the_same(folder: Path) -> Path:
    """A million table pages with the same 4 KiB: legal, and 4 GiB for whoever lays them end to end."""
    index = _index(*((number << 12, 0, 4096) for number in range(1 << 20)))
    return _capture(folder, lambda members: members.update({"pages.bin": bytes(4096), "pages.idx": index}))


def capture_with_a_header_of_empty_lists(folder: Path) -> Path:
    """128 MiB of JSON in 128 KB, and some 3 GB of Python's lists."""
    text = b'{"capture": [' + b"[]," * (128 << 20 >> 2) + b"[]]}"
    return _capture(folder, lambda members: members.update({"header.json": text}))


def capture_with_a_bomb(folder: Path) -> Path:
    """Pages of 3 GiB in 3 MB of deflated data, as the archive truly says of them."""
    path = _capture(folder, lambda members: members.pop("pages.bin"))
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr("pages.bin", piece * (3 << 10) + packer.flush(), zipfile.ZIP_STORED)
        info = made.getinfo("pages.bin")
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, 3 << 30
    return path


def _vmlinux(folder: Path, debug_info: bytes) -> Path:
    """A vmlinux of one page of text, whose types are in ``debug_info``, a compressed section."""
    table, strings = synth.symtab([("_text", synth.LINK, 1 << 4, 1)])
    sections = [
        synth.Section(".text", bytes(4096), flags=2 | 4, address=synth.LINK),
        synth.Section(".symtab", table, type=2, link=3),
        synth.Section(".strtab", strings, type=3),
        synth.Section(".debug_info", debug_info, flags=0x800),
        synth.Section(".debug_abbrev", b"\0"),
    ]
    path = folder / "vmlinux"
    path.write_bytes(synth.elf(sections))
    return path


def _zeros_by_zstd(blocks: int) -> bytes:
    """A zstd frame of so many blocks of 128 KiB (RFC 8878 3.1.1: RLE blocks of one byte, four bytes each)."""
    block = (128 << 10) << 3 | 1 << 1
    pieces = (block.to_bytes(3, "little") + b"\0") * (blocks - 1) + (block | 1).to_bytes(3, "little") + b"\0"
    return struct.pack("<IBB", 0xFD2FB528, 0, 0x38) + pieces


def vmlinux_with_a_bomb(folder: Path) -> Path:
    """8 GiB in 260 KB, and the section says that it is ten bytes."""
    return _vmlinux(folder, struct.pack("<IIQQ", 2, 0, 10, 8) + _zeros_by_zstd(1 << 16))


def vmlinux_with_an_open_bomb(folder: Path) -> Path:
    """8 GiB in 260 KB, as the section says."""
    return _vmlinux(folder, struct.pack("<IIQQ", 2, 0, 8 << 30, 8) + _zeros_by_zstd(1 << 16))


def vmlinux_of_2_to_the_63(folder: Path) -> Path:
    """51 bytes that claim to unpack to more than a signed number counts."""
    return _vmlinux(folder, struct.pack("<IIQQ", 1, 0, 0xB388_0000_0000_0000, 8) + zlib.compress(bytes(4096)))


def image_cut_in_its_relocations(folder: Path) -> Path:
    """An Image whose last entry of .rela.dyn lacks half of its addend."""
    data = synth.image([*FUNCTIONS[1:], *DATA], EXPORTS, types(), "6.1", link="rela")
    at = data.labels["rela"]
    path = folder / "Image"
    path.write_bytes(data.bytes[: at + 100 * 24 - 4])
    return path


def capture_of_random_tables(folder: Path) -> Path:
    """A million random entries in two thousand linked tables."""
    path = folder / "random.s2cap"
    save(random_tables(2048), path)
    return path
