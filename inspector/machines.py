"""A machine of run_qemu.sh's: started, spoken to, asked, ended.  The script is there in a checkout, not in a wheel."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from inspector.findings import BadInput, Untestable

RUN_QEMU: Final = Path(__file__).resolve().parents[1] / "run_qemu.sh"
_CONSOLE: Final = re.compile(r"its console is in (\S+)")
"""Where run_qemu.sh keeps that of a machine that did not come up."""


def require() -> None:
    """Raises `BadInput` where there is no run_qemu.sh."""
    if not RUN_QEMU.is_file():
        raise BadInput("the machines are started by run_qemu.sh: run this from a checkout of the project")


class Machine:
    """``options`` are run_qemu.sh's; ``name`` tells machines apart that run at once."""

    def __init__(self, name: str, options: Sequence[str]) -> None:
        self._options = ["--name", name, *options]
        self.folder = Path()
        self._console: Path | None = None

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(RUN_QEMU), *self._options, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start(self) -> None:
        """Raises `Untestable` with what run_qemu.sh says."""
        done = self._command("start")
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

    def send(self, line: str) -> subprocess.CompletedProcess[str]:
        """To its exerciser; until it is done, or the machine is."""
        return self._command("send", line)

    def inspect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`inspector` beside it, already told where to connect."""
        return self._command("run", "--", "inspector", *arguments)

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


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What run_qemu.sh said last."""
    return done.stderr.strip().rpartition("\n")[2].removeprefix("run_qemu.sh: ")
