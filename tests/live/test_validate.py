"""Kernels that are booted and judged: a clean one against itself, and one with an instruction less.

The faulty kernel is the distribution's Image with one instruction of a TLB function made a NOP: nothing is built.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from inspector.inject.catalogue import FAULTS
from inspector.inject.places import places
from inspector.symbols import open_symbols
from tests.report.browser import browser

pytestmark = pytest.mark.live

REPO = Path(__file__).resolve().parents[2]
NOP = 0xD503201F


def image() -> Path:
    return Path(os.environ["INSPECTOR_KERNELS"]) / os.environ["INSPECTOR_DEFAULT_KERNEL"] / "vmlinuz"


def without(fault: str, path: Path) -> Path:
    """The default kernel's Image, without the instruction that ``fault`` would pass by."""
    symbols = open_symbols(image=image())
    address = places(symbols, FAULTS[fault].place, fault)[0].address
    code = bytearray(image().read_bytes())
    struct.pack_into("<I", code, address - symbols.link_text, NOP)
    path.write_bytes(code)
    return path


def validate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "inspector", "validate", *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "Traceback" not in done.stderr
    return done


def test_a_faulty_kernel_against_a_clean_one(tmp_path: Path) -> None:
    """Both verdicts of one command: the kernel's findings, and that the difference is the fault."""
    faulty = without("no-dsb-after", tmp_path / "Image")
    traces, xml, page = tmp_path / "traces", tmp_path / "junit.xml", tmp_path / "report.html"
    options: list[str | Path] = ["--quick", "--json", "--keep", traces, "--junit", xml, "--html", page]
    done = validate("--kernel", faulty, "--baseline-kernel", image(), *options)
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads(done.stdout)
    parts = {part["name"]: part for part in document["parts"]}
    assert document["verdict"] == parts["vhe: protocol"]["verdict"] == "findings"
    assert any(line.startswith("B5: ") for line in parts["vhe: protocol"]["lines"])
    for clean in ("tables", "model", "console", "compared"):
        assert parts[f"vhe: {clean}"]["verdict"] == "clean", parts[f"vhe: {clean}"]
    compared = parts["vhe: compared"]
    assert compared["figures"]["changes"] >= 1
    changed = [line.strip() for line in compared["lines"] if line.strip()[:1] in ("+", "-")]
    assert set(changed) == {"-barrier ish"}
    # The baseline was clean: nothing of it is among the parts.
    assert not [name for name in parts if "baseline" in name]
    assert len(list(traces.iterdir())) == 3
    assert 'failures="1"' in xml.read_text()
    with browser() as chromium:
        chromium.open(page)
        figures = parts["vhe: protocol"]["figures"]
        seen = chromium.js("[DATA.courses.length, DATA.courses[0].operations, DATA.courses[0].marks.length]")
        assert seen == [1, figures["operations"], figures["broken"]]
        chromium.key("n")
        assert "is restored before a DSB completes" in chromium.js("$('detail').textContent")
        assert chromium.complaints == [] and len(chromium.requests) == 1


def test_a_kernel_that_does_not_boot(tmp_path: Path) -> None:
    """Told apart from findings, with the end of its console."""
    code = bytearray(image().read_bytes())
    symbols = open_symbols(image=image())
    address = symbols.require("run_init_process")
    struct.pack_into("<I", code, address - symbols.link_text, 0xD4200000)  # BRK
    (tmp_path / "Image").write_bytes(code)
    done = validate("--kernel", tmp_path / "Image", "--quick", "--ktap")
    assert done.returncode == 125, done.stdout
    assert "ok 1 vhe: boot # SKIP not tested" in done.stdout
    assert "QEMU ended before the guests ran" in done.stdout
    assert "Kernel panic - not syncing" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_leaves_no_machine(number: signal.Signals) -> None:
    """Whatever was judged by then is told; one sentence, exit code 3."""
    command = [sys.executable, "-m", "inspector", "validate", "--kernel", str(image()), "--quick", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPO, start_new_session=True, **pipes) as running:
        time.sleep(8)
        # As a terminal does, to all; or as a supervisor, to it alone.
        os.killpg(running.pid, number) if number is signal.SIGINT else running.send_signal(number)
        out, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert json.loads(out)["interrupted"] is True
    assert errors.splitlines()[-1].startswith("inspector: interrupted; ")
    left = subprocess.run(["pgrep", "-f", f"name validate-{running.pid} "], capture_output=True, text=True, check=False)
    assert not left.stdout


def test_machines_of_several_jobs_end_with_them() -> None:
    """Ctrl-C on a terminal reaches every process of ours, at whatever each of them is."""
    cells = ["--configuration", "vhe", "--configuration", "one-cpu", "--jobs", "2"]
    command = [sys.executable, "-m", "inspector", "validate", "--kernel", str(image()), "--quick", "--json", *cells]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPO, start_new_session=True, **pipes) as running:
        names: list[str] = []
        while sum(bool(machines_named(name)) for name in names) < 2:
            assert running.poll() is None
            time.sleep(0.2)
            workers = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=False)
            names = [f"validate-{pid}" for pid in workers.stdout.split()]
        os.killpg(running.pid, signal.SIGINT)
        out, errors = running.communicate(timeout=60)
    assert running.returncode == 3
    assert json.loads(out)["interrupted"] is True
    assert errors.splitlines()[-1] == "inspector: interrupted; nothing was done yet"
    # The last of them may be on its way: a machine looks twice a second whether who wanted it is there.
    end = time.monotonic() + 20
    while any(machines_named(name) for name in names):
        assert time.monotonic() < end
        time.sleep(0.2)


def machines_named(name: str) -> str:
    done = subprocess.run(
        ["pgrep", "-f", "--", f"qemu-system.*-name {name} "], capture_output=True, text=True, check=False
    )
    return done.stdout
