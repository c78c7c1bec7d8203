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
from inspector.target.deadline import Deadline

_MAX_PACKET = 1 << 20
_MAX_OBJECT = 4 << 20  # bytes of one answer in several packets; QEMU's longest, a target description, has 60 KB
_MAX_STOP_REPLIES = 16  # QEMU sends one


class NotAStub(InspectorError):
    """What the other side sent is not the remote serial protocol."""


class NoAnswer(InspectorError):
    """The other side did not complete its answer by the deadline."""


class Closed(InspectorError):
    """The other side closed the connection."""


def frame(payload: bytes) -> bytes:
    """``$payload#checksum``, the checksum being the sum of the bytes modulo 256 as two hex digits."""
    return b"$" + payload + b"#%02x" % (sum(payload) & 0xFF)


class RspClient:
    """One connection.  Connecting stops a running machine (QEMU: ``vm_stop`` on CHR_EVENT_OPENED).

    Every question has one deadline for the whole of its answer, however many packets that takes.
    """

    def __init__(self, address: Address, timeout: float, deadline: Deadline | None = None) -> None:
        """``timeout``: seconds for one question; ``deadline``: for all.  Raises `OSError` when nothing listens."""
        self._overall = deadline
        self._timeout = timeout
        self._until = self._begin()
        self._socket = address.connect(self._until.left or 0.001)
        self._buffer = bytearray()
        self.stop_replies: list[bytes] = []
        """Stop replies that came unasked, oldest first."""
        self.answers = 0
        """Packets received."""

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

    def request(self, payload: bytes) -> bytes:
        """The answer to ``payload``; stop replies that QEMU had sent before go to `stop_replies`.

        Raises `NotAStub`, `NoAnswer` or `Closed`, as all questions do.
        """
        self._until = self._begin()
        return self._ask(payload)

    def monitor(self, command: str) -> str:
        """The output of a QEMU monitor command (``qRcmd``)."""
        self._until = self._begin()
        self._send(b"qRcmd," + command.encode().hex().encode())
        output = bytearray()
        while True:
            answer = self._receive()
            if answer == b"OK" or answer == b"" or re.fullmatch(rb"E[0-9a-f]{2}", answer):
                return output.decode(errors="replace")
            if answer.startswith(b"O"):
                if not re.fullmatch(rb"O(?:[0-9a-fA-F]{2})*", answer):
                    raise NotAStub(f"its console output {answer[:24]!r} is not hexadecimal")
                output += bytes.fromhex(answer[1:].decode("ascii"))
                if len(output) > _MAX_OBJECT:
                    raise NotAStub(f"its answer to the monitor command '{command}' has no end")

    def read_object(self, kind: str, annex: str) -> bytes:
        """A whole ``qXfer`` object, such as the target description ``features`` / ``target.xml``."""
        self._until = self._begin()
        data = bytearray()
        while len(data) <= _MAX_OBJECT:
            answer = self._ask(f"qXfer:{kind}:read:{annex}:{len(data):x},7f0".encode())
            if answer[:1] not in (b"m", b"l"):
                return bytes(data)
            data += _unescape(answer[1:])
            if answer[:1] == b"l":
                return bytes(data)
            if len(answer) == 1:
                break  # more to come, it says, and sends nothing
        raise NotAStub(f"its {annex} has no end")

    def _begin(self) -> Deadline:
        """The deadline of a question that is asked now."""
        return self._overall.within(self._timeout) if self._overall else Deadline.after(self._timeout)

    def _ask(self, payload: bytes) -> bytes:
        self._send(payload)
        while True:
            answer = self._receive()
            if re.match(rb"[TS][0-9a-f]{2}", answer) and payload != b"?":
                self.stop_replies.append(answer)
                if len(self.stop_replies) > _MAX_STOP_REPLIES:
                    raise NotAStub("it sends stop replies without end")
                continue
            return answer

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.settimeout(self._until.left or 0.001)
            self._socket.sendall(frame(payload))
        except TimeoutError as error:
            raise NoAnswer("it does not take what it is sent") from error
        except OSError as error:
            raise Closed("it closed the connection") from error

    def _receive(self) -> bytes:
        """The payload of the next packet, acknowledged."""
        while True:
            if self._until.passed:
                raise NoAnswer("it did not complete its answer in time")
            packet = self._take_packet()
            if packet is not None:
                self.answers += 1
                with contextlib.suppress(OSError):
                    self._socket.sendall(b"+")
                return packet
            self._fill()

    def _take_packet(self) -> bytes | None:
        buffer = self._buffer
        acknowledgements = len(buffer) - len(buffer.lstrip(b"+-"))
        del buffer[:acknowledgements]
        if not buffer:
            return None
        if buffer[:1] != b"$":
            raise NotAStub(f"it sent {bytes(buffer[:24])!r}")
        end = buffer.find(b"#")
        if end < 0 or len(buffer) < end + 3:
            if len(buffer) > _MAX_PACKET:
                raise NotAStub("it sent a packet without end")
            return None
        payload, check = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
        del buffer[: end + 3]
        if check.lower() != b"%02x" % (sum(payload) & 0xFF):
            raise NotAStub(f"its packet {payload[:24]!r} has a wrong checksum")
        return payload

    def _fill(self) -> None:
        try:
            self._socket.settimeout(self._until.left or 0.001)
            data = self._socket.recv(65536)
        except TimeoutError as error:
            raise NoAnswer("it did not complete its answer in time") from error
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
    deadline = Deadline.after(timeout)
    while not deadline.passed:
        try:
            client = RspClient(address, timeout, deadline)
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
