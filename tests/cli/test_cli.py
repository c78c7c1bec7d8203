"""The command line on saved captures: output, exit codes, JSON, and everything a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import inspector.cli as cli
from inspector.capture.file import save
from inspector.report.format import columns, size
from inspector.snapshot import Capture, Mmu, MmuKind, Mode, Scope
from inspector.target.signals import Interrupted
from tests.check.build import BLOCK, PAGE, TRAITS_61, World, good_world
from tests.cli.schema import errors


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSPECTOR_CONNECT", raising=False)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(cli.main_group, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def refused(result: Result, code: int = 2) -> str:
    """The one sentence on stderr; nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("inspector: "), result.stderr
    return lines[0]


def stored(path: Path, world: World | Capture) -> str:
    save(world.capture() if isinstance(world, World) else world, path)
    return str(path)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return stored(tmp_path / "good.s2cap", good_world())


def bad_world() -> World:
    """A leaf outside of every slot, a misaligned block, an empty table, a pointer outside RAM, and a count too low."""
    world = good_world()
    world.guests[0].map(0x4200_0000, 0x8200_0000)
    world.guests[0].place(0x4080_0000, 3)
    table, index = world.guests[0].place(0x4020_0000, 2)
    world.pages[table][index] |= 1 << 12
    table, index = world.guests[2].place(0x4020_0000, 2)
    world.pages[table][index] = 0x0800_0003
    world.freeze_counts()
    world.refcounts[world.guests[1].root + 3 * PAGE] -= 1
    return world


@pytest.fixture
def bad(tmp_path: Path) -> str:
    return stored(tmp_path / "bad.s2cap", bad_world())


READ_ONLY = [
    ("info",),
    ("vms",),
    ("registers",),
    ("memslots",),
    ("dump",),
    ("dump", "--tree"),
    ("dump", "--vm", "vm1", "--filter", "w,!x"),
    ("dump", "--tree", "--range", "0x40000000+2M"),
    ("walk", "0x40001000", "--vm", "vm0"),
    ("walk", "0x7000_0000", "--vm", "0"),
    ("reverse", "0x80001000"),
    ("reverse", "0x48000008"),
    ("check",),
    ("check", "--list"),
    ("check", "--only", "S3,R1", "--skip", "R1"),
]
OFFLINE = [
    ("decode", "0x0040000048123fdb", "--level", "3", "--fwb"),
    ("decode", "0x400", "--level", "2"),
    ("decode", "0x1000000000000000", "--level", "2", "--format", "7.3", "--xnx"),
    ("decode", "0x2", "--level", "-1", "--granule", "4K", "--lpa2"),
    ("decode", "0x0060000040000f13", "--level", "3", "--regime", "linux"),
    ("decode", "--register", "vtcr_el2", "0x802d3558"),
    ("decode", "--register", "VTTBR_EL2", "0x0001000048304001"),
    ("decode", "--register", "esr_el2", "0x93c08006"),
    ("decode", "--register", "tcr_el2", "0x095001f6b54c350c", "--e2h"),
    ("decode", "--register", "vtcr_el2", "0x800080f22"),
]
MACHINE_COMMANDS = ["info", "vms", "registers", "memslots", "dump", "walk 0", "reverse 0", "check", "capture x"]


@pytest.mark.parametrize("arguments", READ_ONLY, ids=" ".join)
@pytest.mark.parametrize("name", ["good", "bad"])
def test_json_parses_and_is_what_is_documented(name: str, arguments: tuple[str, ...], request: Any) -> None:
    path = request.getfixturevalue(name)
    result = invoke("--from", path, *arguments, "--json")
    assert result.exit_code in (0, 1) and result.stderr == ""
    document = json.loads(result.stdout)
    assert errors(document) == []
    assert document["command"] == arguments[0] and document["schema"] == 2


@pytest.mark.parametrize("arguments", OFFLINE, ids=" ".join)
def test_offline_json(arguments: tuple[str, ...]) -> None:
    document = json.loads(invoke(*arguments, "--json").stdout)
    assert errors(document) == []


@pytest.mark.parametrize("json_too", [False, True])
@pytest.mark.parametrize("arguments", READ_ONLY, ids=" ".join)
@pytest.mark.parametrize("build", [good_world, lambda: good_world(TRAITS_61)], ids=["6.12", "6.1"])
def test_from_a_file_and_from_memory_give_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    build: Callable[[], World],
    json_too: bool,
) -> None:
    capture = build().capture()
    more = ["--json"] if json_too else []
    from_file = invoke("--from", stored(tmp_path / "x", capture), *arguments, *more)
    monkeypatch.setattr(cli, "get_capture", lambda options, scope, again=None: capture)
    in_memory = invoke(*arguments, *more)
    assert from_file.stdout == in_memory.stdout != ""
    assert from_file.exit_code == in_memory.exit_code


@pytest.mark.parametrize("arguments", [*READ_ONLY, *OFFLINE], ids=" ".join)
def test_text_is_neither_coloured_nor_cut_when_piped(good: str, arguments: tuple[str, ...]) -> None:
    result = invoke(*(("--from", good) if arguments[0] != "decode" else ()), *arguments)
    assert result.exit_code == 0 and result.stderr == ""
    assert "\x1b" not in result.stdout and "…" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", ["info", "check"])
def test_options_may_stand_on_either_side(good: str, command: str) -> None:
    before = invoke("--from", good, "--json", command)
    after = invoke(command, "--json", "--from", good)
    mixed = invoke("--json", command, "--from", good)
    assert before.stdout == after.stdout == mixed.stdout
    json.loads(before.stdout)


def test_the_later_option_wins(good: str, bad: str) -> None:
    assert invoke("--from", bad, "check", "--from", good).exit_code == 0
    assert invoke("--from", good, "check", "--from", bad).exit_code == 1


# --- what commands say ---


def test_dump_lists_every_mapping_of_every_guest(good: str) -> None:
    document = json.loads(invoke("--from", good, "dump", "--json").stdout)
    found = {
        (table["vm"], int(one["ipa"], 16), one["size"], int(one["pa"], 16))
        for table in document["tables"]
        for one in table["ranges"]
    }
    assert found == {
        ("vm0", 0x0804_0000, PAGE, 0x0804_0000),
        ("vm0", 0x4000_0000, 3 * PAGE, 0x8000_0000),
        ("vm0", 0x4000_3000, PAGE, 0x8000_3000),
        ("vm0", 0x4000_5000, PAGE, 0x8000_5000),
        ("vm0", 0x4012_C000, PAGE, 0x8012_C000),
        ("vm0", 0x4020_0000, BLOCK, 0x8020_0000),
        ("vm0", 0x4040_0000, BLOCK, 0x8040_0000),
        ("vm0", 0x8000_0000, 1 << 30, 0xC000_0000),
        ("vm1", 0xC000_0000, BLOCK, 0x9000_0000),
        ("vm1", 0xC020_7000, PAGE, 0x9020_7000),
        ("vm2", 0x4000_1000, PAGE, 0xA000_1000),
    }


@pytest.mark.parametrize(
    ("options", "ipas"),
    [
        (["--range", "0x40001000-0x40003000"], {0x4000_1000}),
        (["--range", "0x40001800+1"], {0x4000_1000}),
        (["--range", "0x80000000+4K"], {0x8000_0000}),
        (["--pa", "0x80002000-0x80003001"], {0x4000_2000, 0x4000_3000}),
        (["--pa", "0x80002000-0x80003000"], {0x4000_2000}),
        (["--filter", "device"], {0x0804_0000}),
        (["--filter", "x"], {0x4000_3000, 0x4020_0000}),
        (["--filter", "ro"], {0x4000_3000}),
        (["--filter", "level=1"], {0x8000_0000}),
        (["--filter", "size=2M,!x"], {0x4040_0000}),
        (["--filter", "block", "--range", "0x40000000-0x40400000"], {0x4020_0000}),
        (["--filter", "nc"], set()),
        (["--range", "0x50000000+2M"], set()),
    ],
)
@pytest.mark.parametrize("tree", [False, True])
def test_windows_and_filters(good: str, options: list[str], ipas: set[int], tree: bool) -> None:
    more = ["--tree"] if tree else []
    document = json.loads(invoke("--from", good, "dump", "--vm", "vm0", *options, *more, "--json").stdout)
    table = document["tables"][0]
    if tree:
        leaves = {int(one["ipa"], 16) for one in table["entries"] if "leaf" in one}
        assert leaves >= ipas and (leaves == ipas or "--range" in options)
    else:
        assert {int(one["ipa"], 16) for one in table["ranges"]} == ipas


def test_a_window_shows_whole_leaves_at_their_own_addresses(good: str) -> None:
    result = invoke("--from", good, "dump", "--vm", "0", "--range", "0x40001800+4K", "--json")
    (one,) = json.loads(result.stdout)["tables"][0]["ranges"]
    assert (one["ipa"], one["pa"], one["size"], one["leaves"]) == ("0x40001000", "0x80001000", 2 * PAGE, 2)


def test_the_tree_is_shown_in_walk_order_with_counts(good: str) -> None:
    lines = invoke("--from", good, "dump", "--tree", "--vm", "vm1").stdout.splitlines()
    assert lines[0].startswith("stage-2 VMID 2 of vm1 (pid 101 vmm): root 0x48008000")
    body = [re.sub(r" +", " ", line.strip()) for line in lines[1:]]
    assert body == [
        "level 2 table at 0x48008000, page_count 1",
        "level 2 table at 0x48009000, page_count 1",
        "level 2 table at 0x4800a000, page_count 1",
        "level 2 table at 0x4800b000, page_count 3",
        "L2 0x4800b000[0] 0x00000000900007d9 IPA 0xc0000000: block PA 0x90000000 RWX normal inner AF",
        "L2 0x4800b000[1] 0x000000004800c003 IPA 0xc0200000: table at PA 0x4800c000",
        "level 3 table at 0x4800c000, page_count 2",
        "L3 0x4800c000[7] 0x00400000902077db IPA 0xc0207000: page PA 0x90207000 RW- normal inner AF",
    ]


def test_a_walk_names_every_entry_on_the_way(good: str) -> None:
    document = json.loads(invoke("--from", good, "walk", "0xc0207123", "--vm", "vm1", "--json").stdout)
    assert document["pa"] == "0x90207123"
    assert [(s["level"], s["root_page"], s["table_pa"], s["index"], s["entry_pa"]) for s in document["steps"]] == [
        (2, 3, "0x4800b000", 1, "0x4800b008"),
        (3, None, "0x4800c000", 7, "0x4800c038"),
    ]
    assert document["backing"] == {"slot": 0, "hva": "0x100ff80207123", "pa": "0x90207123", "state": "present"}
    text = invoke("--from", good, "walk", "0xc0207123", "--vm", "vm1").stdout
    for part in ("stage-2 VMID 2 of vm1", "root page 3 of 4", "0x00400000902077db", "xn=1", "the same page"):
        assert part in text


def test_a_walk_that_ends_early(good: str) -> None:
    document = json.loads(invoke("--from", good, "walk", "0x40200000", "--vm", "vm2", "--json").stdout)
    assert document["pa"] is None and "not mapped" in document["verdict"]
    beyond = invoke("--from", good, "walk", "0x20000000000", "--vm", "vm0")
    assert beyond.exit_code == 0 and "outside the 40-bit" in beyond.stdout


def test_a_walk_says_when_the_vmm_has_another_page(tmp_path: Path) -> None:
    world = good_world()
    table, index = world.guests[2].place(0x4000_1000, 3)
    world.pages[table][index] += PAGE
    text = invoke("--from", stored(tmp_path / "x", world), "walk", "0x40001000", "--vm", "vm2").stdout
    assert "NOT the page that the guest has" in text


def test_one_vm_needs_no_name(tmp_path: Path) -> None:
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, BLOCK, 0x8000_0000)
    guest.map(0x4000_0000, 0x8000_0000)
    result = invoke("--from", stored(tmp_path / "x", world), "walk", "0x40000abc")
    assert result.exit_code == 0 and "0x80000abc" in result.stdout


@pytest.mark.parametrize("name", ["vm1", "1", "101"])
def test_a_vm_by_name_number_or_pid(good: str, name: str) -> None:
    assert "VMID 2" in invoke("--from", good, "dump", "--vm", name).stdout


def test_reverse_finds_mappings_and_tables(good: str) -> None:
    document = json.loads(invoke("--from", good, "reverse", "0x80201234", "--json").stdout)
    assert [(m["vm"], m["at"], m["entry"]["level"]) for m in document["mappings"]] == [("vm0", "0x40201234", 2)]
    assert "in a table of stage-2 VMID 1" in invoke("--from", good, "reverse", "0x48000008").stdout
    assert "no guest maps PA 0x50000000" in invoke("--from", good, "reverse", "0x50000000").stdout


def test_vms_shows_both_registers_decoded(good: str) -> None:
    text = invoke("--from", good, "vms").stdout
    assert "VTTBR_EL2 0x0001000048000000  VMID=1 BADDR=0x48000000" in text
    assert "VTCR_EL2  0x00000000802d3558  T0SZ=0x18 SL0=1" in text
    assert "in force on CPU 0: VTTBR_EL2 0x0001000048000001  CnP=1 BADDR=0x48000000 VMID=1" in text


def test_check_reports_places_and_exits_1(bad: str) -> None:
    result = invoke("--from", bad, "check", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [f["check"] for f in document["findings"]] == ["R1", "S3", "S4", "S7", "S9"]
    assert (document["errors"], document["notes"]) == (4, 1)
    by_id = {f["check"]: f["where"] for f in document["findings"]}
    assert by_id["S7"]["ipa"] == "0x42000000" and by_id["S7"]["vm"] == "vm0"
    assert by_id["S3"]["raw"] == "0x0000000008000003" and by_id["S3"]["regime"] == "stage-2 VMID 3"
    text = invoke("--from", bad, "check").stdout
    assert "error S7 vm0, stage-2 VMID 1, IPA 0x42000000 (4K), level 3, table" in text
    assert "4 errors, 1 note in 3 VMs" in text


def test_a_broken_table_is_still_dumped(bad: str) -> None:
    result = invoke("--from", bad, "dump")
    assert result.exit_code == 0
    assert "misaligned" in result.stdout and "unreadable" in result.stdout and "0x40001000" not in result.stderr
    assert "0xa0001000" in result.stdout


def test_notes_alone_are_clean(tmp_path: Path) -> None:
    world = good_world()
    world.guests[0].place(0x4080_0000, 3)
    assert invoke("--from", stored(tmp_path / "x", world), "check").exit_code == 0


def test_a_table_that_cannot_be_shown_is_said(tmp_path: Path) -> None:
    world = good_world()
    why = "the hypervisor owns this table (kvm-arm.mode=protected)"
    world.guests[1].mmu_changes.update(unreadable=why, pgd_phys=0, pgd_pa=None, geometry=None)
    path = stored(tmp_path / "x", world)
    assert f"cannot be shown: {why}" in invoke("--from", path, "vms").stdout
    assert why in refused(invoke("--from", path, "dump", "--vm", "vm1"))
    assert why in refused(invoke("--from", path, "walk", "0", "--vm", "vm1"))
    assert "VMID 3" in invoke("--from", path, "dump").stdout


def test_shadow_tables_are_shown_beside_the_vms_own(tmp_path: Path) -> None:
    world = good_world()
    own = world.guests[0].mmu()
    root = world.new_table(2)
    shadow = Mmu(**{**own.__dict__, "address": own.address + 64, "kind": MmuKind.SHADOW, "vmid": 9, "vmid_raw": 9})
    shadow = replace(shadow, pgd_phys=root, pgd_pa=root, nested_vttbr=0x1234_0000, nested_vtcr=5, nested_valid=True)
    world.guests[0].more_mmus.append(shadow)
    path = stored(tmp_path / "x", world)
    assert "shadow stage-2 VMID 9" in invoke("--from", path, "dump", "--vm", "vm0").stdout
    assert "for L1's VTTBR_EL2 0x0000000012340000" in invoke("--from", path, "vms").stdout
    assert "stage-2 VMID 1 of vm0" in invoke("--from", path, "walk", "0x40000000", "--vm", "vm0").stdout


# --- decode: hand-made values (kernel.md 1.6, 1.7, 2.1) ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["0x00400000481237db", "--level", "3", "--fwb"], "page PA 0x48123000 RW- normal inner AF"),
        (["0x00400000481237ff", "--level", "3"], "page PA 0x48123000 RW- normal inner AF"),
        (["0x48001003", "--level", "2"], "table at PA 0x48001000"),
        (["0x48200759", "--level", "2", "--fwb"], "block PA 0x48200000 R-X normal inner AF"),
        (["0x400", "--level", "3", "--format", "6.12"], "locked"),
        (["0x4", "--level", "3", "--format", "6.1"], "annotated (owner annotation: hyp)"),
        (["0x2000008000010004", "--level", "3", "--format", "7.3"], "annotated (donation: guest)"),
        (["0x48123fd8", "--level", "3", "--format", "5.10"], "stale bits"),
        (["1", "--level", "3"], "reserved encoding at level 3"),
        (["--register", "vtcr_el2", "0x802d3558"], "48 bits"),
        (["--register", "vttbr_el2", "0x0001000048304001"], "0x48304000"),
    ],
)
def test_decode(arguments: list[str], said: str) -> None:
    result = invoke("decode", *arguments)
    assert result.exit_code == 0 and said in result.stdout


# --- bad input ---


@pytest.mark.parametrize("command", MACHINE_COMMANDS)
def test_nothing_to_look_at(command: str) -> None:
    assert "--connect" in refused(invoke(*command.split()))


@pytest.mark.parametrize("command", MACHINE_COMMANDS)
def test_a_missing_file(tmp_path: Path, command: str) -> None:
    missing = str(tmp_path / "missing")
    assert missing in refused(invoke("--from", missing, *command.split()))


def test_both_sources(good: str) -> None:
    assert "exclude each other" in refused(invoke("--from", good, "info", "--connect", "localhost:1"))


def test_the_environment_gives_way_to_a_file(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECTOR_CONNECT", "localhost:1")
    assert invoke("--from", good, "info").exit_code == 0


def test_a_corrupted_capture(good: str) -> None:
    whole = Path(good).read_bytes()
    Path(good).write_bytes(whole[: len(whole) // 2])
    assert "not a whole capture" in refused(invoke("--from", good, "check"))


def test_a_newer_schema(good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspector.capture.file.SCHEMA", 9)
    path = stored(tmp_path / "new", good_world())
    monkeypatch.undo()
    monkeypatch.delenv("INSPECTOR_CONNECT", raising=False)
    message = refused(invoke("--from", path, "info"))
    assert "schema 9" in message and "schema 1" in message


@pytest.mark.parametrize("scope", [Scope.VMS, Scope.WALK])
def test_a_capture_that_holds_too_little(tmp_path: Path, scope: Scope) -> None:
    path = stored(tmp_path / "x", good_world().capture(scope=scope))
    assert scope in refused(invoke("--from", path, "check"))
    assert invoke("--from", path, "vms").exit_code == 0
    assert invoke("--from", path, "dump").exit_code == (0 if scope is Scope.WALK else 2)


def test_an_ambiguous_vm(good: str) -> None:
    message = refused(invoke("--from", good, "walk", "0x40000000"))
    for name in ("vm0 (pid 100 vmm)", "vm1", "vm2", "--vm"):
        assert name in message


@pytest.mark.parametrize("name", ["vm9", "", "vm", "qemu"])
def test_a_vm_that_is_not_there(good: str, name: str) -> None:
    message = refused(invoke("--from", good, "dump", "--vm", name))
    assert "vm0 (pid 100 vmm)" in message


def test_no_vms(tmp_path: Path) -> None:
    path = stored(tmp_path / "x", World())
    assert invoke("--from", path, "vms").stdout == "no VMs\n"
    assert "no VMs" in refused(invoke("--from", path, "dump"))
    assert "no VMs" in refused(invoke("--from", path, "walk", "0"))
    assert "no VMs" in refused(invoke("--from", path, "check"), 125)


WHY = "protected mode: the hypervisor owns this table"


def unread(tmp_path: Path, *numbers: int) -> str:
    """The good world, with the tables of VMs ``numbers`` out of reach."""
    world = good_world()
    for number in numbers:
        world.guests[number].mmu_changes.update(unreadable=WHY, pgd_phys=0, pgd_pa=None, geometry=None)
    if 0 in numbers:
        world.cpus.pop(0)
    return stored(tmp_path / "unread.s2cap", world)


@pytest.mark.parametrize("command", ["check", "diff"])
def test_nothing_judged_is_not_clean(tmp_path: Path, command: str) -> None:
    said = refused(invoke("--from", unread(tmp_path, 0, 1, 2), command), 125)
    assert "3 guest tables" in said and WHY in said
    result = invoke("--from", unread(tmp_path, 0, 2), command)
    lines = [line for line in result.stdout.splitlines() if WHY in line and "not " in line]
    assert result.exit_code == 0 and len(lines) == 2 and "vm0" in lines[0] and "vm2" in lines[1]


def test_the_stage_2_of_a_protected_host_is_not_stale(tmp_path: Path) -> None:
    """VTTBR_EL2 with VMID 0 while the host runs (docs/reach.md, pKVM)."""
    world = good_world()
    world.host_changes["mode"] = Mode.PROTECTED
    world.cpu("host", "cpu_do_idle", vttbr=0x7777_0000)
    path = stored(tmp_path / "pkvm.s2cap", world)
    _, stale, own = [line for line in invoke("--from", path, "registers").stdout.splitlines() if line.startswith("CPU")]
    assert "stale" in stale and "stale" not in own and "the host itself" in own
    cpus = json.loads(invoke("--from", path, "registers", "--json").stdout)["cpus"]
    assert [(cpu["vttbr_live"], cpu["hosts_own_stage2"]) for cpu in cpus] == [
        (True, False),
        (False, False),
        (True, True),
    ]


def test_an_error_beside_nothing_judged_is_an_error(tmp_path: Path) -> None:
    world = good_world()
    world.cpus.clear()
    for guest in world.guests:
        guest.mmu_changes.update(unreadable=WHY, pgd_phys=0, pgd_pa=None, geometry=None)
    world.guests[0].mmu_changes["damaged"] = True
    assert invoke("--from", stored(tmp_path / "x", world), "check").exit_code == 1


def test_the_exit_code_for_nothing_judged_is_in_the_help() -> None:
    for command in ([], ["check"], ["diff"]):
        assert "125" in invoke(*command, "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["walk", "zebra", "--vm", "vm0"],
        ["walk", "0x", "--vm", "vm0"],
        ["walk", "--vm", "vm0", "--", "-1"],
        ["walk", "0x10000000000000000", "--vm", "vm0"],
        ["walk", "1e5", "--vm", "vm0"],
        ["reverse", ""],
        ["dump", "--range", "0x1000"],
        ["dump", "--range", "0x2000-0x1000"],
        ["dump", "--range", "0x1000+0"],
        ["dump", "--pa", "a-b"],
        ["dump", "--filter", "purple"],
        ["dump", "--filter", ""],
        ["dump", "--filter", "level=x"],
        ["dump", "--filter", "size="],
        ["decode", "0x1"],
        ["decode", "0x1ffffffffffffffff", "--level", "3"],
        ["decode", "0x1", "--level", "4"],
        ["decode", "0x1", "--level", "3", "--granule", "8k"],
        ["decode", "0x1", "--level", "3", "--format", "4.19"],
        ["decode", "0x1", "--register", "vtcr_el9"],
        ["check", "--only", "S99"],
        ["check", "--skip", "nonsense"],
        ["frobnicate"],
        ["info", "--colour"],
        ["info", "surplus"],
        ["walk"],
        ["--memory", "magic", "info"],
        ["capture"],
        [],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_bad_arguments(good: str, arguments: list[str]) -> None:
    refused(invoke("--from", good, *arguments))


def test_a_place_where_nothing_can_be_written(good: str, tmp_path: Path) -> None:
    assert "no such directory" in refused(invoke("--from", good, "capture", str(tmp_path / "no" / "x")))
    assert "not a regular file" in refused(invoke("--from", good, "capture", str(tmp_path)))


def test_a_capture_of_a_capture_is_the_same_file(good: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.s2cap"
    result = invoke("--from", good, "capture", str(copy), "--json")
    document = json.loads(result.stdout)
    assert errors(document) == []
    assert copy.read_bytes() == Path(good).read_bytes()
    assert document["size"] == copy.stat().st_size


def test_a_bug_is_one_sentence_too(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("not\nplanned")

    monkeypatch.setattr(cli, "run_checks", broken)
    message = refused(invoke("--from", good, "check"))
    assert "internal error" in message and "ZeroDivisionError" in message and "--debug" in message


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), Interrupted(signal.SIGTERM)])
def test_interruptions_are_exit_3(good: str, monkeypatch: pytest.MonkeyPatch, reason: BaseException) -> None:
    def interrupted(*_: object) -> None:
        raise reason

    monkeypatch.setattr(cli, "run_checks", interrupted)
    result = invoke("--from", good, "check")
    assert result.exit_code == 3 and "interrupted" in result.stderr and result.stdout == ""


def test_nothing_listens() -> None:
    if shutil.which("gdb-multiarch") is None and shutil.which("gdb") is None:
        assert "gdb" in refused(invoke("--connect", "127.0.0.1:1", "info"))
    else:
        refused(invoke("--connect", "127.0.0.1:1", "--image", os.devnull, "info"), 2)


# --- as a process ---


def process(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "INSPECTOR_CONNECT"}
    return subprocess.Popen(
        [sys.executable, "-m", "inspector", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **settings,
    )


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    world = World()
    guest = world.guest(vmid=1)
    guest.slot(0x4000_0000, 64 * BLOCK, 0x8000_0000)
    for number in range(0, 4000, 2):
        guest.map(0x4000_0000 + number * PAGE, 0x8000_0000 + number * PAGE)
    path = stored(tmp_path / "x", world)
    child = process("--from", path, "dump", "--tree", "--json")
    assert child.stdout is not None and child.stderr is not None
    assert len(child.stdout.read(10)) == 10
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(60) == 0
    child.stderr.close()


def test_a_file_needs_neither_gdb_nor_symbol_libraries(good: str) -> None:
    """Loading a capture imports no gdb, MI or ELF code: a report can be read anywhere."""
    code = (
        "import sys, inspector.cli as c; c.run(['--from', sys.argv[1], 'check']);"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('pygdbmi', 'elftools', 'drgn', 'gdb')))"
    )
    result = subprocess.run([sys.executable, "-c", code, good], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("sent", [signal.SIGINT])
def test_signals_in_a_process(good: str, sent: signal.Signals) -> None:
    code = (
        "import sys, time, inspector.cli as c\n"
        "c.run_checks = lambda *_: (print('ready', file=sys.stderr, flush=True), time.sleep(100))\n"
        "sys.exit(c.run(['--from', sys.argv[1], 'check']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, good], stdout=-1, stderr=-1, text=True)
    assert child.stderr is not None and child.stderr.readline() == "ready\n"
    child.send_signal(sent)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 3 and out == "" and "interrupted" in err and "Traceback" not in err


# --- formatting ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (4096, "4K"),
        (0x3000, "12K"),
        (BLOCK, "2M"),
        (1 << 30, "1G"),
        (3 << 29, "1536M"),
        (513, "513B"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_columns_are_as_wide_as_their_cells() -> None:
    wide = "x" * 500
    lines = columns(("a", "b"), [("1", wide), ("22", "")], right=(0,))
    assert lines == [" a  b", " 1  " + wide, "22"]


@pytest.mark.parametrize("command", list(cli.main_group.commands))
def test_help_has_an_example(command: str) -> None:
    text = " ".join(invoke(command, "--help").stdout.split())
    assert re.search(rf"Examples?: inspector .*{command}", text) and "--json" in text
