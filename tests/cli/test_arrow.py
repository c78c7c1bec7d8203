"""`inspector dump --arrow`: read back with pyarrow, it is what `dump --json` says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from inspector.report.arrow import COLUMNS
from inspector.report.decode import Leaf
from inspector.report.document import TableName
from inspector.report.dump import RangeFacts
from tests.cli.test_cli import bad_world, invoke, refused, stored

CAPTURES = Path(__file__).resolve().parents[2] / "fixtures/captures"
ADDRESSES = ("root", "ipa", "pa", "raw")
DUMPS = [
    *((path.name, ()) for path in sorted(CAPTURES.glob("*.s2cap"))),
    ("own/6.1-nvhe.s2cap", ("--hyp",)),
    ("own/7.3-protected.s2cap", ("--host",)),
    ("6.1-max.s2cap", ("--vm", "vm8")),
    ("6.1-max.s2cap", ("--filter", "w,!x", "--range", "0x60000000+256M")),
    ("6.1-max.s2cap", ("--pa", "0-1")),
]


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The ranges of `dump --json` as rows, each with the name of its table, addresses as numbers."""
    found = []
    for table in document["tables"]:
        name = {key: table[key] for key in TableName.__struct_fields__}
        found += [name | one for one in table["ranges"]]
    return [row | {key: int(row[key], 16) for key in ADDRESSES} for row in found]


def read(path: Path) -> pyarrow.Table:
    with pyarrow.memory_map(str(path)) as file:
        return pyarrow.ipc.open_file(file).read_all()


@pytest.mark.parametrize(("name", "asked"), DUMPS, ids=lambda one: str(one))
def test_the_file_says_what_the_document_says(tmp_path: Path, name: str, asked: tuple[str, ...]) -> None:
    path = tmp_path / "out.arrow"
    done = invoke("--from", str(CAPTURES / name), "dump", *asked, "--arrow", str(path), "--json")
    assert done.exit_code == 0
    table, expected = read(path), rows_of(json.loads(done.stdout))
    assert table.to_pylist() == expected
    assert (len(expected) > 0) == (asked != ("--pa", "0-1"))
    said = invoke("--from", str(CAPTURES / name), "dump", *asked, "--arrow", str(path))
    tables = len(json.loads(done.stdout)["tables"])
    ranges = "1 range" if len(expected) == 1 else f"{len(expected)} ranges"
    assert said.stdout == f"{path}: {ranges} of {tables} table{'s' if tables > 1 else ''}\n"


def test_every_column_is_there_with_its_unit(tmp_path: Path) -> None:
    path = tmp_path / "out.arrow"
    invoke("--from", str(CAPTURES / "6.1-max.s2cap"), "dump", "--arrow", str(path))
    schema = read(path).schema
    assert schema.names == [*TableName.__struct_fields__, *RangeFacts.__struct_fields__]
    assert {*Leaf.__struct_fields__} < {*schema.names}
    assert {schema.field(name).type for name in ADDRESSES} == {pyarrow.uint64()}
    assert schema.field("size").metadata[b"unit"] == b"bytes"
    for name, _, unit, said in COLUMNS:
        metadata = schema.field(name).metadata
        assert metadata[b"description"].decode() == said and metadata.get(b"unit", b"").decode() == unit
    page = (CAPTURES.parents[1] / "docs/schema.md").read_text()
    for name, kind, unit, said in COLUMNS:
        shown = {"name": "string (dictionary)", "bool_": "bool"}.get(kind, kind)
        assert f"| `{name}` | {shown} | {unit} | {said} |\n" in page


def test_more_ranges_than_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspector.report.arrow._BATCH", 3)
    path = tmp_path / "out.arrow"
    done = invoke("--from", str(CAPTURES / "6.1-max.s2cap"), "dump", "--arrow", str(path), "--json")
    table = read(path)
    assert table.column("ipa").num_chunks > 3
    assert table.to_pylist() == rows_of(json.loads(done.stdout))


def test_problems_are_said_beside_it(tmp_path: Path) -> None:
    path, bad = tmp_path / "out.arrow", stored(tmp_path / "bad.s2cap", bad_world())
    problems = sum(len(one["problems"]) for one in json.loads(invoke("--from", bad, "dump", "--json").stdout)["tables"])
    done = invoke("--from", bad, "dump", "--arrow", str(path))
    assert problems > 1 and done.stdout.endswith(f"; not in it: {problems} problems, which 'dump' shows\n")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = ("--from", str(CAPTURES / "6.1-max.s2cap"), "dump", "--arrow")
    assert "directory" in refused(invoke(*dump, str(tmp_path)))
    assert "No such file or directory" in refused(invoke(*dump, str(tmp_path / "no/out.arrow")))
    assert "leave --tree out" in refused(invoke(*dump, str(tmp_path / "x"), "--tree"))
    assert "--arrow out" in refused(invoke(*dump, str(tmp_path / "x"), "--html", str(tmp_path / "y")))
    assert "No space left on device" in refused(invoke(*dump, os.devnull.replace("null", "full")))
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as where it is not installed: the import fails
    said = refused(invoke(*dump, str(tmp_path / "x")))
    assert said == (
        "inspector: --arrow needs pyarrow, which is not installed: pip install 'kvm-stage2-inspector[arrow]'"
    )
    assert not (tmp_path / "x").exists()
