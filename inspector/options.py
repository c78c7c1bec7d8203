"""The options of the command line that commands share, and what they make of them: a capture, a report.

Shared options may stand before or after a command's name; the one after wins.  The environment counts only for what
the command line leaves open.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from inspector import streams
from inspector.budget import DEFAULT
from inspector.capture.source import Again, load_for, take_from, take_of_dump
from inspector.findings import BadInput, InspectorError
from inspector.numbers import parse_number
from inspector.printable import printable
from inspector.report.document import Document, encoded
from inspector.report.format import Painter
from inspector.snapshot import Capture, Scope

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

_PLAIN_NAME = re.compile(r"[\w.][\w.-]*", re.ASCII)

_FILE = click.Path()  # that shells complete it; whether it can be read is told by whoever reads it

_OUTPUT = (
    click.option("--json", "as_json", is_flag=True, default=None, help="JSON on stdout (see docs/schema.md)."),
    click.option("--no-color", is_flag=True, default=None, help="No colour. Also $NO_COLOR; never when piped."),
    click.option("--debug", is_flag=True, default=None, hidden=True, help="Show tracebacks."),
)
_MACHINE = (
    click.option(
        "--connect",
        metavar="HOST:PORT|SOCKET",
        envvar="INSPECTOR_CONNECT",
        help="The QEMU gdbstub. Also $INSPECTOR_CONNECT.",
    ),
    click.option(
        "--core",
        metavar="FILE",
        type=_FILE,
        help="A dump of the whole machine, or /proc/kcore, in place of a connection.",
    ),
    click.option("--from", "source", metavar="FILE", type=_FILE, help="A capture file, in place of a connection."),
    click.option(
        "--vmlinux",
        metavar="FILE",
        type=_FILE,
        envvar="INSPECTOR_VMLINUX",
        help="The host kernel's vmlinux (with symbols; debug info or BTF). Also $INSPECTOR_VMLINUX.",
    ),
    click.option(
        "--image",
        metavar="FILE",
        type=_FILE,
        envvar="INSPECTOR_IMAGE",
        help="The host kernel's Image, packed in whatever way. Also $INSPECTOR_IMAGE.",
    ),
    click.option(
        "--memory",
        type=click.Choice(["auto", "process", "gdb"]),
        help="How physical memory is read: QEMU's own memory, or through the stub. Default: auto.",
    ),
    click.option(
        "--max-memory",
        metavar="SIZE",
        envvar="INSPECTOR_MAX_MEMORY",
        help="What a file holds may take so much memory once unpacked (512M, 8G). Default: 2G. Also "
        "$INSPECTOR_MAX_MEMORY.",
    ),
    click.option("--gdb", metavar="PROGRAM", help="The gdb to use. Default: gdb-multiarch, else gdb."),
)


def shared_options(function: F, machine: bool = True) -> F:
    """Give a command the options of all, and with ``machine`` those of every command that looks at one."""
    options = (*_MACHINE, *_OUTPUT) if machine else _OUTPUT
    return functools.reduce(lambda f, option: option(f), reversed(options), function)


@dataclass(frozen=True)
class Options:
    """The shared options as given; ``environment`` is what the environment has for those that may come from there."""

    connect: str | None = None
    core: str | None = None
    source: str | None = None
    vmlinux: str | None = None
    image: str | None = None
    memory: Literal["auto", "process", "gdb"] = "auto"
    gdb: str | None = None
    max_memory: str | None = None
    as_json: bool = False
    no_color: bool = False
    debug: bool = False
    environment: dict[str, str] | None = None

    @classmethod
    def take(cls, context: click.Context, values: dict[str, Any]) -> Options:
        """The shared options of a command, over those of the group: they are taken out of ``values``."""
        given = dict(context.obj or {})
        environment = dict(given.get("environment", {}))
        for name in cls.__dataclass_fields__.keys() & values.keys():
            value, source = values.pop(name), context.get_parameter_source(name)
            if value is not None:
                (environment if source is ParameterSource.ENVIRONMENT else given)[name] = value
        context.obj = {**given, "environment": environment}
        return cls(**context.obj)

    @property
    def kernel_files(self) -> tuple[Path | None, Path | None]:
        """The vmlinux and the Image to use: those given; the environment's only when neither is."""
        given = self.vmlinux, self.image
        if not any(given):
            known = self.environment or {}
            given = known.get("vmlinux"), known.get("image")
        vmlinux, image = (Path(name) if name else None for name in given)
        return vmlinux, image

    @property
    def most(self) -> int:
        """Bytes of memory that what a file holds may take."""
        given = (self.environment or {}).get("max_memory") if self.max_memory is None else self.max_memory
        return DEFAULT if given is None else parse_number(given, "size")

    def load(self, path: str, scope: Scope) -> Capture:
        """The capture in a file (see `load_for`)."""
        return load_for(path, scope, self.most)

    def capture(self, scope: Scope, again: Again | None = None) -> Capture:
        """The capture to work on: loaded, or taken with just what ``scope`` needs (``again``: see `take_from`).

        Raises `BadInput` when neither or both are named, or the file lacks what is needed; `TargetLost` as the target.
        """
        if self.source is not None:
            if self.core is not None:
                raise BadInput("--from and --core exclude each other: a command reads a capture or a dump")
            if self.connect is not None:
                raise BadInput("--from and --connect exclude each other: a command reads a capture or a machine")
            return self.load(self.source, scope)
        if self.core is not None:
            if self.connect is not None:
                raise BadInput("--core and --connect exclude each other: a command reads a dump or a machine")
            with streams.progress(self.debug) as tell:
                return take_of_dump(self.core, *self.kernel_files, scope=scope, progress=tell, most=self.most)
        connect = self.connect or (self.environment or {}).get("connect")
        if not connect:
            raise BadInput(
                "nothing to look at: give a capture with --from FILE, or the gdbstub of a running QEMU with --connect "
                "HOST:PORT (QEMU's -s is localhost:1234)"
            )
        vmlinux, image = self.kernel_files
        with streams.progress(self.debug) as tell:
            return take_from(
                connect,
                vmlinux,
                image,
                memory=self.memory,
                gdb=self.gdb,
                scope=scope,
                progress=tell,
                again=again,
                most=self.most,
            )

    def emit(
        self,
        document: Callable[P, Document],
        lines: Callable[Concatenate[Painter, P], Iterable[str]],
        *arguments: P.args,
        **named: P.kwargs,
    ) -> None:
        """Print the document with ``--json``, else the lines."""
        if self.as_json:
            pieces = (piece.decode() for piece in encoded(document(*arguments, **named)))
            streams.write(chain(pieces, ("\n",)))
            return
        wanted = not self.no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        paint = Painter(wanted and sys.stdout.isatty())
        streams.write(paint.finished(line) + "\n" for line in lines(paint, *arguments, **named))


def complete_vm(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The VMs of the capture file on the command line, for the shell; nothing of a machine, which would be stopped."""
    source = next((c.params["source"] for c in (context, context.parent) if c and c.params.get("source")), None)
    try:
        vms = load_for(source, Scope.VMS).vms if source else ()
    except InspectorError:
        return []
    # A capture can name a VM as it likes: nothing that a shell or a terminal would obey is put on the user's line.
    names = [vm for vm in vms if vm.name.startswith(incomplete) and _PLAIN_NAME.fullmatch(vm.name)]
    return [CompletionItem(vm.name, help=vm.command and printable(vm.command)) for vm in names]
