"""The probe for one QEMU: compiled at first use, kept by content."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from inspector.findings import Untestable

SOURCES: Final = Path(__file__).resolve().parent / "c"
_OLDEST: Final = (10, 0)
_FLAGS: Final = ("-O2", "-Wall", "-shared", "-fPIC")


def api_of(version: str) -> int:
    """The plugin interface to build for, by what ``qemu-system-aarch64 --version`` says.

    Measured: 10.0 has version 4, 11.1 takes version 7 alone.  Raises `Untestable` for one that cannot tell what is
    stored (before 10.0).
    """
    found = re.search(r"version (\d+)\.(\d+)", version)
    if found is None:
        raise Untestable("this QEMU does not say its version")
    release = int(found[1]), int(found[2])
    if release < _OLDEST:
        raise Untestable(f"QEMU {release[0]}.{release[1]} has no plugins that see what is stored: take 10.0 or newer")
    return 4 if release[0] < 11 else 7


def version_of(qemu: str) -> str:
    """The first line of ``--version``.  Raises `Untestable` when it does not run."""
    try:
        done = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise Untestable(f"{qemu} does not run") from None
    return done.stdout.partition("\n")[0]


def build(api: int, cache: Path) -> Path:
    """The probe's library.  Raises `Untestable` when there is no compiler, or it has an error."""
    digest = hashlib.sha256(str((api, _FLAGS)).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    library = cache / f"probe-{api}-{digest.hexdigest()[:16]}.so"
    if library.is_file():
        return library
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / library.name
        try:
            done = subprocess.run(
                ["gcc", *_FLAGS, f"-DAPI={api}", "-o", str(made), str(SOURCES / "probe.c")],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise Untestable("there is no gcc here to compile the probe with: install the package gcc") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error:" in line), "it does not say why")
            raise Untestable(f"the probe does not compile: {said}")
        made.replace(library)
    return library
