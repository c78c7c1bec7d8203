"""Machines that are traced from their start: nothing missed, no rule broken, and the file gives the same verdict.

How often each function ran is counted by a plugin of the tests, which shares nothing with the probe but its interface.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inspector.trace.plugin import api_of, version_of
from tests.conftest import kernel_labels
from tests.live.counting import ended, qemu, with_counter
from tests.live.machine import Machine

pytestmark = pytest.mark.live

REPO = Path(__file__).resolve().parents[2]
OTHERS = ("6.12", "6.12-16k", "6.19", "7.3")
CASES = [
    (None, "max", ""),
    # A guest of 52-bit addresses and 16K pages does not run here (docs/reach.md).
    *((label, "max,lpa2=off" if label.endswith("16k") else "max", "") for label in OTHERS if label in kernel_labels()),
    # nVHE, by choice and by nature, and hVHE: the TLB functions run at EL2.
    (None, "cortex-a57", ""),
    *((label, "max", "kvm-arm.mode=nvhe") for label in ("7.3",) if label in kernel_labels()),
    *((label, "max", "arm64_sw.hvhe=1") for label in ("6.12",) if label in kernel_labels()),
]


@dataclass(frozen=True)
class Traced:
    """A machine that has been traced and is gone: what was said while it ran, and after; ``counted`` by function."""

    run_dir: Path
    early: dict[str, Any]
    document: dict[str, Any]
    trace: Path
    counted: dict[str, int]
    at_el2: bool


def inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "inspector", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(each or "default" for each in case))
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("trace")
    kernel, cpu, append = request.param
    label = kernel or os.environ["INSPECTOR_DEFAULT_KERNEL"]
    wrapper = with_counter(folder, Path(os.environ["INSPECTOR_KERNELS"]) / label / "vmlinuz")
    options = ["--trace", "--qemu", str(wrapper)]
    # The counter knows link addresses alone.
    with Machine.start(kernel, cpu=cpu, append=f"nokaslr {append}".strip(), options=options) as machine:
        early = inspect("trace", "--run-dir", machine.run_dir, "--since", "start", "--for", "0.5", "--json")
        assert early.returncode == 0, early.stdout + early.stderr
        assert Path(f"/proc/{machine.qemu_pid}").exists(), "it runs on"
        counted = ended(machine.qemu_pid, folder)
        trace = folder / "run.s2trace"
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "-o", trace, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        yield Traced(
            machine.run_dir,
            json.loads(early.stdout),
            json.loads(done.stdout),
            trace,
            counted,
            "a57" in cpu or bool(append),
        )


def test_no_rule_is_broken(traced: Traced) -> None:
    document = traced.document
    assert (document["verdict"], document["broken"]) == ("clean", [])
    assert document["differing"] == []
    assert document["held_against_model"] == document["operations"] - document["raced"]
    assert document["operations"] > 400
    assert document["tables_made"] >= 12
    assert document["invalidations"]["ipas2e1is"] > 20
    assert traced.early["operations"] <= document["operations"]


def test_nothing_is_missed(traced: Traced) -> None:
    """Every operation that ran was followed, whatever it is, and nothing of a table lay outside one."""
    followed = traced.document["operations_by_name"]
    assert traced.counted == followed
    # nVHE and hVHE: the hypervisor's own tables.
    assert ("hyp_map" in followed) is traced.at_el2
    assert not traced.document["not_followed"]


def test_a_protected_host_is_not_judged() -> None:
    with Machine.start(append="kvm-arm.mode=protected", options=["--trace"]) as machine:
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    assert done.returncode == 125
    assert "protected mode" in json.loads(done.stdout)["reason"]


def test_the_newest_qemu() -> None:
    """Plugin API 7, with its own libraries; the same of one kernel."""
    program = qemu("--newest")
    assert api_of(version_of(str(program))) == 7
    with Machine.start(options=["--trace", "--qemu", str(program)]) as machine:
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["broken"], document["differing"]) == (0, [], [])
    assert document["held_against_model"] > 400


def test_vmids_that_run_out() -> None:
    """A CPU of 8-bit VMIDs, and more VMs than these: KVM gives them out anew, after ALLE1IS (V1, V3)."""
    with Machine.start(cpu="cortex-a57", scenario="many,vms=300,alive=4", options=["--trace"]) as machine:
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["broken"], document["differing"]) == (0, [], [])
    assert document["tables_made"] == 300 + 1, "and the hypervisor's own"
    assert document["invalidations"]["alle1is"] == 1
    assert not machine.run_dir.exists(), "nothing of a traced machine is left"


@pytest.mark.parametrize("append", ["", "kvm-arm.mode=nvhe"])
def test_a_kernel_that_has_moved(append: str) -> None:
    """KASLR, as kernels are started: the same is followed, wherever the kernel is and wherever EL2 has it."""
    with Machine.start(append=append, options=["--trace"]) as machine:
        info = subprocess.run(
            [sys.executable, "-m", "inspector", "info", "--json"],
            cwd=REPO,
            env={**os.environ, **machine.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        done = inspect("trace", "--run-dir", machine.run_dir, "--for", "0", "--json")
    assert int(json.loads(info.stdout)["host"]["kaslr_slide"], 16)
    document = json.loads(done.stdout)
    assert (done.returncode, document["broken"], document["differing"]) == (0, [], [])
    assert document["held_against_model"] > 400
    assert document["invalidations"]["ipas2e1is"] > 20


def test_the_file_says_the_same(traced: Traced) -> None:
    done = inspect("replay", traced.trace, "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for name in (
        "operations",
        "events",
        "operations_by_name",
        "returns",
        "pages_made",
        "pages_freed",
        "invalidations",
        "held_against_model",
    ):
        assert again[name] == traced.document[name], name


def test_a_cut_file_is_replayed_up_to_there(traced: Traced, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(traced.trace.read_bytes()[: traced.trace.stat().st_size // 2])
    done = inspect("replay", tmp_path / "cut", "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["cut"]
    assert 0 < document["operations"] < traced.document["operations"]


def test_a_full_disk_is_one_sentence(traced: Traced) -> None:
    done = inspect("trace", "--run-dir", traced.run_dir, "--for", "0", "-o", "/dev/full")
    assert done.returncode == 2
    assert re.fullmatch(r"inspector: [^\n]* written[^\n]*: No space left on device\n", done.stderr), done.stderr


def test_records_that_make_no_sense_end_it_with_what_was_there(traced: Traced, tmp_path: Path) -> None:
    """The trace file has what came before them."""
    for name in ("plan.json", "trace.raw"):
        shutil.copy(traced.run_dir / name, tmp_path)
    with (tmp_path / "trace.raw").open("ab") as stream:
        stream.write(b"\xff" * 64)
    done = inspect("trace", "--run-dir", tmp_path, "--for", "0", "-o", tmp_path / "kept")
    assert done.returncode == 2
    assert "make no sense" in done.stderr
    again = json.loads(inspect("replay", tmp_path / "kept", "--json").stdout)
    assert again["operations"] == traced.document["operations"]


def test_a_machine_that_is_not_traced_is_said_so(tmp_path: Path) -> None:
    done = inspect("trace", "--run-dir", tmp_path, "--for", "0")
    assert done.returncode == 2
    assert "start --trace" in done.stderr
