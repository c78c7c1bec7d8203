"""What git knows of a kernel tree: its description, its changes, the files of a revision.  Nothing is written there.

Git is asked for as little as possible and for a bounded time; that it is missing, that it does not read another owner's
tree ("dubious ownership", which is not overruled: a tree's configuration may name programs to run), or that a clone is
shallow, costs a description and nothing else.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from inspector.crosscheck.tree import NEEDED, PGTABLE, Tree, assemble
from inspector.findings import BadInput
from inspector.printable import SHORT, printable

SECONDS: Final = 10.0
"""How long a question that only serves the description may take: a cold kernel tree has 90,000 files to look at."""

PATIENCE: Final = 60.0
"""How long reading or applying may take: a partial clone may have to fetch the files."""

_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")
"""What a git hook or alias sets, and what would lead away from the tree that was named."""


class GitFailed(Exception):
    """Git is missing, took too long, or says no; the text is what it says."""


def git(folder: Path, *arguments: str, stdin: bytes = b"", seconds: float = PATIENCE) -> bytes:
    """What ``git ARGUMENTS`` prints when run in ``folder``.  Raises `GitFailed`."""
    environment = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_PAGER": "cat"}
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        raise GitFailed("there is no git here: install the package git") from None
    except (OSError, ValueError) as error:
        raise GitFailed(f"git cannot be started: {error}") from None
    except subprocess.TimeoutExpired:
        raise GitFailed(f"git took longer than {seconds:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitFailed(printable(said[0].removeprefix("fatal: "), SHORT) if said else f"exit code {done.returncode}")
    return done.stdout


@dataclass(frozen=True)
class Checkout:
    """A work tree of git.

    ``described`` is what ``git describe --always`` says of HEAD (``v6.12-3-g0123456789ab``); ``dirty`` whether any
    tracked file of the tree differs from it (``None``: git took too long to tell).
    """

    described: str
    dirty: bool | None

    def __str__(self) -> str:
        """As ``git describe --dirty`` would have it."""
        return self.described + ("-dirty" if self.dirty else "")


def checkout(folder: Path) -> Checkout:
    """What git knows of the tree at ``folder``.

    Raises `GitFailed` when git does not know it: a tree unpacked within somebody's other repository is none of git's.
    """
    git(folder, "cat-file", "-e", f"HEAD:./{PGTABLE}", seconds=SECONDS)
    try:
        described = git(folder, "describe", "--always", seconds=SECONDS)
    except GitFailed:  # many commits and no graph of them
        described = git(folder, "rev-parse", "--short=12", "HEAD", seconds=SECONDS)
    return Checkout(printable(described.decode(errors="replace").strip(), SHORT), _dirty(folder))


def _dirty(folder: Path) -> bool | None:
    try:
        # Not `describe --dirty`: it writes the index.
        listed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".", seconds=SECONDS)
    except GitFailed:
        return None
    return bool(listed.strip())


def commit_of(folder: Path, revision: str) -> str | None:
    """The full name of the commit that ``revision`` names in the repository around ``folder``, or ``None``.

    Raises `GitFailed` when git does not read the repository.
    """
    git(folder, "rev-parse", "--git-dir", seconds=SECONDS)
    try:
        found = git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    except GitFailed:
        return None
    return found.decode().strip()


def read_revision(folder: Path, commit: str, origin: str) -> Tree:
    """The needed files of a commit, the work tree untouched.  Raises as `assemble` does."""
    asked = "".join(f"{commit}:./{name}\n" for name in NEEDED)
    try:
        answer = git(folder, "cat-file", "--batch", stdin=asked.encode())
    except GitFailed as error:
        raise BadInput(f"{origin} cannot be read: {error}") from None
    files: dict[str, bytes] = {}
    for name in NEEDED:  # each "<object> blob <size>\n<contents>\n", or "<what was asked> missing\n"
        head, _, answer = answer.partition(b"\n")
        words = head.split()
        if len(words) == 3 and words[1] == b"blob":
            files[name], answer = answer[: int(words[2])], answer[int(words[2]) + 1 :]
        elif not head.endswith(b" missing"):
            raise BadInput(f"{origin}: {name} is no file there")
    return assemble(origin, files.get)
