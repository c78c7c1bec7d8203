"""The archives and programs that hosts are given: held against cpio, readelf and the compiler."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path

import pytest

from fixtures.guest.cpio import Archive
from fixtures.guest.elf import read_static_program
from fixtures.guest.linux import needed
from fixtures.guest.problems import BadProgram
from fixtures.guest.workload import command, of_program

CC = "aarch64-linux-gnu-gcc"


def build(folder: Path, *flags: str) -> Path:
    """A program that does nothing."""
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    program = folder / "nothing"
    subprocess.run([CC, *flags, "-o", str(program), str(folder / "nothing.c")], check=True)
    return program


def unpack(archive: bytes, folder: Path) -> None:
    folder.mkdir()
    subprocess.run(["cpio", "--quiet", "-idm"], input=gzip.decompress(archive), cwd=folder, check=True)


def test_cpio_unpacks_an_archive(tmp_path: Path) -> None:
    made = Archive()
    contents = {f"a/b{'x' * size}/file": bytes(range(size)) for size in (0, 1, 2, 3, 4, 5, 200)}
    for path, each in contents.items():
        made.file(path, each, executable=len(each) == 3)
    made.link("a/link", "bx/file")
    made.folder("empty")
    assert made.bytes() == made.bytes()
    unpack(made.bytes(), tmp_path / "out")
    for path, each in contents.items():
        assert (tmp_path / "out" / path).read_bytes() == each
        assert bool((tmp_path / "out" / path).stat().st_mode & 0o111) == (len(each) == 3)
    assert (tmp_path / "out/a/link").read_bytes() == b"\0"
    assert (tmp_path / "out/empty").is_dir()


def test_a_command_is_words(tmp_path: Path) -> None:
    unpack(of_program(build(tmp_path, "-static"), ["", "two words", "é\udcff"]), tmp_path / "out")
    words = (tmp_path / "out/workload/command").read_bytes()
    assert words == b"/workload/program\0\0two words\0\xc3\xa9\xff\0"
    with pytest.raises(BadProgram, match="too many"):
        command(Archive(), ["x"] * 61)
    with pytest.raises(BadProgram, match="too long"):
        command(Archive(), ["x" * 4000])


@pytest.mark.parametrize("flags", [["-static"], ["-static-pie"]])
def test_a_static_program_is_taken(tmp_path: Path, flags: list[str]) -> None:
    program = build(tmp_path, *flags)
    assert read_static_program(program) == program.read_bytes()


@pytest.mark.parametrize(("flags", "why"), [([], "not static"), (["-c"], "not a program")])
def test_another_is_refused(tmp_path: Path, flags: list[str], why: str) -> None:
    with pytest.raises(BadProgram, match=why):
        read_static_program(build(tmp_path, *flags))


def test_a_program_cut_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    whole = build(tmp_path).read_bytes()
    for size in range(0, 1024, 7):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(BadProgram):
            read_static_program(tmp_path / "cut")


def test_needed_libraries_are_those_that_readelf_names(tmp_path: Path) -> None:
    program = build(tmp_path, "-Wl,--no-as-needed", "-lm", "-lpthread", "-ldl")
    said = subprocess.run(["readelf", "-d", str(program)], capture_output=True, text=True, check=True).stdout
    assert needed(program.read_bytes()) == re.findall(r"NEEDED.*\[(.*)\]", said)
    assert not needed(build(tmp_path, "-static").read_bytes())
