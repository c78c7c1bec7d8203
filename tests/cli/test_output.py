"""Output that fails: a full disk, a limit, a closed descriptor.  One sentence, exit code 2, and nothing half-written.

Every command runs as the console script does, in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.processes

REPO = Path(__file__).resolve().parents[2]
GOOD = REPO / "fixtures/captures/6.1-cortex-a57.s2cap"
COMMANDS = [
    ("--from", str(GOOD), "vms"),
    ("--from", str(GOOD), "vms", "--json"),
    ("--from", str(GOOD), "dump", "--tree", "--json"),
    ("--from", str(GOOD), "check"),
    ("--from", str(GOOD), "diff"),
    ("diff", str(GOOD), str(REPO / "fixtures/captures/6.1-max.s2cap")),
    ("check", "--list"),
    ("decode", "--level", "3", "0x0040000048123fdb"),
    ("--help",),
    ("--version",),
    ("vms", "--help"),
]


def inspector(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run([sys.executable, "-m", "inspector", *arguments], cwd=REPO, text=True, timeout=120, **given)


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    """``/dev/full``, after a look whether it is the device: a file of that name would take everything."""
    about = Path("/dev/full").stat()
    assert stat.S_ISCHR(about.st_mode) and (os.major(about.st_rdev), os.minor(about.st_rdev)) == (1, 7)
    number = os.open("/dev/full", os.O_WRONLY)
    try:
        yield number
    finally:
        os.close(number)


def one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("inspector: ") and done.stderr.count("\n") == 1, done.stderr
    assert not {"internal", "Traceback"} & set(done.stderr.split())
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c).replace(str(REPO), ""))
def test_stdout_that_is_full_or_closed(command: tuple[str, ...]) -> None:
    with full_disk() as full:
        one_sentence(inspector(*command, stdout=full), "standard output", "No space left on device")
    one_sentence(inspector(*command, stdout=None, preexec_fn=closing(1)), "standard output", "closed")


def test_stderr_that_fails_changes_nothing_else() -> None:
    good, bad = ("--from", str(GOOD), "vms"), ("--from", "missing", "vms")
    expected = inspector(*good).stdout
    with full_disk() as full:
        for more in ({"stderr": full}, {"stderr": None, "preexec_fn": closing(2)}):
            done = inspector(*good, **more)
            assert (done.returncode, done.stdout) == (0, expected)
            assert inspector(*bad, **more).returncode == 2
            assert inspector("--connect", "127.0.0.1:1", "vms", **more).returncode == 3
        assert inspector(*good, stdout=full, stderr=full).returncode == 2
    assert inspector(*good, stdout=None, stderr=None, preexec_fn=closing(1, 2)).returncode == 2


def test_stdout_over_the_limit_of_a_file(tmp_path: Path) -> None:
    """As ``ulimit -f``: SIGXFSZ, which Python ignores, and EFBIG."""
    with (tmp_path / "out").open("w") as out:
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # noqa: E731
        one_sentence(inspector(*COMMANDS[2], stdout=out, preexec_fn=limit), "standard output", "File too large")


def test_a_reader_that_has_gone_has_seen_enough() -> None:
    for command in COMMANDS:
        read, write = os.pipe()
        os.close(read)
        done = inspector(*command, stdout=write)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    """Whoever shares the pipe or terminal can make it so; Python then gives up in the middle."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    command = [sys.executable, "-m", "inspector", "--from", str(GOOD), "dump", "--tree", "--json"]
    with (
        subprocess.Popen(command, cwd=REPO, stdout=write, stderr=subprocess.PIPE) as process,
        os.fdopen(read, "rb") as pipe,
    ):
        os.close(write)
        time.sleep(2)  # the pipe is full by now
        got = pipe.read()
        assert process.stderr is not None
        assert (process.wait(), process.stderr.read()) == (0, b"")
    assert got.decode() == inspector(*COMMANDS[2]).stdout


def test_what_the_locale_cannot_write_is_escaped() -> None:
    done = inspector("--from", str(GOOD), "check", "--list", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.isascii() and not done.stderr


# --- the capture ---


def test_a_disk_that_fills_leaves_no_capture(tmp_path: Path) -> None:
    before = GOOD.read_bytes()
    kept = tmp_path / "kept.s2cap"
    kept.write_bytes(before)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))  # noqa: E731
    for name in ("new.s2cap", "kept.s2cap"):
        done = inspector("--from", str(GOOD), "capture", str(tmp_path / name), preexec_fn=limit)
        one_sentence(done, "cannot write the capture", "File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.s2cap"]
    assert kept.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_it_is_written_leaves_no_capture(tmp_path: Path, number: signal.Signals) -> None:
    """The file system is made slow: `os.fsync` waits."""
    patched = (
        "import os, sys, time, inspector.capture.file as f\n"
        "f.os.fsync = lambda fd: (sys.stderr.write('writing\\n'), sys.stderr.flush(), time.sleep(60))\n"
        "from inspector.__main__ import main\n"
        "sys.argv[0] = 'inspector'\n"
        "main()\n"
    )
    command = [sys.executable, "-c", patched, "--from", str(GOOD), "capture", str(tmp_path / "x.s2cap")]
    with subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(30) == 3
        assert "interrupted" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_not_replaced_by_the_file(tmp_path: Path) -> None:
    """Writing beside it and renaming would: on a machine of root's, ``/dev/full`` itself."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "fifo" / "x", tmp_path / "no" / "x", Path("/dev/stdout")):
        one_sentence(inspector("--from", str(GOOD), "capture", str(path)), "cannot write the capture")
    assert fifo.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/x.s2cap")
    assert inspector("--from", str(GOOD), "capture", str(link)).returncode == 0
    assert link.is_symlink() and (tmp_path / "elsewhere/x.s2cap").is_file()


# --- what comes in ---


def test_a_script_from_where_nothing_comes_or_no_end() -> None:
    one_sentence(inspector("model", "-", stdin=None, preexec_fn=closing(0)), "standard input is closed")
    one_sentence(inspector("model", "/dev/zero"), "longer than")
