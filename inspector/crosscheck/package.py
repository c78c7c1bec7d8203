"""Debian's source packages of kernels by name, ``linux-source-6.12``, fetched with apt once and kept."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from inspector.crosscheck.apt import AptFailed, download
from inspector.findings import BadInput
from inspector.printable import SHORT, printable

KEPT = "INSPECTOR_KERNEL_SOURCES"
"""A folder in which packages lie already is looked into first."""


def is_package(name: str) -> bool:
    """Whether ``name`` could be that of a package with a kernel's source."""
    return re.fullmatch(r"linux-source(-\d[a-z0-9+.-]*)?", name) is not None


def fetch_package(name: str, cache: Path, tell: Callable[[str], None]) -> Path:
    """The ``.deb`` of a source package: one that is kept, else downloaded from this machine's mirror of Debian.

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
        try:
            found = download(name, Path(folder))
        except AptFailed as error:
            raise _not_to_be_had(name, str(error)) from None
        return Path(shutil.move(found, home / found.name))


def _not_to_be_had(name: str, said: str) -> BadInput:
    instead = f"download it yourself (packages.debian.org/{name}) and give the path of the .deb"
    if "Unable to locate" in said or "no installation candidate" in said:
        return BadInput(
            f"{name} is not in this machine's package sources, nor in another release of Debian that it has a mirror "
            f"of: name another, or {instead}"
        )
    return BadInput(f"{name} could not be fetched (apt: {printable(said, SHORT)}): try again, or {instead}")
