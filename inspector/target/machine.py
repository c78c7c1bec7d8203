"""The attached machine: a `Target` made of a gdb session, a memory backend, and how everything was found."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from inspector.findings import InspectorError, TargetLost
from inspector.printable import SHORT, printable
from inspector.target import host_process, register_names, rsp
from inspector.target.address import Address
from inspector.target.api import Cpu
from inspector.target.gdb_memory import BulkFiles, MiMemory, PhysicalMode, lost
from inspector.target.guardian import Guardian
from inspector.target.mi import GdbError, MiSession
from inspector.target.process_memory import ProcessMemory
from inspector.target.signals import signals_wait
from inspector.target.stub import Found

# Putting back takes milliseconds; these bound it when gdb or QEMU hang.
_CLEANUP_TIMEOUT = 5.0
_MAX_CPUS = 512  # QEMU's hw/arm/virt.c: max_cpus


@dataclass
class Attachment:
    """What is to be undone: filled step by step while attaching, so that any step may fail.

    ``found`` is how the stub was found, ``run`` whether the machine is to run when we leave, ``connected``
    whether gdb may be the stub's client, ``mode_touched`` whether the mode may differ from the one found.
    """

    address: Address
    found: Found
    run: bool
    files: BulkFiles
    guardian: Guardian
    session: MiSession | None = None
    connected: bool = False
    mode_touched: bool = False

    def undo(self) -> None:
        """Put physical mode and run state back, end gdb, and reap it.  Never raises; signals wait."""
        with signals_wait():
            done = False
            session, self.session = self.session, None
            if session is not None:
                session.deadline = None  # that of attaching: what is put back has its own
                if self.connected and session.alive and not session.target_gone:
                    with contextlib.suppress(InspectorError):
                        self._through_gdb(session)
                        done = True
                if done or not self.connected:
                    session.quit(_CLEANUP_TIMEOUT)
                else:
                    session.kill()
            if not done and (self.connected or self.run) and self._still_there():
                mode = self.found.physical_mode if self.mode_touched else None
                rsp.put_back(self.address, physical_mode=mode, run=self.run, timeout=_CLEANUP_TIMEOUT)
            self.files.close()
            self.guardian.release()

    def _through_gdb(self, session: MiSession) -> None:
        # An exception may have cut a command short: only after its answer can gdb be asked again.
        session.drain(min(_CLEANUP_TIMEOUT, session.timeout))
        if session.running:
            interrupt(session)
        if self.mode_touched:
            PhysicalMode(session).set(self.found.physical_mode)
        # Detach lets the machine run; closing the connection leaves it stopped (QEMU 7.2: no handler for
        # CHR_EVENT_CLOSED; measured, also for a machine that has not run yet).
        session.command("-target-detach" if self.run else "-target-disconnect", timeout=_CLEANUP_TIMEOUT)

    def _still_there(self) -> bool:
        return self.found.pid is None or bool(host_process.command_line(self.found.pid))


def interrupt(session: MiSession) -> None:
    """Stop the machine and wait until gdb says so."""
    session.forget_events()
    session.command("-exec-interrupt --all")
    session.wait_event(lambda event: event["message"] == "stopped")


class Machine:
    """`Target` over one `Attachment`."""

    def __init__(
        self, attachment: Attachment, memory: ProcessMemory | MiMemory, *, physical: bool, description: str
    ) -> None:
        """``physical``: the memory backend needs the stub's physical mode while the machine is stopped."""
        self._attachment = attachment
        self._memory = memory
        self._physical = physical
        self._description = description
        self._numbers: dict[str, int] | None = None
        self._closed = False

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def memory(self) -> ProcessMemory | MiMemory:
        return self._memory

    @property
    def description(self) -> str:
        return self._description

    @property
    def kernel_file(self) -> str | None:
        pid = self._attachment.found.pid
        if pid is None or not host_process.is_qemu(pid):
            return None
        return host_process.kernel_argument(pid)

    @property
    def runs_when_left(self) -> bool:
        return self._attachment.run

    @property
    def found(self) -> Found:
        """How the machine was found."""
        return self._attachment.found

    @property
    def session(self) -> MiSession:
        """gdb itself, for what this interface does not offer.  Raises `TargetLost` after `close`."""
        if self._attachment.session is None:
            raise TargetLost("the machine was let go already; attach again")
        return self._attachment.session

    def cpus(self) -> Sequence[Cpu]:
        """Every CPU with its registers.  Raises `TargetLost`, also when the machine is running."""
        session = self.session
        if session.running:
            raise TargetLost("registers can be read only while the machine is stopped; stop it first")
        try:
            numbers = self._register_numbers(session)
            threads = session.command("-thread-info").payload["threads"]
            if len(threads) > _MAX_CPUS:
                raise TargetLost(
                    f"the stub shows {len(threads)} CPUs, and QEMU has at most {_MAX_CPUS}: it is not QEMU's"
                )
            cpus = [self._cpu(session, thread, numbers) for thread in threads]
        except GdbError as error:
            raise lost(session) or TargetLost(f"gdb cannot read the registers: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise TargetLost(
                f"gdb's answer about the registers is not understood: {printable(str(error), SHORT)}"
            ) from error
        return sorted(cpus, key=lambda cpu: cpu.index)

    def stop(self) -> None:
        session = self.session
        if not session.running:
            return
        try:
            interrupt(session)
        except GdbError as error:
            raise lost(session) or TargetLost(f"gdb cannot stop the machine: {error}") from error
        if self._physical:
            PhysicalMode(session).set(1)

    def resume(self) -> None:
        """Physical mode goes back before the machine runs: a killed gdb then leaves nothing behind."""
        session = self.session
        if session.running:
            return
        if self._physical:
            PhysicalMode(session).set(self._attachment.found.physical_mode)
        try:
            session.command("-exec-continue --all")
        except GdbError as error:
            raise lost(session) or TargetLost(f"gdb cannot resume the machine: {error}") from error

    def close(self) -> None:
        """As promised by `Target`; a second call does nothing."""
        if self._closed:
            return
        with signals_wait():
            self._closed = True
            self._memory.close()
            self._attachment.undo()

    def _register_numbers(self, session: MiSession) -> dict[str, int]:
        if self._numbers is None:
            names: list[str] = session.command("-data-list-register-names").payload["register-names"]
            position = {name: number for number, name in reversed(list(enumerate(names)))}
            self._numbers = {canonical: position[name] for canonical, name in register_names.choose(names).items()}
        return self._numbers

    def _cpu(self, session: MiSession, thread: dict[str, str], numbers: dict[str, int]) -> Cpu:
        """All registers of one CPU in one round trip.

        QEMU 7.2 describes a thread as ``CPU#0 [running]``; without that the thread's number counts, from 1.
        """
        wanted = " ".join(str(number) for number in numbers.values())
        reply = session.command(f"-data-list-register-values --thread {thread['id']} --skip-unavailable x {wanted}")
        values = {int(one["number"]): one["value"] for one in reply.payload["register-values"]}
        present = {
            name: int(values[number], 16)
            for name, number in numbers.items()
            if re.fullmatch(r"0x[0-9a-f]+", values.get(number, ""))
        }
        match = re.match(r"CPU#([0-9]{1,4})\b", thread.get("details", ""))
        return Cpu(int(match[1]) if match else int(thread["id"].rpartition(".")[2]) - 1, present)
