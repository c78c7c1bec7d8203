"""The gdb event source: any running QEMU that offers a stub, followed by an agent inside gdb.

Nothing is asked of QEMU but its stub.  Stopped at are the operations' entries and returns, and each invalidation; what
is not seen that way is in docs/trace.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Final

from inspector.events import Source
from inspector.findings import BadInput, InspectorError, TargetLost, Untestable
from inspector.kernel.el2 import el2_distance
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.mode import kvm_mode
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.snapshot import Mode
from inspector.symbols.kernel import KernelSymbols
from inspector.target.api import Cpu
from inspector.target.gdb_memory import PhysicalMode, load_script
from inspector.target.host_process import command_line
from inspector.target.machine import Machine
from inspector.trace.assemble import Assembler
from inspector.trace.file import Writer
from inspector.trace.follow import Followed, flush, progress_line
from inspector.trace.functions import FUNCTIONS, Role
from inspector.trace.gdb_code import STEP, Move, Place, entry_of, is_told, leave_of, tellings_of
from inspector.trace.gdb_rules import OperationJudge
from inspector.trace.only import Only, tables_of
from inspector.trace.plan import EXIT, Plan, make_plan
from inspector.trace.raw import SIZES, BadRecord, Reader

_FOLLOWED: Final = (Role.OPERATION, Role.INIT, Role.VTCR)
_PROLOGUE: Final = 64
"""Bytes of a function's beginning in which a place to stop is looked for."""
_TURN: Final = 0.05
_READY: Final = b"."
_START_SECONDS: Final = 20.0
_END_SECONDS: Final = 10.0
_FOREVER: Final = 1e8
"""Seconds; three years."""
_NO_RETURN: Final = ("__stack_chk_fail", "panic")
_NO_RETURN_AT_EL2: Final = ("__kvm_nvhe_hyp_panic", "__kvm_nvhe___stack_chk_fail")
_NOT_FOLLOWED: Final = {
    Mode.NONE: "KVM does not run on this host",
    Mode.PROTECTED: "the host runs in protected mode: its stage-2 operations, done at EL2, are not followed",
}
_EL2: Final = 2
_U64: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Places:
    """Where gdb stops, run-time addresses, as the agent takes them; ``plan`` numbers the functions that are seen,
    ``only`` says of which tables operations are kept."""

    plan: Plan
    stops: tuple[tuple[Any, ...], ...]
    only: Only | None = None

    def header(self, qemu: str) -> dict[str, Any]:
        """Of the trace file."""
        return {**self.plan.header(), "qemu": qemu, "source": str(Source.GDB)}


def only_of(machine: Machine, symbols: KernelSymbols, vm: str, tell: Callable[[str], None]) -> Only:
    """What leaves out all but the tables of ``vm`` in a machine that stands.  Raises `BadInput`, `TargetLost`."""
    return Only(tables_of(find_kernel(StoppedMemory(machine.memory), symbols, machine.cpus(), tell), vm))


def places_of(machine: Machine, symbols: KernelSymbols, tell: Callable[[str], None], vm: str | None = None) -> Places:
    """What is to be stopped at in a machine that stands, by its kernel's text as it is in memory; of ``vm`` alone.

    Raises `Untestable` for a host whose TLB functions run where nothing is followed, `TargetLost`, `BadInput`.
    """
    cpus = machine.cpus()
    kernel = find_kernel(StoppedMemory(machine.memory), symbols, cpus, tell)
    mode = kvm_mode(kernel, cpus)
    if mode in _NOT_FOLLOWED:
        raise Untestable(_NOT_FOLLOWED[mode])
    plan = make_plan(symbols, kernel.space.geometry.granule_shift)
    names = tuple(name for name in plan.functions if FUNCTIONS[name].role in _FOLLOWED)
    kept = replace(plan, functions=names, probes=())
    watched = _has_plugin(machine)
    level = _EL2 if mode is Mode.VHE else 1
    stops = [stop for name in names for stop in _probes(kernel, plan, name, names.index(name), watched, level)]
    stops += (
        _tellings(kernel, plan.invalidating, _NO_RETURN, 0, watched)
        if mode is Mode.VHE
        else _tellings_at_el2(kernel, plan, cpus, mode, watched)
    )
    only = Only(tables_of(kernel, vm)) if vm is not None else None
    return Places(kept, tuple(stops), only)


def _tellings_at_el2(
    kernel: HostKernel, plan: Plan, cpus: Sequence[Cpu], mode: Mode, watched: bool
) -> Iterator[tuple[Any, ...]]:
    """In nVHE and hVHE: code of the kernel's image, mapped for EL2 elsewhere (``init_hyp_mode``, arch/arm64/kvm/arm.c).

    Raises `Untestable` where it is not known where.
    """
    distance = el2_distance(kernel, cpus, mode)
    if distance is None or not plan.hyp:
        raise Untestable("where EL2 of this host has its code is not to be found: take a CPU with VHE")
    yield from _tellings(kernel, plan.hyp, _NO_RETURN_AT_EL2, distance, watched)


def _tellings(
    kernel: HostKernel, functions: Sequence[tuple[int, int]], no_return: Sequence[str], distance: int, watched: bool
) -> Iterator[tuple[Any, ...]]:
    """The stops in functions that invalidate, which run ``distance`` bytes above where the kernel has them.

    ``watched``: no barrier is left out.
    """
    ends = frozenset(address + distance & _U64 for name in no_return if (address := kernel.symbol(name)) is not None)
    for low, high in functions:
        code = _code(kernel, low, high - low)
        start = kernel.space.runtime(low) + distance & _U64
        for each in tellings_of(start, code, ends):
            lists = ([*each.first], [*each.again], [*each.told])
            move: Move = STEP if watched and is_told(code[(each.address - start) // 4]) else each.move
            yield (each.address, "tell", 0, 0, 0, *lists, each.closes, [], list(move), _EL2)


def _has_plugin(machine: Machine) -> bool:
    """Another observer is in QEMU, which is told only of instructions that the CPU runs."""
    pid = machine.found.pid
    return pid is not None and any(word in ("-plugin", "--plugin") for word in command_line(pid))


def _code(kernel: HostKernel, link: int, size: int) -> tuple[int, ...]:
    """The instructions of a stretch of text as the machine has them now."""
    try:
        return struct.unpack(f"<{size // 4}I", kernel.space.read(kernel.space.runtime(link), size))
    except BadPointer as error:
        raise TargetLost(f"the kernel's text cannot be read: {error}") from None


def _probes(
    kernel: HostKernel, plan: Plan, name: str, number: int, watched: bool, level: int
) -> Iterator[tuple[Any, ...]]:
    """The stops of one function, run at ``level``: at its entry, and at each of its returns; ``watched``: no RET is
    left out."""
    function = FUNCTIONS[name]
    planned = plan.functions.index(name)
    reads = _reads(plan) if function.role is Role.INIT else []
    mine = [(link, what, words) for link, what, words in plan.probes if what % EXIT == planned]
    low = min(link for link, _, _ in mine)
    high = max(link for link, _, _ in mine) + 4
    code, address = _code(kernel, low, max(high - low, _PROLOGUE)), kernel.space.runtime(low)
    for link, what, words in mine:
        if what < EXIT:
            yield _probe("enter", number, words, entry_of(address, code), reads, level)
        else:
            place = leave_of(address, code, (link - low) // 4)
            if watched and place.move[0] == "return":
                place = replace(place, move=STEP)
            yield _probe("leave", number + EXIT, words, place, reads, level)


def _reads(plan: Plan) -> list[list[int]]:
    """What the agent reads of ``struct kvm_pgtable`` once it is filled in."""
    forms = {size: form for form, size in SIZES.items()}
    return [[offset, size, forms[size]] for offset, size in plan.members.values()]


def _probe(kind: str, number: int, words: int, place: Place, reads: list[list[int]], level: int) -> tuple[Any, ...]:
    return (place.address, kind, number, words, place.frame, [], [], [], True, reads, list(place.move), level)


class GdbFollowing:
    """Follows a machine that stands: `go` until it is told to end, `end` for the verdict, whatever ended it.

    ``interrupted``: it was ended before its time.
    """

    def __init__(self, machine: Machine, places: Places) -> None:
        self._machine = machine
        self._places = places
        self.header = places.header(_qemu(machine))
        self.interrupted = False
        self.seconds = 0.0
        # No store is seen, so nothing waits for one to learn where the linear map is.
        self._assembler = Assembler(places.plan, _distance=0)
        self._judge = OperationJudge(self.header)

    @property
    def operations(self) -> int:
        """How many were followed so far."""
        return self._judge.counts.operations

    def go(
        self,
        out: IO[bytes] | None,
        seconds: float | None,
        alive: Callable[[], bool],
        tell: Callable[[str], None],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """For ``seconds`` (``None``: until the machine is gone), as long as ``alive`` says so; ``begun`` is called when
        nothing can be missed any more.

        Leaves the machine standing, without a breakpoint.  What was taken is in ``out`` whatever ends it.  Raises
        `BadInput` when that cannot be written, `TargetLost` when gdb is gone or cannot do it.
        """
        writer: Writer | None = None
        try:
            writer = Writer(out, self.header, Source.GDB) if out is not None else None
            with _agent(self._machine, self._places) as agent:
                begun()
                self._read(agent, writer, seconds, alive, tell)
        except OSError as error:
            raise BadInput(f"the trace cannot be written: {error.strerror}") from None
        finally:
            flush(writer)

    def _read(
        self,
        agent: socket.socket,
        writer: Writer | None,
        seconds: float | None,
        alive: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        reader, began = Reader(), time.monotonic()
        ending = False
        while True:
            try:
                data = agent.recv(1 << 20)
                if not data:
                    return
                self._take(reader, data, writer)
            except TimeoutError:
                pass
            except ConnectionError:
                return
            if not ending:
                self.seconds = time.monotonic() - began
                tell(progress_line(self._judge, self.seconds))
                if not alive() or (seconds is not None and self.seconds >= seconds):
                    # What is on its way is still taken.
                    ending = True
                    agent.shutdown(socket.SHUT_WR)

    def _take(self, reader: Reader, data: bytes, writer: Writer | None) -> None:
        try:
            for record in reader.take(data):
                for lane, raw in self._assembler.take(record):
                    if self._places.only is not None and not self._places.only.passes(lane, raw):
                        continue
                    self._judge.take(lane, raw)
                    if writer is not None:
                        writer.add(lane, raw)
        except BadRecord as error:
            raise TargetLost(f"what the agent in gdb writes makes no sense: {error}") from None

    def end(self) -> Followed:
        """What it came to."""
        self._judge.finish()
        return Followed(self.header, self._judge, dict(self._assembler.outside), self.seconds)


def _qemu(machine: Machine) -> str:
    version = machine.found.version
    return f"QEMU {version}, by gdb" if version else "QEMU, by gdb"


@contextlib.contextmanager
def _agent(machine: Machine, places: Places) -> Iterator[socket.socket]:
    """The agent at work, and the socket on which its records come.

    Afterwards it is done and the machine stands; a gdb that does not come back is ended, and `Machine.close` then puts
    the stub back without it.
    """
    session = machine.session
    if not load_script(session, "trace_agent.py"):
        raise BadInput("this gdb has no Python, or gdb_scripts is not installed: --gdb names another")
    PhysicalMode(session).set(machine.found.physical_mode)
    name = f"inspector-trace-{os.getpid()}-{os.urandom(8).hex()}"
    said: list[InspectorError] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + name)
        listener.listen(1)
        listener.settimeout(_TURN)
        worker = threading.Thread(target=_run, args=(machine, name, said), daemon=True)
        worker.start()
        try:
            with _accepted(listener, worker, session.pid, said) as agent:
                _start(agent, places, said)
                yield agent
                with contextlib.suppress(OSError):
                    agent.shutdown(socket.SHUT_WR)
                worker.join(_END_SECONDS)
        finally:
            worker.join(_END_SECONDS)
            if worker.is_alive():
                session.kill()
                worker.join()
    if said and not (session.target_gone or _is_gone(machine)):
        raise _why(said)


def _why(said: list[InspectorError]) -> TargetLost:
    text = re.sub(r"^Python Exception[^:]*: |^Error occurred in Python: ", "", str(said[0])) if said else "it ended"
    return TargetLost(f"following through gdb failed: {text}")


def _is_gone(machine: Machine) -> bool:
    """QEMU itself has ended, which is a machine's end like any other."""
    pid = machine.found.pid
    return pid is not None and not os.path.exists(f"/proc/{pid}/stat")  # noqa: PTH110


def _run(machine: Machine, name: str, said: list[InspectorError]) -> None:
    try:
        machine.session.console(f"python stage2_trace({name!r})", timeout=_FOREVER)
    except InspectorError as error:
        said.append(error)


def _accepted(listener: socket.socket, worker: threading.Thread, pid: int, said: list[InspectorError]) -> socket.socket:
    """The agent's connection: an abstract address has no permissions, so that it is gdb's is looked at."""
    end = time.monotonic() + _START_SECONDS
    while worker.is_alive() and time.monotonic() < end:
        try:
            found, _ = listener.accept()
        except TimeoutError:
            continue
        peer = struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if peer[0] == pid:
            return found
        found.close()
    raise _why(said)


def _start(agent: socket.socket, places: Places, said: list[InspectorError]) -> None:
    """Tell the agent its places, and wait until it has them."""
    agent.settimeout(_START_SECONDS)
    try:
        agent.sendall(json.dumps(places.stops).encode() + b"\n")
        ready = agent.recv(1)
    except OSError:
        ready = b""
    if ready != _READY:
        time.sleep(_TURN)
        raise _why(said)
    agent.settimeout(_TURN)
