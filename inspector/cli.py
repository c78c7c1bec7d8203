"""The command line: options in, a capture obtained, a report out, an exit code.

Every command that looks at a machine works on a `Capture`, which is loaded (``--from``) or taken (``--connect``) in
`get_capture` and nowhere else; so both give the same output.

Exit codes (`inspector.findings.ExitCode`): 0 clean; 1 findings; 2 usage, bad input, or a bug in this tool; 3 the target
could not be reached, was lost, or the command was interrupted; 125 nothing could be judged.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

import inspector
from inspector.capture.view import TableView, not_viewed, table_views, vm_title
from inspector.check import CATALOGUE, NOT_SHOWN, run_checks, selected
from inspector.codec import REGISTERS, Geometry, Regime, is_known, levels_of
from inspector.codec import decode as decode_bits
from inspector.compare import changes, compare_views
from inspector.findings import BadInput, ExitCode, InspectorError, Severity, Untestable
from inspector.generations import GENERATIONS, code_of
from inspector.model import ScriptError, StepResult, run_script
from inspector.report import difference, documents, text
from inspector.report.format import Painter, columns, count, size
from inspector.report.sysregs import register_lines
from inspector.report.window import FILTER_HELP, Window, parse_filter, parse_interval, parse_number
from inspector.snapshot import Capture, MmuKind, Mode, Scope
from inspector.tables import reverse as reverse_tree
from inspector.tables import translate

F = TypeVar("F", bound=Callable[..., Any])

#: Options that may stand before or after the command's name; the one after wins.
_SHARED = ("connect", "source", "vmlinux", "image", "memory", "gdb", "as_json", "no_color", "debug")


def _shared_options(function: F) -> F:
    """The options of every command that looks at a machine."""
    options = (
        click.option("--connect", metavar="HOST:PORT|SOCKET", help="The QEMU gdbstub. Also $INSPECTOR_CONNECT."),
        click.option("--from", "source", metavar="FILE", help="A capture file, in place of a connection."),
        click.option(
            "--vmlinux",
            metavar="FILE",
            help="The host kernel's vmlinux (with symbols; debug info or BTF). Also $INSPECTOR_VMLINUX.",
        ),
        click.option(
            "--image",
            metavar="FILE",
            help="The host kernel's Image, plain, gzipped or EFI zboot. Also $INSPECTOR_IMAGE.",
        ),
        click.option(
            "--memory",
            type=click.Choice(["auto", "process", "gdb"]),
            help="How physical memory is read: QEMU's own memory, or through the stub. Default: auto.",
        ),
        click.option("--gdb", metavar="PROGRAM", help="The gdb to use. Default: gdb-multiarch, else gdb."),
    )
    return functools.reduce(lambda f, option: option(f), reversed(options), _output_options(function))


def _output_options(function: F) -> F:
    """The options of every command."""
    options = (
        click.option("--json", "as_json", is_flag=True, default=None, help="JSON on stdout (see docs/schema.md)."),
        click.option("--no-color", is_flag=True, default=None, help="No colour. Also $NO_COLOR; never when piped."),
        click.option("--debug", is_flag=True, default=None, hidden=True, help="Show tracebacks."),
    )
    return functools.reduce(lambda f, option: option(f), reversed(options), function)


class Options:
    """The shared options as given, on either side of the command's name."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.connect: str | None = given.get("connect")
        self.source: str | None = given.get("source")
        self.vmlinux: str | None = given.get("vmlinux")
        self.image: str | None = given.get("image")
        self.memory: str = given.get("memory") or "auto"
        self.gdb: str | None = given.get("gdb")
        self.as_json = bool(given.get("as_json"))
        self.no_color = bool(given.get("no_color"))
        self.debug = bool(given.get("debug"))

    @property
    def paint(self) -> Painter:
        """Colour, if stdout is a terminal that wants it."""
        wanted = not self.no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return Painter(wanted and sys.stdout.isatty())

    def emit(self, document: Callable[[], documents.Document], lines: Callable[[Painter], Iterable[str]]) -> None:
        """Print the document with ``--json``, else the lines."""
        if self.as_json:
            click.echo(json.dumps(document(), indent=2))
            return
        pending: list[str] = []
        for line in lines(self.paint):
            pending.append(line)
            if len(pending) >= 4096:
                click.echo("\n".join(pending), color=True)
                pending.clear()
        if pending:
            click.echo("\n".join(pending), color=True)


def _command(
    *arguments: Any, machine: bool = True, **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function gets `Options` first and returns its exit code (``None``: 0)."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def run(context: click.Context, /, **values: Any) -> None:
            given = dict(context.obj or {})
            given.update({k: values.pop(k) for k in _SHARED if k in values and values[k] is not None})
            for name in _SHARED:
                values.pop(name, None)
            options = Options(given)
            context.obj = given
            code = function(options, **values)
            context.exit(int(code or ExitCode.CLEAN))

        shared = _shared_options if machine else _output_options
        command: click.Command = main_group.command(*arguments, **settings)(shared(run))
        return command

    return decorate


class _Group(click.Group):
    """Lists the commands in the order of definition, and ends in one of our exit codes, whatever happens."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Any = None, prog_name: str | None = None, **settings: Any) -> Any:  # type: ignore[override]
        """Run a command line and exit; `run` without the exit."""
        del prog_name, settings
        sys.exit(run(None if args is None else list(args)))


@click.group(
    "inspector",
    cls=_Group,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 clean, 1 findings, 2 usage or bad input, 3 target not reached, lost, or interrupted, "
    "125 nothing could be judged (no VM, or no table that can be read: what 'git bisect run' skips). "
    "'inspector COMMAND --help' has examples.",
)
@click.version_option(inspector.__version__, prog_name="inspector")
@_shared_options
@click.pass_context
def main_group(context: click.Context, /, **given: Any) -> None:
    """The truth about KVM/arm64 stage-2 page tables, read from a running QEMU or from a capture."""
    context.obj = {name: value for name, value in given.items() if value is not None}


# --- where captures come from ---


@contextmanager
def _progress(debug: bool) -> Iterator[Callable[[str], None]]:
    """Tells on stderr what is going on: only on a terminal, and only after a second."""
    start = time.monotonic()
    shown = 0
    terminal = sys.stderr.isatty()

    def tell(message: str) -> None:
        nonlocal shown
        if debug:
            click.echo(f"{time.monotonic() - start:7.3f}s {message}", err=True)
        elif terminal and time.monotonic() - start > 1:
            click.echo("\r" + message.ljust(shown), nl=False, err=True)
            shown = len(message)

    try:
        yield tell
    finally:
        if shown:
            click.echo("\r" + " " * shown + "\r", nl=False, err=True)


def get_capture(options: Options, scope: Scope) -> Capture:
    """The capture that a command works on: loaded, or taken with just what ``scope`` needs.

    Raises `BadInput` when neither or both are named, or the file lacks what is needed; `TargetLost` as the target does.
    """
    connect = options.connect
    if options.source is not None:
        if connect is not None:
            raise BadInput("--from and --connect exclude each other: a command reads a capture or a machine")
        return _load(options.source, scope)
    connect = connect or os.environ.get("INSPECTOR_CONNECT")
    if not connect:
        raise BadInput(
            "nothing to look at: give a capture with --from FILE, or the gdbstub of a running QEMU with --connect "
            "HOST:PORT (QEMU's -s is localhost:1234)"
        )
    # Imported here: from a file everything works without gdb, pygdbmi and pyelftools being loaded.
    from inspector.capture.take import take
    from inspector.symbols import open_symbols
    from inspector.target.connect import attached

    vmlinux, image = _kernel_files(options)
    memory: Any = options.memory
    with _progress(options.debug) as tell:
        symbols = None
        if vmlinux is not None or image is not None:  # before attaching: the machine stands still from there on
            symbols = open_symbols(vmlinux=vmlinux, image=image, progress=tell)
        with attached(connect, memory=memory, gdb=options.gdb, progress=tell) as target:
            if symbols is None:
                kernel = Path(target.kernel_file) if target.kernel_file else None
                symbols = open_symbols(image=kernel, progress=tell)
            command = " ".join(["inspector", *sys.argv[1:]])
            return take(target, symbols, scope=scope, progress=tell, command=command)


def _kernel_files(options: Options) -> tuple[Path | None, Path | None]:
    """The vmlinux and the Image to use: those given; the environment's only when neither is."""
    given = options.vmlinux, options.image
    if not any(given):
        given = os.environ.get("INSPECTOR_VMLINUX"), os.environ.get("INSPECTOR_IMAGE")
    vmlinux, image = (Path(name) if name else None for name in given)
    return vmlinux, image


def _load(path: str, scope: Scope) -> Capture:
    from inspector.capture.file import load

    capture = load(path)
    if list(Scope).index(capture.scope) < list(Scope).index(scope):
        raise BadInput(
            f"{path} holds only what '{capture.scope}' needs, and this command needs '{scope}': "
            "make one with 'inspector capture'"
        )
    return capture


def choose_views(capture: Capture, name: str | None) -> list[TableView]:
    """The tables of the VM called ``name`` (``vm0``, ``0`` or its VMM's pid), or of all.

    Raises `BadInput` that lists the VMs when there is no such VM, or none at all.
    """
    if not capture.vms:
        raise BadInput("there are no VMs on this host: start one, or take a capture while one runs")
    views = list(table_views(capture))
    if name is None:
        return views
    wanted = [vm for vm in capture.vms if name in (vm.name, vm.name.removeprefix("vm"), str(vm.pid))]
    exact = [vm for vm in wanted if vm.name == name] or wanted
    if not exact:
        raise BadInput(f"there is no VM '{name}': {_vm_list(capture)}")
    chosen = [view for view in views if any(view.vm is vm for vm in exact)]
    if not chosen:
        reasons = "; ".join(mmu.unreadable for vm in exact for mmu in vm.mmus if mmu.unreadable)
        raise BadInput(f"{vm_title(exact[0])} has no table to show: {reasons or 'it has none yet'}")
    return chosen


def _vm_list(capture: Capture) -> str:
    return "the VMs are " + ", ".join(vm_title(vm) for vm in capture.vms)


# --- commands ---


@_command("info", epilog="Example: inspector --connect localhost:1234 info")
def info(options: Options) -> None:
    """The host: kernel, build id, KASLR slide, mode, CPU features, memory."""
    capture = get_capture(options, Scope.VMS)
    options.emit(lambda: documents.info(capture), lambda paint: text.info(capture, paint))


@_command("vms", epilog="Example: inspector --from host.s2cap vms --json")
def vms(options: Options) -> None:
    """Every VM with VTTBR and VTCR decoded, its MMUs, memslots and vCPUs."""
    capture = get_capture(options, Scope.VMS)
    options.emit(lambda: documents.vms(capture), lambda paint: text.vms(capture, paint))


@_command("registers", epilog="Example: inspector --connect :1234 registers")
def registers(options: Options) -> None:
    """Every CPU's registers, decoded, and whether VTTBR_EL2 is in force."""
    capture = get_capture(options, Scope.VMS)
    options.emit(lambda: documents.registers(capture), lambda paint: text.registers(capture, paint))


@_command("memslots", epilog="Example: inspector --from host.s2cap memslots")
def memslots(options: Options) -> None:
    """Every VM's memslots, and what backs them."""
    capture = get_capture(options, Scope.FULL)
    options.emit(lambda: documents.memslots(capture), lambda paint: text.memslots(capture, paint))


@_command(
    "dump",
    epilog="Examples: inspector dump --vm vm0 --filter w,!x | inspector dump --tree --range 0x40000000+2M | "
    "inspector dump --pa 0x80000000-0x80200000",
)
@click.option("--vm", metavar="VM", help="Only this VM: its name (vm0), its number, or its VMM's pid.")
@click.option("--tree", is_flag=True, help="Every table with PA, reference count and raw entries, in walk order.")
@click.option("--range", "ipa", metavar="A-B", help="Only IPAs from A up to B (or A+SIZE).")
@click.option("--pa", metavar="A-B", help="Only what maps PAs from A up to B (or A+SIZE).")
@click.option("--filter", "rule", metavar="EXPR", help=f"Only leaves for which EXPR holds: {FILTER_HELP}.")
def dump(options: Options, vm: str | None, tree: bool, ipa: str | None, pa: str | None, rule: str | None) -> None:
    """Stage-2 tables as merged ranges, or entry by entry."""
    window = Window(
        **({"ipa": parse_interval(ipa)} if ipa else {}),
        **({"pa": parse_interval(pa)} if pa else {}),
        rule=parse_filter(rule) if rule is not None else None,
    )
    capture = get_capture(options, Scope.WALK)
    views = choose_views(capture, vm)
    if tree:
        options.emit(lambda: documents.dump_tree(views, window), lambda paint: text.dump_tree(views, window, paint))
    else:
        options.emit(lambda: documents.dump(views, window), lambda paint: text.dump(views, window, paint))


@_command("walk", epilog="Example: inspector walk 0x40001000 --vm vm0")
@click.argument("ipa", metavar="IPA")
@click.option("--vm", metavar="VM", help="The VM: its name (vm0), its number, or its VMM's pid.")
def walk(options: Options, ipa: str, vm: str | None) -> None:
    """Translate one guest address (IPA), level by level."""
    address = parse_number(ipa, "IPA")
    capture = get_capture(options, Scope.FULL)
    views = [view for view in choose_views(capture, vm) if view.mmu.kind is MmuKind.VM]
    if len({id(view.vm) for view in views}) > 1:
        raise BadInput(f"say which VM with --vm: {_vm_list(capture)}")
    if not views:
        raise BadInput(f"no VM has a table to walk: {_vm_list(capture)}")
    view = views[0]
    translation = translate(_reader(view), view.root_pa, view.geometry, view.format, address)

    def lines(paint: Painter) -> Iterator[str]:
        yield from text.walk(view, translation, paint)
        yield from text.backing_lines(capture, view.vm, address, translation.pa)

    options.emit(lambda: documents.walk(view, translation), lines)


class _NotCaptured(Exception):
    """A page that the capture does not hold; ``reason`` is what `translate` shows."""

    def __init__(self, view: TableView, pa: int) -> None:
        super().__init__(f"{pa:#x}")
        self.reason = view.capture.unreadable.get(pa - pa % view.geometry.granule, "not in the capture")


def _reader(view: TableView) -> Callable[[int, int], bytes]:
    def read(pa: int, length: int) -> bytes:
        found = view.read_many([(pa, length)])[0]
        if found is None:
            raise _NotCaptured(view, pa)
        return found

    return read


@_command("reverse", epilog="Example: inspector reverse 0x48123000")
@click.argument("pa", metavar="PA")
def reverse(options: Options, pa: str) -> None:
    """Which guests map a physical address, and where."""
    address = parse_number(pa, "PA")
    capture = get_capture(options, Scope.WALK)
    found = [(view, reverse_tree(view.tree, address)) for view in choose_views(capture, None)]
    options.emit(lambda: documents.reverse(address, found), lambda paint: text.reverse(address, found, paint))


_GRANULES = {"4k": 12, "16k": 14, "64k": 16}


@_command(
    "decode",
    machine=False,
    epilog="Examples: inspector decode 0x0040000048123fdb --level 3 --fwb | "
    "inspector decode --register vtcr_el2 0x802d3558",
)
@click.argument("value", metavar="VALUE")
@click.option("--register", metavar="NAME", help="VALUE is this system register (vtcr_el2, esr_el2, hpfar_el2 …).")
@click.option("--e2h", is_flag=True, help="HCR_EL2.E2H was set (VHE, hVHE): tcr_el2, ttbr0_el2, cptr_el2 differ.")
@click.option("--level", type=click.IntRange(-1, 3), help="The level of the table VALUE was read from.")
@click.option("--granule", type=click.Choice(list(_GRANULES), case_sensitive=False), default="4k", help="Default: 4k.")
@click.option("--fwb", is_flag=True, help="HCR_EL2.FWB was set.")
@click.option("--lpa2", is_flag=True, help="VTCR_EL2.DS was set (52-bit descriptors).")
@click.option("--xnx", is_flag=True, help="XN has two bits (FEAT_XNX, written by 7.x kernels).")
@click.option(
    "--format",
    "generation",
    type=click.Choice(list(GENERATIONS)),
    default="6.12",
    help="The kernel that wrote the entry, which tells its invalid forms. Default: 6.12.",
)
@click.option("--regime", type=click.Choice(["stage2", "hyp", "linux"]), default="stage2", help="Default: stage2.")
def decode(
    options: Options,
    value: str,
    register: str | None,
    e2h: bool,
    level: int | None,
    granule: str,
    fwb: bool,
    lpa2: bool,
    xnx: bool,
    generation: str,
    regime: str,
) -> None:
    """Decode a descriptor or a system register, offline.

    A register value that no CPU would have is data as well: what is doubtful of it is said, and the exit code is 0.
    """
    number = parse_number(value, "value")
    if register is not None:
        name = register.lower().removesuffix("_e2h")
        e2h = e2h or name != register.lower()
        if not is_known(name):
            known = ", ".join(sorted(one for one in REGISTERS if not one.endswith("_e2h")))
            raise BadInput(f"'{register}' is not a register this tool knows: {known}")
        options.emit(
            lambda: documents.decode_named_register(name, number, e2h), lambda _: register_lines(name, number, e2h)
        )
        return
    if level is None:
        raise BadInput("a descriptor is decoded by its level: give --level, or --register for a register")
    shift = _GRANULES[granule.lower()]
    bits = 52 if lpa2 or shift == 16 else 48
    geometry = Geometry.for_ipa(bits if lpa2 else 48, shift, bits, lpa2)
    kind = {"stage2": Regime.STAGE2, "hyp": Regime.HYP_STAGE1, "linux": Regime.LINUX_STAGE1}[regime]
    levels = levels_of(shift, lpa2, kind is Regime.STAGE2)
    if level not in levels:
        lower = "" if lpa2 or levels == levels_of(shift, True) else f", and {levels[0] - 1} with --lpa2"
        raise BadInput(f"there is no level {level}: a {granule.upper()} granule has levels {levels[0]} to 3{lower}")
    fmt = replace(GENERATIONS[generation].format(kind, fwb=fwb), xnx=xnx)
    found = decode_bits(number, level, geometry, fmt)
    options.emit(lambda: documents.decode_descriptor(found), lambda _: text.descriptor(found))


@_command("capture", epilog="Example: inspector --connect localhost:1234 capture host.s2cap")
@click.argument("out", metavar="OUT")
def capture(options: Options, out: str) -> None:
    """Write all that the other commands need to a file."""
    from inspector.capture.file import save

    directory = Path(out).absolute().parent
    if not directory.is_dir() or Path(out).is_dir():
        raise BadInput(f"cannot write the capture to {out}: there is no such directory, or it is one itself")
    taken = get_capture(options, Scope.FULL)
    save(taken, out)
    length = Path(out).stat().st_size
    said = (
        f"{out}: {count(len(taken.vms), 'VM')}, {count(len(taken.pages), 'table page')}, {size(length)}; "
        f"the machine stood still for {taken.stopped_seconds * 1000:.0f} ms"
    )
    options.emit(lambda: documents.captured(out, taken, length), lambda _: [said])


def _ids(values: tuple[str, ...]) -> list[str]:
    return [part for value in values for part in value.replace(",", " ").split()]


@_command(
    "check",
    epilog="Examples: inspector --from host.s2cap check --json | inspector check --only S3,R1 | inspector check --list"
    ". Exit code 1: a rule is violated; 125: there was nothing that could be judged.",
)
@click.option("--list", "listing", is_flag=True, help="List the checks with the sources of their rules.")
@click.option("--only", multiple=True, metavar="ID[,ID…]", help="Only these checks.")
@click.option("--skip", multiple=True, metavar="ID[,ID…]", help="Not these checks.")
def check(options: Options, listing: bool, only: tuple[str, ...], skip: tuple[str, ...]) -> int:
    """Hold every table against the invariants of a live stage-2; exit 1 if one is violated."""
    chosen = selected(_ids(only), _ids(skip))
    if listing:
        rows = [(one.id, one.statement, one.source) for one in chosen]

        def listed(paint: Painter) -> Iterator[str]:
            for id, statement, source in rows:
                yield from columns(("", ""), [(paint(f"{id:3}", "bold"), statement), ("   ", f"source: {source}")])
            if not only and not skip:
                yield "What one instant cannot show:"
                for one in NOT_SHOWN:
                    lines = [(paint(f"{one.id:3}", "bold"), one.statement), ("   ", f"source: {one.source}")]
                    yield from columns(("", ""), [*lines, ("   ", f"not shown: {one.reason}")])

        options.emit(lambda: documents.catalogue(chosen, () if only or skip else NOT_SHOWN), listed)
        return ExitCode.CLEAN
    capture = get_capture(options, Scope.FULL)
    if not capture.vms:
        raise Untestable(_nothing_to_check(capture))
    found = run_checks(capture, _ids(only), _ids(skip))
    if not any(one.severity is Severity.ERROR for one in found):
        _require_a_table(capture)
    checked = {one.id: CATALOGUE[one.id].statement for one in chosen}
    options.emit(
        lambda: documents.check(found, checked, capture), lambda paint: text.findings(found, checked, capture, paint)
    )
    return ExitCode.FINDINGS if any(one.severity is Severity.ERROR for one in found) else ExitCode.CLEAN


# --- the model ---


def _generation_option(function: F) -> F:
    option = click.option(
        "--generation",
        type=click.Choice(list(GENERATIONS)),
        help="The model of this kernel generation, whatever the kernel. Default: as recognised (see 'info').",
    )
    return option(function)


@_command(
    "diff",
    epilog="Examples: inspector --connect :1234 diff --vm vm0 | inspector diff before.s2cap after.s2cap. "
    "Exit code 1: something differs that nothing legal explains; between two captures: anything. "
    "125: there was nothing that could be judged.",
)
@click.argument("captures", metavar="[BEFORE AFTER]", nargs=-1)
@click.option("--vm", metavar="VM", help="Only this VM: its name (vm0), its number, or its VMM's pid.")
@_generation_option
def diff(options: Options, captures: tuple[str, ...], vm: str | None, generation: str | None) -> int:
    """Live tables against what the model makes of the same mappings; or two captures against each other."""
    if captures:
        return _diff_captures(options, captures, vm, generation)
    capture = get_capture(options, Scope.FULL)
    if not capture.vms:
        raise Untestable(_nothing_to_check(capture))
    kernel = code_of(capture.host, generation)
    compared = list(compare_views(choose_views(capture, vm), kernel))
    if not compared:
        _require_a_table(capture)
    options.emit(
        lambda: difference.comparison_document(compared, kernel, capture),
        lambda paint: difference.comparison(compared, kernel, capture, paint),
    )
    return ExitCode.FINDINGS if any(one.errors for one in compared) else ExitCode.CLEAN


def _diff_captures(options: Options, captures: tuple[str, ...], vm: str | None, generation: str | None) -> int:
    if len(captures) != 2:
        raise BadInput("two captures are compared: inspector diff BEFORE AFTER (or none, for live against modelled)")
    if options.source is not None or options.connect is not None:
        raise BadInput("two captures are compared with each other: leave --from and --connect out")
    if vm is not None or generation is not None:
        raise BadInput("--vm and --generation are for live against modelled: between two captures all is compared")
    found = changes(_load(captures[0], Scope.WALK), _load(captures[1], Scope.WALK))
    options.emit(lambda: difference.changes_document(found), lambda paint: difference.changes(found, paint))
    return ExitCode.CLEAN if found.same else ExitCode.FINDINGS


@_command("model", machine=False, epilog="Example: inspector model fixtures/scripts/review_walkthrough.txt")
@click.argument("script", metavar="SCRIPT")
@_generation_option
def model(options: Options, script: str, generation: str | None) -> None:
    """Run a script of page-table operations on the model: the table after each, and the events it performed."""
    try:
        written = sys.stdin.read() if script == "-" else Path(script).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read the script {script}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{script} is not a script: it is not text") from None
    steps = _run_script(written, generation)
    options.emit(lambda: difference.model_document(steps), lambda paint: difference.model(steps, paint))


def _run_script(written: str, generation: str | None) -> list[StepResult]:
    """The steps of a script; with ``generation``, whatever its ``machine`` lines say.  Raises `ScriptError`."""
    if generation is None:
        return list(run_script(written))
    lines = [_with_generation(line, generation) for line in written.splitlines()]
    steps = []
    try:
        # A machine line of our own comes first, for a script that has none: its numbers are one too high from there.
        for step in run_script("\n".join((f"machine generation={generation}", *lines))):
            steps.append(replace(step, line=step.line - 1))
    except ScriptError as error:
        raise ScriptError(re.sub(r"^line (\d+)", lambda m: f"line {int(m[1]) - 1}", str(error))) from None
    return steps[1:]


def _with_generation(line: str, generation: str) -> str:
    """A script's line with the generation of a ``machine`` line replaced."""
    body, mark, comment = line.partition("#")
    words = body.split()
    if words[:1] != ["machine"]:
        return line
    kept = [word for word in words if not word.startswith("generation=")]
    return " ".join((*kept, f"generation={generation}")) + mark + comment


def _require_a_table(capture: Capture) -> None:
    """Raises `Untestable` with the reasons when not one guest table could be judged."""
    if not any(table_views(capture)):
        left_out = list(not_viewed(capture))
        reasons = "; ".join(dict.fromkeys(reason for _, reason in left_out)) or "no VM has one"
        raise Untestable(f"none of {count(len(left_out), 'guest table')} was judged: {reasons}")


def _nothing_to_check(capture: Capture) -> str:
    if capture.host.mode is Mode.NONE:
        return "KVM is not initialised in the host kernel (switched off, or not built in): there is nothing to check"
    return "there are no VMs: nothing was checked; start one and try again"


# --- the way in and out ---


def _say(message: str) -> None:
    click.echo(f"inspector: {' '.join(message.split())}", err=True)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; raises nothing (but with ``--debug``, what a bug raises)."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        result = click.Group.main(main_group, given, prog_name="inspector", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except InspectorError as error:
        _say(str(error))
        return int(error.exit_code)
    except click.ClickException as error:
        hint = f" (see '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        _say(f"{error.format_message().rstrip('.')}{hint}")
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        _forget_stdout()
        return int(ExitCode.CLEAN)
    except SystemExit as ending:
        # click meets a closed pipe by exiting with 1, which here means findings.
        if not isinstance(ending.__context__, BrokenPipeError):
            raise
        _forget_stdout()
        return int(ExitCode.CLEAN)
    except Exception as error:
        if "--debug" in given:
            raise
        _say(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        return int(ExitCode.USAGE)
    except BaseException as error:
        # SIGTERM and SIGHUP arrive as `Interrupted`. Its module is loaded only where a machine is attached.
        signals = sys.modules.get("inspector.target.signals")
        if signals is None or not isinstance(error, signals.Interrupted):
            raise
        return _interrupted()


def _interrupted() -> int:
    _say("interrupted; the machine was left as it was found")
    return int(ExitCode.TARGET_LOST)


def _forget_stdout() -> None:
    """The reader has seen enough: what is still buffered must not raise again when Python exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
