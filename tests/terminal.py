"""A terminal for a command to run on, and what may reach one: text that prints, lines, and our own colours."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from inspector.report.format import _SGR

REPO = Path(__file__).resolve().parents[1]
_OURS = re.compile("\x1b\\[(?:" + "|".join(sorted(_SGR.values())) + r")(?:;\d+)*m")


def raw_in(text: str) -> list[str]:
    """The characters of ``text`` that a terminal would obey or cannot show, but for line ends and our colours."""
    return [c for c in _OURS.sub("", text) if c != "\n" and not c.isprintable()]


def on_terminal(command: Sequence[str], **environment: str) -> tuple[int, str]:
    """Exit code, and all that the command's terminal got, standard error included; line ends as they were written."""
    ours, theirs = pty.openpty()
    got: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                got.append(data)
        except OSError:  # EIO: nobody has it open any more
            pass

    reader = threading.Thread(target=read)
    settings = {**os.environ, "TERM": "xterm", **environment}
    with subprocess.Popen(
        command, cwd=REPO, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=settings
    ) as process:
        os.close(theirs)
        reader.start()
        code = process.wait(300)
    reader.join(60)
    os.close(ours)
    return code, b"".join(got).decode("utf-8", "surrogateescape").replace("\r\n", "\n")
