"""What run_qemu.sh shows of texts that are not its own: a guest kernel's console, QEMU's log, a file's name."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.terminal import REPO, on_terminal, raw_in

UI = REPO / "fixtures/setup/ui.sh"
EVIL = b"\x1b]0;pwn\x07\x1b[2J\x9b31m\xe2\x80\xae"
SHOWN = "^[]0;pwn^G^[[2JM-^[31mM-bM-^@M-."
"""As ``cat -v`` shows it."""


def test_the_end_of_a_console_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_bytes(b"good\tline\r\n" + EVIL + b"\r\n\x00no end" + EVIL)
    done = subprocess.run(
        ["bash", "-c", 'source "$1"; show_tail "$2"', "bash", UI, log], stderr=subprocess.PIPE, text=True, check=True
    )
    assert done.stderr == f"      good\tline\n      {SHOWN}\n      no end{SHOWN}\n"


def test_steps_and_the_last_sentence() -> None:
    script = 'source $1; step "a $2"; detail "b $2"; done_step "c $2"; die 2 "d $2"'
    code, shown = on_terminal(["bash", "-c", script, "bash", str(UI), EVIL.decode("utf-8", "surrogateescape")])
    assert code == 2 and shown.count(SHOWN) == 5
    ours = ("\r\x1b[K", "\x1b[2m")
    for text in ours:
        shown = shown.replace(text, "")
    assert raw_in(shown) == []


def test_run_qemu_names_a_file_that_is_none() -> None:
    """The whole way: the command line, the program that looks at the file, the sentence."""
    done = subprocess.run(
        [REPO / "run_qemu.sh", "--no-install", "--kernel", b"/" + EVIL, "boot"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert raw_in(done.stderr.decode()) == []


def test_a_deterministic_machine_has_one_cpu() -> None:
    """With more QEMU tells the probe another CPU than the one that runs (docs/qemu.md)."""
    command = [str(REPO / "run_qemu.sh"), "--no-install", "start", "--deterministic", "--smp", "2"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 2
    assert "--deterministic is with one CPU, not --smp 2" in done.stderr
