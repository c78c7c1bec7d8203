"""Patches as people have them: a diff, a mail of ``git format-patch``, a mailbox of a whole series.

Read here is which files a patch touches and with which hunks; mails are taken apart by ``git mailsplit`` and ``git
mailinfo``, as ``git am`` does, so quoted-printable and base64 bodies are no matter.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inspector.crosscheck.git import GitFailed, git
from inspector.crosscheck.tree import read_file
from inspector.findings import BadInput
from inspector.printable import SHORT, printable


@dataclass(frozen=True)
class Hunk:
    """One ``@@ -start,… +…,… @@``: ``start`` is the old line number in it; ``lines`` keep their first character."""

    start: int
    lines: tuple[str, ...]

    @property
    def before(self) -> list[str]:
        """The lines that the file must have: context and deleted ones."""
        return [line[1:] for line in self.lines if line[:1] in (" ", "-", "")]


@dataclass(frozen=True)
class FileDiff:
    """What a patch does to one file: ``old`` and ``new`` are paths as written, with ``a/`` and ``b/``; ``None`` is
    ``/dev/null``.  ``text`` is this part of the patch."""

    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...]
    text: str

    def paths(self, strip: int) -> tuple[str, ...]:
        """The files of the kernel tree that it names, ``strip`` leading folders taken off, each once."""
        names = [name for name in (self.old, self.new) if name is not None]
        return tuple(dict.fromkeys(name.split("/", strip)[-1] for name in names))


@dataclass(frozen=True)
class Patch:
    """``name`` is the subject of its mail without ``[PATCH …]``, else the file's name; printable.  ``file`` is where it
    came from."""

    name: str
    file: str
    diffs: tuple[FileDiff, ...]


_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_MAIL = re.compile(r"From |[A-Z][A-Za-z-]*: ")


def read_patches(file: Path) -> list[Patch]:
    """The patches in a file, in order; a cover letter is none.  Raises `BadInput` when there are none."""
    raw = read_file(file)
    if raw is None:
        what = "is a folder: give the patch files in it" if file.is_dir() else "does not exist"
        raise BadInput(f"the patch {file} {what}")
    first = raw.lstrip()[:1000].decode(errors="replace")
    if _MAIL.match(first) and not first.startswith("Index: "):
        parts = list(_mails(raw, file))
    else:
        parts = [(printable(file.name), raw.decode(errors="surrogateescape"))]
    patches = [Patch(name, str(file), tuple(diffs_of(text))) for name, text in parts]
    patches = [patch for patch in patches if patch.diffs]
    if not patches:
        raise BadInput(f"{file} holds no patch: give what 'git diff' or 'git format-patch' writes")
    return patches


def _mails(raw: bytes, file: Path) -> Iterator[tuple[str, str]]:
    """Subject and text of each mail."""
    with tempfile.TemporaryDirectory(prefix="crosscheck-mail-") as name:
        folder = Path(name)
        box, out = folder / "box", folder / "mails"
        box.write_bytes(raw)
        out.mkdir()
        try:
            git(folder, "mailsplit", "-b", f"-o{out}", "--", str(box))
            for mail in sorted(out.iterdir()):
                facts = git(folder, "mailinfo", "--encoding=UTF-8", "body", "diff", stdin=mail.read_bytes())
                subject = re.search(r"^Subject: (.*)$", facts.decode(errors="replace"), re.MULTILINE)
                text = (folder / "diff").read_bytes().decode(errors="surrogateescape")
                yield printable(subject[1] if subject else file.name, SHORT), text
        except GitFailed as error:
            raise BadInput(f"the mails in {file} cannot be read: {error}") from None


def diffs_of(text: str) -> Iterator[FileDiff]:
    """The parts of a patch, one a file.  Text between them is none of them; hunks are taken by the lines they
    announce, so that a deleted line ``-- a/x`` is no header."""
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        if lines[at].startswith("diff --git ") or _plain_header(lines, at):
            diff, at = _one(lines, at)
            if diff is not None:
                yield diff
        else:
            at += 1


def _plain_header(lines: Sequence[str], at: int) -> bool:
    following = lines[at + 1 : at + 3]
    return (
        len(following) == 2
        and lines[at].startswith("--- ")
        and following[0].startswith("+++ ")
        and _HUNK.match(following[1]) is not None
    )


def _one(lines: Sequence[str], start: int) -> tuple[FileDiff | None, int]:
    """The part that begins at a header, and the line after it."""
    old, new = _names(lines[start])
    at = start
    while at < len(lines) and not _HUNK.match(lines[at]):
        line = lines[at]
        if at > start and line.startswith("diff --git "):
            break
        word, _, rest = line.partition(" ")
        if word == "---":
            old = _path(rest)
        elif word == "+++":
            new = _path(rest)
        elif line.startswith(("rename from ", "copy from ")):
            old = _side(old, line.split(" from ", 1)[1])
        elif line.startswith(("rename to ", "copy to ")):
            new = _side(new, line.split(" to ", 1)[1])
        elif line.startswith("new file mode"):
            old = None
        elif line.startswith("deleted file mode"):
            new = None
        at += 1
    hunks = []
    while at < len(lines) and (match := _HUNK.match(lines[at])):
        end = _end(lines, at + 1, int(match[2] or 1), int(match[3] or 1))
        hunks.append(Hunk(int(match[1]), tuple(lines[at + 1 : end])))
        at = end
    if old is None and new is None:
        return None, max(at, start + 1)
    return FileDiff(old, new, tuple(hunks), "\n".join(lines[start:at]) + "\n"), max(at, start + 1)


def _end(lines: Sequence[str], at: int, old: int, new: int) -> int:
    """The line after a hunk that has so many old and new lines to come; a cut-off hunk ends with the text."""
    while at < len(lines) and (old > 0 or new > 0 or lines[at].startswith("\\")):
        kind = lines[at][:1]
        if kind not in (" ", "-", "+", "\\", ""):
            break
        old -= kind in (" ", "-", "")
        new -= kind in (" ", "+", "")
        at += 1
    return at


def _path(text: str) -> str | None:
    """The path on a ``---`` or ``+++`` line; what follows a tab is a time."""
    name = _unquoted(text.split("\t")[0].strip())
    return None if name == "/dev/null" else name


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name


def _names(line: str) -> tuple[str | None, str | None]:
    """The two paths of ``diff --git A B``: where neither is quoted, they are the same but for their first folder."""
    rest = line.removeprefix("diff --git ")
    if rest == line:
        return None, None
    old, _, new = rest.partition(" ")
    half = len(rest) // 2
    if rest[half : half + 1] == " " and rest[:half].split("/", 1)[-1] == rest[half + 1 :].split("/", 1)[-1]:
        old, new = rest[:half], rest[half + 1 :]
    return _unquoted(old), _unquoted(new)


def _side(written: str | None, path: str) -> str:
    """A path of ``rename`` and ``copy`` lines, which lack the ``a/``, with the folder that ``written`` has."""
    path = _unquoted(path)
    return written if written is not None and f"/{written}".endswith(f"/{path}") else f"a/{path}"
