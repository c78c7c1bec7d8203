"""A gdbstub on loopback that is QEMU's in all but one thing: what a test has it say instead.

It answers what gdb and the tool ask of a stopped AArch64 machine with 2 MiB of zeroed RAM (protocol: gdb manual,
appendix E).  A lie is a function that is asked first; it answers by what it sends, or leaves the question to the honest
part by returning false.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

REGISTERS = [f"x{n}" for n in range(31)] + ["sp", "pc"]
SYSTEM = ["VTTBR_EL2", "HCR_EL2", "VTCR_EL2", "TTBR0_EL1", "TTBR1_EL1", "TCR_EL1", "VBAR_EL2", "ID_AA64MMFR0_EL1"]
MTREE = (
    'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
    "  0000000040000000-00000000401fffff (prio 0, ram): mach-virt.ram\n"
)


def frame(payload: bytes) -> bytes:
    return b"$" + payload + b"#%02x" % (sum(payload) & 0xFF)


def target_xml() -> bytes:
    """The target description: the core registers gdb insists on, and QEMU's system registers."""
    core = "".join(f'<reg name="{name}" bitsize="64"/>' for name in REGISTERS) + '<reg name="cpsr" bitsize="32"/>'
    system = "".join(f'<reg name="{name}" bitsize="64"/>' for name in SYSTEM)
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target><architecture>aarch64</architecture>'
        f'<feature name="org.gnu.gdb.aarch64.core">{core}</feature>'
        f'<feature name="org.qemu.gdb.arm.sys.regs">{system}</feature></target>'
    ).encode()


#: `g`: general registers, cpsr (EL2h), system registers with HCR_EL2.RW set.
VALUES = bytes(8 * len(REGISTERS)) + (0x3C9).to_bytes(4, "little") + (1 << 31).to_bytes(8, "little") * len(SYSTEM)


class Connection:
    """One client; ``send`` frames a payload, ``raw`` does not."""

    def __init__(self, sock: socket.socket, stopping: threading.Event) -> None:
        self._socket = sock
        self.stopping = stopping
        self.mode = b"0"
        self.threads = 0

    def raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send(self, payload: bytes) -> None:
        self.raw(frame(payload))

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the end of the test."""
        if self.stopping.wait(seconds):
            raise OSError

    def print(self, text: str) -> None:
        """A monitor command's output."""
        data = text.encode()
        for at in range(0, len(data), 500):
            self.send(b"O" + data[at : at + 500].hex().encode())
        self.send(b"OK")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)


Lie = Callable[[Connection, bytes], object]
"""Called with each packet; a false result leaves the answer to the honest part."""


class Liar:
    """The stub, as a context manager; ``address`` is what ``--connect`` takes."""

    def __init__(self, lie: Lie) -> None:
        self._lie = lie
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Liar:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        connection, buffer = Connection(sock, self._stopping), b""
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                if data.startswith(b"\x03"):  # an interrupt, outside of any packet
                    data = data[1:]
                    connection.send(b"T02thread:p01.01;")
                buffer += data
                while (start := buffer.find(b"$")) >= 0 and (end := buffer.find(b"#", start)) >= 0:
                    if len(buffer) < end + 3:
                        break
                    packet, buffer = buffer[start + 1 : end], buffer[end + 3 :]
                    connection.raw(b"+")
                    if not self._lie(connection, packet):
                        answer(connection, packet)
        with contextlib.suppress(OSError):
            sock.close()


def answer(connection: Connection, packet: bytes) -> None:
    """What QEMU says."""
    name = packet.split(b":")[0].split(b";")[0]
    if packet.startswith(b"qXfer:features:read:target.xml:"):
        at, size = (int(part, 16) for part in packet.rpartition(b":")[2].split(b","))
        xml = target_xml()
        connection.send((b"m" if at + size < len(xml) else b"l") + xml[at : at + size])
    elif packet.startswith(b"qRcmd,"):
        command = bytes.fromhex(packet[6:].decode()).decode()
        texts = {"info status": "VM status: paused\r\n", "info version": "10.0.0\r\n", "info mtree -f": MTREE}
        connection.print(texts.get(command, ""))
    elif packet.startswith(b"Qqemu.PhyMemMode:"):
        connection.mode = packet[-1:]
        connection.send(b"OK")
    elif packet.startswith(b"vCont;c"):
        pass  # it runs: there is no answer before it stops
    elif packet.startswith(b"m"):
        _, size = (int(part, 16) for part in packet[1:].split(b","))
        connection.send(b"00" * size)
    else:
        answers = {
            b"qSupported": b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+",
            b"qqemu.PhyMemMode": connection.mode,
            b"?": b"T02thread:p01.01;",
            b"qC": b"QCp01.01",
            b"qAttached": b"1",
            b"qfThreadInfo": b"mp01.01",
            b"qsThreadInfo": b"l",
            b"qThreadExtraInfo,p1.1": b"CPU#0 [running]".hex().encode(),
            b"g": VALUES.hex().encode(),
            b"D": b"OK",
            b"vCont?": b"vCont;c;C;s;S",
        }
        connection.send(b"OK" if packet[:1] == b"H" else answers.get(name, b""))
