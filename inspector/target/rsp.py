"""A small client of gdb's remote serial protocol: looks at a stub before gdb, and puts it back after a crash.

gdb hides what this module needs: the stop reply that tells whether the machine ran before we came, and a way
to undo our traces when gdb itself was killed.  Everything else goes through gdb (`inspector.target.mi`).
Protocol: gdb manual, appendix E "GDB Remote Serial Protocol"; QEMU's part: gdbstub.c (7.2), gdbstub/ (8.0).
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from types import TracebackType

from inspector.findings import InspectorError
from inspector.target.address import Address

_MAX_PACKET = 1 << 20


class NotAStub(InspectorError):
    """What the other side sent is no remote serial protocol."""


class NoAnswer(InspectorError):
    """The other side was silent until the deadline."""


class Closed(InspectorError):
    """The other side closed the connection."""


def frame(payload: bytes) -> bytes:
    """``$payload#checksum``, the checksum being the sum of the bytes modulo 256 as two hex digits."""
    return b"$" + payload + b"#%02x" % (sum(payload) & 0xFF)


class RspClient:
    """One connection.  Connecting stops a running machine (QEMU: ``vm_stop`` on CHR_EVENT_OPENED)."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Raises `OSError` when nothing listens."""
        self._socket = address.connect(timeout)
        self._timeout = timeout
        self._buffer = b""
        self.stop_replies: list[bytes] = []
        """Stop replies that came unasked, oldest first."""

    def __enter__(self) -> RspClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def socket(self) -> socket.socket:
        return self._socket

    def close(self) -> None:
        """Close without detaching: QEMU (7.2) then leaves the machine stopped and every mode as it is."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def send(self, payload: bytes) -> None:
        try:
            self._socket.sendall(frame(payload))
        except OSError as error:
            raise Closed("it closed the connection") from error

    def receive(self) -> bytes:
        """The payload of the next packet, acknowledged.  Raises `NotAStub`, `NoAnswer` or `Closed`."""
        deadline = time.monotonic() + self._timeout
        while True:
            packet = self._take_packet()
            if packet is not None:
                with contextlib.suppress(OSError):
                    self._socket.sendall(b"+")
                return packet
            self._fill(deadline)

    def request(self, payload: bytes) -> bytes:
        """The answer to ``payload``; stop replies that QEMU had sent before go to `stop_replies`."""
        self.send(payload)
        while True:
            answer = self.receive()
            if re.match(rb"[TS][0-9a-f]{2}", answer) and payload != b"?":
                self.stop_replies.append(answer)
                continue
            return answer

    def monitor(self, command: str) -> str:
        """The output of a QEMU monitor command (``qRcmd``)."""
        self.send(b"qRcmd," + command.encode().hex().encode())
        output = b""
        while True:
            answer = self.receive()
            if answer == b"OK" or answer == b"" or re.fullmatch(rb"E[0-9a-f]{2}", answer):
                return output.decode(errors="replace")
            if answer.startswith(b"O"):
                output += bytes.fromhex(answer[1:].decode("ascii", "replace"))

    def read_object(self, kind: str, annex: str) -> bytes:
        """A whole ``qXfer`` object, such as the target description ``features`` / ``target.xml``."""
        data = b""
        while True:
            request = f"qXfer:{kind}:read:{annex}:{len(data):x},7f0"
            answer = self.request(request.encode())
            if answer[:1] not in (b"m", b"l"):
                return data
            data += _unescape(answer[1:])
            if answer[:1] == b"l":
                return data

    def _take_packet(self) -> bytes | None:
        self._buffer = self._buffer.lstrip(b"+-")
        if not self._buffer:
            return None
        if self._buffer[:1] != b"$":
            raise NotAStub(f"it sent {self._buffer[:24]!r}")
        end = self._buffer.find(b"#")
        if end < 0 or len(self._buffer) < end + 3:
            if len(self._buffer) > _MAX_PACKET:
                raise NotAStub("it sent a packet without end")
            return None
        payload, check = self._buffer[1:end], self._buffer[end + 1 : end + 3]
        self._buffer = self._buffer[end + 3 :]
        if check.lower() != b"%02x" % (sum(payload) & 0xFF):
            raise NotAStub(f"its packet {payload[:24]!r} has a wrong checksum")
        return payload

    def _fill(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise NoAnswer("it did not answer")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(65536)
        except TimeoutError as error:
            raise NoAnswer("it did not answer") from error
        except OSError as error:
            raise Closed("it closed the connection") from error
        if not data:
            raise Closed("it closed the connection")
        self._buffer += data


def _unescape(data: bytes) -> bytes:
    """Undo the binary escape: ``}`` followed by the byte xor 0x20 (gdb manual, E.1)."""
    return re.sub(rb"\}(.)", lambda match: bytes([match[1][0] ^ 0x20]), data, flags=re.DOTALL)


def put_back(address: Address, *, physical_mode: int | None, run: bool, timeout: float) -> bool:
    """Undo an attach whose gdb is gone: physical mode as given, then detach (``run``) or just close.

    Retries until ``timeout`` seconds have passed, because QEMU takes a new client only after it has seen the
    old one go.  True when it was done; never raises on a stub that is gone.
    """
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        try:
            client = RspClient(address, left)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            time.sleep(0.05)
            continue
        with contextlib.suppress(InspectorError), client:
            # Multiprocess as gdb set it before us: the flag outlives the connection (QEMU 7.2), and with it a
            # plain D is refused with E22.
            client.request(b"qSupported:multiprocess+")
            if physical_mode is not None:
                client.request(f"Qqemu.PhyMemMode:{physical_mode}".encode())
            return not run or client.request(b"D;1") == b"OK"
        time.sleep(0.05)
    return False
