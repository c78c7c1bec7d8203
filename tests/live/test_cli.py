"""The command line beside a real machine: every command, its exit code, and the same from a capture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import truth
from tests.conftest import kernel_labels
from tests.live.machine import Machine
from tests.report.browser import browser
from tests.report.test_html import RANGES

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def told(default_machine: Machine) -> truth.Truth:
    return truth.parse(default_machine.console_text.splitlines())


@pytest.fixture(scope="module")
def captured(default_machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capture") / "default.s2cap"
    result = default_machine.run("inspector", "capture", str(path))
    assert result.returncode == 0, result.stderr
    return path


def inspector(machine: Machine, *arguments: str) -> subprocess.CompletedProcess[str]:
    return machine.run("inspector", *arguments)


def one_sentence(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error, which must be one line and no traceback."""
    assert result.returncode == code, (result.returncode, result.stdout[-2000:], result.stderr[-2000:])
    lines = [line for line in result.stderr.splitlines() if line.startswith("inspector: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


COMMANDS = (
    ("info",),
    ("vms",),
    ("registers",),
    ("memslots",),
    ("dump",),
    ("dump", "--tree"),
    ("dump", "--vm", "vm0", "--range", "0x40000000-0x50000000"),
    ("walk", "0x40800000", "--vm", "vm0"),
    ("check",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command(default_machine: Machine, command: tuple[str, ...]) -> None:
    result = inspector(default_machine, *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert "\x1b" not in result.stdout, "colour where there is no terminal"
    parsed = json.loads(inspector(default_machine, *command, "--json").stdout)
    assert parsed["schema"] == 2
    assert parsed["command"] == command[0]


def test_the_picture_is_of_the_same_instant(default_machine: Machine, tmp_path: Path) -> None:
    page = tmp_path / "tables.html"
    result = inspector(default_machine, "dump", "--html", str(page), "--json")
    assert result.returncode == 0, result.stderr
    tables = json.loads(result.stdout)["tables"]
    with browser() as chromium:
        chromium.open(page)
        assert chromium.js(RANGES) == [table["ranges"] for table in tables]
        assert chromium.complaints == [] and chromium.js("$('viewer').hidden") is False


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] not in ("info", "registers")], ids=" ".join)
def test_the_same_from_a_capture(default_machine: Machine, captured: Path, command: tuple[str, ...]) -> None:
    """The guests are idle, so that two instants are alike; info and registers hold what changes with time."""
    live = inspector(default_machine, *command)
    saved = subprocess.run(
        ["inspector", "--from", str(captured), *command],
        env={k: v for k, v in default_machine.environment.items() if k != "INSPECTOR_CONNECT"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (saved.returncode, saved.stdout) == (live.returncode, live.stdout)


def test_walk_and_reverse_find_what_pagemap_says(default_machine: Machine, told: truth.Truth) -> None:
    number, vm = min(told.vms.items())
    names = {
        (v["pid"], v["fd"]): v["name"] for v in json.loads(inspector(default_machine, "vms", "--json").stdout)["vms"]
    }
    name = names[vm.pid, vm.fd]
    pages = truth.expected_leaves(told)[number].pages
    for ipa in sorted(pages)[::7]:
        pa = pages[ipa] * told.page_size
        walked = json.loads(inspector(default_machine, "walk", hex(ipa + 0x123), "--vm", name, "--json").stdout)
        assert int(walked["pa"], 16) == pa + 0x123
        found = inspector(default_machine, "reverse", hex(pa))
        assert found.returncode == 0
        assert hex(ipa) in found.stdout


def test_walk_needs_a_vm_where_there_are_several(default_machine: Machine) -> None:
    said = one_sentence(inspector(default_machine, "walk", "0x40000000"), 2)
    assert "vm0" in said
    assert "vm1" in said


def test_capture_says_how_long_the_machine_stood(default_machine: Machine, tmp_path: Path) -> None:
    result = inspector(default_machine, "capture", str(tmp_path / "x.s2cap"))
    assert result.returncode == 0
    assert "ms" in result.stdout + result.stderr


def test_another_kernels_image_is_refused_with_both_build_ids(default_machine: Machine, told: truth.Truth) -> None:
    running = json.loads(inspector(default_machine, "info", "--json").stdout)["host"]["build_id"]
    assert told.boot is not None
    others = [label for label in kernel_labels() if not str(told.boot.release).startswith(label + ".")]
    assert others, "no second kernel is at hand"
    image = Path(default_machine.environment["INSPECTOR_KERNELS"]) / others[0] / "vmlinuz"
    said = one_sentence(inspector(default_machine, "--image", str(image), "vms"), 2)
    assert running in said
    assert said.count("build id") >= 2


@pytest.mark.parametrize("memory", ["process", "gdb"])
def test_memory_can_be_forced(default_machine: Machine, memory: str) -> None:
    result = inspector(default_machine, "--memory", memory, "info")
    assert result.returncode == 0
    assert memory in result.stdout


@pytest.fixture(scope="module")
def empty() -> Iterator[Machine]:
    with Machine.start(scenario="none") as machine:
        yield machine


def test_no_vms(empty: Machine) -> None:
    result = inspector(empty, "vms")
    assert result.returncode == 0
    assert "no VMs" in result.stdout
    assert "no VM" in one_sentence(inspector(empty, "check"), 125)


def test_kvm_switched_off() -> None:
    with Machine.start(scenario="nokvm", append="kvm-arm.mode=none") as machine:
        assert inspector(machine, "info").returncode == 0
        said = one_sentence(inspector(machine, "check"), 125)
        assert "KVM" in said


def test_a_kernel_at_el1_under_nvhe_is_not_taken_for_one_without_kvm() -> None:
    with Machine.start(cpu="cortex-a57", scenario="none") as machine:
        assert json.loads(inspector(machine, "info", "--json").stdout)["host"]["mode"] == "nvhe"


def test_protected_mode_is_recognised() -> None:
    """Up to 6.12 the host still owns its guests' tables, so they are shown; what runs at EL2 is named."""
    with Machine.start(cpu="max", scenario="default", append="kvm-arm.mode=protected") as machine:
        info = json.loads(inspector(machine, "info", "--json").stdout)
        assert info["host"]["mode"] == "protected"
        result = inspector(machine, "check")
        assert result.returncode == 0, result.stdout


if "7.3" in kernel_labels():

    def test_where_the_hypervisor_owns_all_tables_they_are_judged_there() -> None:
        """From 6.18 on; the host's own stage-2, VMID 0, is in force while the host runs (docs/reach.md)."""
        with Machine.start("7.3", cpu="max", scenario="default", append="kvm-arm.mode=protected") as machine:
            machine.command("run protected")
            done = inspector(machine, "check", "--json")
            assert done.returncode == 0, done.stdout
            vms = json.loads(inspector(machine, "vms", "--json").stdout)["vms"]
            assert inspector(machine, "diff").returncode == 0
            cpus = json.loads(inspector(machine, "registers", "--json").stdout)["cpus"]
        assert len(vms) == 15
        mmus = [vm["mmus"][0] for vm in vms]
        assert all(mmu["unreadable"] is None for mmu in mmus)
        assert [mmu["vmid"] for mmu in mmus] == list(range(1, 16))  # init_pkvm_hyp_vm
        running = [cpu for cpu in cpus if cpu["running"] in ("host", "user")]
        assert running and all(cpu["hosts_own_stage2"] and cpu["vttbr_live"] for cpu in running)
        assert all(int(cpu["registers"]["VTTBR_EL2"], 16) >> 48 == 0 for cpu in running)
