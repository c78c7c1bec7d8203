"""`inspector diff`, `inspector model`, and what tells them which kernel it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import inspector.cli as cli
from inspector.capture.file import load, save
from inspector.findings import BadInput
from inspector.options import Options
from inspector.report.window import EVERYTHING, Interval, Window, parse_filter
from inspector.snapshot import Capture, Scope
from inspector.tables import RangeTable, merged_ranges
from tests.check.build import AF, PAGE, RW, WRITE, good_world
from tests.cli.schema import errors
from tests.cli.test_cli import invoke, refused, stored

ROOT = Path(__file__).resolve().parents[2]
WALKTHROUGH = ROOT / "fixtures" / "scripts" / "review_walkthrough.txt"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INSPECTOR_CONNECT", "INSPECTOR_IMAGE", "INSPECTOR_VMLINUX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def good(tmp_path: Path) -> str:
    return stored(tmp_path / "good.s2cap", good_world())


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A stray bit in one leaf, an empty table, and a count too low."""
    world = good_world()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] |= 1 << 11
    world.guests[0].place(0x4060_0000, 3)
    world.freeze_counts()
    world.refcounts[world.guests[1].root + 3 * PAGE] -= 1
    return stored(tmp_path / "bad.s2cap", world)


def document(*arguments: str, code: int) -> dict[str, object]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == code and result.stderr == ""
    found: dict[str, object] = json.loads(result.stdout)
    assert errors(found) == []
    return found


def test_identical(good: str) -> None:
    result = invoke("--from", good, "diff")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.rpartition(", ")[2] for line in lines[:3]] == ["identical"] * 3
    assert "model of 6.12 (recognised by: " in lines[3] and "cross-checked against the kernel's own code" in lines[3]
    assert lines[5] == "0 errors, 0 notes in 3 trees"
    assert document("--from", good, "diff", code=0)["errors"] == 0


def test_differences_show_both_sides(bad: str) -> None:
    result = invoke("--from", bad, "diff")
    assert result.exit_code == 1
    text = result.stdout
    assert "    - 0x0040000080001fdb page PA 0x80001000" in text
    assert "    + 0x00400000800017db page PA 0x80001000" in text
    assert "[stage2_set_prot_attr]" in text and "IPA 0x40001000-0x40002000 (1 x 4K)" in text
    assert "  note S9 level 3 table" in text and "a table without entries" in text
    assert "    - page_count 2\n    + page_count 3\n" in text
    assert text.splitlines()[-1] == "2 errors, 1 note in 3 trees"
    found = document("--from", bad, "diff", code=1)
    assert (found["errors"], found["notes"]) == (2, 1)


def test_one_vm(bad: str) -> None:
    assert invoke("--from", bad, "diff", "--vm", "vm2").exit_code == 0
    assert invoke("--from", bad, "diff", "--vm", "vm1").exit_code == 1
    assert "there is no VM" in refused(invoke("--from", bad, "diff", "--vm", "vm7"))


def test_notes_alone_are_no_findings(tmp_path: Path) -> None:
    world = good_world()
    world.guests[0].place(0x4060_0000, 3)
    assert invoke("--from", stored(tmp_path / "n", world), "diff").exit_code == 0


def test_another_generation(good: str, tmp_path: Path) -> None:
    assert "7.3 (as asked for)" in invoke("--from", good, "diff", "--generation", "7.3").stdout
    assert "not cross-checked" in invoke("--from", good, "diff", "--generation", "6.6").stdout
    assert "6.13" in refused(invoke("--from", good, "diff", "--generation", "6.13"))
    recorded = str(ROOT / "fixtures" / "captures" / "6.12-max.s2cap")
    assert "LPA2" in refused(invoke("--from", recorded, "diff", "--generation", "6.1"))


def test_info_says_which_model(good: str, tmp_path: Path) -> None:
    assert "behaviours   6.12 (recognised by: " in invoke("--from", good, "info").stdout
    world = good_world({})
    assumed = stored(tmp_path / "assumed", world)
    assert "6.12 (assumed: its release is 6.12" in invoke("--from", assumed, "info").stdout
    host = document("--from", assumed, "info", code=0)["host"]
    assert isinstance(host, dict) and host["behaviours"]["assumed"] is True


def test_nothing_to_compare(tmp_path: Path) -> None:
    empty = stored(tmp_path / "e", replace(good_world().capture(), vms=()))
    assert "no VMs" in refused(invoke("--from", empty, "diff"), 125)


# --- two captures ---


def test_two_captures(good: str, tmp_path: Path) -> None:
    world = good_world()
    world.guests[0].map(0x4000_A000, 0x8000_A000)
    table, index = world.guests[0].place(0x4000_0000, 3)
    world.pages[table][index] &= ~WRITE
    later = stored(tmp_path / "later", world)
    result = invoke("diff", good, later)
    assert result.exit_code == 1
    text = result.stdout
    assert "vm0 (pid 100 vmm)" in text and "1 added, 1 changed" in text
    assert "    + IPA 0x4000a000-0x4000b000 -> PA 0x8000a000 (1 x 4K) RW-" in text
    assert "    - IPA 0x40000000-0x40001000 -> PA 0x80000000 (1 x 4K) RW-" in text
    assert "    + IPA 0x40000000-0x40001000 -> PA 0x80000000 (1 x 4K) R--" in text
    assert text.splitlines()[-1] == "VMs: 1 changed, 0 new, 0 gone, 2 unchanged"
    assert document("diff", good, later, code=1)["same"] is False
    assert invoke("diff", good, good).exit_code == 0
    assert document("diff", good, good, code=0)["same"] is True


def test_misuse(good: str, tmp_path: Path) -> None:
    assert "two captures" in refused(invoke("diff", good))
    assert "two captures" in refused(invoke("diff", good, good, good))
    assert "--from" in refused(invoke("--from", good, "diff", good, good))
    assert "--vm" in refused(invoke("diff", good, good, "--vm", "vm0"))
    assert "missing" in refused(invoke("diff", good, str(tmp_path / "missing")))
    walked = tmp_path / "vms.s2cap"
    save(replace(load(good), scope=Scope.VMS), walked)
    assert "needs 'walk'" in refused(invoke("diff", good, str(walked)))
    assert "nothing to look at" in refused(invoke("diff"))


# --- the model ---


def test_the_walkthrough() -> None:
    result = invoke("model", str(WALKTHROUGH))
    assert result.exit_code == 0
    assert "# Point: PRE, LEAF, POST and the anchor." in result.stdout
    assert "tlbi" in result.stdout and "get page=" in result.stdout
    found = document("model", str(WALKTHROUGH), code=0)
    steps = found["steps"]
    assert isinstance(steps, list) and {step["generation"] for step in steps} >= {"6.1", "6.12"}


SCRIPT = "init\nmap 0x80000000 4K pa=0x48000000 prot=RW\n"


def test_a_script_without_a_machine_runs_on_the_generation_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text(SCRIPT)
    for label in ("6.1", "7.3"):
        steps = document("model", str(path), "--generation", label, code=0)["steps"]
        assert isinstance(steps, list)
        assert [(s["line"], s["generation"]) for s in steps] == [(1, label), (2, label)]
        assert steps[-1]["returns"] == "0" and any("0x00400000480007ff" in row for row in steps[-1]["table"])


def test_the_generation_replaces_that_of_machine_lines(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("# why\nmachine generation=6.1 fwb=1 # because\n" + SCRIPT)
    steps = document("model", str(path), "--generation", "7.3", code=0)["steps"]
    assert isinstance(steps, list) and [(s["line"], s["generation"]) for s in steps] == [(n, "7.3") for n in (2, 3, 4)]
    assert any("0x00400000480007db" in row for row in steps[-1]["table"])  # kernel.md 1.7: FWB


@pytest.mark.parametrize("extra", [(), ("--generation", "6.12")])
def test_bad_scripts(tmp_path: Path, extra: tuple[str, ...]) -> None:
    path = tmp_path / "script.txt"
    path.write_text("init\nmapp 0x1000 4K\n")
    assert "line 2" in refused(invoke("model", str(path), *extra))
    assert "cannot read the script" in refused(invoke("model", str(tmp_path / "none"), *extra))
    path.write_bytes(b"\xff\xfe\x00")
    assert "not text" in refused(invoke("model", str(path), *extra))


# --- the kernel's files from the environment ---


def test_the_environment_names_the_kernels_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts only where the command line names neither, and on whichever side of the command that does."""

    def files(*arguments: str) -> tuple[str | None, str | None]:
        seen: list[Options] = []

        def spy(options: Options, scope: Scope) -> Capture:
            seen.append(options)
            raise BadInput("seen")

        with monkeypatch.context() as patched:
            patched.setattr(cli, "get_capture", spy)
            assert "seen" in refused(invoke(*arguments))
        vmlinux, image = (None if path is None else str(path) for path in seen[0].kernel_files)
        return vmlinux, image

    assert files("info") == (None, None)
    monkeypatch.setenv("INSPECTOR_IMAGE", "/env/Image")
    assert files("info") == (None, "/env/Image")
    monkeypatch.setenv("INSPECTOR_VMLINUX", "/env/vmlinux")
    assert files("info") == ("/env/vmlinux", "/env/Image")
    for before, after in (([], ["--image", "Image"]), (["--image", "Image"], [])):
        assert files(*before, "info", *after) == (None, "Image")
    assert files("--vmlinux", "vmlinux", "info") == ("vmlinux", None)


# --- a dump in columns ---


def test_windows_cut_ranges_as_they_cut_leaves() -> None:
    """Against the leaves one by one."""
    world = good_world()
    for number in range(20, 60):
        attributes = RW & ~WRITE if number % 7 == 0 else RW & ~AF if number % 11 == 0 else RW
        world.guests[0].map(0x4000_0000 + number * PAGE, 0x8000_0000 + (number + number // 13) * PAGE, attributes)
    from inspector.capture.view import table_views

    ranges = merged_ranges(next(iter(table_views(world.capture()))).tree)
    assert isinstance(ranges, RangeTable)
    intervals = [EVERYTHING, Interval(0x4000_0000, 0x4001_E800), Interval(0x4001_6001, 0x8000_0001)]
    physical = [EVERYTHING, Interval(0x8001_7000, 0x8003_0123), Interval(0x8002_0FFF, 0x1_0000_0000)]
    for ipa in intervals:
        for pa in physical:
            for rule in (None, "w", "!w,page", "block", "level=1", "!af"):
                window = Window(ipa, pa, parse_filter(rule) if rule else None)
                expected = []
                for found in ranges:
                    size = found.size // found.leaves
                    for n in range(found.leaves):
                        meets = ipa.meets(found.ia + n * size, size) and pa.meets(found.pa + n * size, size)
                        if meets and (window.rule is None or window.rule(found.attrs)):
                            expected.append((found.ia + n * size, found.pa + n * size, found.attrs.raw + n * size))
                shown = window.of(ranges)
                leaves = []
                for found in shown:
                    size = found.size // found.leaves
                    leaves += [
                        (found.ia + n * size, found.pa + n * size, found.attrs.raw + n * size)
                        for n in range(found.leaves)
                    ]
                assert leaves == expected
