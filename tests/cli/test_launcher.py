"""The command's first milliseconds: a Ctrl-C never looks like findings."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

LAUNCHER = Path(__file__).resolve().parents[2] / "inspector/launcher/inspector"


def test_interrupted_while_python_starts(rng: random.Random) -> None:
    """0: it was done; 3: interrupted; death by SIGINT: the shell had not begun.  1 would mean findings."""
    for hundredth in range(15):  # one moment in each hundredth of a second of the start
        process = subprocess.Popen(
            ["inspector", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep((hundredth + rng.random()) / 100)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (0, 3, -signal.SIGINT), (process.returncode, errors)
        assert "Traceback" not in errors, errors


def _ignores_sigint(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.findall(r"^SigIgn:\s*([0-9a-f]+)", status, re.M)[0], 16) >> (signal.SIGINT - 1) & 1)


def _settles(process: subprocess.Popen[str], ignored: bool) -> bool:
    """Whether the program comes to ignore SIGINT, or not, once it looks after SIGTERM (its first statement)."""
    caught = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.findall(r"^SigCgt:\s*([0-9a-f]+)", status, re.M)[0], 16) & caught:
            return _ignores_sigint(process.pid) == ignored
        time.sleep(0.001)
    return False


def test_ignored_before_stays_ignored() -> None:
    """nohup, and the background of a shell without job control, start programs with SIGINT ignored."""
    for prefix, ignored in ((["sh", "-c", 'trap "" INT; exec "$@"', "sh"], True), ([], False)):
        # Reading a script from standard input: it waits.
        command = [*prefix, str(LAUNCHER), "model", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert _settles(process, ignored), (prefix, process.poll())
            process.kill()


def test_an_interruption_in_a_finaliser_arrives_all_the_same(tmp_path: Path) -> None:
    """Python prints what leaves a ``__del__`` and goes on: one kill in a thousand met a Popen's."""
    script = tmp_path / "interrupted.py"
    script.write_text(
        "import signal, sys, time\n"
        "from inspector import __main__ as program, cli\n"
        "class Met:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        "def run():\n"
        "    met = Met()\n"
        "    del met\n"
        "    time.sleep(30)\n"
        "    return 0\n"
        "cli.run = run\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_an_interruption_at_the_very_end_changes_nothing(tmp_path: Path) -> None:
    """The signals are given up one after the other: one kill in a thousand met that."""
    script = tmp_path / "ending.py"
    script.write_text(
        "import signal\n"
        "from inspector import __main__ as program, cli\n"
        "real, met = signal.signal, []\n"
        "def give_up(number, handler):\n"
        "    if handler is signal.SIG_IGN and not met:\n"
        "        met.append(number)\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return real(number, handler)\n"
        "signal.signal = give_up\n"
        "cli.run = lambda: 0\n"
        "program.main()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
