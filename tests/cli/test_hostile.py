"""Strings of the target that would move the reader's cursor, in every string of a capture that a report may show."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from inspector.report.format import Painter
from tests.check.build import good_world
from tests.cli.test_cli import READ_ONLY, invoke, stored

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202eevil\u2066\x7f\u0085\U000e0041"


def poisoned(value: Any) -> Any:
    """The same capture with `HOSTILE` after every string; names of registers, traits and VMs stay."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, tuple):
        return tuple(map(poisoned, value))
    if is_dataclass(value) and not isinstance(value, type):
        kept = ("name", "geometry")
        return replace(value, **{f.name: poisoned(getattr(value, f.name)) for f in fields(value) if f.name not in kept})
    return value


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return stored(Path(tmp_path_factory.mktemp("hostile")) / "x.s2cap", poisoned(good_world().capture()))


@pytest.mark.parametrize("command", [*READ_ONLY, ("diff",), ("walk", "0"), ("dump", "--vm", "none")], ids=" ".join)
def test_nothing_reaches_the_terminal_raw(hostile: str, command: tuple[str, ...]) -> None:
    for more in ((), ("--json",)):
        result = invoke("--from", hostile, *command, *more)
        for stream in (result.stdout, result.stderr):
            assert all(line.isprintable() for line in stream.split("\n")), stream
        if more and result.exit_code < 2:
            json.loads(result.stdout)


def test_the_strings_are_still_told(hostile: str) -> None:
    assert (
        r"vmm\x1b]0;title\x07\x1b[2J\r\n\x9b31m\u202eevil\u2066\x7f\x85\U000e0041)"
        in invoke("--from", hostile, "vms").stdout
    )
    document = json.loads(invoke("--from", hostile, "vms", "--json").stdout)
    assert document["vms"][0]["vmm"] == "vmm" + HOSTILE


def test_colour_is_only_what_the_painter_put_there() -> None:
    paint, other = Painter(True), Painter(True)
    line = paint("bold" + HOSTILE, "bold red") + HOSTILE + other("x", "red")
    shown = paint.finished(line)
    assert shown.startswith("\x1b[1;31mbold\\x1b]0;") and shown.count("\x1b") == 2
    assert shown.count("\x1b[0m") == 1
    assert all(part.isprintable() for part in shown.replace("\x1b[1;31m", "").replace("\x1b[0m", "").split("\n"))
    assert paint.finished("plain") == "plain" and Painter()("x", "red") == "x"
