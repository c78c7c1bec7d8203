"""Debian's source packages of kernels by name, ``linux-source-6.12``, fetched with apt once and kept."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from inspector.findings import BadInput
from inspector.printable import SHORT, printable

KEPT = "INSPECTOR_KERNEL_SOURCES"
"""A folder in which packages lie already is looked into first."""


def is_package(name: str) -> bool:
    """Whether ``name`` could be that of a package with a kernel's source."""
    return re.fullmatch(r"linux-source(-\d[a-z0-9+.-]*)?", name) is not None


def fetch_package(name: str, cache: Path, tell: Callable[[str], None]) -> Path:
    """The ``.deb`` of a source package: one that is kept, else downloaded from this machine's package sources.

    Nothing is installed, and nothing but ``cache`` is written.  Raises `BadInput` when there is no such package.
    """
    if not is_package(name):
        raise BadInput(
            f"'{name}' is not the name of a kernel's source package: those are called as linux-source-6.12 is"
        )
    home = cache / "packages"
    folders = [home, *([Path(given)] if (given := os.environ.get(KEPT)) else [])]
    # "_" ends the name in the file: NAME_VERSION_all.deb.
    present = sorted(file for folder in folders for file in folder.glob(f"{name}_*.deb"))
    if present:
        return present[-1]
    tell(f"downloading {name}: some 150 MB, once")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{home} cannot be made: {error.strerror}; name another cache folder") from None
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=home) as folder:
        command = ["apt-get", "download", "-q", name]
        if os.geteuid() == 0:  # else apt gives its work to a user who may not enter our folder
            command[1:1] = ["-o", "APT::Sandbox::User=root"]
        found = _download(command, Path(folder), name)
        return Path(shutil.move(found, home / found.name))


def _download(command: list[str], folder: Path, name: str) -> Path:
    instead = f"download linux-source from another Debian release and give the .deb's path (packages.debian.org/{name})"
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        raise BadInput(f"{name} cannot be fetched: there is no apt-get here; {instead}") from None
    found = sorted(folder.glob("*.deb"))
    if done.returncode == 0 and found:
        return found[-1]
    said = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
    why = printable((said or ["it says nothing"])[0], SHORT)
    if "Unable to locate" in why or "no installation candidate" in why:
        raise BadInput(
            f"{name} is not in this machine's package sources: add a release of Debian that has it and run "
            f"'apt-get update', or {instead}"
        )
    raise BadInput(f"{name} could not be fetched (apt-get: {why}): try again, or {instead}")
