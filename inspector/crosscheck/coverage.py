"""Which lines and branches of the kernel's code ran, by gcov, over every build of the file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspector.crosscheck.covering import Work
from inspector.crosscheck.tree import ASM, HEADERS, PGTABLE
from inspector.findings import Untestable

FILES = {"pgtable.c": PGTABLE, **{f"asm/{name}": f"{ASM}/{name}" for name in HEADERS}}
"""A build's name of a file to its path in the kernel tree."""


@dataclass
class Counts:
    """Of one file: how often each line that has code ran, each branch of each line, each function by its first line.

    Lines are numbered from 1.  A line has code when it has in some build.
    """

    lines: dict[int, int] = field(default_factory=dict)
    branches: dict[tuple[int, int], int] = field(default_factory=dict)
    functions: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Name to first line, last line, calls."""

    def add(self, document: Mapping[str, Any]) -> None:
        """What gcov says of this file in one build."""
        for line in document["lines"]:
            number = int(line["line_number"])
            self.lines[number] = self.lines.get(number, 0) + int(line["count"])
            for at, branch in enumerate(line.get("branches", ())):
                key = number, at
                self.branches[key] = self.branches.get(key, 0) + int(branch["count"])
        for function in document["functions"]:
            name = str(function["name"])
            calls = self.functions.get(name, (0, 0, 0))[2] + int(function["execution_count"])
            self.functions[name] = int(function["start_line"]), int(function["end_line"]), calls


def run(work: Work, counts: dict[str, Counts]) -> None:
    """Run operations and add what ran to ``counts``, by path in the kernel tree.

    Raises `Untestable` when there is no gcov.
    """
    gcov = shutil.which("gcov")
    if gcov is None:
        raise Untestable("there is no gcov here to count lines with: it comes with gcc")
    with tempfile.TemporaryDirectory(prefix="crosscheck-gcov-") as name:
        environment = {**os.environ, "GCOV_PREFIX": name}
        command = [sys.executable, "-m", "inspector.crosscheck.covering"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        try:
            said = process.communicate(pickle.dumps(work))[1]
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise Untestable(f"counting lines failed: {last[-1]}")
        for data in sorted(Path(name).rglob("*.gcda")):
            # The folder that a build was made in ends with its key; the notes of the compiler are kept under that.
            notes = work.plan.kernel.cache / data.parent.name / "pgtable.gcno"
            shutil.copyfile(notes, data.with_name("pgtable.gcno"))
            _read(gcov, data, counts)


def _read(gcov: str, data: Path, counts: dict[str, Counts]) -> None:
    done = subprocess.run(
        [gcov, "--json-format", "--stdout", "--branch-probabilities", data.name],
        cwd=data.parent,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise Untestable(f"gcov cannot read what was counted: {done.stderr.decode(errors='replace').strip()}")
    for file in json.loads(done.stdout)["files"]:
        path = str(file["file"])
        short = next((name for name in FILES if path == name or path.endswith("/" + name)), None)
        if short is not None:
            counts.setdefault(FILES[short], Counts()).add(file)


def share(ran: Iterable[int]) -> tuple[int, int]:
    """How many of these counts are not 0, and how many there are."""
    values = list(ran)
    return sum(1 for value in values if value), len(values)
