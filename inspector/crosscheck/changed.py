"""Which lines differ between two trees, in the files that are compiled as they are."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from inspector.crosscheck.build import excerpt, sysreg_header
from inspector.crosscheck.tree import ASM, EXCERPTS, HEADERS, PGTABLE, SYSREG, Tree

COMPILED = (PGTABLE, *(f"{ASM}/{name}" for name in HEADERS))
"""The files whose lines are the compiler's."""


@dataclass(frozen=True)
class Changed:
    """What became of one file, by its path in the kernel tree.

    ``added`` are the numbers, in the new file and from 1, of the lines that are new or replace others.  ``deleted`` are
    places where lines went and none came: the number of the new line before them, 0 at the top of the file.
    """

    file: str
    added: tuple[int, ...]
    deleted: tuple[int, ...]


def changed(old: Tree, new: Tree) -> list[Changed]:
    """The files of `COMPILED` whose lines differ, in that order."""
    found = []
    for file in COMPILED:
        before, after = old.text.get(file, ""), new.text.get(file, "")
        if before != after:
            found.append(changed_lines(file, before, after))
    return found


def changed_lines(file: str, old: str, new: str) -> Changed:
    """What differs between two states of a file."""
    matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines(), autojunk=False)
    added: list[int] = []
    deleted: list[int] = []
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag == "delete":
            deleted.append(start)
        elif tag != "equal":
            added += range(start + 1, end + 1)
    return Changed(file, tuple(added), tuple(deleted))


def touched(old: Tree, new: Tree) -> list[str]:
    """The files by which a build of one tree differs from that of the other, in the order of the trees.

    Of headers that are only read for single macros those macros count, of the table of system registers VTCR_EL2: a
    patch to anything else in them changes nothing here.
    """
    readers = {f"{ASM}/{name}": names for name, names in EXCERPTS.items()}

    def compiled(tree: Tree, file: str) -> str:
        text = tree.text.get(file, "")
        if file in readers:
            return excerpt(text, readers[file])
        return sysreg_header(text, "VTCR_EL2") if file == SYSREG else text

    files = dict.fromkeys((*old.text, *new.text))
    return [file for file in files if file != "Makefile" and compiled(old, file) != compiled(new, file)]
