"""Strings of foreign origin that would move the reader's cursor, in every place where one comes in.

What the command line prints of them, on a pipe, on a terminal and on standard error, is escapes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from inspector.capture.file import load
from inspector.codec import Geometry
from inspector.report.format import Painter
from inspector.symbols import btf
from inspector.symbols.btfwrite import BtfWriter, MemberSpec
from tests.check.build import good_world
from tests.cli.test_cli import READ_ONLY, bad_world, invoke, stored
from tests.cli.test_completion import completed
from tests.symbols import synth
from tests.target.liar import Connection, Liar, Lie
from tests.terminal import REPO, on_terminal, raw_in

pytestmark = pytest.mark.processes

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202eevil\u2066\x7f\u0085\U000e0041"
FIRST = r"\x1b]0;title\x07\x1b[2J"
"""How its first part is shown."""

INSPECTOR = (sys.executable, "-m", "inspector")


def poisoned(value: Any) -> Any:
    """The same capture with `HOSTILE` after every string: names, keys and values."""
    if isinstance(value, Enum | Geometry):
        return value
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, tuple):
        return tuple(map(poisoned, value))
    if isinstance(value, Mapping):
        return {poisoned(key): poisoned(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: poisoned(getattr(value, f.name)) for f in fields(value)})
    return value


def captures() -> dict[str, Any]:
    return {
        "good": good_world().capture(),
        "bad": bad_world().capture(),
        "recorded": load(str(REPO / "fixtures/captures/7.3-max.s2cap")),
    }


@pytest.fixture(scope="module", params=["good", "bad", "recorded"])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return stored(tmp_path_factory.mktemp("hostile") / f"{HOSTILE}.s2cap", poisoned(captures()[request.param]))


COMMANDS = [
    *READ_ONLY,
    ("diff",),
    ("walk", "0"),
    ("walk", "0x40001000", "--vm", "vm0" + HOSTILE),
    ("dump", "--vm", "vm0" + HOSTILE),
    ("dump", "--vm", "none"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(" ".join(command)))
def test_nothing_of_a_capture_reaches_the_reader_raw(hostile: str, command: tuple[str, ...]) -> None:
    for more in ((), ("--json",)):
        result = invoke("--from", hostile, *command, *more)
        assert "internal error" not in result.stderr
        assert raw_in(result.stdout) == raw_in(result.stderr) == []
        if more and result.exit_code < 2:
            json.loads(result.stdout)


def test_two_captures(hostile: str) -> None:
    good = str(REPO / "fixtures/captures/6.12-max.s2cap")
    for more in ((), ("--json",)):
        result = invoke("diff", hostile, good, *more)
        assert result.exit_code == 1 and raw_in(result.output) == []


@pytest.mark.parametrize("command", ["info", "vms", "dump", "dump --tree", "check", "diff", "registers", "walk 0"])
def test_on_a_terminal(hostile: str, command: str) -> None:
    """In colour, with standard error on it too."""
    _, shown = on_terminal([*INSPECTOR, "--from", hostile, *command.split()])
    assert FIRST in shown and raw_in(shown) == []


def test_the_strings_are_still_told(hostile: str) -> None:
    vm = load(hostile).vms[0]
    assert FIRST in invoke("--from", hostile, "vms").stdout
    assert json.loads(invoke("--from", hostile, "vms", "--json").stdout)["vms"][0]["vmm"] == vm.command


def test_colour_is_only_what_the_painter_put_there() -> None:
    paint, other = Painter(True), Painter(True)
    line = paint("bold" + HOSTILE, "bold red") + HOSTILE + other("x", "red")
    shown = paint.finished(line)
    assert shown.startswith("\x1b[1;31mbold\\x1b]0;") and shown.count("\x1b") == 2
    assert shown.count("\x1b[0m") == 1
    assert raw_in(shown) == []
    assert paint.finished("plain") == "plain" and Painter()("x", "red") == "x"


# --- a shell's line ---


def test_a_shell_is_not_offered_what_it_would_obey(tmp_path: Path) -> None:
    """Text that is completed stands on the user's line, one key from being run."""
    names = ["vm0", "vm1;reboot", "vm2 $(reboot)", "vm3\nvm4", "-rf", "vm5" + HOSTILE]
    capture = good_world().capture()
    vms = tuple(replace(capture.vms[0], name=name, command="sh" + HOSTILE) for name in names)
    path = stored(tmp_path / "x.s2cap", replace(capture, vms=vms))
    for shell in ("bash", "zsh", "fish"):
        offered = completed("--from", path, "dump", "--vm", "v", shell=shell)
        assert not any(raw_in(row) or "reboot" in row for row in offered)
    assert completed("--from", path, "dump", "--vm", "v") == ["vm0"]


# --- the command line ---

WORDS = [
    ("--from", HOSTILE, "vms"),
    (HOSTILE,),
    ("--" + HOSTILE,),
    ("--memory", HOSTILE, "vms"),
    ("--connect", HOSTILE, "vms"),
    ("--connect", "localhost:" + HOSTILE, "vms"),
    ("--connect", ":1", "--vmlinux", HOSTILE, "vms"),
    ("--connect", ":1", "--image", HOSTILE, "vms"),
    ("--connect", ":1", "--gdb", HOSTILE, "vms"),
    ("vms", HOSTILE),
    ("decode", HOSTILE, "--level", "3"),
    ("decode", "--level", HOSTILE, "0"),
    ("decode", "--granule", HOSTILE, "0"),
    ("decode", "--register", HOSTILE, "0"),
    ("walk", HOSTILE),
    ("dump", "--range", HOSTILE),
    ("dump", "--filter", HOSTILE),
    ("check", "--only", HOSTILE),
    ("check", "--list", "--skip", HOSTILE),
    ("diff", HOSTILE, HOSTILE),
    ("diff", "--generation", HOSTILE),
    ("capture", f"no/{HOSTILE}"),
    ("model", HOSTILE),
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: ascii(" ".join(words)))
def test_words_of_the_command_line(words: tuple[str, ...]) -> None:
    for given in (words, tuple(word.replace(HOSTILE, os.fsdecode(b"\xff\xfe\x9b2J")) for word in words)):
        result = invoke(*given)
        assert result.exit_code in (2, 3) and result.stdout == ""
        assert "internal error" not in result.stderr and raw_in(result.stderr) == []


def test_names_of_files_that_are_no_text() -> None:
    """What a process gets of such a name, standard error and terminal included."""
    name = b"\xff\x1b[2J.s2cap"
    done = subprocess.run([*INSPECTOR, "--from", name, "vms"], cwd=REPO, capture_output=True, check=False)
    assert done.returncode == 2 and raw_in(done.stderr.decode()) == []
    assert b"\\udcff\\x1b[2J.s2cap" in done.stderr


@pytest.mark.parametrize("line", ["{0}", "map {0} 4K", "map 0 4K {0}", "map 0 4K prot={0}", "machine {0}=1", "# {0}"])
def test_a_script(tmp_path: Path, line: str) -> None:
    path = tmp_path / "script"
    path.write_text("# \x1b[2J\ninit\n" + line.format("\x1b]0;x\x07\u202e") + "\nmap 0 4K pa=0 prot=R # \x1b[2J\n")
    for more in ((), ("--json",)):
        assert raw_in(invoke("model", str(path), *more).output) == []


# --- a machine ---

EVIL = b"\x1b]0;pwn\x07\x1b[2J\r"


def live(lie: Lie, *words: str) -> tuple[int, str]:
    """A command against a stub, on a terminal, with every word of progress."""
    with Liar(lie) as stub:
        return on_terminal([*INSPECTOR, "--debug", "--connect", stub.address, "--memory", "gdb", *words])


def says(name: bytes, answer: bytes) -> Lie:
    def lie(connection: Connection, packet: bytes) -> bool:
        if packet.startswith(name):
            connection.send(answer)
        return packet.startswith(name)

    return lie


def prints(command: bytes, text: str) -> Lie:
    def lie(connection: Connection, packet: bytes) -> bool:
        if packet.startswith(b"qRcmd," + command.hex().encode()):
            connection.print(text)
            return True
        return False

    return lie


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(says(b"qSupported", b"PacketSize=1000;" + EVIL), id="features"),
        pytest.param(says(b"qXfer", b"l" + EVIL), id="description"),
        pytest.param(says(b"qXfer", b"E." + EVIL), id="no description"),
        pytest.param(says(b"?", b"T02thread:" + EVIL), id="stop reply"),
        pytest.param(says(b"g", b"E." + EVIL), id="registers"),
        pytest.param(says(b"m", b"E." + EVIL), id="memory"),
        pytest.param(says(b"qqemu", EVIL), id="mode"),
        pytest.param(says(b"qThreadExtraInfo", EVIL.hex().encode()), id="thread's name"),
        pytest.param(says(b"qRcmd", b"E." + EVIL), id="monitor's error"),
        pytest.param(prints(b"info version", EVIL.decode()), id="version"),
        pytest.param(prints(b"info status", "VM status: " + EVIL.decode()), id="status"),
        pytest.param(prints(b"info mtree", EVIL.decode()), id="memory map"),
        pytest.param(
            prints(b"info mtree", f'FlatView #0\n AS "memory"\n  0-1fffff (prio 0, ram): {EVIL.decode()}\n'),
            id="memory's name",
        ),
    ],
)
def test_what_a_stub_says(lie: Lie, tmp_path: Path) -> None:
    code, shown = live(lie, "--vmlinux", str(vmlinux(tmp_path)), "vms")
    assert code in (2, 3) and "internal error" not in shown
    assert raw_in(shown) == []


def vmlinux(folder: Path) -> Path:
    """A kernel all of whose names are hostile: symbols, sections, types, members, enumerators and the banner."""
    writer = BtfWriter()
    number = writer.integer("int" + HOSTILE, 4)
    writer.compound(btf.STRUCT, "kvm" + HOSTILE, 4, [MemberSpec("mm" + HOSTILE, number, 0)])
    writer.compound(btf.STRUCT, "kvm", 4, [MemberSpec("mm" + HOSTILE, number, 0)])
    writer.enumeration("modes" + HOSTILE, 4, [("ONE" + HOSTILE, 1)], signed=False)
    banner = b"Linux version " + HOSTILE.replace("\r\n", "").encode() + b"\n\0"
    names = {"_text": 0, "kimage_voffset": 0x100, "linux_banner": 0x200, "kvm_pgtable" + HOSTILE: 0x300}
    table, strings = synth.symtab([(name, synth.LINK + at, 0x11, 1) for name, at in names.items()])
    path = folder / f"vmlinux{HOSTILE}"
    path.write_bytes(
        synth.elf(
            [
                synth.Section(".text", bytes(0x200) + banner + bytes(0x200), flags=6, address=synth.LINK),
                synth.Section(".symtab", table, type=2, link=3),
                synth.Section(".strtab", strings, type=3),
                synth.Section(".BTF", writer.blob()),
                synth.Section(".notes", synth.note(synth.BUILD_ID), type=7),
                synth.Section(".debug" + HOSTILE, b"ZLIB"),
            ]
        )
    )
    return path


def test_a_kernel_of_hostile_names(tmp_path: Path) -> None:
    """It is not the running one, which calls itself something worse."""
    page = b"OSRELEASE=6.1" + EVIL + b"\nBUILD-ID=" + EVIL + b"\n"

    def memory(connection: Connection, packet: bytes) -> bool:
        if not packet.startswith(b"m"):
            return False
        at, size = (int(part, 16) for part in packet[1:].split(b","))
        whole = page.ljust(0x1000, b"\0") if at & -0x1000 == 0x4010_0000 else bytes(0x1000)
        connection.send((whole * 2)[at & 0xFFF :][:size].hex().encode())
        return True

    code, shown = live(memory, "--vmlinux", str(vmlinux(tmp_path)), "vms")
    assert code == 2 and "is not the running kernel" in shown
    assert r"6.1\x1b]0;pwn\x07\x1b[2J" in shown and rf"vmlinux{FIRST}" in shown
    assert raw_in(shown) == []


def test_a_damaged_kernel_of_hostile_names(tmp_path: Path) -> None:
    good = vmlinux(tmp_path).read_bytes()
    for place in range(0, len(good), 41):
        path = tmp_path / "damaged"
        path.write_bytes(good[:place] + b"\xff\xff\xff\xff" + good[place + 4 :])
        result = invoke("--connect", "127.0.0.1:1", "--vmlinux", str(path), "vms")
        assert result.exit_code in (2, 3) and "internal error" not in result.stderr
        assert raw_in(result.output) == []
