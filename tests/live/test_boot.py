"""run_qemu.sh: every command really works, ends with the documented exit code, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import re
import signal
import socket
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.scenarios import SCENARIOS, Scenario
from tests.live.machine import REPO, RUN_QEMU, Machine, MachineFailed, common_options, process_alive

pytestmark = pytest.mark.live

FOREVER = 300  # seconds after which a hang is a failure


def run_qemu(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """run_qemu.sh to its end."""
    return subprocess.run(
        [RUN_QEMU, *common_options(), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=FOREVER,
        env={**os.environ, **environment},
        check=False,
    )


def default_kernel() -> str:
    return os.environ.get("INSPECTOR_DEFAULT_KERNEL", "default")


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Fail when ``condition`` does not become true."""
    deadline = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def qemu_of(run_dir: Path) -> int | None:
    """The pid that a run folder names, once it does."""
    try:
        return int((run_dir / "pid").read_text())
    except (FileNotFoundError, ValueError):
        return None


def stub_answer(connection: socket.socket) -> bytes:
    """What a gdb stub says to ``qSupported`` (gdb's manual, "Remote Protocol", Overview)."""
    body = b"qSupported"
    connection.settimeout(FOREVER)
    connection.sendall(b"+$" + body + b"#%02x" % (sum(body) % 256))
    answer = b""
    # The stop that connecting causes may be told first.
    while b"PacketSize" not in answer:
        chunk = connection.recv(4096)
        assert chunk, f"the stub closed the connection after {answer!r}"
        answer += chunk
    connection.sendall(b"+")
    return answer


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for run folders: a unix socket's path has 107 bytes, and ``tmp_path`` of a worker leaves few of them."""
    with tempfile.TemporaryDirectory(prefix="s2-") as name:
        yield Path(name)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose machine, if a test left one, is stopped."""
    folder = tmp_path / "m"
    yield folder
    run_qemu("--run-dir", str(folder), "stop")


def test_start_status_run_send_stop(run_dir: Path) -> None:
    where = ["--run-dir", str(run_dir)]
    assert run_qemu(*where, "status").returncode == 3
    started = run_qemu(*where, "--kernel", default_kernel(), "--scenario", "one", "start")
    assert started.returncode == 0, started.stderr
    pid = qemu_of(run_dir)
    assert pid is not None
    assert process_alive(pid)
    assert str(pid) in run_qemu(*where, "status").stdout

    again = run_qemu(*where, "--kernel", default_kernel(), "start")
    assert again.returncode == 2
    assert "runs already" in again.stderr
    assert qemu_of(run_dir) == pid

    told = run_qemu(
        *where, "run", "--", "sh", "-c", 'echo "$INSPECTOR_CONNECT"; command -v inspector; cat', stdin="hi\n"
    )
    assert told.returncode == 0, told.stderr
    connect, inspector, echoed = told.stdout.splitlines()
    assert connect == str(run_dir / "gdb.sock")
    assert inspector.endswith("/bin/inspector")
    assert echoed == "hi"
    assert told.stderr == "", "nothing had to be set up"

    answered = run_qemu(*where, "send", "progress")
    assert answered.returncode == 0, answered.stderr
    assert '"command": "progress"' in answered.stdout
    assert run_qemu(*where, "send", "no-such-command").returncode == 2

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(connect)
        assert b"PacketSize" in stub_answer(connection)

    stopped = run_qemu(*where, "stop")
    assert stopped.returncode == 0
    assert not process_alive(pid)
    assert not run_dir.exists()
    assert run_qemu(*where, "status").returncode == 3
    assert run_qemu(*where, "stop").returncode == 0
    assert run_qemu(*where, "send", "progress").returncode == 3


def test_a_machine_for_one_command_ends_with_it(short_path: Path) -> None:
    done = run_qemu(
        *("--run-dir", str(short_path / "none"), "--kernel", default_kernel(), "--scenario", "one"),
        *("run", "--", "sh", "-c", 'cat "$INSPECTOR_RUN_DIR/pid"; echo "$INSPECTOR_RUN_DIR"; exit 42'),
        TMPDIR=str(short_path),
    )
    assert done.returncode == 42, done.stderr
    pid, folder = done.stdout.split()
    assert not process_alive(int(pid))
    assert not Path(folder).exists()
    steps = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in steps] == [f"[{n}/{len(steps)}" for n in range(1, len(steps) + 1)]
    assert all(line.endswith(" s)") for line in steps)
    assert "\x1b" not in done.stderr, "no colour where there is no terminal"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_the_machine_and_the_program(short_path: Path, number: signal.Signals, code: int) -> None:
    script = 'echo $$ $(cat "$INSPECTOR_RUN_DIR/pid"); exec sleep 1000'
    with subprocess.Popen(
        [
            *(str(RUN_QEMU), *common_options(), "--run-dir", str(short_path / "none")),
            *("--kernel", default_kernel(), "--scenario", "one", "run", "--", "sh", "-c", script),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_path)},
        # A shell leaves SIGINT ignored when it was started so: as it is from a terminal, it is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2, process.stderr.read() if process.stderr else ""
        process.send_signal(number)
        assert process.wait(timeout=FOREVER) == code
    for pid in pids:
        wait_until(lambda pid=pid: not process_alive(pid), f"the end of {pid}")  # type: ignore[misc]
    if number == signal.SIGKILL:
        # Nobody could remove the folder; the next one does.
        assert len(list(short_path.glob("s2-machine.*"))) == 1
        after = run_qemu("--kernel", default_kernel(), "--scenario", "one", "run", "true", TMPDIR=str(short_path))
        assert after.returncode == 0, after.stderr
    assert list(short_path.glob("s2-machine.*")) == []


def test_a_signal_while_booting_leaves_nothing(run_dir: Path) -> None:
    with subprocess.Popen(
        [
            *(str(RUN_QEMU), *common_options(), "--run-dir", str(run_dir)),
            # Nothing ever prints this: it waits until the signal.
            *("--kernel", default_kernel(), "--ready", "never printed", "start"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        wait_until(lambda: qemu_of(run_dir), "QEMU")
        pid = qemu_of(run_dir)
        assert pid is not None
        process.terminate()
        assert process.wait(timeout=FOREVER) == 143
    assert not process_alive(pid)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "unknown command"),
        (["--frobnicate"], "unknown option"),
        (["--cpu"], "needs a value"),
        (["--smp", "two", "start"], "needs a number"),
        (["--gic-version", "4", "start"], "2 or 3"),
        (["--name", "../x", "start"], "--name"),
        (["--qemu", "/no/such/qemu", "start"], "there is no program"),
        (["--kernel", "/no/such/Image", "start"], "cannot read"),
        (["--kernel", str(REPO / "LICENSE"), "start"], "not an arm64 kernel"),
        (["--run-dir", "/" + "x" * 100, "start"], "too long"),
        (["start", "stop"], "one command at a time"),
        (["run"], "what?"),
    ],
)
def test_bad_usage(arguments: list[str], words: str) -> None:
    done = run_qemu(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_help_names_every_option() -> None:
    done = run_qemu("--help")
    assert done.returncode == 0
    source = RUN_QEMU.read_text()
    options = {word.split(")")[0].split("|")[-1].strip() for word in source.splitlines() if ") " in word}
    options = {word for word in options if word.startswith("--") and word != "--"}
    assert len(options) >= 15
    assert {word for word in options if word not in done.stdout} == set()


def test_a_kernel_that_does_not_get_there_is_untestable(run_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    done = run_qemu(
        *("--run-dir", str(run_dir), "--kernel", default_kernel(), "--initramfs", str(empty)),
        *("--ready", "never printed", "start"),
    )
    assert done.returncode == 125, done.stderr
    assert "Kernel panic" in done.stderr, "the end of the console is shown"
    assert not run_dir.exists()


def test_a_qemu_that_refuses_is_untestable(run_dir: Path) -> None:
    done = run_qemu("--run-dir", str(run_dir), "--kernel", default_kernel(), "--cpu", "no-such-cpu", "start")
    assert done.returncode == 125, done.stderr
    assert "no-such-cpu" in done.stderr
    assert not run_dir.exists()


def test_a_suite_that_does_not_exist_is_untestable(run_dir: Path) -> None:
    done = run_qemu("--run-dir", str(run_dir), "--kernel", "nosuchsuite", "start")
    assert done.returncode == 125, done.stderr
    assert "nosuchsuite" in done.stderr


def test_two_machines_and_a_port() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        Machine.start(scenario="one", options=["--gdb-port", str(port)]) as first,
        Machine.start(scenario="one", smp=1) as second,
    ):
        assert first.gdb_socket == f"localhost:{port}"
        assert first.run_dir != second.run_dir
        assert first.qemu_pid != second.qemu_pid
        with socket.create_connection(("127.0.0.1", port)) as connection:
            assert b"PacketSize" in stub_answer(connection)
        assert second.command("progress")[-1]["ok"] is True
    assert not first.running
    assert not second.running


def test_options_reach_the_host() -> None:
    with Machine.start(scenario="one", memory=768, append="kvm-arm.mode=nvhe ignored=yes") as machine:
        boot = machine.wait_for("boot")
        # The kernel keeps some memory to itself.
        assert 600 * 1024 < boot["mem_kb"] < 768 * 1024
        command_line = Path(f"/proc/{machine.qemu_pid}/cmdline").read_text()
        assert "kvm-arm.mode=nvhe ignored=yes" in command_line
        assert machine.wait_for("ready")["scenario"] == "one"


def test_help_lists_the_table_that_the_tests_read() -> None:
    """C's preprocessor and our regular expression read scenarios.def alike."""
    with Machine.start(scenario="nokvm") as machine:
        told = [event for event in machine.command("help") if event["event"] == "help"]
    assert [Scenario(e["scenario"], e["group"], e["steps"], e["help"]) for e in told] == list(SCENARIOS)
    assert [s.name for s in SCENARIOS if s.group == "DEFAULT"][:2] == ["ipa", "backing"]


def test_the_tour_ends_and_names_the_guest_that_could_not_run() -> None:
    """One guest spins for ever: it is given up after ``patience`` seconds, and the verdict is on what is there."""
    done = run_qemu("--kernel", default_kernel(), "--scenario", "stuck,patience=2")
    assert done.returncode == 0, done.stderr
    assert re.search(r"guests: 2 VMs, 1 guest could not run \(", done.stderr)
    name = r"VM 1 \(40-bit IPA\), vCPU 0 at pc 0x[0-9a-f]+: no answer within 2 s"
    assert re.search(rf"^ +{name}$", done.stderr, re.M)
    assert re.fullmatch(rf"run_qemu.sh: a guest could not run: {name}", done.stderr.splitlines()[-1])
    assert "0 errors, 0 notes in 2 VMs" in done.stdout


def test_a_guest_that_was_given_up_is_left_alone_and_can_go() -> None:
    with Machine.start(scenario="stuck,patience=2") as machine:
        assert [event["vm"] for event in machine.named("guest_failed")] == [1]
        for line in ("touch 0 0 w 0x40000000", "spin on", "spin off", "idle", "truth", "destroy 1", "end"):
            assert machine.command(line, timeout=30)[-1]["ok"] is True, line
        assert machine.command("touch 1 0 w 0x0", timeout=30)[-1]["ok"] is False
        assert len(machine.named("guest_failed")) == 1


def test_a_machine_that_dies_is_noticed() -> None:
    with Machine.start(scenario="one") as machine:
        machine.kill()
        with pytest.raises(MachineFailed):
            machine.wait_for("never")


def zboot(image: bytes) -> bytes:
    """An EFI zboot wrapper as drivers/firmware/efi/libstub/zboot-header.S lays it out, without its PE part."""
    payload = gzip.compress(image, 1)
    header = b"MZ\0\0zimg" + struct.pack("<IIII", 64, len(payload), 0, 0) + b"gzip".ljust(32, b"\0") + bytes(8)
    assert len(header) == 64
    return header + payload + struct.pack("<I", len(image))


@pytest.mark.parametrize("form", ["gzip", "zboot"])
def test_any_form_of_image_boots(tmp_path: Path, form: str) -> None:
    with Machine.start(scenario="one") as machine:
        image = machine.image.read_bytes()
        release = machine.wait_for("boot")["release"]
    packed = tmp_path / "Image.packed"
    packed.write_bytes(gzip.compress(image, 1) if form == "gzip" else zboot(image))
    with Machine.start(str(packed), scenario="one") as machine:
        assert machine.wait_for("boot")["release"] == release
        assert zlib.crc32(machine.image.read_bytes()) == zlib.crc32(image)
