"""Machines for live tests: a KVM host under QEMU, booted by run_qemu.sh itself.

The machine lives in a `run_qemu.sh run` whose program waits for its standard input to end.  However the test
process ends, that pipe closes, so no machine outlives the tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fixtures import console

REPO = Path(__file__).resolve().parents[2]
RUN_QEMU = REPO / "run_qemu.sh"
Event = dict[str, Any]


class MachineFailed(Exception):
    """The machine did not get there; the message is what run_qemu.sh said.  ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def common_options() -> list[str]:
    """Options that every run_qemu.sh of the tests gets: what `run_qemu.sh test` set up is used as it is."""
    options = ["--no-install"]
    if "INSPECTOR_CACHE" in os.environ:
        options += ["--cache", os.environ["INSPECTOR_CACHE"]]
    return options


class Machine:
    """A running machine, its guests running too.  A context manager; `stop` may be called more than once."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str], errors: IO[str]) -> None:
        self._process = process
        self._errors = errors
        self.environment = environment
        self.gdb_socket = environment["INSPECTOR_CONNECT"]
        self.qmp_socket = environment["INSPECTOR_QMP"]
        self.console_socket = environment["INSPECTOR_CONSOLE"]
        self.run_dir = Path(environment["INSPECTOR_RUN_DIR"])
        self.image = Path(environment["INSPECTOR_IMAGE"])
        debug = Path(environment.get("INSPECTOR_VMLINUX") or self.image.with_name("vmlinux"))
        self.vmlinux = debug if debug.is_file() else None
        self.qemu_pid = int((self.run_dir / "pid").read_text())
        self._log = self.run_dir / "console.log"

    @classmethod
    def start(
        cls,
        kernel: str | None = None,
        *,
        cpu: str = "max",
        smp: int = 2,
        memory: int = 1024,
        gic: int = 3,
        scenario: str = "default",
        append: str = "",
        options: Iterable[str] = (),
    ) -> Self:
        """Boot and wait until the guests run.

        ``kernel`` is what --kernel takes (a label of `kernel_labels`, an Image), default the distribution's;
        ``memory`` is in MiB; ``options`` are more options of run_qemu.sh.  Raises `MachineFailed`.
        """
        wanted = kernel or os.environ.get("INSPECTOR_DEFAULT_KERNEL") or "default"
        command = [str(RUN_QEMU), *common_options(), "--name", f"test-{uuid.uuid4().hex[:12]}"]
        command += ["--kernel", wanted, "--cpu", cpu, "--smp", str(smp), "--memory", str(memory)]
        command += ["--gic-version", str(gic), "--scenario", scenario, "--append", append, *options]
        command += ["run", "--", "sh", "-c", "env -0 | tr '\\n\\0' ' \\n'; echo; exec cat >/dev/null"]
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the machine
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # Ctrl-C on the test run is the test run's to handle.
            start_new_session=True,
        )
        assert process.stdout is not None
        environment = {}
        for line in process.stdout:
            if line == "\n":
                break
            key, _, value = line.rstrip("\n").partition("=")
            environment[key] = value
        else:
            code = process.wait()
            errors.seek(0)
            raise MachineFailed(errors.read(), code)
        return cls(process, environment, errors)

    @property
    def console_text(self) -> str:
        """Everything that the console printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def events(self) -> list[Event]:
        """Every event that the exerciser printed so far, oldest first."""
        events = (console.parse(line) for line in self._log.read_bytes().splitlines(keepends=True))
        return [event for event in events if event is not None]

    def named(self, name: str) -> list[Event]:
        """The events called ``name``, oldest first."""
        return [event for event in self.events if event["event"] == name]

    def command(self, line: str, timeout: float = 300) -> list[Event]:
        """Have the exerciser do ``line``; every event up to and with its ``done``.

        Raises `TimeoutError` when the console is silent for ``timeout`` seconds.
        """
        return list(console.command(self.console_socket, line, timeout))

    @contextlib.contextmanager
    def asking(self, line: str, timeout: float = 300) -> Iterator[list[Event]]:
        """As `command`, while the block does something else; the answer is complete when it ends."""
        told: list[Event] = []
        asker = threading.Thread(target=lambda: told.extend(self.command(line, timeout)))
        asker.start()
        yield told
        asker.join()

    def wait_for(self, name: str, timeout: float = 120, count: int = 1) -> Event:
        """The ``count``-th event called ``name``, waiting for it up to ``timeout`` seconds (`TimeoutError`)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.named(name)
            if len(found) >= count:
                return found[count - 1]
            if not self.running:
                raise MachineFailed(f"the machine ended before '{name}':\n{self.console_text[-2000:]}", 3)
            time.sleep(0.02)
        raise TimeoutError(f"no '{name}' within {timeout} s:\n{self.console_text[-2000:]}")

    @property
    def running(self) -> bool:
        """Whether QEMU is alive."""
        return process_alive(self.qemu_pid)

    def run(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a program beside the machine, as `run_qemu.sh run` does."""
        return subprocess.run(
            command, env=self.environment, cwd=REPO, capture_output=True, text=True, timeout=timeout, check=False
        )

    def kill(self) -> None:
        """End QEMU without warning, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.qemu_pid, signal.SIGKILL)
        while self.running:
            time.sleep(0.01)

    def stop(self) -> None:
        """End the machine; nothing is left of it."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def process_alive(pid: int) -> bool:
    """Whether a process lives (a zombie does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
