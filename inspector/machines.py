"""A machine of run_qemu.sh's: started, spoken to, asked, ended.  The script is there in a checkout, not in a wheel."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inspector.findings import BadInput, ExitCode, InspectorError, Untestable

RUN_QEMU: Final = Path(__file__).resolve().parents[1] / "run_qemu.sh"
MOST_SECONDS: Final = 600.0
"""A scenario takes some seconds, 2,000 random actions a minute: what takes this long has come to a halt."""
_QEMU: Final = "qemu-system-aarch64"
_SAYS: Final = "run_qemu.sh: "
_CONSOLE: Final = re.compile(r"its console is in (\S+)")
"""Where run_qemu.sh keeps that of a machine that did not come up."""


def require() -> None:
    """Raises `BadInput` where there is no run_qemu.sh."""
    if not RUN_QEMU.is_file():
        raise BadInput("the machines are started by run_qemu.sh: run this from a checkout of the project")


class NotBuilt(Untestable):
    """A kernel that does not build; ``errors`` are the compiler's first."""

    def __init__(self, sentence: str, errors: Sequence[str]) -> None:
        super().__init__(sentence)
        self.errors = tuple(errors)


def build(arguments: Sequence[str], tell: Callable[[str], None], what: str = "build") -> Path:
    """`run_qemu.sh build`: the folder with Image, vmlinux and config; or of ``what`` else builds from a source.

    Raises `NotBuilt`, and `BadInput`.
    """
    command = [str(RUN_QEMU), what, *arguments]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    said: list[str] = []
    with subprocess.Popen(command, text=True, errors="replace", **pipes) as running:
        try:
            for line in running.stderr or ():
                if said or line.startswith(_SAYS):
                    said.append(line.rstrip())
                else:
                    tell(line.strip())
            out = running.stdout.read() if running.stdout else ""
        except BaseException:
            running.terminate()
            raise
    if running.returncode == 0:
        return Path(out.strip())
    why = said[0].removeprefix(_SAYS) if said else f"run_qemu.sh {what} ended with {running.returncode}"
    if running.returncode == ExitCode.USAGE:
        raise BadInput(why)
    raise NotBuilt(why, said[1:])


@dataclass(frozen=True)
class Prepared:
    """What a machine of some options boots: files of this machine; ``vmlinux`` is empty where none was given."""

    image: str
    vmlinux: str
    initramfs: str


def prepare(options: Sequence[str]) -> Prepared:
    """`run_qemu.sh prepare`: all that is fetched and built for a machine, and nothing booted.  Raises `Untestable`."""
    command = [str(RUN_QEMU), *options, "prepare"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        error = BadInput if done.returncode == ExitCode.USAGE else Untestable
        raise error(sentence(done))
    found = {name: value.strip() for name, _, value in (line.partition(" ") for line in done.stdout.splitlines())}
    return Prepared(found["image"], found["vmlinux"], found["initramfs"])


def require_qemu() -> None:
    """Raises `Untestable` where none is installed."""
    if shutil.which(_QEMU) is None:
        raise Untestable(
            f"there is no {_QEMU} on {platform.node()}: install it there (apt-get install qemu-system-arm), or take "
            "that worker out of the cluster"
        )


class Ended(InspectorError):
    """Nobody wants this machine any longer."""


class Machine:
    """``options`` are run_qemu.sh's; ``name`` tells machines apart that run at once.

    It ends with this process, whatever ends that.
    """

    def __init__(self, name: str, options: Sequence[str]) -> None:
        self._options = ["--name", name, *options]
        self.folder = Path()
        self._console: Path | None = None
        self._running: subprocess.Popen[str] | None = None
        self._unwanted = False

    def _command(self, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        if self._unwanted and arguments != ("stop",):
            raise Ended("it was ended: nobody waits for it any longer")
        command = [str(RUN_QEMU), *self._options, *arguments]
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as running:
            self._running = running
            try:
                out, errors = running.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                running.terminate()
                out, errors = running.communicate()
                errors += f"\nrun_qemu.sh: no answer within {seconds:.0f} s"
            except BaseException:
                running.terminate()
                raise
            return subprocess.CompletedProcess(command, running.returncode, out, errors)

    def start(self) -> None:
        """Raises `Untestable` with what run_qemu.sh says."""
        _STARTED.add(self)
        done = self._command("--owner", str(os.getpid()), "start")
        if done.returncode:
            kept = _CONSOLE.search(sentence(done))
            self._console = Path(kept[1]) if kept else None
            raise Untestable(sentence(done))
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith("log "))
        self.folder = Path(line.split(maxsplit=1)[1]).parent

    def state(self) -> dict[str, str]:
        """What run_qemu.sh wrote down of it."""
        lines = (self.folder / "state").read_text().splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in lines)}

    def send(self, line: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        """To its exerciser; until it is done, the machine is, or so many seconds are over (`MOST_SECONDS`)."""
        return self._command("send", line, seconds=MOST_SECONDS if seconds is None else seconds)

    def inspect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`inspector` beside it, already told where to connect."""
        return self._command("run", "--", "inspector", *arguments, seconds=MOST_SECONDS)

    def console(self) -> str:
        """What its kernel and its exerciser have printed."""
        try:
            return (self._console or self.folder / "console.log").read_text(errors="replace")
        except OSError:
            return ""

    def alive(self) -> bool:
        """It runs."""
        return (self.folder / "pid").exists()

    def stop(self) -> None:
        """Whatever became of it."""
        self._command("stop")
        _STARTED.discard(self)

    def end(self) -> None:
        """From another thread than the one that speaks to it: what that is at fails soon."""
        self._unwanted = True
        if self._running is not None:
            self._running.terminate()
        self._command("stop")


_STARTED: Final[set[Machine]] = set()


def end_all() -> None:
    """Of this process."""
    for machine in list(_STARTED):
        machine.end()


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What run_qemu.sh said last."""
    return done.stderr.strip().rpartition("\n")[2].removeprefix(_SAYS)
