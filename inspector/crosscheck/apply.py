"""A patch on a tree in memory: what of it lies in the files that we have is applied, by ``git apply``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inspector.crosscheck.git import GitFailed, git
from inspector.crosscheck.patch import FileDiff, Hunk, Patch
from inspector.crosscheck.tree import NEEDED, OPTIONAL, Tree
from inspector.findings import BadInput, Untestable
from inspector.printable import SHORT, printable


class DoesNotApply(BadInput):
    """A patch that is not for this tree."""


@dataclass(frozen=True)
class Step:
    """A tree after a patch.

    ``here`` are the files of `NEEDED` that the patch names, ``elsewhere`` all its others; ``fuzzy`` is true when it
    only applied with one line of context, as ``patch`` would have done with a fuzz of two.
    """

    patch: Patch
    tree: Tree
    here: tuple[str, ...]
    elsewhere: tuple[str, ...]
    fuzzy: bool = False

    @property
    def name(self) -> str:
        """The patch's subject, or its file's name."""
        return self.patch.name


def apply_series(tree: Tree, patches: Sequence[Patch]) -> Iterator[Step]:
    """The tree after each patch in turn.

    Raises `BadInput` for one that does not apply, with the patch, the file, the hunk and the first line that is not
    there; and `Untestable` for one that takes a needed file away.
    """
    for patch in patches:
        step = apply(tree, patch)
        tree = step.tree
        yield step


def apply(tree: Tree, patch: Patch) -> Step:
    """One patch on a tree; raises as `apply_series` does."""
    strip = _strip(patch)
    ours = [diff for diff in patch.diffs if set(diff.paths(strip)) & set(NEEDED)]
    named = dict.fromkeys(path for diff in patch.diffs for path in diff.paths(strip))
    here = tuple(path for path in named if path in NEEDED)
    elsewhere = tuple(path for path in named if path not in NEEDED)
    if not ours:
        return Step(patch, tree, here, elsewhere)
    for diff in ours:
        _must_stay(diff, strip, patch)
    with tempfile.TemporaryDirectory(prefix="crosscheck-apply-") as name:
        folder = Path(name)
        for path, text in tree.text.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(text.encode())
        joined = "".join(diff.text for diff in ours).encode(errors="surrogateescape")
        fuzzy = _apply(folder, joined, strip, lambda error: _rejected(tree, patch, ours, strip, error))
        found = {path: _read(folder / path, patch) for path in NEEDED if (folder / path).is_file()}
    return Step(patch, Tree(f"{tree.origin} with {patch.name}", found), here, elsewhere, fuzzy)


def _strip(patch: Patch) -> int:
    """How many leading folders of its paths to take off: one, unless only another number leads to files we know."""
    for strip in (1, 0, 2):
        if any(path in NEEDED for diff in patch.diffs for path in diff.paths(strip)):
            return strip
    return 1


def _must_stay(diff: FileDiff, strip: int, patch: Patch) -> None:
    old = diff.old.split("/", strip)[-1] if diff.old is not None else None
    new = diff.new.split("/", strip)[-1] if diff.new is not None else None
    if old in NEEDED and old != new and old not in OPTIONAL and not _copies(diff):
        where = f"moves {old} to {printable(new, SHORT)}" if new is not None else f"deletes {old}"
        raise Untestable(f"the patch '{patch.name}' {where}, and that file is what would be compiled here")


def _copies(diff: FileDiff) -> bool:
    return re.search(r"^copy from ", diff.text, re.MULTILINE) is not None


def _apply(folder: Path, text: bytes, strip: int, rejected: Callable[[str], DoesNotApply]) -> bool:
    """Apply in ``folder``; ``True`` when that took less context than the patch has."""
    command = ["apply", f"-p{strip}", "--whitespace=nowarn", "--unidiff-zero"]
    includes = [f"--include={path}" for path in NEEDED]
    try:
        git(folder, *command, *includes, "-", stdin=text)
        return False
    except GitFailed as error:
        first = str(error)
    try:
        git(folder, *command, "-C1", *includes, "-", stdin=text)
    except GitFailed:
        raise rejected(first) from None
    return True


def _read(path: Path, patch: Patch) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise BadInput(f"the patch '{patch.name}' writes what is not text in UTF-8 into {path.name}") from None


def _rejected(tree: Tree, patch: Patch, diffs: Sequence[FileDiff], strip: int, error: str) -> DoesNotApply:
    """The sentence about the first hunk that finds no place."""
    where = f"the patch '{patch.name}' ({patch.file}) does not apply to {tree.origin}: "
    for diff in diffs:
        path = next(path for path in diff.paths(strip) if path in NEEDED)
        lines = tree.text.get(path, "").split("\n")
        moved = 0
        for number, hunk in enumerate(diff.hunks, 1):
            place, wrong = _place(lines, hunk, moved)
            if wrong is None:
                moved = place - hunk.start
                continue
            expected = printable(hunk.before[wrong].strip(), SHORT)
            return DoesNotApply(
                f"{where}hunk {number} of {path} (line {hunk.start}) finds no line '{expected}' about line "
                f"{place + wrong}; give the tree that it was made for, or the patches that come before it"
            )
    return DoesNotApply(f"{where}{error}")


def _place(lines: Sequence[str], hunk: Hunk, moved: int) -> tuple[int, int | None]:
    """The line where most of a hunk's old lines are found one after the other, nearest to where it should be; and the
    index of the first that is not there (``None``: all are)."""
    before = hunk.before
    expected = hunk.start + moved

    def matches(start: int) -> int:
        return sum(a == b for a, b in zip(before, lines[start - 1 :], strict=False))

    starts = range(1, len(lines) + 1)
    best = max(starts, key=lambda start: (matches(start), -abs(start - expected)))
    there = lines[best - 1 : best - 1 + len(before)]
    wrong = next((i for i, line in enumerate(before) if i >= len(there) or there[i] != line), None)
    return best, wrong
