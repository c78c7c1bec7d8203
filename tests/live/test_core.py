"""A dump of a machine gives what the stub gives at the same instant."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from inspector.capture.file import load
from inspector.capture.source import look_at_dump
from inspector.capture.view import not_judged
from inspector.check import run_checks
from inspector.findings import Severity, TargetLost
from inspector.snapshot import Capture, Mode
from inspector.symbols import open_symbols
from inspector.target.api import UnreadableMemory
from inspector.target.core import CoreTarget, opened
from inspector.target.dump import LEFT_OUT
from tests.conftest import kernel_labels
from tests.live.gdb_session import REPO
from tests.live.machine import Machine
from tests.live.poke import qmp

pytestmark = pytest.mark.live

PAGE = 4096
CASES = [(None, ""), *((label, "") for label in ("7.3",) if label in kernel_labels()), (None, "kvm-arm.mode=nvhe")]

one_kernel = pytest.mark.parametrize(
    "dumped", CASES[:1], indirect=True, scope="module", ids=lambda case: "-".join(each or "default" for each in case)
)


def inspect(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inspector", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=300)
    assert "Traceback" not in done.stderr
    return done


@dataclass(frozen=True)
class Dumped:
    """A dump, and a capture through the stub, of one instant."""

    core: Path
    packed: Path
    image: Path
    stub: Capture
    stub_file: Path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(each or "default" for each in case))
def dumped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumped]:
    folder = tmp_path_factory.mktemp("core")
    kernel, append = request.param
    core, packed, stub = (folder / name for name in ("machine.core", "machine.kdump", "stub.s2cap"))
    with Machine.start(kernel, append=append, memory=768) as machine:
        image = machine.image
        with qmp(machine) as client:
            client("stop")
            client("dump-guest-memory", paging=False, protocol=f"file:{core}")
            client("dump-guest-memory", paging=False, protocol=f"file:{packed}", format="kdump-zlib")
            assert inspect("--connect", machine.gdb_socket, "--image", image, "capture", stub).returncode == 0
    core.chmod(0o600)
    packed.chmod(0o600)
    yield Dumped(core, packed, image, load(stub), stub)
    core.unlink()


def load_core(dumped: Dumped) -> Capture:
    with opened(str(dumped.core), lambda _: None) as target:
        return look_at_dump(target, open_symbols(image=dumped.image))


def of(dumped: Dumped, *arguments: str) -> Any:
    done = inspect("--core", dumped.core, "--image", dumped.image, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_stub(dumped: Dumped, *arguments: str) -> Any:
    return json.loads(inspect("--from", dumped.stub_file, *arguments, "--json").stdout)


@pytest.mark.parametrize("command", ["vms", "memslots", "dump", "dump --tree", "check", "diff"])
def test_a_dump_says_what_the_stub_says(dumped: Dumped, command: str) -> None:
    assert of(dumped, *command.split()) == by_stub(dumped, *command.split())


@one_kernel
def test_a_compressed_dump_says_the_same(dumped: Dumped, tmp_path: Path) -> None:
    """QEMU's, which is flattened; as a capture, which is what is mailed."""
    taken = tmp_path / "packed.s2cap"
    assert inspect("--core", dumped.packed, "--image", dumped.image, "capture", taken).returncode == 0
    packed, known = load(taken), load_core(dumped)
    assert (packed.vms, packed.pages, packed.page_info) == (known.vms, known.pages, known.page_info)
    assert packed.host == known.host
    assert packed.pages == dumped.stub.pages
    assert inspect("--from", taken, "check").returncode == 0


@one_kernel
def test_nothing_is_found_where_something_is_missing(dumped: Dumped) -> None:
    """The dump without some of the pages that are read: less is judged, and nothing is guessed."""
    symbols = open_symbols(image=dumped.image)
    with opened(str(dumped.core), lambda _: None) as target:
        whole = target.dump
        read: set[int] = set()

        def reading(pa: int, size: int) -> bytes:
            read.update(range(pa & -PAGE, pa + size, PAGE))
            return whole.read(pa, size)

        image = range(*look_at_dump(CoreTarget("", replace(whole, read=reading)), symbols).host.image_pa)
        pages = sorted(pa for pa in read if pa not in image)
        partly = 0
        for seed, count in enumerate((1, 3, 10, 30, 60, 100)):
            gone = set(random.Random(seed).sample(pages, count))

            def lacking(pa: int, size: int, gone: set[int] = gone) -> bytes:
                if gone.intersection(range(pa & -PAGE, pa + size, PAGE)):
                    raise UnreadableMemory(pa, size, LEFT_OUT)
                return whole.read(pa, size)

            try:
                capture = look_at_dump(CoreTarget("", replace(whole, read=lacking)), symbols)
            except TargetLost:  # the kernel's own page tables are gone
                continue
            assert not [one for one in run_checks(capture) if one.severity is Severity.ERROR], (seed, count)
            partly += any(True for _ in not_judged(capture))
        assert partly


def test_the_host_is_the_same_but_for_its_registers(dumped: Dumped, tmp_path: Path) -> None:
    taken = tmp_path / "core.s2cap"
    assert inspect("--core", dumped.core, "--image", dumped.image, "capture", taken).returncode == 0
    host, known = load(taken).host, dumped.stub.host
    assert host.mode == known.mode
    # As the kernel keeps them there, from the CPU here.  It takes out what it does not use: NV, and VH in nVHE.
    masked = {"nv": 0} if host.mode is Mode.VHE else {"nv": 0, "vhe": 0}
    assert {**host.features, **masked} == {**known.features, **masked}
    for name in ("release", "banner", "kaslr_slide", "va_bits", "image_pa", "kernel_pa", "zero_page", "traits", "ram"):
        assert getattr(host, name) == getattr(known, name), name
    assert host.memory_backend == "core"
    assert len(host.cpus) == len(known.cpus)
    for cpu, other in zip(host.cpus, known.cpus, strict=True):
        assert {cpu.registers[name] == other.registers[name] for name in ("pc", "sp", "x0", "x30")} == {True}
        assert "HCR_EL2" not in cpu.registers
    assert any("no system registers" in note for note in host.notes)


def test_what_a_dump_left_out_is_said(dumped: Dumped, tmp_path: Path) -> None:
    """Cut in the middle: what is missing is told, tables in it are not taken for empty ones."""
    cut = tmp_path / "cut.core"
    size = dumped.core.stat().st_size
    with dumped.core.open("rb") as whole, cut.open("wb") as part:
        part.write(whole.read(size // 2))
    done = inspect("--core", cut, "--image", dumped.image, "info")
    if done.returncode == 0:
        assert "ends early" in done.stdout
    else:
        assert done.returncode in (2, 3, 125)
        assert len(done.stderr.strip().splitlines()) == 1


def test_what_excludes_each_other(dumped: Dumped) -> None:
    assert inspect("--core", dumped.core, "vms").returncode == 2, "without a kernel file"
    for other in (("--connect", ":1"), ("--from", str(dumped.stub_file))):
        done = inspect("--core", dumped.core, *other, "--image", dumped.image, "vms")
        assert done.returncode == 2
        assert "exclude each other" in done.stderr


def test_another_kernels_file(dumped: Dumped) -> None:
    others = [label for label in kernel_labels() if label not in str(dumped.image)]
    wrong = dumped.image.parents[1] / others[0] / "vmlinuz"
    done = inspect("--core", dumped.core, "--image", wrong, "vms")
    assert done.returncode == 2
    assert "is not the running kernel" in done.stderr
