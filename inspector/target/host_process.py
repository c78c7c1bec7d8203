"""Finding QEMU's process on this host (Linux ``/proc``), and what its command line says."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inspector.target.address import Address, UnixAddress

_ESTABLISHED, _LISTEN = 0x01, 0x0A


def peer_pid(connection: socket.socket) -> int | None:
    """The process at the other end of a connected socket, when it is on this host and visible; else ``None``.

    Unix sockets: SO_PEERCRED (unix(7)), which names the process that called ``listen``.  TCP: the other end's
    row in ``/proc/net/tcp{,6}`` has our ports reversed; its inode is looked for among the open files of all
    processes.
    """
    if connection.family == socket.AF_UNIX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for row in _tcp_rows():
        if row.state == _ESTABLISHED and (row.local, row.remote) == (theirs, ours):
            return _owner(row.inode)
    return None


@dataclass(frozen=True)
class Listener:
    """The process that listens at an address of this host; ``clients``: whether it serves a connection now."""

    pid: int
    clients: bool


def listener(address: Address) -> Listener | None:
    """Who listens at ``address``, found without connecting; ``None`` when it is not visible from here.

    Connecting to a stub that serves another debugger does harm: QEMU takes the connection from the kernel's queue
    as soon as that debugger leaves, though we are gone by then, and stops the machine (measured, 7.2.22).
    """
    if isinstance(address, UnixAddress):
        return _unix_listener(address.path)
    hosts = _local_addresses(address.host)
    rows = [row for row in _tcp_rows() if hosts and row.local == address.port]
    for row in rows:
        if row.state == _LISTEN and (pid := _owner(row.inode)) is not None and (row.host in hosts or row.any_host):
            return Listener(pid, any(other.state == _ESTABLISHED and other.inode for other in rows))
    return None


def _unix_listener(path: str) -> Listener | None:
    """``/proc/net/unix``: Num RefCount Protocol Flags Type St Inode Path.  Flag 0x10000 is a listening socket, St 03
    a connected one; an accepted connection shows the path of its listener, one not yet accepted has inode 0."""
    try:
        lines = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    except OSError:
        return None
    name = os.path.basename(path)  # noqa: PTH119 - compared as text
    rows = [line for line in lines if len(line) == 8 and os.path.basename(line[7]) == name]  # noqa: PTH119
    for row in rows:
        if int(row[3], 16) & 0x10000 and (pid := _owner(int(row[6]))) is not None:
            try:
                # A relative path is shown as it was bound, so it counts from the listener's working directory.
                same = os.path.samefile(os.path.join(f"/proc/{pid}/cwd", row[7]), path)  # noqa: PTH118, PTH121
            except OSError:
                continue
            if same:
                clients = any(other[7] == row[7] and other[5] == "03" and other[6] != "0" for other in rows)
                return Listener(pid, clients)
    return None


def _local_addresses(host: str) -> set[bytes]:
    """The addresses of ``host`` that are this machine's own: those that a socket can be bound to."""
    found = set()
    try:
        infos = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    for family, kind, protocol, _, address in infos:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
            found.add(socket.inet_pton(family, str(address[0])))
        except OSError:
            continue
    return found


@dataclass(frozen=True)
class _TcpRow:
    """One row of ``/proc/net/tcp{,6}`` (proc(5)); ``host`` in network byte order, IPv4 in IPv6 as plain IPv4."""

    host: bytes
    local: int
    remote: int
    state: int
    inode: int

    @property
    def any_host(self) -> bool:
        return not any(self.host)


def _tcp_rows() -> Iterator[_TcpRow]:
    """The TCP sockets of this network namespace."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            host, _, local = parts[1].rpartition(":")
            # Printed as 32-bit words in the host's byte order.
            words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
            address = struct.pack(f"={len(words)}I", *words).removeprefix(b"\0" * 10 + b"\xff\xff")
            remote = int(parts[2].rpartition(":")[2], 16)
            yield _TcpRow(address, int(local, 16), remote, int(parts[3], 16), int(parts[9]))


def _owner(inode: int) -> int | None:
    if inode == 0:
        return None
    wanted = f"socket:[{inode}]"
    for pid in _pids():
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                try:
                    if os.readlink(entry.path) == wanted:  # noqa: PTH115 - a socket is not a path
                        return pid
                except OSError:
                    continue
        except OSError:
            continue
    return None


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def command_line(pid: int) -> list[str]:
    """The arguments of process ``pid``; empty when it is gone or hidden."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(part) for part in data.rstrip(b"\0").split(b"\0")] if data else []


def is_qemu(pid: int) -> bool:
    """Whether the command line is QEMU's: ``…qemu…`` itself, or ``qemu-system-…`` run by a dynamic loader."""
    names = [os.path.basename(argument) for argument in command_line(pid)]  # noqa: PTH119 - compared as text
    return bool(names) and ("qemu" in names[0].lower() or any(name.startswith("qemu-system-") for name in names))


def kernel_argument(pid: int) -> str | None:
    """What QEMU was given as ``-kernel``, absolute (relative paths count from QEMU's working directory)."""
    arguments = command_line(pid)
    for option, value in itertools.pairwise(arguments):
        if option in ("-kernel", "--kernel"):
            try:
                # /proc/PID/cwd is a link into the process's own view; joining an absolute value drops it.
                return str(Path(os.readlink(f"/proc/{pid}/cwd")) / value)  # noqa: PTH115
            except OSError:
                return value
    return None


def stirs(pid: int, seconds: float) -> bool:
    """Whether any thread of ``pid`` but its first is scheduled within ``seconds``; returns at the first sign.

    CPUs of a machine that QEMU has stopped sleep for good: no context switch in 15 s, on 7.2 and 10.0, in ``-S`` as
    after ``stop``.  Those of an idle Linux 6.1 sleep up to 2.02 s, of 7.3 up to 0.94 s.  (Measured for a minute each on
    10.0.2, and up to 2.01 s on 11.1.3; TCG.)
    """
    before = _switches(pid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.005)
        if _switches(pid) != before:
            return True
    return False


def _switches(pid: int) -> dict[str, int]:
    """Context switches of each thread but the first, which runs QEMU's main loop (``/proc/PID/task/*/status``)."""
    counts = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                with contextlib.suppress(OSError):
                    numbers = re.findall(r"ctxt_switches:\s*(\d+)", (task / "status").read_text())
                    counts[task.name] = sum(map(int, numbers))
    return counts


def mapped(pid: int, start: int, size: int) -> bool:
    """Whether ``[start, start + size)`` is wholly mapped readable in process ``pid`` (``/proc/PID/maps``)."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return False
    position = start
    for line in lines:
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (r?)", line)
        if not match:
            continue
        low, high = int(match[1], 16), int(match[2], 16)
        if low <= position < high and match[3]:
            position = high
    return position >= start + size
