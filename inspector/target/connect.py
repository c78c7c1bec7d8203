"""Attaching to a machine: a look at the stub, gdb, the memory backend, and the way back out of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from inspector.findings import BadInput, InspectorError, TargetLost
from inspector.target import host_process, qemu
from inspector.target.address import parse_address
from inspector.target.api import Cpu, RamRange
from inspector.target.deadline import Deadline
from inspector.target.gdb_memory import BulkFiles, GdbMemory, MiMemory, PhysicalMode, load_script, lost
from inspector.target.guardian import Guardian
from inspector.target.machine import Attachment, Machine
from inspector.target.mi import GdbError, MiSession, find_gdb
from inspector.target.process_memory import ProcessDenied, ProcessMemory, ProcessReader
from inspector.target.register_names import GENERAL, exception_level, is_aarch32
from inspector.target.signals import signals_raise
from inspector.target.stub import look

Backend = Literal["auto", "process", "gdb"]
Leave = Literal["as-found", "running", "stopped"]

_PAGE = 4096
_SAMPLES = 64  # pages of each RAM range that are compared at most, to tell one QEMU from another


def open_target(
    connection: str,
    *,
    memory: Backend = "auto",
    gdb: str | None = None,
    timeout: float = 10.0,
    progress: Callable[[str], None] | None = None,
    leave: Leave = "as-found",
) -> Machine:
    """Attach to the QEMU gdbstub at ``connection`` and stop the machine.

    ``connection``: ``HOST:PORT``, ``:PORT`` or a unix socket's path.  ``memory``: the backend, ``auto`` takes
    the fastest that works.  ``gdb``: a name or path, else gdb-multiarch or a gdb that knows AArch64.
    ``timeout``: seconds for one answer, whatever arrives meanwhile; attaching takes at most three times that.
    ``progress`` is told each step.  ``leave``: the state to leave the
    machine in; as found cannot be told apart in one case, see `inspector.target.stub.Found`.

    Raises `BadInput` (no gdb, unusable address, a backend forced that is impossible) and `TargetLost`
    (nothing listens, no gdbstub, not AArch64, no EL2, another debugger attached, lost on the way), each with
    one sentence; whatever is raised, the machine is left as it was found.  Prefer `attached`, which also
    takes care of signals.
    """
    tell = progress or (lambda text: None)
    address = parse_address(connection)
    path = find_gdb(gdb)
    tell(f"looking at the gdbstub at {address}")
    deadline = Deadline.after(3 * timeout)
    files, guardian = BulkFiles(), Guardian(address)
    try:
        found = look(address, timeout, deadline, guardian)
    except BaseException:
        files.close()
        guardian.release()
        raise
    run = found.running if leave == "as-found" else leave == "running"
    guardian.expect(run=run)
    attachment = Attachment(address, found, run, files, guardian)
    try:
        tell(f"attaching {path}")
        attachment.session = session = MiSession(path, timeout=timeout, pass_fds=files.fds, deadline=deadline)
        guardian.expect(gdb=session.pid)
        _connect(session, str(address), attachment)
        if load_script(session, "leave_as_found.py"):
            session.console(f"python stage2_leave_as_found({found.physical_mode}, {run})")
        ram = _ram(session)
        tell("choosing the way to physical memory")
        backend, physical = _backend(attachment, session, ram, memory)
        version = f"QEMU {found.version}" if found.version else "QEMU of unknown version"
        where = f"{address}, {version}" + (f" (process {found.pid})" if found.pid else "")
        machine = Machine(
            attachment,
            backend,
            physical=physical,
            description=f"gdbstub at {where}, memory by {backend.name}",
        )
        require_el2(machine.cpus(), str(address))
        session.deadline = None
        return machine
    except GdbError as error:
        gone = attachment.session and lost(attachment.session)
        attachment.undo()
        raise gone or TargetLost(f"gdb failed while attaching to {address}: {error}") from error
    except BaseException:
        attachment.undo()
        raise


@contextmanager
def attached(
    connection: str,
    *,
    memory: Backend = "auto",
    gdb: str | None = None,
    timeout: float = 10.0,
    progress: Callable[[str], None] | None = None,
    leave: Leave = "as-found",
) -> Iterator[Machine]:
    """`open_target` for a ``with`` block: everything is put back at its end, also when Ctrl-C
    (KeyboardInterrupt), SIGTERM or SIGHUP (`inspector.target.signals.Interrupted`) end it."""
    with signals_raise():
        machine = open_target(connection, memory=memory, gdb=gdb, timeout=timeout, progress=progress, leave=leave)
        try:
            yield machine
        finally:
            machine.close()


def _connect(session: MiSession, address: str, attachment: Attachment) -> None:
    session.command(f"-gdb-set tcp connect-timeout {max(1, round(session.timeout))}")
    session.command(f"-gdb-set remotetimeout {max(2, round(session.timeout))}")
    # From here on gdb may be the stub's client, whether or not it lives to say so.
    attachment.connected = True
    try:
        session.command(f"-target-select remote {address}", timeout=2 * session.timeout)
    except GdbError as error:
        raise TargetLost(f"gdb cannot attach to {address}: {str(error).rstrip('.')}; is QEMU still there?") from error


def _ram(session: MiSession) -> tuple[RamRange, ...]:
    ram = qemu.system_ram(qemu.parse_flat_views(session.monitor("info mtree -f")))
    if not ram:
        raise TargetLost("QEMU's monitor names no RAM (info mtree -f): is it system emulation, QEMU 4.1 or newer?")
    if trouble := qemu.impossible_ram(ram):
        raise TargetLost(f"QEMU's monitor names RAM that no machine has (info mtree -f): {trouble}")
    return ram


def _backend(
    attachment: Attachment, session: MiSession, ram: Sequence[RamRange], wanted: Backend
) -> tuple[ProcessMemory | MiMemory, bool]:
    """The memory backend, and whether it needs physical mode."""
    mode = PhysicalMode(session)
    attachment.mode_touched = True
    attachment.guardian.expect(physical_mode=attachment.found.physical_mode)
    mode.set(1)
    why = None
    if wanted != "gdb":
        try:
            process = _process_memory(attachment.found.pid, session, ram)
        except ProcessDenied as error:
            why = str(error)
            if wanted == "process":
                raise BadInput(f"memory by process is not possible: {why}; or use --memory gdb") from error
        else:
            mode.set(attachment.found.physical_mode)
            return process, False
    if load_script(session, "bulk_read.py"):
        return GdbMemory(session, ram, attachment.files.fds, why), True
    note = "this gdb has no Python or gdb_scripts is not installed, so reads go one by one"
    return MiMemory(session, ram, f"{why}; {note}" if why else note), True


def _process_memory(pid: int | None, session: MiSession, ram: Sequence[RamRange]) -> ProcessMemory:
    """The process backend, after its memory was found to be this machine's.  Raises `ProcessDenied`."""
    if pid is None:
        raise ProcessDenied("QEMU is on another host, or in another pid or network namespace")
    bases = []
    for one in ram:
        base = qemu.parse_gpa2hva(session.monitor(f"gpa2hva {one.start:#x}"))
        if base is None:
            raise ProcessDenied(f"QEMU gives no host address for RAM at {one.start:#x} (monitor gpa2hva)")
        if not host_process.mapped(pid, base, one.end - one.start):
            name = (host_process.command_line(pid) or ["?"])[0]
            raise ProcessDenied(f"process {pid} ({name}) is not QEMU itself, or its memory map may not be read")
        bases.append(base)
    memory = ProcessMemory(ProcessReader(pid), ram, bases)
    _compare(memory, MiMemory(session, ram), ram)
    return memory


def _compare(process: ProcessMemory, stub: MiMemory, ram: Sequence[RamRange]) -> None:
    """Pages of each range read both ways must be the same bytes: pids can deceive, contents not.

    Pages that are not all zero are preferred, because zeros are the same everywhere.
    """
    for one in ram:
        step = max(_PAGE, (one.end - one.start) // _SAMPLES // _PAGE * _PAGE)
        pages = [(pa, min(_PAGE, one.end - pa)) for pa in range(one.start, one.end, step)]
        data = process.read_many(pages)
        telling = [page for page, bytes_ in zip(pages, data, strict=True) if bytes_ and any(bytes_)]
        for pa, size in (telling or pages)[:2]:
            try:
                same = process.read(pa, size) == stub.read(pa, size)
            except TargetLost:
                raise
            except InspectorError as error:
                raise ProcessDenied(f"the QEMU process's memory could not be verified: {error}") from error
            if not same:
                raise ProcessDenied(f"the process at the other end holds other bytes at {pa:#x} than the stub shows")


def require_el2(cpus: Sequence[Cpu], address: str) -> None:
    """EL2 exists: its registers do, and they are not the constant zeros of a CPU without it.

    Without ``virtualization=on`` QEMU 7.2 has no VTTBR_EL2 at all; with ``secure=on`` alone it has the EL2
    registers as constant zeros.  Where EL2 exists, HCR_EL2.RW or .TGE is one whenever AArch64 runs at EL1 or
    EL0 (DDI 0487, "HCR_EL2"): all of it zero on every CPU that runs means that there is no EL2.
    """
    advice = "start QEMU with -M virt,virtualization=on"
    if not cpus:
        raise TargetLost(f"the stub at {address} shows no CPU; attach again")
    if any(name not in cpus[0].registers for name in ("VTTBR_EL2", "HCR_EL2")):
        raise TargetLost(f"the CPU at {address} has no EL2, so it cannot host KVM: {advice}")
    started = [cpu for cpu in cpus if _started(cpu)]
    if started and all(_below_el2(cpu) and _no_trace_of_el2(cpu) for cpu in started):
        raise TargetLost(f"the CPUs at {address} run below EL2 and every EL2 register is zero: {advice}")


def _below_el2(cpu: Cpu) -> bool:
    cpsr = cpu.registers.get("cpsr")
    return cpsr is not None and not is_aarch32(cpsr) and exception_level(cpsr) < 2


def _no_trace_of_el2(cpu: Cpu) -> bool:
    return not any(cpu.registers.get(name) for name in ("HCR_EL2", "VBAR_EL2", "SCTLR_EL2", "TCR_EL2"))


def _started(cpu: Cpu) -> bool:
    """A CPU that was never switched on (PSCI) shows zeros in all general registers and pc."""
    return any(value for name, value in cpu.registers.items() if name in GENERAL and name != "cpsr")


__all__ = ["Backend", "Leave", "attached", "open_target"]
