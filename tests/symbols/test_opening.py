"""`open_symbols`, its cache, and what it says when it cannot."""

from __future__ import annotations

import multiprocessing
import struct
from pathlib import Path

import pytest

from inspector.findings import BadInput
from inspector.symbols import MissingSymbol, open_symbols
from inspector.symbols.table import Symbol, SymbolTable
from tests.symbols.build import EXPORTS, FUNCTIONS, types
from tests.symbols.synth import BUILD_ID, LINK, image
from tests.symbols.test_elf import BTF, vmlinux


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "Image"
    found.write_bytes(image(FUNCTIONS, EXPORTS, types(), "6.12").bytes)
    return found


def test_nothing_given() -> None:
    with pytest.raises(BadInput, match=r"--vmlinux .*--image"):
        open_symbols()


def test_unreadable_files(tmp_path: Path) -> None:
    for wrong in (tmp_path / "absent", tmp_path):
        with pytest.raises(BadInput, match=f"cannot read {wrong}: "):
            open_symbols(image=wrong, cache_dir=tmp_path)
        with pytest.raises(BadInput, match=f"cannot read {wrong}: "):
            open_symbols(vmlinux=wrong, cache_dir=tmp_path)


def test_what_is_missing_is_named(path: Path, tmp_path: Path) -> None:
    symbols = open_symbols(image=path, cache_dir=tmp_path / "cache")
    with pytest.raises(MissingSymbol, match=r"symbol vm_list .*--vmlinux"):
        symbols.require("vm_list")
    with pytest.raises(MissingSymbol, match=r"struct outer has no member arch\.absent"):
        symbols.member("outer", "arch.absent")
    with pytest.raises(MissingSymbol, match="struct absent"):
        symbols.member("absent", "x")
    with pytest.raises(MissingSymbol, match="struct absent"):
        symbols.sizeof("absent")
    assert symbols.has_member("outer", "arch.deep")
    assert not symbols.has_member("outer", "arch.absent")
    assert not symbols.has_member("absent", "arch")


def test_a_vmlinux_and_its_image(path: Path, tmp_path: Path) -> None:
    elf = tmp_path / "vmlinux"
    elf.write_bytes(vmlinux(BTF))
    symbols = open_symbols(vmlinux=elf, image=path, cache_dir=tmp_path / "cache")
    assert symbols.address("vm_list") == LINK + 0x1100
    assert symbols.text(LINK, 64) == path.read_bytes()[:64]
    other = bytearray(path.read_bytes())
    other[other.rindex(BUILD_ID)] ^= 1
    path.write_bytes(other)
    with pytest.raises(BadInput, match="not one build") as caught:
        open_symbols(vmlinux=elf, image=path, cache_dir=tmp_path / "cache")
    assert BUILD_ID.hex() in str(caught.value)


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_the_cache_is_used_and_not_trusted(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    said: list[str] = []
    open_symbols(image=path, cache_dir=cache, progress=said.append)
    assert len(said) == 1
    kept = only(cache)
    good = kept.read_bytes()
    open_symbols(image=path, cache_dir=cache, progress=said.append)
    assert len(said) == 1, "read a second time although it was kept"
    step = len(good) // 50
    cut = [good[:size] for size in range(0, len(good), step)]
    altered = [good[:at] + bytes((good[at] ^ 0x40,)) + good[at + 1 :] for at in range(0, len(good), step)]
    for bad in [*cut, *altered, b"{}", good + b"x"]:
        kept.write_bytes(bad)
        before = len(said)
        symbols = open_symbols(image=path, cache_dir=cache, progress=said.append)
        assert len(said) == before + 1, "a damaged cache was used"
        assert symbols.require("init_task") == LINK + 0x30010
        assert only(cache).read_bytes() == good


def test_another_file_of_the_same_build_id_has_its_own_place(tmp_path: Path) -> None:
    """A vmlinux stripped, or given BTF, after its link keeps its build id."""
    elf = tmp_path / "vmlinux"
    elf.write_bytes(vmlinux(BTF))
    open_symbols(vmlinux=elf, cache_dir=tmp_path / "cache")
    elf.write_bytes(vmlinux())
    with pytest.raises(BadInput, match="stripped"):
        open_symbols(vmlinux=elf, cache_dir=tmp_path / "cache")


def test_no_place_for_a_cache_is_no_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    symbols = open_symbols(image=path, cache_dir=tmp_path / "file" / "cache")
    assert symbols.sizeof("outer") == 96


def test_the_default_place_is_the_users_cache(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    open_symbols(image=path)
    assert only(tmp_path / "xdg" / "kvm-stage2-inspector" / "symbols").name.startswith(BUILD_ID.hex())


def _open_often(path: Path, cache: Path) -> None:
    for _ in range(5):
        for old in cache.glob("*-image-*"):
            old.unlink(missing_ok=True)
        assert open_symbols(image=path, cache_dir=cache).sizeof("outer") == 96


def test_writers_at_the_same_time(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open_often, args=(path, cache)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list(cache.glob("*.new")), "a temporary file was left behind"


def test_names_that_are_shared() -> None:
    """Static functions of several files: the global one first, weak ones after it, then by address."""
    table = SymbolTable.build(
        [Symbol(30, "t", "same"), Symbol(20, "T", "same"), Symbol(10, "W", "same"), Symbol(40, "t", "other")]
    )
    assert [symbol.address for symbol in table.named("same")] == [20, 10, 30]
    assert table.named("sam") == []


def test_names_at_one_address_are_in_the_kernels_order() -> None:
    """scripts/kallsyms.c, compare_symbols: weak last, linker-provided after others, fewer underscores first."""
    table = SymbolTable.build(
        [
            Symbol(8, "W", "weak"),
            Symbol(8, "T", "__start_text"),
            Symbol(8, "T", "__name"),
            Symbol(8, "t", "name"),
            Symbol(4, "T", "before"),
        ]
    )
    assert [table[index].name for index in range(5)] == ["before", "name", "__name", "__start_text", "weak"]
    assert table.nearest_text(9) == ("name", 1)
    assert table.nearest_text(3) is None


def test_another_file_that_claims_the_same_build_is_not_taken_for_it(path: Path, tmp_path: Path) -> None:
    """Same build id, same size, one type's size changed: what was remembered of the first is not said of the second."""
    forged = tmp_path / "forged"
    data = bytearray(path.read_bytes())
    entry = data.index(b"\x9f\xeb\x01\x00")
    size = data.index(struct.pack("<I", 96), entry)
    data[size : size + 4] = struct.pack("<I", 97)
    forged.write_bytes(data)
    cache = tmp_path / "cache"
    assert open_symbols(image=path, cache_dir=cache).sizeof("outer") == 96
    assert open_symbols(image=forged, cache_dir=cache).sizeof("outer") == 97
    assert open_symbols(image=path, cache_dir=cache).sizeof("outer") == 96
