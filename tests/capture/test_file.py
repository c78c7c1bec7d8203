"""The capture file: what is written comes back, and no damage whatsoever gives anything but one sentence."""

from __future__ import annotations

import json
import string
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.capture import file as capture_file
from inspector.capture.file import load, save
from inspector.codec import Geometry
from inspector.findings import BadInput, ExitCode
from inspector.snapshot import (
    SCHEMA,
    Backing,
    BackingState,
    Capture,
    CpuState,
    Look,
    Mmu,
    MmuKind,
    PageInfo,
    PageState,
    Running,
)
from tests.check.build import good_world

U64 = st.integers(0, (1 << 64) - 1)
NAMES = st.text(string.printable + "äπ\u2028", max_size=12)


def one_sentence(error: BadInput) -> str:
    """The message, checked to be what a user is told: one line, exit code 2."""
    message = str(error)
    assert "\n" not in message and "Traceback" not in message and message
    assert error.exit_code is ExitCode.USAGE
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "good.s2cap"
    save(good_world().capture(), path)
    return path


CPUS = st.builds(
    CpuState,
    st.integers(0, 255),
    st.dictionaries(NAMES, U64, max_size=3),
    st.sampled_from(Running),
    st.none() | NAMES,
    st.booleans(),
)
GEOMETRIES = st.sampled_from([Geometry.for_ipa(40), Geometry.for_ipa(52, 12, 52, True), Geometry.for_ipa(48, 16, 52)])
MMUS = st.builds(
    Mmu,
    address=U64,
    kind=st.sampled_from(MmuKind),
    vmid=st.none() | st.integers(0, 65535),
    vmid_raw=U64,
    pgd_phys=U64,
    pgd_pa=st.none() | U64,
    vtcr=U64,
    ia_bits=st.none() | st.integers(32, 52),
    start_level=st.none() | st.integers(-1, 3),
    pgt_flags=st.none() | U64,
    geometry=st.none() | GEOMETRIES,
    unreadable=st.none() | NAMES,
    nested_valid=st.none() | st.booleans(),
    nested_vttbr=st.none() | U64,
)
PAGE_INFOS = st.builds(PageInfo, st.integers(-5, 1 << 31), st.sampled_from(PageState))
LOOK = {"seconds": 0.5, "cpus": [], "mmu_locks": {"vm0": None}, "roots": {}, "page_info": {}}
LOOKS = st.builds(
    Look,
    st.floats(0, 1e3),
    st.lists(CPUS, max_size=2).map(tuple),
    st.dictionaries(NAMES, st.none() | st.booleans(), max_size=2),
    st.dictionaries(U64, U64, max_size=2),
    st.dictionaries(U64, PAGE_INFOS, max_size=2),
    st.dictionaries(U64, st.binary(max_size=40) | st.just(bytes(4096)), max_size=3),
)
STATES = st.sampled_from(BackingState)
BACKINGS = st.builds(Backing, U64, U64, st.none() | U64, STATES, st.booleans(), st.booleans(), U64)


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    """Captures with anything in the fields that matter to the file."""
    base = good_world().capture()
    names = draw(st.lists(NAMES, min_size=len(base.vms), max_size=len(base.vms), unique=True))
    vms = tuple(
        replace(
            vm,
            name=name,
            pid=draw(st.none() | st.integers(1, 1 << 22)),
            mmus=tuple(draw(st.lists(MMUS, max_size=2))),
            memslots=tuple(replace(s, backing=tuple(draw(st.lists(BACKINGS, max_size=2)))) for s in vm.memslots),
        )
        for vm, name in zip(base.vms, names, strict=True)
    )
    pages = draw(st.dictionaries(U64, st.binary(max_size=40) | st.just(bytes(4096)), max_size=5))
    return replace(
        base,
        stopped_seconds=draw(st.floats(0, 1e6)),
        host=replace(base.host, cpus=tuple(draw(st.lists(CPUS, max_size=3))), notes=tuple(draw(st.lists(NAMES)))),
        vms=vms,
        pages=pages,
        page_info=draw(st.dictionaries(U64, PAGE_INFOS, max_size=3)),
        unreadable=draw(st.dictionaries(U64, NAMES, max_size=3)),
        looks=tuple(draw(st.lists(LOOKS, max_size=2))),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(capture=captures())
def test_what_is_saved_comes_back(tmp_path: Path, capture: Capture) -> None:
    path = tmp_path / "x.s2cap"
    save(capture, path)
    assert load(path) == capture


def test_the_same_capture_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(good_world().capture(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_equal_pages_are_stored_once(tmp_path: Path) -> None:
    world = good_world()
    empty = sum(not any(words) for words in world.pages.values())
    save(world.capture(), tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as archive:
        assert archive.getinfo("pages.bin").file_size == 4096 * (len(world.pages) - empty + 1)
        assert archive.getinfo("pages.idx").file_size == 20 * len(world.pages)


def test_every_cut_gives_one_sentence(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(BadInput) as caught:
            load(saved)
        assert str(saved) in one_sentence(caught.value)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_are_noticed_or_harmless(saved: Path, data: st.DataObject) -> None:
    original = load(saved)
    whole = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
    damaged = saved.with_name("damaged")
    damaged.write_bytes(whole)
    try:
        assert load(damaged) == original  # a date or a comment inside the zip format
    except BadInput as error:
        one_sentence(error)


def test_every_single_flipped_byte(saved: Path) -> None:
    original = load(saved)
    whole = saved.read_bytes()
    damaged = saved.with_name("damaged")
    noticed = 0
    for at in range(len(whole)):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            assert load(damaged) == original
        except BadInput as error:
            one_sentence(error)
            noticed += 1
    assert noticed > len(whole) * 0.8


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Write the archive anew with its members changed, CRCs right."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def rewrite_header(path: Path, change: Callable[[Any], object]) -> None:
    def edit(members: dict[str, bytes]) -> None:
        header = json.loads(members["header.json"])
        change(header)
        members["header.json"] = json.dumps(header).encode()

    rewrite(path, edit)


def test_a_newer_schema_is_refused_by_both_numbers(saved: Path) -> None:
    rewrite_header(saved, lambda header: header.update(schema=SCHEMA + 6, capture="unknowable"))
    with pytest.raises(BadInput) as caught:
        load(saved)
    message = one_sentence(caught.value)
    assert f"schema {SCHEMA + 6}" in message and f"reads schema {SCHEMA}" in message


@pytest.mark.parametrize("member", ["header.json", "pages.bin", "pages.idx", "backing.bin"])
def test_a_missing_member(saved: Path, member: str) -> None:
    rewrite(saved, lambda members: members.pop(member))
    with pytest.raises(BadInput, match=member):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(format="something else"),
        lambda h: h.update(schema="one"),
        lambda h: h.update(schema=True),
        lambda h: h.update(schema=0),
        lambda h: h.pop("schema"),
        lambda h: h.pop("capture"),
        lambda h: h["capture"].pop("host"),
        lambda h: h["capture"]["host"].update(page_size="big"),
        lambda h: h["capture"]["host"].update(page_size=None),
        lambda h: h["capture"]["host"].update(page_size=True),
        lambda h: h["capture"]["host"].update(image_pa=[1]),
        lambda h: h["capture"]["host"].update(features=[]),
        lambda h: h["capture"]["host"].update(traits={"mm_ops": 1}),
        lambda h: h["capture"]["host"].update(mode="el3"),
        lambda h: h["capture"]["host"].update(mode=None),
        lambda h: h["capture"]["host"]["cpus"][0].update(running=[]),
        lambda h: h["capture"].update(scope="everything"),
        lambda h: h["capture"].update(vms={}),
        lambda h: h["capture"].update(looks=None),
        lambda h: h["capture"].update(looks=[{}]),
        lambda h: h["capture"].update(looks=[LOOK]),  # no member holds its pages
        lambda h: h["capture"]["vms"].append(7),
        lambda h: h["capture"]["vms"].append(h["capture"]["vms"][0]),  # names tell VMs apart, in findings and options
        lambda h: h["capture"]["vms"][0]["mmus"][0]["geometry"].update(granule_shift=13),
        lambda h: h["capture"]["vms"][0]["mmus"][0]["geometry"].update(start_level=9),
        lambda h: h["capture"]["vms"][0]["mmus"][0]["geometry"].update(root_pages=1 << 40),
        lambda h: h["capture"]["vms"][0]["mmus"][0]["geometry"].update(ia_bits=400),
        lambda h: h["capture"]["vms"][0].update(pid="1e5"),
        lambda h: h["capture"]["page_info"].update(zz={"refcount": 1, "state": "used"}),
        lambda h: h["capture"].update(stopped_seconds=float("nan")),
        lambda h: h["capture"]["vms"][0]["memslots"][0].update(backing=[0, 1 << 40]),
        lambda h: h["capture"]["vms"][0]["memslots"][0].update(backing=[-1, 1]),
        lambda h: h["capture"]["vms"][0]["memslots"][0].update(backing=[]),
        lambda h: h["capture"]["vms"][0]["memslots"][0].pop("backing"),
    ],
)
def test_a_header_of_another_shape(saved: Path, change: Callable[[Any], object]) -> None:
    rewrite_header(saved, change)
    with pytest.raises(BadInput) as caught:
        load(saved)
    one_sentence(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"3", b'{"format": NaN}'])
def test_a_header_that_is_no_header(saved: Path, content: bytes) -> None:
    rewrite(saved, lambda members: members.update({"header.json": content}))
    with pytest.raises(BadInput) as caught:
        load(saved)
    one_sentence(caught.value)


def test_an_index_that_points_out_of_the_pages(saved: Path) -> None:
    rewrite(saved, lambda members: members.update({"pages.bin": members["pages.bin"][:-1]}))
    with pytest.raises(BadInput, match="outside"):
        load(saved)


def test_an_index_that_is_cut_off(saved: Path) -> None:
    rewrite(saved, lambda members: members.update({"pages.idx": members["pages.idx"][:-1]}))
    with pytest.raises(BadInput, match="cut off"):
        load(saved)


@pytest.mark.parametrize("content", [b"\xff" * 34, b"\0" * 33])
def test_backing_of_another_shape(saved: Path, content: bytes) -> None:
    def edit(members: dict[str, bytes]) -> None:
        members["backing.bin"] = content + members["backing.bin"][34:]

    rewrite(saved, edit)
    with pytest.raises(BadInput) as caught:
        load(saved)
    one_sentence(caught.value)


def test_fields_of_a_later_minor_version_are_ignored(saved: Path) -> None:
    rewrite_header(saved, lambda header: header["capture"]["host"].update(weather="fine"))
    assert load(saved) == good_world().capture()


def test_fields_with_a_default_may_be_absent(saved: Path) -> None:
    rewrite_header(saved, lambda header: header["capture"].pop("scope"))
    assert load(saved).scope == "full"


@pytest.mark.parametrize("name", ["missing.s2cap", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path / name)
    one_sentence(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF" + bytes(100), bytes(4096)):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(BadInput, match="not a whole capture"):
            load(path)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.s2cap"
    target.write_bytes(b"old")

    def fail(self: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes, **settings: Any) -> None:
        if info.filename == capture_file.PAGES:
            raise OSError(28, "No space left on device")
        raise_free(self, info, data, **settings)

    raise_free = zipfile.ZipFile.writestr
    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(BadInput, match="No space left"):
        save(good_world().capture(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["x.s2cap"]
    assert target.read_bytes() == b"old"


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write"):
        save(good_world().capture(), tmp_path / "no" / "x.s2cap")


def test_no_field_is_forgotten(saved: Path) -> None:
    """Every field of a capture but the raw pages is in the header under its own name."""
    with zipfile.ZipFile(saved) as archive:
        header = json.loads(archive.read("header.json"))
    assert set(header["capture"]) == {f.name for f in fields(Capture)} - {"pages"}
