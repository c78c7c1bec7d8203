"""A first look at a stub, before gdb: is it QEMU's, is it AArch64, does the machine run, which mode is it in.

gdb answers these late, vaguely or not at all (a silent listener is a hang to it).  The look costs one short
connection; connecting stops the machine, which attaching would do anyway.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass

from inspector.findings import TargetLost
from inspector.printable import SHORT, printable
from inspector.target import host_process, qemu
from inspector.target.address import Address
from inspector.target.deadline import Deadline
from inspector.target.guardian import Guardian
from inspector.target.host_process import Listener
from inspector.target.rsp import Closed, NoAnswer, NotAStub, RspClient, put_back

# A debugger that has just left is still seen as QEMU's client for some milliseconds.
_CLOSING = 1.0
# A machine whose CPUs sleep this long stands still: an idle one was seen to sleep 2.02 s (host_process.stirs).
_QUIET = 5.0


@dataclass(frozen=True)
class Found:
    """The stub as it was found.

    ``running``: whether the machine ran before we connected.  QEMU before 8.1 tells: connecting to a running machine
    makes it send the stop reply ``T02`` unasked, connecting to a stopped one does not (measured on 7.2.22).  From
    8.1 on ("gdbstub: only send stop-reply packets when allowed to"; measured on 10.0) it never does.  There a run
    state other than ``paused`` (``prelaunch`` of ``-S``, ``debug``, ``shutdown`` …) shows that it stood; ``paused``
    is what every connection makes of a running machine too, and then it counts as stopped only when QEMU runs on
    this host and none of its CPU threads stirred for 5 s before we connected.  From afar it counts as running.
    ``physical_mode``: ``qqemu.PhyMemMode`` (0 or 1), which outlives connections.  ``pid``: the process behind
    the socket, when it is on this host and visible.
    """

    running: bool
    physical_mode: int
    status: str | None
    version: str | None
    pid: int | None


def look(address: Address, timeout: float, deadline: Deadline, guardian: Guardian) -> Found:
    """Connect, ask, and close without detaching: the machine is then stopped.

    ``timeout``: seconds for one question; ``deadline``: for all.  ``guardian`` is told what to undo beforehand.

    Raises `TargetLost` with one sentence for each way in which it is not a usable stub; the machine is then
    left as it was found.
    """
    there = _require_free(address)
    local = there is not None and host_process.is_qemu(there.pid)
    stirs = local and there is not None and host_process.stirs(there.pid, _QUIET)
    # What to restore when the look ends early, before QEMU has told more.
    ran = stirs
    guardian.expect(connected=True, run=stirs or not local)
    try:
        client = RspClient(address, timeout, deadline)
    except OSError as error:
        raise TargetLost(_cannot_connect(address, error)) from error
    try:
        with client:
            try:
                supported = client.request(b"qSupported:multiprocess+")
                told = bool(client.stop_replies)
                ran = told or stirs
                if b"PacketSize" not in supported:
                    raise TargetLost(
                        f"{address} is a gdbstub that QEMU did not make: only QEMU's has what this tool needs"
                    )
                architecture = _architecture(client, supported)
                if architecture is None:
                    raise TargetLost(_not_aarch64(address, architecture))
                # Before anything else can be refused: what to restore then.
                status = qemu.parse_status(client.monitor("info status"))
                version = qemu.parse_version(client.monitor("info version"))
                silent = qemu.version_tuple(version) >= (8, 1)
                ran = told or (silent and status == "paused" and (stirs or not local))
                if architecture != "aarch64":
                    raise TargetLost(_not_aarch64(address, architecture))
                guardian.expect(run=ran)
                return Found(ran, _physical_mode(address, client), status, version, _peer(client))
            except NoAnswer as error:
                ran = bool(client.stop_replies)
                raise TargetLost(_silent(address, client.answers)) from error
            except (NotAStub, Closed) as error:
                ran = False
                raise TargetLost(
                    f"{address} is not a gdbstub: {error}; start QEMU with -s or -gdb and give that address"
                ) from error
    except BaseException:
        if ran:
            put_back(address, physical_mode=None, run=True, timeout=3.0)
        raise


def _architecture(client: RspClient, supported: bytes) -> str | None:
    """What the target description names, or ``None`` from a stub that has none."""
    if b"qXfer:features:read+" not in supported:
        return None
    return qemu.parse_architecture(client.read_object("features", "target.xml").decode(errors="replace"))


def _not_aarch64(address: Address, architecture: str | None) -> str:
    return (
        f"the CPU at {address} is {printable(architecture or 'of an unknown architecture', SHORT)}, not AArch64: "
        "attach to a qemu-system-aarch64 with a 64-bit CPU"
    )


def _physical_mode(address: Address, client: RspClient) -> int:
    """``qqemu.PhyMemMode``; raises `TargetLost` where there is no such mode."""
    mode = client.request(b"qqemu.PhyMemMode")
    if mode not in (b"0", b"1"):
        raise TargetLost(
            f"the gdbstub at {address} has no physical memory mode: use QEMU 4.1 or newer (system emulation)"
        )
    return int(mode)


def _peer(client: RspClient) -> int | None:
    with contextlib.suppress(OSError):
        return host_process.peer_pid(client.socket)
    return None


def _cannot_connect(address: Address, error: OSError) -> str:
    hint = "start QEMU with -s or -gdb, or give the address it listens on"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return f"nothing listens on {address}: {hint}"
    if isinstance(error, socket.gaierror):
        return f"the host of {address} is unknown ({error.strerror}): {hint}"
    if isinstance(error, TimeoutError | BlockingIOError):
        # A unix socket whose backlog is full gives EAGAIN, TCP is silent.
        return f"{address} does not take connections: another debugger may be attached, else {hint}"
    if isinstance(error, PermissionError):
        return f"no permission to connect to {address}: run as the user that QEMU runs as"
    return f"cannot connect to {address} ({error.strerror or error}): {hint}"


def _require_free(address: Address) -> Listener | None:
    """Refuse, before connecting, a QEMU of this host that serves another debugger; else who listens."""
    deadline = time.monotonic() + _CLOSING
    while (there := host_process.listener(address)) and there.clients and host_process.is_qemu(there.pid):
        if time.monotonic() > deadline:
            raise TargetLost(
                f"another debugger is attached to QEMU (process {there.pid}) at {address}: detach it first, "
                "the stub takes one at a time"
            )
        time.sleep(0.02)
    return there


def _silent(address: Address, answers: int) -> str:
    """QEMU takes one client at a time; a second one connects (the kernel's queue) and is never answered."""
    if answers:
        return f"the stub at {address} answers, but its answer does not end in time: it hangs, or it is not QEMU's"
    there = host_process.listener(address)
    if there is not None and not host_process.is_qemu(there.pid):
        name = " ".join(host_process.command_line(there.pid)[:1]) or "a process"
        return (
            f"{address} is not a gdbstub: {name} (process {there.pid}) listens there and does not answer; "
            "start QEMU with -s or -gdb and give that address"
        )
    if there is not None:
        return f"QEMU (process {there.pid}) at {address} does not answer: it hangs, or is not a gdbstub"
    return (
        f"{address} accepts connections but does not answer: it is not a gdbstub, or "
        "another debugger is attached; give QEMU's address, or detach the other debugger"
    )
