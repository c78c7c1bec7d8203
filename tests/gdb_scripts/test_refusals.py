"""What is no arm64 machine of QEMU's, and what is no gdb for the commands: one sentence, and the session goes on."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.live.gdb_session import REPO, SCRIPT, Session

pytestmark = pytest.mark.processes

COMMANDS = ("stage2 vms", "stage2 watch 0", "stage2 break map", "p $s2_pa(0)")


def another_gdb(*options: str) -> str:
    """One that `fixtures.debugger` has or fetches."""
    cache = os.environ.get("INSPECTOR_CACHE", str(Path.home() / ".cache/kvm-stage2-inspector"))
    command = ["python3", "-m", "fixtures.debugger", "--cache", cache, *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def refused(gdb: Session, words: str) -> None:
    for line in COMMANDS:
        said = gdb(line).strip()
        assert words in said, (line, said)
        # gdb puts its own words around an error in a function of Python's.
        assert len(said.splitlines()) == 1 or line.startswith("p "), said
        assert "Traceback" not in said
    assert gdb("p 6 * 7").endswith("= 42\n")


def test_a_stub_without_physical_mode() -> None:
    """gdb's own server, of a process."""
    with Session() as gdb:
        gdb("set architecture auto")
        gdb("target remote | gdbserver --once - /bin/true")
        gdb(f"source {SCRIPT}")
        refused(gdb, "this gdbstub has no physical memory mode")
        gdb("kill")


def test_a_machine_that_is_not_aarch64() -> None:
    """QEMU's, with a 32-bit CPU: it has a physical mode."""
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        stub = f"{folder}/gdb"
        command = ["qemu-system-arm", "-M", "virt", "-cpu", "cortex-a15", "-S", "-display", "none", "-nodefaults"]
        with subprocess.Popen([*command, "-gdb", f"unix:{stub},server=on"]) as qemu, Session() as gdb:
            try:
                gdb("set architecture auto")
                while "No such file" in gdb(f"target remote {stub}"):
                    assert qemu.poll() is None
                gdb(f"source {SCRIPT}")
                refused(gdb, "gdb takes this machine for arm")
            finally:
                qemu.kill()


def test_a_process_of_this_gdb() -> None:
    with Session() as gdb:
        gdb("set architecture auto")
        gdb("file /bin/true")
        gdb("starti")
        gdb(f"source {SCRIPT}")
        refused(gdb, "this is no remote target")
        gdb("kill")


def test_a_gdb_that_is_too_old() -> None:
    """10.1, with Python 3.9, which cannot even import the codec."""
    with Session(another_gdb("--release", "bullseye")) as gdb:
        said = gdb(f"source {SCRIPT}")
        assert said.startswith("this is gdb 10.1")
        assert said.endswith(": the stage2 commands need 13 or newer\n")
        assert len(said.splitlines()) == 1
        assert gdb("p 6 * 7").endswith("= 42\n")


def test_a_gdb_without_python() -> None:
    """The sentence is gdb's own."""
    with Session(another_gdb("--minimal")) as gdb:
        place, said = gdb(f"source {SCRIPT}").splitlines()
        assert "Error in sourced command file" in place
        assert said == "Python scripting is not supported in this copy of GDB."
        assert gdb("p 6 * 7").endswith("= 42\n")
