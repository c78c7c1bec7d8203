"""``inspector trace``: which source follows the machine, for how long, and what runs beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

from inspector.capture.selection import choose_views
from inspector.findings import BadInput, TargetLost
from inspector.snapshot import Scope
from inspector.target.signals import Interrupted, signals_raise, signals_wait
from inspector.trace.follow import Followed, Following, begin, is_alive, open_output, read_plan, scan_of, stub_of
from inspector.trace.only import Only

if TYPE_CHECKING:
    from inspector.symbols.kernel import KernelSymbols
    from inspector.target.machine import Machine

Tell = Callable[[str], None]
_GRACE: Final = 5.0
_PLAN: Final = "plan.json"


@dataclass(frozen=True)
class Wanted:
    """What was asked for: ``connect`` by the user, ``connect_by_default`` by the environment; ``kernel_files`` are the
    vmlinux and the Image; ``most`` bytes of memory may be taken by what a file holds."""

    source: str | None = None
    folder: Path | None = None
    connect: str | None = None
    connect_by_default: str | None = None
    kernel_files: tuple[Path | None, Path | None] = (None, None)
    memory: Literal["auto", "process", "gdb"] = "auto"
    gdb: str | None = None
    most: int = 2 << 30
    seconds: float | None = None
    command: tuple[str, ...] = ()
    vm: str | None = None
    since: Literal["start", "now"] | None = None

    @property
    def begins_now(self) -> bool:
        """With a capture, and from there on; else with everything that the probe has written since the start.

        Where nothing is to come, or the machine has ended, there is nothing else.
        """
        if self.since is None:
            return self.seconds != 0 and self.folder is not None and is_alive(self.folder)
        return self.since == "now"

    @property
    def own_stub(self) -> str | None:
        """That of the machine which the probe follows."""
        return self.connect or self.connect_by_default or (stub_of(self.folder) if self.folder is not None else None)

    @property
    def stub(self) -> str | None:
        """Where gdb would connect, if it follows the machine; ``None``: the probe does."""
        stub = self.connect or self.connect_by_default
        if self.source == "gdb" or (self.source is None and (self.connect is not None or not self._is_probed)):
            return stub
        return None

    @property
    def _is_probed(self) -> bool:
        return self.folder is not None and (self.folder / _PLAN).is_file()


class _Beside:
    """The program that runs beside the machine, once it is started; its end is the trace's."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises `BadInput` when it cannot be run."""
        if not self._command:
            return
        try:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise BadInput(f"{self._command[0]} cannot be run: {error.strerror}") from None

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """It does not outlive the trace."""
        if self._process is None or self.ended:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        if not self.ended:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _beside(command: tuple[str, ...]) -> Iterator[_Beside]:
    beside = _Beside(command)
    try:
        yield beside
    finally:
        with signals_wait():
            beside.stop()


def traced(wanted: Wanted, output: Path | None, tell: Tell) -> tuple[Followed, str]:
    """What was followed, and in a sentence why it ended before its time (empty: it did not).

    Raises `BadInput`, `TargetLost`, `Untestable` when nothing could be followed.
    """
    if wanted.source == "gdb" and wanted.stub is None:
        raise BadInput("which machine? give the gdbstub of a running QEMU with --connect HOST:PORT")
    with signals_raise(), contextlib.ExitStack() as stack:
        beside = stack.enter_context(_beside(wanted.command))
        if wanted.stub is not None:
            return _by_gdb(wanted, wanted.stub, output, beside, tell)
        if wanted.folder is None:
            raise BadInput(
                "which machine? give its gdbstub with --connect, or start one by ./run_qemu.sh start --trace and name "
                "its --run-dir, as ./run_qemu.sh run -- inspector trace does"
            )
        following = _following(wanted, wanted.folder, tell)
        stream = stack.enter_context(open_output(output)) if output is not None else None
        beside.start()
        return _by_probe(wanted, wanted.folder, following, stream, beside, tell)


def _sentence(wanted: Wanted) -> str:
    """Ctrl-C is the way to end a trace that has no other end."""
    bounded = wanted.seconds is not None or wanted.command
    return "interrupted; the verdict is on what was followed so far" if bounded else ""


def _by_probe(
    wanted: Wanted, folder: Path, following: Following, stream: IO[bytes] | None, beside: _Beside, tell: Tell
) -> tuple[Followed, str]:
    why = ""
    try:
        following.go(stream, wanted.seconds, lambda: is_alive(folder) and not beside.ended, tell)
    except (KeyboardInterrupt, Interrupted):
        why = _sentence(wanted)
    return following.end(), why


@contextlib.contextmanager
def _machine(wanted: Wanted, stub: str, tell: Tell) -> Iterator[tuple[Machine, KernelSymbols]]:
    """The machine behind a stub, standing, with its kernel's symbols."""
    # Imported here: the probe's traces need neither gdb nor pygdbmi.
    from inspector.symbols.opening import open_symbols
    from inspector.target.connect import attached

    vmlinux, image = wanted.kernel_files
    symbols = None
    if vmlinux is not None or image is not None:  # before attaching: the machine stands still from there on
        symbols = open_symbols(vmlinux=vmlinux, image=image, progress=tell, most=wanted.most)
    with attached(stub, memory=wanted.memory, gdb=wanted.gdb, progress=tell) as machine:
        if symbols is None:
            kernel = Path(machine.kernel_file) if machine.kernel_file else None
            symbols = open_symbols(image=kernel, progress=tell, most=wanted.most)
        yield machine, symbols


def _following(wanted: Wanted, folder: Path, tell: Tell) -> Following:
    header = read_plan(folder)
    if not wanted.begins_now:
        return Following(folder, header, _only(wanted, wanted.vm, tell) if wanted.vm is not None else None)
    from inspector.capture.take import take
    from inspector.trace.gdb import only_of

    stub = _stub(wanted)
    tell("reading what the probe has seen so far")
    scan = scan_of(folder, header)
    with _machine(wanted, stub, tell) as (machine, symbols):
        command = " ".join(["inspector", *sys.argv[1:]])
        beginning = begin(
            folder, header, scan, lambda: take(machine, symbols, scope=Scope.WALK, progress=tell, command=command)
        )
        only = None
        if wanted.vm is not None and beginning is not None:
            views = choose_views(beginning.capture, wanted.vm)
            only = Only(frozenset(view.mmu.pgt for view in views if view.mmu.pgt))
        elif wanted.vm is not None:
            only = only_of(machine, symbols, wanted.vm, tell)
    return Following(folder, header, only, beginning)


def _stub(wanted: Wanted) -> str:
    stub = wanted.own_stub
    if stub is None:
        raise BadInput("a trace from now on begins with a capture: give the machine's gdbstub with --connect")
    return stub


def _only(wanted: Wanted, vm: str, tell: Tell) -> Only:
    """Which table is the VM's, looked up through the stub: the probe knows no VMs."""
    from inspector.trace.gdb import only_of

    with _machine(wanted, _stub(wanted), tell) as (machine, symbols):
        return only_of(machine, symbols, vm, tell)


def _by_gdb(wanted: Wanted, stub: str, output: Path | None, beside: _Beside, tell: Tell) -> tuple[Followed, str]:
    from inspector.trace.gdb import GdbFollowing, places_of

    with _machine(wanted, stub, tell) as (machine, symbols):
        following = GdbFollowing(machine, places_of(machine, symbols, tell, wanted.vm))
        why = ""
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(open_output(output)) if output is not None else None
            try:
                following.go(stream, wanted.seconds, lambda: not beside.ended, tell, beside.start)
            except (KeyboardInterrupt, Interrupted):
                why = _sentence(wanted)
            except TargetLost as error:
                if not following.operations:
                    raise
                why = f"{error}; the verdict is on what was followed before"
    return following.end(), why
