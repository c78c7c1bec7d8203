"""Bare machines for the target's tests: a real QEMU, tiny programs of our own in it, and independent ways to look.

What the tests compare with comes from QEMU's machine protocol (QMP) and from a raw socket of a few lines, never from
`inspector.target` itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CODE = 0x40100000
COUNTER = 0x40200000
DEADLINE = 20.0

# System registers that the program below writes at EL2; VTTBR/VTCR as a Debian 6.1 host has them while a guest runs.
PLANTED = {
    "VTTBR_EL2": 0x0001_0000_4830_4001,
    "VTCR_EL2": 0x802D_3558,
    "HCR_EL2": 0x8000_0001,
    "TPIDR_EL2": 0x1122_3344_5566_7788,
    "TPIDR_EL1": 0x99AA_BBCC_DDEE_FF01,
    "TTBR0_EL1": 0x0003_0000_4111_2000,
    "TTBR1_EL1": 0x0004_0000_4222_3000,
    "MAIR_EL1": 0x0000_0000_44FF_0400,
    "VBAR_EL1": 0xFFFF_8000_0812_3000,
    "VBAR_EL2": 0x4012_3800,
    "FAR_EL2": 0xFFFF_0000_1234_5678,
    "HPFAR_EL2": 0x0000_0000_0090_0000,
}

COUNTING = f"""
    .globl _start
_start:
    ldr x1, ={COUNTER:#x}
    mov x0, #0
1:  add x0, x0, #1
    str x0, [x1]
    b 1b
"""

REGISTERS_AND_COUNTING = (
    "    .globl _start\n_start:\n"
    + "".join(f"    ldr x9, ={value:#x}\n    msr {name}, x9\n" for name, value in PLANTED.items())
    + "".join(f"    ldr x{n}, ={0x5A00_0000_0000_0000 | n << 32 | n:#x}\n" for n in range(2, 31))
    + f"    ldr x1, ={COUNTER:#x}\n    mov x0, #0\n1:  add x0, x0, #1\n    str x0, [x1]\n    b 1b\n"
)

# From EL3 (secure=on without virtualization) to EL1: SCR_EL3 RW, HCE, NS and RES1 bits; EL1h, all masked.
DROP_TO_EL1 = """
    .globl _start
_start:
    mov x0, #0x531
    msr scr_el3, x0
    mov x0, #0x3c5
    msr spsr_el3, x0
    adr x0, 1f
    msr elr_el3, x0
    isb
    eret
1:  b 1b
"""


def assemble(source: str, folder: Path) -> Path:
    """A flat binary to be loaded at `CODE`."""
    (folder / "code.S").write_text(source)
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,--build-id=none", f"-Wl,-Ttext={CODE:#x}", "code.S"],
        cwd=folder,
        check=True,
    )
    subprocess.run(
        ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", "a.out", "code.bin"], cwd=folder, check=True
    )
    return folder / "code.bin"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds; fails loudly when it never does."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


@dataclass
class Qemu:
    """One QEMU; ``stub`` is where its gdbstub listens."""

    process: subprocess.Popen[bytes]
    stub: str
    qmp_path: str
    _qmp: socket.socket | None = field(default=None, repr=False)
    _lines: Any = field(default=None, repr=False)

    def qmp(self, command: str, **arguments: object) -> Any:
        if self._qmp is None:
            self._qmp = socket.socket(socket.AF_UNIX)
            self._qmp.settimeout(DEADLINE)
            self._qmp.connect(self.qmp_path)
            self._lines = self._qmp.makefile("r")
            self._lines.readline()
            self.qmp("qmp_capabilities")
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            reply = json.loads(self._lines.readline())
            assert "error" not in reply, reply
            if "return" in reply:
                return reply["return"]

    def monitor(self, command: str) -> str:
        return str(self.qmp("human-monitor-command", **{"command-line": command}))

    def running(self) -> bool:
        return bool(self.qmp("query-status")["running"])

    def word(self, pa: int) -> int:
        """A u64 of physical memory, by QEMU's own monitor."""
        return int(self.monitor(f"xp /1gx {pa:#x}").split(":")[1], 16)

    def counts(self, patience: float = 0.3) -> bool:
        """Whether the program in the machine makes progress, watched for ``patience`` seconds."""
        before = self.word(COUNTER)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self.word(COUNTER) != before:
                return True
        return False

    def physical_mode(self) -> str:
        """``qqemu.PhyMemMode`` by a raw connection of a few lines; the machine goes on as it was."""
        was_running = self.running()
        with raw_connect(self.stub) as connection:
            raw_request(connection, b"qSupported:multiprocess+")
            mode = raw_request(connection, b"qqemu.PhyMemMode").decode()
            if was_running:
                assert raw_request(connection, b"D;1") == b"OK"
        return mode

    def set_physical_mode(self, value: int) -> None:
        was_running = self.running()
        with raw_connect(self.stub) as connection:
            raw_request(connection, b"qSupported:multiprocess+")
            assert raw_request(connection, b"Qqemu.PhyMemMode:%d" % value) == b"OK"
            if was_running:
                assert raw_request(connection, b"D;1") == b"OK"

    def assert_as_found(self, *, running: bool = True, physical_mode: str = "0") -> None:
        eventually(lambda: self.running() == running, f"the machine {'runs' if running else 'stands'} again")
        assert self.physical_mode() == physical_mode
        assert self.running() == running
        assert self.counts(DEADLINE if running else 0.3) == running

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._qmp is not None:
            self._lines.close()
            self._qmp.close()


def raw_connect(stub: str) -> socket.socket:
    """A plain connection to a stub."""
    if ":" in stub:
        host, _, port = stub.rpartition(":")
        connection = socket.create_connection((host or "127.0.0.1", int(port)), DEADLINE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(stub)
    return connection


def raw_request(connection: socket.socket, payload: bytes) -> bytes:
    """The answer to one packet; stop replies that come unasked are passed over."""
    connection.sendall(b"$" + payload + b"#%02x" % (sum(payload) % 256))
    seen = b""
    while True:
        data = connection.recv(65536)
        assert data, "the stub closed the connection"
        seen += data
        for packet in re.findall(rb"\$([^#]*)#[0-9a-f]{2}", seen):
            if not packet.startswith(b"T02"):
                connection.sendall(b"+")
                return bytes(packet)


Starter = Callable[..., Qemu]


@contextlib.contextmanager
def qemu_starter(folder: Path) -> Iterator[Starter]:
    """A function that starts machines; all of them end with the block.

    ``start(source, *arguments, program="qemu-system-aarch64", machine=…, cpu="max", tcp=False, paused=False)``
    """
    started: list[Qemu] = []
    # unix socket paths are short; pytest's folders are not
    with tempfile.TemporaryDirectory(prefix="stub-") as sockets:

        def start(
            source: str | None = COUNTING,
            *arguments: str,
            program: str = "qemu-system-aarch64",
            machine: str = "virt,virtualization=on",
            cpu: str = "max",
            memory: str = "256",
            tcp: bool = False,
            paused: bool = False,
        ) -> Qemu:
            number = len(started)
            own = folder / f"machine{number}"
            own.mkdir()
            qmp_path = f"{sockets}/qmp{number}"
            stub = f"127.0.0.1:{free_port()}" if tcp else f"{sockets}/gdb{number}"
            listen = f"tcp:{stub}" if tcp else f"unix:{stub},server=on,wait=off"
            command = [program, "-M", machine, "-cpu", cpu, "-m", memory, "-display", "none", "-serial", "none"]
            command += ["-monitor", "none", "-nic", "none", "-gdb", listen, *arguments]
            command += ["-qmp", f"unix:{qmp_path},server=on,wait=off"]
            if source is not None:
                code = assemble(source, own)
                command += ["-device", f"loader,file={code},addr={CODE:#x}"]
                command += ["-device", f"loader,addr={CODE:#x},cpu-num=0"]
            if paused:
                command.append("-S")
            with (own / "log").open("wb") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            qemu = Qemu(process, stub, qmp_path)
            started.append(qemu)
            eventually(lambda: Path(qmp_path).exists() or process.poll() is not None, "QEMU starts")
            assert process.poll() is None, (own / "log").read_text()
            # QMP answers only from QEMU's main loop, when everything is set up.
            eventually(lambda: _answers(qemu), "QMP answers")
            return qemu

        try:
            yield start
        finally:
            for qemu in started:
                qemu.kill()


def _answers(qemu: Qemu) -> bool:
    try:
        qemu.qmp("query-status")
    except ConnectionRefusedError:
        qemu._qmp = None
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What boots QEMU is live, here too."""
    for item in items:
        if isinstance(item, pytest.Function) and {"start_qemu", "planted"} & set(item.fixturenames):
            item.add_marker(pytest.mark.live)


@pytest.fixture
def start_qemu(tmp_path: Path) -> Iterator[Starter]:
    with qemu_starter(tmp_path) as start:
        yield start


@pytest.fixture
def counting(start_qemu: Starter) -> Qemu:
    """A machine that counts in memory at `COUNTER`, running."""
    return start_qemu()


def children_of(pid: int) -> list[int]:
    """The processes whose parent is ``pid``, zombies too."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found


def gdb_children() -> list[int]:
    """Children of this process that are gdb, or were (zombies)."""
    found = []
    for pid in children_of(os.getpid()):
        with contextlib.suppress(OSError):
            if "gdb" in Path(f"/proc/{pid}/comm").read_text():
                found.append(pid)
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After every test: no gdb of ours, no descriptor more than before, the signal handlers as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    assert gdb_children() == []
    assert {number: signal.getsignal(number) for number in handlers} == handlers
