"""apt-get with a state of its own, for a package that another release of Debian has than this machine is.

The machine's lists and caches are left alone; its mirrors, its way to them (proxies, certificates) and Debian's keyring
are used, and signatures are checked.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

SUITES: Final = ("bullseye", "bookworm", "trixie", "trixie-backports", "forky", "sid")
"""Releases of Debian with a kernel that has the file, oldest first; one that a mirror lacks is passed over."""

KEYRINGS: Final = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
)


class AptFailed(Exception):
    """apt-get is missing or says no; the text is what it says."""


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError:
        raise AptFailed(f"there is no {command[0]} here") from None
    if done.returncode:
        said = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
        raise AptFailed((said or ["it says nothing"])[0])
    return done.stdout


def download(name: str, folder: Path) -> Path:
    """The verified ``.deb`` of package ``name`` in ``folder``: from the machine's own sources, else other releases.

    Raises `AptFailed`.
    """
    fetch = ["apt-get", "download", "-q", name]
    if os.geteuid() == 0:  # else apt gives its work to a user who may not enter our folder
        fetch[1:1] = ["-o", "APT::Sandbox::User=root"]
    try:
        _run(fetch, folder, {})
    except AptFailed:
        elsewhere = _other_releases(folder)
        if elsewhere is None:
            raise
        _from_other_releases(fetch, folder, elsewhere)
    return max(folder.glob("*.deb"))


def _from_other_releases(fetch: list[str], folder: Path, elsewhere: dict[str, str]) -> None:
    said = ""
    try:
        _run(["apt-get", "update", "-q"], folder, elsewhere)
    except AptFailed as failed:  # a release that is gone does not matter when another has the package
        said = str(failed)
    try:
        _run(fetch, folder, elsewhere)
    except AptFailed as failed:
        raise AptFailed(said or str(failed)) from None


def _mirrors(folder: Path) -> list[str]:
    """The machine's mirrors of Debian's main archive."""
    listed = _run(["apt-get", "indextargets", "Created-By: Packages", "Component: main", "Origin: Debian"], folder, {})
    found = re.findall(r"^Repo-URI: (\S+/debian/?)$", listed, re.MULTILINE)
    return list(dict.fromkeys(found))


def _other_releases(folder: Path) -> dict[str, str] | None:
    """The environment in which apt-get knows every release of Debian in `SUITES` and nothing else.

    ``None`` where this machine has no mirror of Debian, or not its keys.
    """
    keyring = next((path for path in KEYRINGS if Path(path).is_file()), None)
    mirrors = _mirrors(folder)
    if keyring is None or not mirrors:
        return None
    home = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial", "sources", "empty"):
        (home / part).mkdir(parents=True)
    (home / "status").touch()
    stanza = ("Types: deb", f"URIs: {mirrors[0]}", f"Suites: {' '.join(SUITES)}", "Components: main")
    (home / "sources/debian.sources").write_text("\n".join((*stanza, f"Signed-By: {keyring}", "")))
    # How the machine reaches its servers is kept; its hooks, about its own packages, are not.
    lines = [
        line
        for line in _run(["apt-config", "dump"], folder, {}).splitlines()
        if line.startswith("Acquire::") and not re.search("Languages|IndexTargets|Insecure", line)
    ]
    settings = {
        "Dir::State": home / "state",
        "Dir::State::status": home / "status",
        "Dir::Cache": home / "cache",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": home / "sources",
        "Dir::Etc::Main": "/dev/null",
        "Dir::Etc::Parts": home / "empty",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": home / "empty",
        "Acquire::Languages": "none",
        "Acquire::AllowInsecureRepositories": "false",
        "APT::Get::AllowUnauthenticated": "false",
    }
    lines += [f'{name} "{value}";' for name, value in settings.items()]
    (home / "apt.conf").write_text("\n".join([*lines, ""]))
    return {"APT_CONFIG": str(home / "apt.conf")}
