"""``dump``, ``walk`` and ``check`` of the host's own tables, on captures of real hosts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from inspector.capture.file import save
from inspector.findings import ExitCode
from inspector.snapshot import OwnKind
from tests.check.test_hyp import FOLDER, HVHE, NVHE, PROTECTED, area, data, hyp, recorded, with_raw
from tests.cli.schema import errors
from tests.cli.test_cli import invoke

ALL = (NVHE, HVHE, PROTECTED)


def source(name: str) -> tuple[str, str]:
    return "--from", str(FOLDER / f"{name}.s2cap")


@pytest.mark.parametrize("name", ALL)
def test_dump(name: str) -> None:
    result = invoke(*source(name), "dump", "--hyp", "--filter", "!w,x")
    assert result.exit_code == 0
    title, head, *lines = result.stdout.splitlines()
    capture = recorded(name)
    assert title.startswith(f"hyp stage-1 of the host ({capture.host.mode}): root {hyp(capture).root_pa:#x}, ")
    assert "-bit VA, " in title and head.split()[0] == "VA"
    idmap = area(recorded(name), "hyp idmap text").start
    assert lines[0].split()[0] == f"{idmap:#x}" and "R-X" in lines[0] and "normal" in lines[0]
    document = json.loads(invoke(*source(name), "dump", "--hyp", "--json").stdout)
    assert errors(document) == []
    (table,) = document["tables"]
    assert table["vm"] is None and table["regime"] == "hyp stage-1" and "owned" not in table
    tree = invoke(*source(name), "dump", "--hyp", "--tree").stdout
    assert " VA 0x" in tree and " IPA 0x" not in tree
    assert errors(json.loads(invoke(*source(name), "dump", "--hyp", "--tree", "--json").stdout)) == []


def test_dump_of_a_protected_host_says_who_owns_what() -> None:
    text = invoke(*source(PROTECTED), "dump", "--host").stdout
    assert "host stage-2 of the host (protected)" in text
    assert "not the host's, by 4012 annotations: 16048K" in text
    document = json.loads(invoke(*source(PROTECTED), "dump", "--host", "--json").stdout)
    assert errors(document) == []
    (table,) = document["tables"]
    assert {one["owner"] for one in table["owned"]} == {"hyp"}
    assert sum(one["entries"] for one in table["owned"]) == 4012
    rodata = area(recorded(PROTECTED), "hyp rodata")
    assert any(int(one["ipa"], 16) == rodata.start for one in table["owned"])


@pytest.mark.parametrize("name", ALL)
def test_walk(name: str) -> None:
    capture = recorded(name)
    entry = data(capture)
    result = invoke(*source(name), "walk", "--hyp", f"{entry.ia + 8:#x}")
    assert f"VA {entry.ia + 8:#x}" in result.stdout and "memslot" not in result.stdout
    document = json.loads(invoke(*source(name), "walk", "--hyp", f"{entry.ia + 8:#x}", "--json").stdout)
    assert errors(document) == [] and document["vm"] is None and document["backing"] is None
    assert int(document["pa"], 16) == (entry.descriptor.output_address or 0) + 8


@pytest.mark.parametrize("command", [("dump",), ("walk", "0")])
def test_one_sentence_where_there_is_none(command: tuple[str, ...]) -> None:
    vhe = ("--from", str(FOLDER.parent / "6.1-max.s2cap"))
    for arguments, said in (
        ((*vhe, *command, "--hyp"), "there is no hyp stage-1: with VHE the host kernel runs at EL2 itself"),
        ((*vhe, *command, "--host"), "the host has no stage-2 of its own in vhe mode"),
        ((*source(NVHE), *command, "--host"), "the host has no stage-2 of its own in nvhe mode"),
        ((*source(NVHE), *command, "--hyp", "--vm", "vm0"), "leave --vm out"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == ExitCode.USAGE and result.stdout == ""
        assert said in result.stderr and result.stderr.count("\n") == 1


def test_check_says_what_it_found_even_where_no_guests_table_is_judged(tmp_path: object) -> None:
    """From 6.18 on EL2 has the guests' tables: 125 by itself, and 1 when the host's own tables are wrong."""
    result = invoke(*source(PROTECTED), "check")
    assert result.exit_code == ExitCode.UNTESTABLE
    assert "in the hyp stage-1 and the host stage-2 of the host nothing was found" in result.stderr
    capture = recorded(PROTECTED)
    entry = data(capture)
    path = f"{tmp_path}/bad.s2cap"
    save(with_raw(capture, entry, entry.descriptor.raw | 1 << 52), path)
    result = invoke("--from", path, "check")
    assert result.exit_code == ExitCode.FINDINGS
    assert f"error H3 hyp stage-1, VA {entry.ia:#x} (4K), level 3" in result.stdout
    assert errors(json.loads(invoke("--from", path, "check", "--json").stdout)) == []


def test_no_vm_is_untestable_and_a_wrong_table_a_finding(tmp_path: object) -> None:
    capture = replace(recorded(NVHE), vms=())
    path = f"{tmp_path}/none.s2cap"
    save(capture, path)
    assert invoke("--from", path, "check").exit_code == ExitCode.UNTESTABLE
    entry = data(capture)
    save(with_raw(capture, entry, entry.descriptor.raw | 1 << 52), path)
    assert invoke("--from", path, "check").exit_code == ExitCode.FINDINGS
    assert {one.kind for one in capture.own} == {OwnKind.HYP}
