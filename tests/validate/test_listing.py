"""The kernel's own listings of real tables, as recorded, and with one thing changed in them.

`fixtures/listings/`: captures of kernels that `run_qemu.sh build` made (`fixtures/record_listing.sh`), and what each
printed of the same tables.  6.12.117 prints X the wrong way round, leaves the last run out, and begins long listings
in the middle.  Rows of 7.2 and 7.3 are made here as the source of their ptdump.c says.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from inspector.capture.file import load
from inspector.capture.view import table_views
from inspector.findings import ExitCode
from inspector.validate.listed import told
from inspector.validate.listing import Compared, Run, Unreadable, compare, parse, walked

FOLDER = Path(__file__).resolve().parents[2] / "fixtures/listings"
RECORDED = sorted(path.stem for path in FOLDER.glob("*.s2cap"))
Texts = dict[str, list[str]]


def texts(name: str) -> Texts:
    found: Texts = {}
    for line in gzip.decompress((FOLDER / f"{name}.txt.gz").read_bytes()).decode().splitlines():
        vm, _, row = line.partition(" ")
        found.setdefault(vm, []).append(row)
    return found


@cache
def tables(name: str) -> dict[str, tuple[Run, ...]]:
    capture = load(str(FOLDER / f"{name}.s2cap"))
    return {view.vm.name: walked(view.tree) for view in table_views(capture)}


def compared(name: str, change: Callable[[Texts], None] = lambda _: None) -> Compared:
    rows = texts(name)
    change(rows)
    ours = tables(name)
    assert set(ours) == set(rows)
    return compare({vm: (ours[vm], parse(rows[vm])) for vm in ours})


@pytest.mark.parametrize("name", RECORDED)
def test_a_listing_and_the_tables_agree(name: str) -> None:
    done = compared(name)
    assert not done.mismatches
    assert done.ranges > 700
    assert done.inverted is (name == "6.12")


def test_what_6_12_does_with_a_long_listing_is_in_the_recording() -> None:
    """No heading, and a first row that ends where it should begin."""
    rows = texts("6.12")["vm0"]
    assert not rows[0].startswith("---[")
    assert re.match(r"0x[0-9a-f]+-0x0000000000000000 ", rows[0])
    assert any(lines[0].startswith("---[ Guest IPA ]---") for lines in texts("6.12").values())


def flipped(old: str, new: str, vm: str = "vm0") -> Callable[[Texts], None]:
    """In the first row of a leaf that has it."""

    def change(rows: Texts) -> None:
        at = next(i for i, row in enumerate(rows[vm]) if i and old in row and " AF" in row)
        rows[vm][at] = rows[vm][at].replace(old, new, 1)

    return change


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize(("old", "new"), [(" R W ", " R   "), (" R W ", "   W "), (" AF", "   ")])
def test_one_attribute_otherwise_is_one_mismatch(name: str, old: str, new: str) -> None:
    done = compared(name, flipped(old, new))
    assert list(done.mismatches) == ["vm0"]
    (wrong,) = done.mismatches["vm0"]
    assert wrong.ours != wrong.kernels
    assert len(list(wrong.lines())) == 3


def test_one_x_otherwise_is_a_mismatch_though_the_column_is_inverted() -> None:
    done = compared("6.12", flipped("X AF", "  AF"))
    assert done.inverted
    assert sum(map(len, done.mismatches.values())) == 1


def moved(rows: Texts) -> None:
    """The end of a range, and with it the beginning of the next, one page on."""
    at = next(i for i, row in enumerate(rows["vm0"]) if i > 3 and " AF" in row)
    end = rows["vm0"][at].split()[0].split("-0x")[1]
    later = f"{int(end, 16) + 0x1000:016x}"
    rows["vm0"][at] = rows["vm0"][at].replace(f"-0x{end}", f"-0x{later}")
    rows["vm0"][at + 1] = rows["vm0"][at + 1].replace(f"0x{end}-", f"0x{later}-")


def other_level(rows: Texts) -> None:
    rows["vm0"][3] = re.sub(r"(\d+[KMGTPE]) 3", r"\1 2", rows["vm0"][3])


def cut(rows: Texts) -> None:
    """More than the last run is missing."""
    del rows["vm0"][-2:]


@pytest.mark.parametrize("change", [moved, other_level, cut], ids=["moved", "level", "cut"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_range_otherwise_is_a_mismatch(name: str, change: Callable[[Texts], None]) -> None:
    assert compared(name, change).mismatches


def test_a_mismatch_is_a_finding_that_names_the_place() -> None:
    done = compared("6.12", flipped(" R W ", " R   "))
    parts: list[tuple[object, ...]] = []
    told(done, texts("6.12"), 0, lambda *what, **_: parts.append(what))
    ((name, code, summary, lines),) = parts
    assert (name, code) == ("listing", ExitCode.FINDINGS)
    assert "1 otherwise than they are" in str(summary)
    assert isinstance(lines, list)
    assert lines[:2] == ["vm0:", "IPA 0x0-0x1000"]


NEW = (
    (" ", "R", "W", "px ux ", "AF", "   "),
    (" ", "R", " ", "PXNUXN", "AF", "BLK"),
    (" ", "R", "W", "PXNux ", "  ", "   "),
    (" ", " ", "W", "px UXN", "AF", "   "),
)


def test_rows_of_7_3() -> None:
    """Columns and their order: stage2_pte_bits of 7.3.4; each is printed behind a space (dump_prot())."""
    rows = [
        f"0x{at << 21:016x}-0x{at + 1 << 21:016x}   {2:9}M {3 - ('BLK' in columns)}"
        + "".join(f" {column}" for column in columns)
        for at, columns in enumerate(NEW)
    ]
    listing = parse(["---[ Guest IPA ]---", *rows, f"0x{4 << 21:016x}-0x{1 << 40:016x}         1016G 1"])
    assert listing.split_x
    assert [str(run) for run in listing.runs] == [
        "level 3 RWX AF page",
        "level 2 R-- AF block",
        "level 3 RWUX page",
        "level 3 -WPX AF page",
        "level 1 invalid",
    ]
    # Nothing is turned round where EL1 and EL0 are told apart.
    assert not compare({"vm0": (listing.runs, listing)}).mismatches
    turned = [replace(run, leaf=run.leaf and replace(run.leaf, executable="-")) for run in listing.runs]
    assert len(compare({"vm0": (turned, listing)}).mismatches["vm0"]) == 3


@pytest.mark.parametrize(
    "row",
    [
        "0x0000000000000000-0x0000000000001000           4K 3   R W NEW AF",
        "0x0000000000001000-0x0000000000001000           4K 3",
        "0x0000000000001000-0x0000000000002000           4K 3",
        "something else",
    ],
    ids=["column", "empty", "gap", "text"],
)
def test_what_no_kernel_prints_is_no_listing(row: str) -> None:
    with pytest.raises(Unreadable):
        parse(["---[ Guest IPA ]---", row])
