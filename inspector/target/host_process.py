"""Finding QEMU's process on this host (Linux ``/proc``), and what its command line says."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_ESTABLISHED, _LISTEN = 0x01, 0x0A


def peer_pid(connection: socket.socket) -> int | None:
    """The process at the other end of a connected socket, when it is on this host and visible; else ``None``.

    Unix sockets: SO_PEERCRED (unix(7)), which names the process that called ``listen``.  TCP: the other end's row
    in ``/proc/net/tcp{,6}`` has our ports reversed; its inode is looked for among the open files of all processes.
    """
    if connection.family == socket.AF_UNIX:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", raw)[0]
        return pid or None
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for local, remote, state, inode in _tcp_rows():
        if state == _ESTABLISHED and (local, remote) == (theirs, ours):
            return _owner(inode)
    return None


def listener_pid(connection: socket.socket) -> int | None:
    """The process that listens where ``connection`` is connected to: also when it has not accepted us."""
    if connection.family == socket.AF_UNIX:
        return peer_pid(connection)
    port = connection.getpeername()[1]
    ours = connection.getsockname()[1]
    rows = list(_tcp_rows())
    # The reversed row (made by the kernel before accept) proves that the other end is in our network namespace.
    if not any((local, remote) == (port, ours) for local, remote, _, _ in rows):
        return None
    for local, _, state, inode in rows:
        if state == _LISTEN and local == port:
            return _owner(inode)
    return None


def _tcp_rows() -> Iterator[tuple[int, int, int, int]]:
    """(local port, remote port, state, inode) of each TCP socket of this network namespace (proc(5))."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            parts = line.split()
            local, remote = (int(part.rpartition(":")[2], 16) for part in parts[1:3])
            yield local, remote, int(parts[3], 16), int(parts[9])


def _owner(inode: int) -> int | None:
    if inode == 0:
        return None
    wanted = f"socket:[{inode}]"
    for pid in _pids():
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                try:
                    if os.readlink(entry.path) == wanted:  # noqa: PTH115 - a socket is no path
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
    """Whether the process looks like QEMU: ``qemu-system-…`` or a ``qemu`` renamed by a distribution."""
    arguments = command_line(pid)
    return bool(arguments) and "qemu" in os.path.basename(arguments[0]).lower()  # noqa: PTH119 - bytes of any kind


def kernel_argument(pid: int) -> str | None:
    """What QEMU was given as ``-kernel``, absolute (relative paths count from QEMU's working directory)."""
    arguments = command_line(pid)
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option in ("-kernel", "--kernel"):
            try:
                # /proc/PID/cwd is a link into the process's own view; joining an absolute value drops it.
                return str(Path(os.readlink(f"/proc/{pid}/cwd")) / value)  # noqa: PTH115
            except OSError:
                return value
    return None


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
