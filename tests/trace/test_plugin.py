"""The probe compiles for either plugin interface, without a warning, and for no QEMU that is too old."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from inspector.findings import Untestable
from inspector.trace.plugin import SOURCES, api_of, build, version_of

pytestmark = pytest.mark.harness


@pytest.mark.parametrize(
    ("said", "api"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", 4),
        ("QEMU emulator version 10.2.0", 4),
        ("QEMU emulator version 11.1.0 (Debian 1:11.1.0+ds-1)", 7),
    ],
)
def test_the_interface_of_a_version(said: str, api: int) -> None:
    assert api_of(said) == api


@pytest.mark.parametrize("said", ["QEMU emulator version 7.2.22 (Debian 1:7.2)", "qemu: no"])
def test_one_that_cannot_tell_what_is_stored(said: str) -> None:
    with pytest.raises(Untestable):
        api_of(said)


def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(Untestable):
        version_of(str(tmp_path / "qemu"))


@pytest.mark.parametrize("api", [4, 7])
def test_it_compiles(tmp_path: Path, api: int) -> None:
    library = build(api, tmp_path)
    assert library.is_file()
    assert build(api, tmp_path) == library
    flags = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", f"-DAPI={api}", "-fsyntax-only"]
    subprocess.run(["gcc", *flags, str(SOURCES / "probe.c")], check=True)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Untestable, match="gcc"):
        build(4, tmp_path / "cache")
