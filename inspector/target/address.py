"""Where a gdbstub listens: ``HOST:PORT``, ``:PORT`` or the path of a unix socket."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from inspector.findings import BadInput
from inspector.numbers import parse_number

# gdb's own syntax: an IPv6 host stands in brackets.
_TCP = re.compile(r"^(?:tcp:)?(?P<host>\[[^\]]*\]|[^:/]*):(?P<port>[0-9]+)$")
# sun_path is 108 bytes with its NUL (unix(7)).
_UNIX_PATH_MAX = 107


@dataclass(frozen=True)
class TcpAddress:
    """A stub on TCP; ``host`` is a name or an address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """A connected socket with TCP_NODELAY (without: 22 requests a second, QEMU 7.2)."""
        connection = socket.create_connection((self.host, self.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@dataclass(frozen=True)
class UnixAddress:
    """A stub on a unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path

    def connect(self, timeout: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(self.path)
        except BaseException:
            connection.close()
            raise
        return connection


Address = TcpAddress | UnixAddress


def _is_text(path: str) -> bool:
    """Whether gdb can be told of it: what it is sent is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_address(connection: str) -> Address:
    """The address that ``connection`` names; ``str()`` of it is what gdb's ``target remote`` takes.

    A ``HOST:PORT`` (IPv6 in brackets; an empty host is this machine) is TCP, anything with a slash or without
    a port is a path.  Raises `BadInput` on an impossible port or path.
    """
    text = connection.strip()
    match = _TCP.match(text)
    if match:
        port = parse_number(match["port"], "port")
        if not 1 <= port <= 65535:
            raise BadInput(f"{connection!r} names port {port}: give a port from 1 to 65535")
        return TcpAddress(match["host"].strip("[]") or "localhost", port)
    path = text.removeprefix("unix:")
    if not path or path.endswith(":") or "\n" in path or not _is_text(path):
        raise BadInput(f"{connection!r} is not an address: give HOST:PORT, :PORT or the path of a unix socket")
    if len(os.fsencode(path)) > _UNIX_PATH_MAX:
        raise BadInput(f"the socket path {path!r} is longer than {_UNIX_PATH_MAX} bytes: use a shorter one")
    return UnixAddress(path)
