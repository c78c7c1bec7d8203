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
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

import inspector
from inspector import manual, report
from inspector.capture.selection import choose_one, choose_own, choose_views, require_tables, require_vms, translate_in
from inspector.capture.source import Again
from inspector.capture.view import View, why_not_judged
from inspector.check import CATALOGUE, NOT_SHOWN, compare_views, in_question, run_checks, selected
from inspector.codec import GRANULES, REGISTERS, Regime, entry_geometry, is_known
from inspector.codec import decode as decode_bits
from inspector.compare import changes
from inspector.findings import BadInput, ExitCode, InspectorError, Severity
from inspector.generations import GENERATIONS, code_of
from inspector.model import run_script
from inspector.numbers import parse_number
from inspector.options import Options, complete_vm, shared_options
from inspector.printable import printable
from inspector.report.format import count
from inspector.report.format import size as size_text
from inspector.report.window import FILTER_HELP, Window, parse_filter, parse_interval
from inspector.snapshot import Capture, OwnKind, Scope
from inspector.streams import OutputFailed, forget, progress, require_stdout, say, write
from inspector.tables import reverse as reverse_tree
from inspector.validate.configurations import NAMES

_COMPLETE = "_INSPECTOR_COMPLETE"
"""Where click finds what a shell wants completed."""

F = TypeVar("F", bound=Callable[..., Any])


def _command(
    *arguments: Any, machine: bool = True, **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command whose function gets `Options` first and returns its exit code (``None``: 0)."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        @click.pass_context
        @functools.wraps(function)
        def run(context: click.Context, /, **values: Any) -> None:
            code = function(Options.take(context, values), **values)
            context.exit(int(code or ExitCode.CLEAN))

        command: click.Command = main_group.command(*arguments, **settings)(shared_options(run, machine))
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
@shared_options
@click.pass_context
def main_group(context: click.Context, /, **given: Any) -> None:
    """The truth about KVM/arm64 stage-2 page tables, read from a running QEMU or from a capture."""
    Options.take(context, given)


def get_capture(options: Options, scope: Scope, again: Again | None = None) -> Capture:
    """The capture that a command works on (see `Options.capture`)."""
    return options.capture(scope, again)


def _vm_option(what: str) -> Callable[[F], F]:
    text = f"{what}: its name (vm0), its number, or its VMM's pid."
    return click.option("--vm", metavar="VM", help=text, shell_complete=complete_vm)


def _html_option(what: str) -> Callable[[F], F]:
    return click.option("--html", metavar="FILE", type=click.Path(), help=f"{what}.")


def _require_html(path: str | None) -> None:
    """Raises `BadInput` when no file could get this name, before any work is done."""
    if path is not None and not Path(os.path.realpath(path)).parent.is_dir():
        raise BadInput(f"{path} cannot be written: there is no such directory")
    if path is not None and Path(path).is_dir():
        raise BadInput(f"{path} cannot be written: it is a directory")


def _write_html(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from None


_OWN = {"hyp": OwnKind.HYP, "host": OwnKind.HOST}


def _own_options(function: F) -> F:
    for name, text in (
        ("host", "pKVM: the host's own stage-2, with its annotations, in place of the guests'."),
        ("hyp", "EL2's own stage-1 (nVHE, hVHE, pKVM) in place of the guests' tables; addresses are VAs."),
    ):
        function = click.option(f"--{name}", "own", flag_value=name, default=None, help=text)(function)
    return function


def _own_kind(own: str | None, vm: str | None) -> OwnKind | None:
    """Which of the host's own tables is asked for.  Raises `BadInput` when a VM is, too."""
    if own is not None and vm is not None:
        raise BadInput(f"--{own} is a table of the host, and no VM's: leave --vm out")
    return None if own is None else _OWN[own]


# --- commands ---


@_command("info", epilog="Example: inspector --connect localhost:1234 info")
def info(options: Options) -> None:
    """The host: kernel, build id, KASLR slide, mode, CPU features, memory."""
    options.emit(report.host.info_document, report.host.info_lines, get_capture(options, Scope.VMS))


@_command("vms", epilog="Example: inspector --from host.s2cap vms --json")
def vms(options: Options) -> None:
    """Every VM with VTTBR and VTCR decoded, its MMUs, memslots and vCPUs."""
    options.emit(report.vms.document, report.vms.lines, get_capture(options, Scope.VMS))


@_command("registers", epilog="Example: inspector --connect :1234 registers")
def registers(options: Options) -> None:
    """Every CPU's registers, decoded, and whether VTTBR_EL2 is in force."""
    options.emit(report.host.registers_document, report.host.registers_lines, get_capture(options, Scope.VMS))


@_command("memslots", epilog="Example: inspector --from host.s2cap memslots")
def memslots(options: Options) -> None:
    """Every VM's memslots, and what backs them."""
    options.emit(report.memslots.document, report.memslots.lines, get_capture(options, Scope.FULL))


@_command(
    "dump",
    epilog="Examples: inspector dump --vm vm0 --filter w,!x | inspector dump --tree --range 0x40000000+2M | "
    "inspector dump --pa 0x80000000-0x80200000 | inspector dump --hyp --filter x --json | "
    "inspector --from host.s2cap dump --html tables.html | inspector dump --arrow tables.arrow",
)
@_vm_option("Only this VM")
@_own_options
@click.option("--tree", is_flag=True, help="Every table with PA, reference count and raw entries, in walk order.")
@click.option("--range", "ipa", metavar="A-B", help="Only IPAs from A up to B (or A+SIZE).")
@click.option("--pa", metavar="A-B", help="Only what maps PAs from A up to B (or A+SIZE).")
@click.option("--filter", "rule", metavar="EXPR", help=f"Only leaves for which EXPR holds: {FILTER_HELP}.")
@click.option(
    "--arrow", metavar="FILE", type=click.Path(), help="Write the merged ranges as an Arrow file (docs/schema.md)."
)
@_html_option("Draw the tables, and what 'check' finds in them, into one HTML file that fetches nothing")
def dump(
    options: Options,
    vm: str | None,
    own: str | None,
    tree: bool,
    ipa: str | None,
    pa: str | None,
    rule: str | None,
    arrow: str | None,
    html: str | None,
) -> None:
    """Guests' stage-2 tables, or one of the host's own, as merged ranges, or entry by entry; or drawn."""
    if html is not None:
        if tree or ipa or pa or rule is not None or arrow is not None:
            raise BadInput(
                "--html draws whole tables, and zooms: leave --tree, --range, --pa, --filter and --arrow out"
            )
        if own is not None:
            raise BadInput(f"--html draws guests' tables: leave --{own} out")
        _draw(options, vm, html)
        return
    window = Window(
        **({"ipa": parse_interval(ipa)} if ipa else {}),
        **({"pa": parse_interval(pa)} if pa else {}),
        rule=parse_filter(rule) if rule is not None else None,
    )
    kind = _own_kind(own, vm)
    if arrow is not None:
        if tree:
            raise BadInput("--arrow writes merged ranges: leave --tree out")
        report.arrow.require(arrow)
    capture = get_capture(options, Scope.WALK)
    views = choose_views(capture, vm) if kind is None else [choose_own(capture, kind)]
    if arrow is not None:
        _write_arrow(options, views, window, arrow)
    elif tree:
        options.emit(report.dump.tree_document, report.dump.tree_lines, views, window)
    else:
        options.emit(report.dump.ranges_document, report.dump.ranges_lines, views, window)


def _draw(options: Options, vm: str | None, path: str) -> None:
    """`inspector dump --html`: everything of a capture that can be seen, with the findings of every rule."""
    from inspector.report.html.dump import html

    _require_html(path)
    capture = get_capture(options, Scope.FULL, (_LOOKS_AGAIN, in_question))
    views = choose_views(capture, vm)
    found = run_checks(capture)
    _write_html(path, html(views, found, [one.id for one in selected([], [])], capture))
    if options.as_json:
        options.emit(report.dump.ranges_document, report.dump.ranges_lines, views, Window())
    else:
        size = size_text(-(-Path(path).stat().st_size // 1024) * 1024)
        errors = sum(one.severity is Severity.ERROR for one in found)
        said = ", ".join(map(count, (len(views), errors, len(found) - errors), ("table", "error", "note")))
        write((f"{printable(path)}: {said}, {size}\n",))


@_command(
    "walk",
    epilog="Examples: inspector walk 0x40001000 --vm vm0 | inspector walk --hyp 0x800040bc3000 --json | "
    "inspector walk 0x10000 --vm vm0 --shadow 3",
)
@click.argument("ipa", metavar="ADDRESS")
@_vm_option("The VM")
@_own_options
@click.option("--shadow", type=click.IntRange(0, 0xFFFF), metavar="VMID", help="The shadow table with this VMID.")
def walk(options: Options, ipa: str, vm: str | None, own: str | None, shadow: int | None) -> None:
    """Translate one guest address (IPA), or one of the host's own tables' (--hyp: a VA), level by level.

    Through a shadow table (--shadow, as 'vms' names it) an address of a nested guest: beside it what the guest
    hypervisor's own stage-2 makes of the address, and what is behind that.
    """
    kind = _own_kind(own, vm)
    if kind is not None and shadow is not None:
        raise BadInput(f"--{own} and --shadow are two different tables: leave one out")
    address = parse_number(ipa, "VA" if kind is OwnKind.HYP else "IPA")
    capture = get_capture(options, Scope.FULL if kind is None else Scope.WALK)
    view = choose_one(capture, vm, shadow) if kind is None else choose_own(capture, kind)
    options.emit(report.walk.document, report.walk.lines, view, translate_in(view, address))


def _write_arrow(options: Options, views: Sequence[View], window: Window, path: str) -> None:
    """`inspector dump --arrow`: the file, and beside it the document, or a line that says what is in the file."""
    ranges = report.arrow.write(path, views, window)
    if options.as_json:
        options.emit(report.dump.ranges_document, report.dump.ranges_lines, views, window)
        return
    problems = sum(len(view.tree.problems) for view in views)
    rest = f"; not in it: {count(problems, 'problem')}, which 'dump' shows" if problems else ""
    write((f"{printable(path)}: {count(ranges, 'range')} of {count(len(views), 'table')}{rest}\n",))


_PA_BITS = 56  # with FEAT_D128; 52 without (DDI 0487 D8.1)


@_command("reverse", epilog="Example: inspector reverse 0x48123000")
@click.argument("pa", metavar="PA")
def reverse(options: Options, pa: str) -> None:
    """Which guests map a physical address, and where."""
    address = parse_number(pa, "PA")
    if address >> _PA_BITS:
        raise BadInput(f"{address:#x} is not a physical address: those have at most {_PA_BITS} bits")
    capture = get_capture(options, Scope.WALK)
    found = [(view, reverse_tree(view.tree, address)) for view in choose_views(capture, None)]
    options.emit(report.reverse.document, report.reverse.lines, address, found)


_REGIMES = {"stage2": Regime.STAGE2, "hyp": Regime.HYP_STAGE1, "linux": Regime.LINUX_STAGE1}


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
@click.option("--granule", type=click.Choice(list(GRANULES), case_sensitive=False), default="4k", help="Default: 4k.")
@click.option("--fwb", is_flag=True, help="HCR_EL2.FWB was set.")
@click.option("--lpa2", is_flag=True, help="VTCR_EL2.DS was set (52-bit descriptors).")
@click.option("--xnx", is_flag=True, help="XN has two bits (FEAT_XNX, written by 6.19 and later).")
@click.option(
    "--format",
    "generation",
    type=click.Choice(list(GENERATIONS)),
    default="6.12",
    help="The kernel that wrote the entry, which tells its invalid forms. Default: 6.12.",
)
@click.option("--regime", type=click.Choice(list(_REGIMES)), default="stage2", help="Default: stage2.")
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
        options.emit(report.sysregs.document, report.sysregs.lines, name, number, e2h)
        return
    if level is None:
        raise BadInput("a descriptor is decoded by its level: give --level, or --register for a register")
    kind = _REGIMES[regime]
    try:
        geometry = entry_geometry(level, granule, lpa2, kind is Regime.STAGE2)
    except ValueError as error:
        raise BadInput(str(error)) from None
    fmt = replace(GENERATIONS[generation].format(kind, fwb=fwb), xnx=xnx)
    found = decode_bits(number, level, geometry, fmt)
    options.emit(report.decode.document, report.decode.lines, found)


@_command("capture", epilog="Example: inspector --connect localhost:1234 capture host.s2cap")
@click.argument("out", metavar="OUT")
@click.option(
    "--looks",
    type=click.IntRange(1, 100),
    default=1,
    help="Look so many times, within two seconds, at what one look leaves open, for 'check --from'. Default: 1.",
)
def capture(options: Options, out: str, looks: int) -> None:
    """Write all that the other commands need to a file."""
    from inspector.capture.file import require_writable, save

    require_writable(out)
    taken = get_capture(options, Scope.FULL, (looks - 1, in_question))
    save(taken, out)
    options.emit(report.capture.document, report.capture.lines, out, Path(out).stat().st_size, taken)


_LOOKS_AGAIN = 4
"""How many more times ``check`` looks at what one look at a running machine leaves open."""


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
    """Hold every table against the invariants of a live stage-2 (and EL2's own tables); exit 1 if one is violated."""
    chosen = selected(_ids(only), _ids(skip))
    if listing:
        unseen = () if only or skip else NOT_SHOWN
        options.emit(report.check.list_document, report.check.list_lines, chosen, unseen)
        return ExitCode.CLEAN
    again = partial(in_question, only=_ids(only), skip=_ids(skip))
    capture = get_capture(options, Scope.FULL, (_LOOKS_AGAIN, again))
    found = run_checks(capture, _ids(only), _ids(skip))
    if not any(one.severity is Severity.ERROR for one in found):  # of the host's own tables there may be some
        require_tables(require_vms(capture), own_judged=True)
    checked = {one.id: CATALOGUE[one.id].statement for one in chosen}
    options.emit(report.check.document, report.check.lines, found, checked, capture)
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
    epilog="Examples: inspector --connect :1234 diff --vm vm0 | inspector diff before.s2cap after.s2cap | "
    "inspector diff before.s2cap after.s2cap --html changed.html. "
    "Exit code 1: something differs that nothing legal explains; between two captures: anything. "
    "125: there was nothing that could be judged.",
)
@click.argument("captures", metavar="[BEFORE AFTER]", nargs=-1)
@_vm_option("Only this VM")
@_generation_option
@_html_option("Also draw what differs, or what changed, into one HTML file that fetches nothing")
def diff(options: Options, captures: tuple[str, ...], vm: str | None, generation: str | None, html: str | None) -> int:
    """Live tables against what the model makes of the same mappings; or two captures against each other."""
    if captures:
        return _diff_captures(options, captures, vm, generation, html)
    _require_html(html)
    capture = require_vms(get_capture(options, Scope.FULL))
    kernel = code_of(capture.host, generation)
    views = [view for view in choose_views(capture, vm) if why_not_judged(view) is None]
    compared = compare_views(views, kernel)
    if not compared:
        require_tables(capture)
    if html is not None:
        from inspector.report.html.dump import model_html

        _write_html(html, model_html(compared, kernel, capture))
    options.emit(report.diff.document, report.diff.lines, compared, kernel, capture)
    return ExitCode.FINDINGS if any(one.errors for one in compared) else ExitCode.CLEAN


def _diff_captures(
    options: Options, captures: tuple[str, ...], vm: str | None, generation: str | None, html: str | None
) -> int:
    if len(captures) != 2:
        raise BadInput("two captures are compared: inspector diff BEFORE AFTER (or none, for live against modelled)")
    if options.source is not None or options.connect is not None:
        raise BadInput("two captures are compared with each other: leave --from and --connect out")
    if vm is not None or generation is not None:
        raise BadInput("--vm and --generation are for live against modelled: between two captures all is compared")
    _require_html(html)
    found = changes(*(options.load(path, Scope.WALK) for path in captures))
    if html is not None:
        from inspector.report.html.diff import html as drawn

        _write_html(html, drawn(found))
    options.emit(report.changes.document, report.changes.lines, found)
    return ExitCode.CLEAN if found.same else ExitCode.FINDINGS


_LONGEST_SCRIPT = 1 << 22
"""Bytes: a hundred thousand operations.  A device has no end."""


@_command("model", machine=False, epilog="Example: inspector model fixtures/scripts/review_walkthrough.txt")
@click.argument("script", metavar="SCRIPT")
@_generation_option
def model(options: Options, script: str, generation: str | None) -> None:
    """Run a script of page-table operations on the model: the table after each, and the events it performed."""
    try:
        if script == "-" and sys.stdin is None:
            raise BadInput("cannot read the script: standard input is closed")
        with contextlib.nullcontext(sys.stdin.buffer) if script == "-" else Path(script).open("rb") as file:
            read = file.read(_LONGEST_SCRIPT + 1)
        if len(read) > _LONGEST_SCRIPT:
            raise BadInput(f"the script {script} is longer than {_LONGEST_SCRIPT} bytes")
        written = read.decode()
    except OSError as error:
        raise BadInput(f"cannot read the script {script}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{script} is not a script: it is not text") from None
    steps = list(run_script(written, generation))
    options.emit(report.model.document, report.model.lines, steps)


# --- a kernel's code ---


_OPERATIONS = 20_000
"""What `inspector crosscheck` compares unless told otherwise: a few seconds."""


@_command(
    "crosscheck",
    machine=False,
    epilog="Examples: inspector crosscheck ~/linux | inspector crosscheck ~/linux --patch 0001-foo.patch --baseline "
    "~/linux | inspector crosscheck --source linux-source-6.12 --ops 200000 | inspector crosscheck ~/linux --baseline "
    "v6.12 | inspector crosscheck ~/linux --replay crosscheck-repro.txt | git bisect run inspector crosscheck . "
    "Exit code 1: the kernel's code differs from the model or the baseline, or misuses memory; 2: bad input; 3: "
    "interrupted, what was found so far is shown; 125: it could not be tested (it does not compile here, say).",
)
@click.argument("tree", metavar="[TREE]", type=click.Path(), required=False)
@click.option("--source", "package", metavar="PACKAGE", help="Debian's source package in place of TREE.")
@click.option("--patch", "patches", metavar="FILE", type=click.Path(), multiple=True, help="Put on a copy; repeatable.")
@click.option("--series", is_flag=True, help="A verdict after each patch.")
@click.option("--baseline", metavar="TREE|REV", help="Another kernel, or a git revision of TREE, to compare it with.")
@click.option("--ops", metavar="N", type=click.IntRange(1), help=f"Operations. Default: {_OPERATIONS}.")
@click.option("--seconds", metavar="N", type=click.FloatRange(0, min_open=True), help="Stop comparing after so long.")
@click.option("--seed", metavar="N", type=click.IntRange(0), default=1, help="Seed of the operations. Default: 1.")
@click.option(
    "--granule",
    "granules",
    type=click.Choice(list(GRANULES), case_sensitive=False),
    multiple=True,
    help="Only tables of this page size; repeatable. Default: all.",
)
@click.option(
    "--reproducer",
    metavar="FILE",
    type=click.Path(),
    default="crosscheck-repro.txt",
    help="Where a difference is written to. Default: crosscheck-repro.txt.",
)
@click.option("--replay", metavar="FILE", type=click.Path(), help="Only run this reproducer: 1 if it still differs.")
@click.option("--jobs", metavar="N", type=click.IntRange(1, 1024), help="Processes. Default: a CPU each, up to 8.")
@click.option("--scheduler", metavar="ADDRESS", help="Spread the work over a Dask cluster (tcp://host:8786).")
@click.option(
    "--cpus",
    type=click.IntRange(2, 3),
    default=2,
    help="So many operations at once, in every order. Default: 2.",
)
@click.option(
    "--preemptions",
    metavar="N",
    type=click.IntRange(0, 8),
    default=2,
    help="At most so many switches to another CPU in the middle of an operation. Default: 2.",
)
@click.option("--sanitize", is_flag=True, help="Check each access of the kernel's code as well (KASAN's way, UBSan).")
@click.option("--no-interleave", is_flag=True, help="One operation after the other only.")
@click.option("--no-coverage", is_flag=True, help="Do not count which lines ran.")
@click.option("--uncovered-ok", is_flag=True, help="A changed line that never ran does not spoil a clean verdict.")
@click.option("--ktap", is_flag=True, help="The verdict as KTAP, a test a part.")
def crosscheck(
    options: Options,
    tree: str | None,
    package: str | None,
    patches: tuple[str, ...],
    series: bool,
    baseline: str | None,
    ops: int | None,
    seconds: float | None,
    seed: int,
    granules: tuple[str, ...],
    reproducer: str,
    replay: str | None,
    jobs: int | None,
    scheduler: str | None,
    cpus: int,
    preemptions: int,
    sanitize: bool,
    no_interleave: bool,
    no_coverage: bool,
    uncovered_ok: bool,
    ktap: bool,
) -> int:
    """A kernel tree's page-table code, compiled for this machine and held against the model; nothing is booted.

    TREE is a kernel tree (git or not), its tarball, or a linux-source package's file.
    """
    from inspector.target.signals import Interrupted, signals_raise

    if tree is None and package is None:
        raise BadInput("nothing to check: name a kernel tree, or a source package with --source")
    if tree is not None and package is not None:
        raise BadInput("TREE and --source exclude each other: one kernel is checked")
    if ktap and options.as_json:
        raise BadInput("--json and --ktap exclude each other")
    if series and not patches:
        raise BadInput("--series is about patches: name them with --patch")
    with signals_raise():
        try:
            from inspector.crosscheck.run import Request, default_cache
            from inspector.crosscheck.run import run as run_crosscheck
            from inspector.crosscheck.sequential import Budget

            budget = Budget(
                ops if ops is not None or seconds is not None else _OPERATIONS,
                seconds,
                seed,
                tuple(dict.fromkeys(granules)) or tuple(GRANULES),
                jobs or min(len(os.sched_getaffinity(0)), 8),
                scheduler,
            )
            request = Request(
                Path(tree) if tree is not None else None,
                default_cache(),
                budget,
                package=package,
                patches=[Path(file) for file in patches],
                series=series,
                baseline=baseline,
                reproducer=Path(reproducer),
                replay=Path(replay) if replay is not None else None,
                cpus=0 if no_interleave else cpus,
                preemptions=preemptions,
                sanitize=sanitize,
                coverage=not no_coverage,
                uncovered_ok=uncovered_ok,
            )
            with progress(options.debug) as tell:
                verdict = run_crosscheck(request, tell)
            shown = report.crosscheck.ktap if ktap else report.crosscheck.lines
            if verdict.parts or not verdict.interrupted or options.as_json:
                options.emit(report.crosscheck.document, shown, verdict)
        except (KeyboardInterrupt, Interrupted):
            say("interrupted; nothing had been compared yet")
            return ExitCode.TARGET_LOST
    if verdict.interrupted:
        say("interrupted; " + ("the verdict is what was found so far" if verdict.parts else "nothing was compared yet"))
    return verdict.code


# --- what happens between two instants ---


@_command(
    "trace",
    epilog="Examples: inspector trace --run-dir DIR --for 10 -o run.s2trace | ./run_qemu.sh trace | "
    "inspector trace --run-dir DIR --since start --for 2 --json | "
    "inspector trace --connect :1234 --for 30 -o run.s2trace | inspector trace --connect :1234 -- ./workload.sh. "
    "Exit code 1: a rule is broken, or an operation does other than the model; 2: no machine is named, or it was not "
    "started to be traced; 3: interrupted, or the target was lost; 125: nothing could be followed.",
)
@_vm_option("Only operations on this VM's tables")
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="Keep the trace, for `inspector replay`.")
@click.option("--for", "seconds", metavar="SECONDS", type=click.FloatRange(0), help="Until then. Default: Ctrl-C.")
@click.option("--until-exit", is_flag=True, help="Until the machine is gone.")
@click.option(
    "--source",
    "events",
    type=click.Choice(["plugin", "gdb"]),
    help="Where events come from: the probe of a machine that was started to be traced, or any QEMU's gdbstub. "
    "Default: gdb with --connect, else what the machine offers.",
)
@click.option(
    "--since",
    type=click.Choice(["start", "now"]),
    help="Of the probe's: all since the machine's start, or from now on, beginning with a capture of the tables that "
    "are there. Default: now, but of a machine that has ended, and with --for 0, since its start.",
)
@click.option(
    "--run-dir", metavar="DIR", type=click.Path(), envvar="INSPECTOR_RUN_DIR", help="The machine's run folder."
)
@click.argument("command", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
def trace(
    options: Options,
    vm: str | None,
    output: str | None,
    seconds: float | None,
    until_exit: bool,
    events: str | None,
    since: Literal["start", "now"] | None,
    run_dir: str | None,
    command: tuple[str, ...],
) -> int:
    """Follow every stage-2 operation, and hold each to protocol and model; with CMD, as long as that runs.

    By the probe with every store to a table (./run_qemu.sh start --trace), from a capture on or since the machine's
    start; by gdb from now on, each operation's arguments, return and invalidations.  Nothing is written to the machine
    but breakpoints.
    """
    from inspector.trace.command import Wanted, traced

    if options.core is not None:
        raise BadInput("--core is a dump, one instant: a trace is of a machine (--connect), or a file for 'replay'")
    if options.source is not None:
        raise BadInput("--from is a capture, one instant: a trace is of a machine (--connect), or a file for 'replay'")
    if until_exit and (seconds is not None or command):
        raise BadInput("--until-exit, --for and CMD exclude each other: one of them ends the trace")
    if seconds is not None and command:
        raise BadInput("--for and CMD exclude each other: one of them ends the trace")
    known = options.environment or {}
    wanted = Wanted(
        source=events,
        folder=Path(run_dir) if run_dir is not None else None,
        connect=options.connect,
        connect_by_default=known.get("connect"),
        kernel_files=options.kernel_files,
        memory=options.memory,
        gdb=options.gdb,
        most=options.most,
        seconds=seconds,
        command=command,
        vm=vm,
        since=since,
    )
    with progress(options.debug) as tell:
        followed, interrupted = traced(wanted, Path(output) if output is not None else None, tell)
    options.emit(report.trace.document, report.trace.lines, followed, "trace")
    if interrupted:
        say(interrupted)
        return ExitCode.TARGET_LOST
    return report.trace.code_of(followed)


@_command(
    "replay",
    machine=False,
    epilog="Examples: inspector replay run.s2trace --json | inspector replay run.s2trace --explain 18 | "
    "inspector replay run.s2trace --entry 0x40001000 --table 3 | inspector replay run.s2trace --until 200 | "
    "inspector replay run.s2trace --html run.html",
)
@click.argument("file", metavar="FILE", type=click.Path())
@click.option("--explain", metavar="N", type=click.IntRange(1), help="Operation N, event by event.")
@click.option("--entry", metavar="IPA", help="All that happened to the translation of this address.")
@click.option("--table", metavar="N", type=click.IntRange(1), help="With --entry: of this table alone.")
@click.option("--until", metavar="N", type=click.IntRange(1), help="The tables as they were when operation N returned.")
@_html_option("Also draw all operations, with the findings, into one HTML file that fetches nothing")
def replay(
    options: Options,
    file: str,
    explain: int | None,
    entry: str | None,
    table: int | None,
    until: int | None,
    html: str | None,
) -> int:
    """The verdict on a trace again, without the machine; or one operation, one entry's life, the tables at one time."""
    from inspector.trace import story
    from inspector.trace.follow import replay as replay_file

    if sum(each is not None for each in (explain, entry, until)) > 1:
        raise BadInput("--explain, --entry and --until are three questions: ask one at a time")
    if table is not None and entry is None:
        raise BadInput("--table is of --entry: give the address too")
    if html is not None and (explain, entry, until) != (None, None, None):
        raise BadInput("--html draws the whole trace: leave --explain, --entry and --until out")
    if explain is not None:
        options.emit(report.story.explained, report.story.explained_lines, story.explain(Path(file), explain))
        return ExitCode.CLEAN
    if entry is not None:
        ipa = parse_number(entry, "IPA")
        options.emit(report.story.life, report.story.life_lines, ipa, story.life(Path(file), ipa, table))
        return ExitCode.CLEAN
    if until is not None:
        options.emit(report.story.then, report.story.then_lines, until, story.state(Path(file), until))
        return ExitCode.CLEAN
    _require_html(html)
    followed = replay_file(Path(file))
    if html is not None:
        from inspector.report.html.trace import replay_html
        from inspector.trace.timeline import course

        found = report.trace.judged(followed), report.trace.unlike(followed)
        _write_html(html, replay_html(followed, course("trace", Path(file), *found)))
    options.emit(report.trace.document, report.trace.lines, followed, "replay")
    if followed.cut:
        say("the file ends in the middle of a block: the verdict is on what is before")
    return report.trace.code_of(followed)


@_command(
    "inject",
    epilog="Examples: inspector inject --list | inspector inject --matrix no-tlbi --kernel 6.12 -o cells.jsonl | "
    "./run_qemu.sh start --trace && ./run_qemu.sh run -- inspector inject no-tlbi --json. "
    "Exit code 1: a fault of the matrix was found by no rule that owns it; 125: one could not be injected.",
)
@click.argument("faults", metavar="[FAULT]...", nargs=-1)
@click.option("--list", "wanted", flag_value="list", help="The faults, and what finds each.")
@click.option(
    "--matrix", "wanted", flag_value="matrix", help="Each fault in a traced machine of its own, and its rules."
)
@click.option(
    "--kernel", "kernels", metavar="WHAT", multiple=True, help="With --matrix: as of run_qemu.sh. Repeatable."
)
@click.option(
    "--mode", type=click.Choice(["nvhe", "hvhe"]), help="With --matrix: KVM's. Default: as the kernel chooses."
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(), help="With --matrix: cells that are done, kept.")
@click.option(
    "--for", "seconds", metavar="SECONDS", type=click.FloatRange(0), default=60, help="Wait so long. Default: 60."
)
def inject(
    options: Options,
    faults: tuple[str, ...],
    wanted: str | None,
    kernels: tuple[str, ...],
    mode: str | None,
    output: str | None,
    seconds: float,
) -> int:
    """Break something in a running host kernel, once, to see that it is found. This writes to the target.

    gdb stops the kernel where the fault is, changes registers, takes its breakpoint away and lets go. The machine is of
    no use for anything else afterwards.
    """
    from inspector.inject.catalogue import FAULTS
    from inspector.inject.matrix import run_matrix
    from inspector.inject.perform import inject as perform

    for name in faults:
        if name not in FAULTS:
            raise BadInput(f"there is no fault '{name}': inspector inject --list names them")
    if wanted == "list":
        options.emit(report.inject.listed, report.inject.listed_lines)
        return ExitCode.CLEAN
    if wanted == "matrix":
        path = Path(output) if output is not None else None
        with progress(options.debug) as tell:
            cells = list(run_matrix(faults or tuple(FAULTS), kernels or ("",), mode or "", path, tell))
        options.emit(report.inject.matrix, report.inject.matrix_lines, cells)
        return report.inject.code_of(cells)
    if len(faults) != 1:
        raise BadInput("which fault? One at a time, or --matrix; inspector inject --list names them")
    connect = options.connect or (options.environment or {}).get("connect")
    if not connect:
        raise BadInput("into which machine? Give the gdbstub of a running QEMU with --connect HOST:PORT")
    vmlinux, image = options.kernel_files
    say(f"this writes to the target: {FAULTS[faults[0]].what}; its kernel is broken from then on")
    with progress(options.debug) as tell:
        done = perform(FAULTS[faults[0]], connect, image, vmlinux, seconds, tell, gdb=options.gdb)
    options.emit(report.inject.injected, report.inject.injected_lines, done)
    return ExitCode.CLEAN if done.done else ExitCode.UNTESTABLE


@_command(
    "validate",
    machine=False,
    epilog="Examples: inspector validate --tree ~/linux --baseline v6.12 | inspector validate --source "
    "linux-source-6.12 --patch 0001-foo.patch --quick --json | git bisect run inspector validate --tree . --quick | "
    "inspector validate --kernel arch/arm64/boot/Image --vmlinux vmlinux --junit report.xml --html report.html | "
    "inspector validate --kernel 6.12 --quick --selftests linux-source-6.12 | inspector validate --kernel 6.12 --full "
    "--scheduler tcp://host:8786 --resume cells. "
    "Exit code 1: something was found; 3: interrupted; 125: something could not be tested (it does not build, a patch "
    "does not apply), and nothing was found.",
)
@click.option(
    "--kernel", metavar="WHAT", help="As of run_qemu.sh: an Image, or a kernel of Debian's. Nothing is built."
)
@click.option("--vmlinux", "vmlinux_file", metavar="FILE", default="", help="That kernel's.")
@click.option("--baseline-kernel", metavar="WHAT", default=None, help="Say what is different from this one.")
@click.option("--baseline-vmlinux", metavar="FILE", default="", help="The baseline's.")
@click.option("--tree", metavar="TREE", help="Cross-check this tree, tarball or package, and build it unless --kernel.")
@click.option("--source", "package", metavar="PACKAGE", help="The same of Debian's package, e.g. linux-source-6.12.")
@click.option("--patch", "patches", metavar="FILE", multiple=True, help="Put on a copy of that. Repeatable.")
@click.option(
    "--baseline",
    metavar="WHAT",
    help="Build this too, and say what is different: a git revision of the tree, a tree, a package. Default with "
    "--source and --patch: the package unpatched.",
)
@click.option("--page-size", type=click.Choice(list(GRANULES)), default="4k", help="Of a kernel that is built.")
@click.option("--debug-kernel", is_flag=True, help="Build it with KASAN, lockdep and the like.")
@click.option("--quick", "depth", flag_value="quick", help="One configuration, no random actions.")
@click.option("--full", "depth", flag_value="full", help="Every configuration, 2,000 random actions in each.")
@click.option(
    "--configuration",
    "configurations",
    type=click.Choice(NAMES),
    multiple=True,
    help="Only this one, of those of --full. Repeatable.",
)
@click.option(
    "--selftests",
    metavar="SOURCE",
    help="Also run the KVM selftests of this tree, tarball or package (linux-source-6.12) that work on guests' memory.",
)
@click.option("--seed", type=click.IntRange(0), default=1, help="Of the random actions. Default: 1.")
@click.option(
    "--deterministic",
    is_flag=True,
    help="Machines that do the same each time (one CPU, time counted in instructions): the baseline's operations are "
    "held against the kernel's in their order too.",
)
@click.option("--keep", metavar="FOLDER", type=click.Path(), help="Keep the traces, for `inspector replay`.")
@click.option("--jobs", metavar="N", type=click.IntRange(1, 1024), default=1, help="Machines at once. Default: 1.")
@click.option("--scheduler", metavar="ADDRESS", help="Boot them on the workers of a Dask cluster (tcp://host:8786).")
@click.option(
    "--resume",
    metavar="FOLDER",
    type=click.Path(),
    help="Keep there what each boot came to as it ends, and boot nothing again that it holds.",
)
@click.option("--ktap", is_flag=True, help="The verdict as KTAP, a test a part.")
@click.option("--junit", metavar="FILE", type=click.Path(), help="The verdict as JUnit XML, beside what is printed.")
@_html_option("The verdict as one HTML file that fetches nothing, with all operations drawn, beside what is printed")
def validate(
    options: Options,
    kernel: str | None,
    vmlinux_file: str,
    baseline_kernel: str | None,
    baseline_vmlinux: str,
    tree: str | None,
    package: str | None,
    patches: tuple[str, ...],
    baseline: str | None,
    page_size: str,
    debug_kernel: bool,
    depth: str | None,
    configurations: tuple[str, ...],
    selftests: str | None,
    seed: int,
    deterministic: bool,
    keep: str | None,
    jobs: int,
    scheduler: str | None,
    resume: str | None,
    ktap: bool,
    junit: str | None,
    html: str | None,
) -> int:
    """A kernel booted in several ways, its guests driven, every stage-2 operation followed: a verdict.

    The kernel is built from --tree or --source, or given with --kernel. With a baseline also what operations do
    otherwise there. The machines are run_qemu.sh's: run it from a checkout.
    """
    from inspector.target.signals import signals_raise
    from inspector.validate.matrix import Spread
    from inspector.validate.request import Asked, request_of
    from inspector.validate.verdict import validate as run_validate

    if ktap and options.as_json:
        raise BadInput("--json and --ktap exclude each other")
    _require_html(html)
    asked = Asked(
        kernel=kernel,
        vmlinux=vmlinux_file,
        baseline_kernel=baseline_kernel,
        baseline_vmlinux=baseline_vmlinux,
        tree=tree,
        package=package,
        patches=patches,
        baseline=baseline,
        page_size=page_size,
        debug_kernel=debug_kernel,
        depth=depth or "default",
        seed=seed,
        operations=_OPERATIONS,
        keep=Path(keep) if keep is not None else None,
        draw=html is not None,
        configurations=configurations,
        selftests=selftests,
        how=Spread(jobs, scheduler, Path(resume) if resume is not None else None),
        deterministic=deterministic,
    )
    with signals_raise(), progress(options.debug) as tell:
        verdict = run_validate(request_of(asked, tell), tell)
    if junit is not None:
        try:
            Path(junit).write_text(report.validate.junit(verdict))
        except OSError as error:
            raise BadInput(f"{junit} cannot be written: {error.strerror}") from None
    if html is not None:
        from inspector.report.html.trace import validate_html

        _write_html(html, validate_html(verdict))
    shown = report.crosscheck.ktap if ktap else report.validate.lines
    options.emit(report.validate.document, shown, verdict)
    if verdict.interrupted:
        say("interrupted; " + ("the verdict is on what was done so far" if verdict.parts else "nothing was done yet"))
    return verdict.code


@_command(
    "detection-matrix",
    machine=False,
    epilog="Examples: inspector detection-matrix --list | inspector detection-matrix -o matrix | "
    "inspector detection-matrix no-break no-xn --source linux-source-6.12 --json. Exit code 0: every fault was found "
    "by its owner, and the clean kernel gave nothing; 1: not so; 3: interrupted, and what was done is kept; 125: a "
    "fault could not be tested.",
)
@click.argument("faults", metavar="[FAULT]...", nargs=-1)
@click.option("--list", "wanted", flag_value="list", help="The faults, and who must find each.")
@click.option("--source", "package", metavar="PACKAGE", help="Built from it. Default: linux-source-6.12.")
@click.option("--tree", metavar="TREE", help="Built from this tree, tarball or package's file instead.")
@click.option("--page-size", type=click.Choice(list(GRANULES)), default="4k", help="Of the kernels.")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(),
    default="detection",
    help="Where cells that are done are kept, with their traces. Default: detection.",
)
def detection_matrix(
    options: Options,
    faults: tuple[str, ...],
    wanted: str | None,
    package: str | None,
    tree: str | None,
    page_size: str,
    output: str,
) -> int:
    """A kernel built with each seeded fault, and one without: which oracle finds what, where, and how soon.

    A cell takes a build of one or two files and a boot: with all of them about half an hour. Those that the folder has
    are not done again. The machines are run_qemu.sh's: run it from a checkout.
    """
    from inspector.crosscheck.run import default_cache
    from inspector.target.signals import Interrupted, signals_raise
    from inspector.validate.detection import Cell, Matrix, run_matrix
    from inspector.validate.kernels import Build, place_of
    from inspector.validate.seeded import seeded

    known = seeded()
    for name in faults:
        if name not in known:
            raise BadInput(f"there is no fault '{name}': inspector detection-matrix --list names them")
    chosen = [known[name] for name in faults or known]
    if wanted == "list":
        options.emit(report.detection.listed, report.detection.listed_lines, chosen)
        return ExitCode.CLEAN
    if tree is not None and package is not None:
        raise BadInput("--tree and --source are two sources: give one")
    cells: list[Cell] = []
    interrupted = False
    with signals_raise(), progress(options.debug) as tell:
        try:
            name = tree or package or "linux-source-6.12"
            place = Path(tree) if tree is not None else place_of(name, default_cache(), tell)
            matrix = Matrix(chosen, Build(place, name, page_size=page_size), Path(output))
            for cell in run_matrix(matrix, tell):
                cells.append(cell)
        except (KeyboardInterrupt, Interrupted):
            interrupted = True
    options.emit(report.detection.document, report.detection.lines, cells, known)
    if interrupted:
        say(f"interrupted; what was done is kept in {output}, and is not done again")
        return ExitCode.TARGET_LOST
    return report.detection.code_of(cells)


# --- in a person's own gdb ---


@_command("gdb-init", machine=False, epilog="Example: inspector gdb-init >> ~/.gdbinit")
def gdb_init(options: Options) -> None:
    """The lines that give your own gdb the 'stage2' commands: put them into its gdbinit.  With --json, the paths."""
    from inspector.target.gdb_memory import SCRIPTS

    script = SCRIPTS / "stage2.py"
    if not script.is_file():
        raise BadInput(f"{script} is not there: install the tool with its gdb_scripts, or use a checkout")
    program = os.path.realpath(sys.argv[0])
    options.emit(report.gdb.init_document, report.gdb.init_lines, str(script), program)


@_command("gdb-facts", hidden=True, epilog="Example: inspector gdb-facts --json")
def gdb_facts(options: Options) -> None:
    """What the 'stage2' commands in a gdb are told of its machine (--json or not: JSON)."""
    from inspector.capture.lend import facts
    from inspector.trace.functions import FUNCTIONS, Role
    from inspector.trace.names import listed

    if options.connect is None:
        raise BadInput("gdb-facts is asked by gdb_scripts/stage2.py, which lends its machine")
    wanted = {name: function for name, function in FUNCTIONS.items() if function.role is Role.OPERATION}
    with progress(options.debug) as tell:
        known = facts(options.connect, *options.kernel_files, wanted, tell, options.most)
    operations = {name: (at, wanted[name].arguments) for name, at in known.functions.items()}
    told = report.gdb.facts_json(known.capture, known.tables, operations, listed(known.symbols))
    write((json.dumps(told), "\n"))


# --- the command line about itself ---


@_command("man", machine=False, epilog="Example: inspector man > ~/.local/share/man/man1/inspector.1")
def man(options: Options) -> None:
    """The manual page (roff): every command and option, as --help has them.  With --json, inside a document."""
    options.emit(report.manual.page_document, report.manual.page_lines, manual.page(main_group))


@_command(
    "completion",
    machine=False,
    epilog="Examples: inspector completion bash > ~/.local/share/bash-completion/completions/inspector | "
    "inspector completion fish > ~/.config/fish/completions/inspector.fish",
)
@click.argument("shell", type=click.Choice(manual.SHELLS))
def completion(options: Options, shell: str) -> None:
    """The script that makes a shell complete commands, options, VMs of a capture, and kernel generations."""
    text = manual.completion(main_group, shell, _COMPLETE)
    options.emit(report.manual.completion_document, report.manual.completion_lines, shell, text)


# --- the way in and out ---


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; raises nothing (but with ``--debug``, what a bug raises)."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        require_stdout()
        result = click.Group.main(main_group, given, prog_name="inspector", standalone_mode=False)
        sys.stdout.flush()
        return int(result or 0)
    except InspectorError as error:
        if isinstance(error, OutputFailed):
            forget(sys.stdout)
        say(str(error))
        return int(error.exit_code)
    except click.ClickException as error:
        hint = f" (see '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        say(f"{error.format_message().rstrip('.')}{hint}")
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except BrokenPipeError:
        forget(sys.stdout)
        return int(ExitCode.CLEAN)
    except SystemExit:
        # click ends by itself after completing a shell's line, and with 1, which here means findings, at a closed pipe.
        if _COMPLETE in os.environ:
            raise
        forget(sys.stdout)
        return int(ExitCode.CLEAN)
    except MemoryError:
        say("memory ran out: what was asked for is too large for this machine")
        return int(ExitCode.USAGE)
    except Exception as error:
        if "--debug" in given:
            raise
        say(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
        return int(ExitCode.USAGE)
    except BaseException as error:
        # SIGTERM and SIGHUP arrive as `Interrupted`. Its module is loaded only where a machine is attached.
        signals = sys.modules.get("inspector.target.signals")
        if signals is None or not isinstance(error, signals.Interrupted):
            raise
        return _interrupted()


def _interrupted() -> int:
    say("interrupted; the machine was left as it was found")
    return int(ExitCode.TARGET_LOST)
