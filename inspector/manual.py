"""The manual page and the shells' completion, made of the definitions of the command line: nothing is said twice.

The page is in the man(7) macros, which every `man` reads.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

import inspector
from inspector.findings import BadInput

SHELLS = ("bash", "zsh", "fish")
_SECTION = 1


def completion(program: click.Group, shell: str, variable: str) -> str:
    """What a shell of `SHELLS` reads to complete the program's lines; it asks the program itself, by ``variable``."""
    kind = get_completion_class(shell)
    if kind is None or program.name is None:
        raise BadInput(f"completion for {shell} is not known: {', '.join(SHELLS)}")
    return kind(program, {}, program.name, variable).source()


def text_of(words: str) -> str:
    """Words as roff text: what it would obey is quoted, and a line that begins as a request does is none."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    escaped = escaped.replace("^", "\\(ha").replace("~", "\\(ti").replace('"', "\\(dq")
    escaped = "".join(one if one.isascii() else f"\\[u{ord(one):04X}]" for one in " ".join(escaped.split()))
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _lines(words: str) -> Iterator[str]:
    """Words as lines of roff text."""
    yield from map(text_of, textwrap.wrap(words, 60, break_long_words=False, break_on_hyphens=False))


def _option(option: click.Parameter, context: click.Context) -> Iterator[str]:
    shown = option.get_help_record(context)
    if shown is None:
        return
    names, said = shown
    yield from (".TP", f".B {text_of(names)}")
    yield from list(_lines(said)) or ["\\&"]


def _options(command: click.Command, context: click.Context, but: frozenset[str] = frozenset()) -> Iterator[str]:
    for one in command.get_params(context):
        if isinstance(one, click.Option) and one.name not in but:
            yield from _option(one, context)


def _said(text: str | None) -> Iterator[str]:
    """Paragraphs of a help text, and of an epilog: its examples as lines of their own."""
    for paragraph in re.split(r"\n\s*\n", text or ""):
        head, colon, rest = paragraph.strip().partition(": ")
        if colon and head in ("Example", "Examples"):
            # After the last example may come sentences.
            examples, _, after = re.sub(r"\s+", " ", rest).partition(" Exit code")
            yield from (".PP", f"{head}:", ".PP", ".nf", ".RS")
            yield from (
                text_of(one) for one in re.split(r" \| (?=inspector|git bisect)", re.sub(r"(?<=\S)\.$", "", examples))
            )
            yield from (".RE", ".fi")
            if after:
                yield from (".PP", *_lines(f"Exit code{after}"))
        elif paragraph.strip():
            yield from (".PP", *_lines(paragraph))


def _command(command: click.Command, above: click.Context, shared: frozenset[str]) -> Iterator[str]:
    context = click.Context(command, info_name=command.name, parent=above)
    pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    yield f".SS {text_of(' '.join([command.name or '', *pieces]))}"
    yield from list(_said(command.help))[1:]  # a heading begins a paragraph by itself
    yield from _options(command, context, shared)
    yield from _said(command.epilog)


def page(program: click.Group) -> str:
    """The manual page of a program: its own options, then each command with those that only it has."""
    context = click.Context(program, info_name=program.name)
    shared = frozenset(one.name for one in program.get_params(context) if one.name is not None)
    name = program.name or ""
    given = f"kvm\\-stage2\\-inspector {inspector.__version__}"
    lines = [
        f'.TH {name.upper()} {_SECTION} {inspector.__released__} "{given}" "User Commands"',
        ".SH NAME",
        f"{name} \\- inspect the stage\\-2 page tables of KVM/arm64",
        ".SH SYNOPSIS",
        f".B {name}",
        "[OPTIONS] COMMAND [ARGUMENTS]",
        ".SH DESCRIPTION",
        *list(_said(program.help))[1:],
        ".SH OPTIONS",
        *_lines("These may stand before or after the name of a command; not every command has all of them."),
        *_options(program, context),
        ".SH COMMANDS",
    ]
    for one in program.list_commands(context):
        command = program.get_command(context, one)
        if command is not None and not command.hidden:
            lines += _command(command, context, shared)
    lines += [".SH EXIT STATUS", *list(_said(program.epilog))[1:]]
    lines += [".SH ENVIRONMENT", *_environment(program, context)]
    return "\n".join(lines) + "\n"


def _environment(program: click.Group, context: click.Context) -> Iterator[str]:
    """What stands in for options, and is looked at only where the command line leaves them open."""
    for one in program.get_params(context):
        if isinstance(one, click.Option) and isinstance(one.envvar, str):
            yield from (".TP", f".B {text_of(one.envvar)}", f"In place of {text_of(one.opts[0])}.")
    yield from (".TP", ".B NO_COLOR", "Set: no colour.")
