"""The manual page and the completion scripts: all of the command line is in them, and what reads them takes them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import click
import pytest

import inspector
import inspector.cli as cli
from inspector.manual import SHELLS, text_of
from tests.cli.test_cli import invoke, refused

pytestmark = pytest.mark.processes

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("man") / "inspector.1"
    path.write_text(invoke("man").stdout)
    return path


@pytest.fixture(scope="module")
def shown(source: Path) -> str:
    """The page as a terminal shows it, without emphasis, in lines as long as they come."""
    command = ["groff", "-ww", "-man", "-Tutf8", "-P-c", "-P-bou", "-rLL=500n", "-rHY=0", str(source)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stderr == ""
    return done.stdout.replace("\N{MINUS SIGN}", "-")  # what a hyphen-minus becomes depends on the distribution


def test_mandoc_has_nothing_to_say(source: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-W", "style", str(source)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _section(shown: str, name: str) -> str:
    """What the page says of a command."""
    found = re.search(rf"^   {re.escape(name)}\b.*\n(?:(?: {{4,}}.*)?\n)*", shown, re.MULTILINE)
    assert found, name
    return found[0]


def test_every_command_and_every_option_is_in_the_page(shown: str) -> None:
    context = click.Context(cli.main_group, info_name="inspector")
    shared = {one.name for one in cli.main_group.get_params(context)}
    options = commands = 0
    for name, command in cli.main_group.commands.items():
        if command.hidden:
            assert f"   {name}" not in shown
            continue
        commands += 1
        text = _section(shown, name)
        assert " ".join((command.help or "").split()) in " ".join(text.split())
        for one in command.params:
            if isinstance(one, click.Option) and not one.hidden:
                where = shown if one.name in shared else text
                for spelled in one.opts:
                    assert re.search(rf"^ +(?:-\w, )?{spelled}(?: |,|$)", where, re.MULTILINE), (name, spelled)
                assert " ".join((one.help or "").split()).rstrip(".") in " ".join(where.split()), (name, one.name)
                options += 1
    assert commands > 15 and options > 200
    assert not re.search(r"--debug\b(?!-)", shown) and "INSPECTOR_CONNECT" in shown.partition("ENVIRONMENT")[2]


def test_examples_are_lines(shown: str) -> None:
    assert re.search(r"^ +inspector dump --pa 0x80000000-0x80200000$", _section(shown, "dump"), re.MULTILINE)
    assert re.search(r"^ +git bisect run inspector crosscheck \.$", _section(shown, "crosscheck"), re.MULTILINE)


@pytest.mark.parametrize("hostile", [".so /etc/passwd", "'br", "\\fB-\\*", 'a "b" ^~`', "Grün"])
def test_what_roff_would_obey_is_shown(hostile: str, tmp_path: Path) -> None:
    path = tmp_path / "x.1"
    path.write_text(f'.TH X 1 2026-11-28 "x" "x"\n.SH X\n{text_of(hostile)}\n')
    done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", "-P-c", path], capture_output=True, text=True, check=True)
    assert done.stderr == "" and f"       {hostile}\n" in re.sub(r".\x08", "", done.stdout)


def test_as_a_document() -> None:
    assert json.loads(invoke("man", "--json").stdout)["text"] == invoke("man").stdout
    for shell in SHELLS:
        document = json.loads(invoke("completion", shell, "--json").stdout)
        assert document["shell"] == shell and document["text"].rstrip("\n") == invoke(
            "completion", shell
        ).stdout.rstrip("\n")
    assert "tcsh" in refused(invoke("completion", "tcsh"))


def test_bash_completes_with_it(tmp_path: Path) -> None:
    """The script in a real bash, which asks the program itself."""
    path = tmp_path / "inspector"
    path.write_text(invoke("completion", "bash").stdout)
    program = tmp_path / "bin/inspector"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd "{REPO}" && exec python -m inspector "$@"\n')
    program.chmod(0o755)
    script = (
        f'PATH="{program.parent}:$PATH"; source "{path}"; COMP_WORDS=(inspector dump --ar); COMP_CWORD=2; '
        '_inspector_completion inspector; printf "%s\\n" "${COMPREPLY[@]}"; complete -p inspector'
    )
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["--arrow", "complete -o nosort -F _inspector_completion inspector"]


def test_the_changelog_is_of_this_version() -> None:
    (found,) = re.findall(r"^## (\S+) \((\S+)\)$", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)[:1]
    assert found == (inspector.__version__, inspector.__released__)
