"""How often each function ran, by a plugin of the tests: it shares nothing with the probe but QEMU's interface."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

from inspector.protocol.facts import operation_name
from inspector.symbols import open_symbols
from inspector.trace.functions import FUNCTIONS, Role
from inspector.trace.plugin import SOURCES, api_of, version_of

REPO: Final = Path(__file__).resolve().parents[2]
COUNT: Final = REPO / "tests/trace/c/count.c"
OPERATIONS: Final = (Role.OPERATION, Role.INIT)


def qemu(*options: str) -> Path:
    cache = os.environ.get("INSPECTOR_CACHE", str(Path.home() / ".cache/kvm-stage2-inspector"))
    done = subprocess.run(
        ["python3", "-m", "fixtures.qemu", "--cache", cache, *options],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return Path(done.stdout.strip())


def with_counter(folder: Path, image: Path) -> Path:
    """A QEMU that also counts the entries of the functions that are operations."""
    program, counter = qemu(), folder / "count.so"
    flags = ["-O2", "-shared", "-fPIC", f"-DAPI={api_of(version_of(str(program)))}", f"-I{SOURCES}"]
    subprocess.run(["gcc", *flags, "-o", str(counter), str(COUNT)], check=True)
    symbols = open_symbols(image=image)
    addresses = {name: symbols.address(name) for name, each in FUNCTIONS.items() if each.role in OPERATIONS}
    lines = [f"{name} {address:x}" for name, address in addresses.items() if address is not None]
    (folder / "count.conf").write_text("\n".join(lines) + "\n")
    wrapper = folder / "qemu"
    options = f"{counter},config={folder / 'count.conf'},out={folder / 'counts'}"
    wrapper.write_text(f'#!/bin/sh\nexec "{program}" "$@" -plugin "{options}"\n')
    wrapper.chmod(0o755)
    return wrapper


def ended(pid: int, folder: Path) -> dict[str, int]:
    """End QEMU in the way that plugins are told of; how often each operation began, by its name."""
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 20
    while not (folder / "counts").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.2)
    counted: dict[str, int] = {}
    for line in (folder / "counts").read_text().splitlines():
        function, count = line.split()
        # kvm_pgtable_stage2_init calls __kvm_pgtable_stage2_init where there are both.
        name = operation_name(function)
        counted[name] = max(counted.get(name, 0), int(count))
    return {name: count for name, count in counted.items() if count}
