"""Everything that is not a usable target: one clear sentence, the right exit code, and nothing changed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inspector.findings import BadInput, ExitCode, InspectorError, TargetLost
from inspector.target.connect import attached, open_target
from tests.target.conftest import DROP_TO_EL1, Qemu, Starter, eventually, free_port, raw_connect, raw_request

pytestmark = pytest.mark.live


def refusal(connection: str, kind: type[InspectorError] = TargetLost, **options: object) -> str:
    with pytest.raises(kind) as caught:
        open_target(connection, **options)  # type: ignore[arg-type]
    expected = ExitCode.TARGET_LOST if kind is TargetLost else ExitCode.USAGE
    assert caught.value.exit_code == expected
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


@contextmanager
def listener(answer: bytes | None, *, close: bool = False) -> Iterator[str]:
    """Something that listens on TCP and is not a gdbstub."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            if answer:
                connection.sendall(answer)
            if close:
                connection.close()
            else:
                taken.append(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()
        for connection in taken:
            connection.close()


def test_gdb_is_missing(counting: Qemu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install gdb-multiarch" in refusal(counting.stub, BadInput)
    counting.assert_as_found()


def test_nothing_listens(tmp_path: Path) -> None:
    assert "nothing listens on" in refusal(f"127.0.0.1:{free_port()}")
    assert "nothing listens on" in refusal(str(tmp_path / "none"))
    gone = socket.socket(socket.AF_UNIX)
    gone.bind(str(tmp_path / "s"))
    gone.close()
    assert "nothing listens on" in refusal(str(tmp_path / "s"))


def test_a_host_that_does_not_exist() -> None:
    assert "unknown" in refusal("no-such-host.invalid:1234")


def test_a_file_that_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "nothing listens on" in refusal(str(tmp_path / "file"))


def test_a_listener_that_is_silent() -> None:
    with listener(None) as address:
        assert "is not a gdbstub: " in refusal(address, timeout=0.5)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b'{"QMP": {}}\r\n',
        b"$OK#00",
        b"\x00" * 64,
        b"+$" + b"x" * 5000,
    ],
)
def test_a_listener_that_answers_rubbish(answer: bytes) -> None:
    with listener(answer) as address:
        assert "not a gdbstub" in refusal(address, timeout=0.5)


def test_a_listener_that_hangs_up() -> None:
    with listener(None, close=True) as address:
        assert "is not a gdbstub: it closed the connection" in refusal(address)


def test_qemus_own_other_sockets(counting: Qemu, start_qemu: Starter, tmp_path: Path) -> None:
    """The monitor's address given in place of the stub's, while nobody else uses it."""
    qemu = start_qemu(None, "-chardev", f"socket,id=m,path={counting.stub}m,server=on,wait=off", "-mon", "chardev=m")
    assert "is not a gdbstub" in refusal(counting.stub + "m", timeout=1)
    assert qemu.process.poll() is None


def test_a_gdbstub_that_is_not_qemus() -> None:
    """A stub that speaks the protocol correctly but knows none of QEMU's packets."""
    with listener(b"+$PacketSize=400#" + b"%02x" % (sum(b"PacketSize=400") % 256)) as address:
        assert "unknown architecture" in refusal(address, timeout=0.5)


def test_a_32_bit_machine(start_qemu: Starter) -> None:
    qemu = start_qemu(None, program="qemu-system-arm", machine="virt", cpu="cortex-a15")
    assert "is arm, not AArch64" in refusal(qemu.stub)
    eventually(qemu.running, "the machine runs on")


def test_a_32_bit_cpu_in_the_64_bit_qemu(start_qemu: Starter) -> None:
    qemu = start_qemu(None, machine="virt", cpu="cortex-a15", paused=True)
    assert "is arm, not AArch64" in refusal(qemu.stub)
    assert qemu.qmp("query-status")["status"] == "prelaunch"


@pytest.mark.parametrize("cpu", ["max", "cortex-a57"])
@pytest.mark.parametrize("memory", ["process", "gdb"])
def test_no_el2(start_qemu: Starter, cpu: str, memory: str) -> None:
    qemu = start_qemu(machine="virt", cpu=cpu)
    assert "no EL2, so it cannot host KVM: start QEMU with -M virt,virtualization=on" in refusal(
        qemu.stub, memory=memory
    )
    qemu.assert_as_found()


@pytest.mark.parametrize("cpu", ["max", "cortex-a57"])
def test_el3_without_el2_whose_el2_registers_are_constant_zeros(start_qemu: Starter, cpu: str) -> None:
    qemu = start_qemu(DROP_TO_EL1, machine="virt,secure=on", cpu=cpu)
    eventually(lambda: "EL1h" in qemu.monitor("info registers"), "the program has left EL3")
    assert "every EL2 register is zero: start QEMU with" in refusal(qemu.stub)
    eventually(qemu.running, "the machine runs on")
    assert qemu.physical_mode() == "0"


@pytest.mark.parametrize("tcp", [False, True])
def test_another_debugger_is_attached(start_qemu: Starter, tcp: bool) -> None:
    """Refused without connecting: QEMU would take a waiting connection later, and stop the machine for nobody."""
    qemu = start_qemu(tcp=tcp)
    with raw_connect(qemu.stub) as other:
        raw_request(other, b"qSupported:multiprocess+")
        text = refusal(qemu.stub)
        assert f"another debugger is attached to QEMU (process {qemu.process.pid})" in text
        assert raw_request(other, b"D;1") == b"OK"
    eventually(qemu.running, "the other debugger's detach")
    eventually(qemu.counts, "the machine counts on")
    with attached(qemu.stub):
        pass
    qemu.assert_as_found()


def test_we_ourselves_are_attached_already(counting: Qemu) -> None:
    with attached(counting.stub) as machine:
        assert "another debugger is attached" in refusal(counting.stub)
        assert machine.cpus()
    counting.assert_as_found()


def test_no_permission(counting: Qemu) -> None:
    """A gdb that cannot be executed."""
    assert "is not there or not executable" in refusal(counting.stub, BadInput, gdb="/etc/passwd")
    counting.assert_as_found()
