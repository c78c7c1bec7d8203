"""What became of the lines that a patch changed: run, not run, no code, built nowhere, or not the kernel's here.

Whether a line has code is the compiler's word: gcov's lines, and for those between them the tokens that are left after
preprocessing each build.
"""

from __future__ import annotations

import enum
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from inspector.crosscheck.build import GRANULES, OURS, Variant, excerpt, options_of, stage, sysreg_header
from inspector.crosscheck.changed import COMPILED, changed_lines
from inspector.crosscheck.coverage import FILES, Counts
from inspector.crosscheck.tree import ASM, EXCERPTS, PGTABLE, SYSREG, Tree

_WORD = re.compile(r"[A-Za-z_]\w*")
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


class What(enum.StrEnum):
    """What is known of a changed line."""

    RUN = "run"
    NOT_RUN = "not run"
    NO_CODE = "no code"
    NOT_BUILT = "in no built configuration"
    SHIMMED = "not compiled here, or replaced by the shims"

    @property
    def covered(self) -> bool:
        """It needs no more trying."""
        return self in (What.RUN, What.NO_CODE)


@dataclass(frozen=True)
class Line:
    """A changed line of ``file``, numbered from 1 in the new text; ``deleted``: the place where lines went."""

    file: str
    number: int
    text: str
    what: What
    deleted: bool = False

    def __str__(self) -> str:
        place = f"{Path(self.file).name}:{self.number}"
        return f"{place} {'(lines went after it) ' if self.deleted else ''}{self.text.strip()}"


def variants() -> list[Variant]:
    """Every configuration that counts as built: page sizes, PA sizes, the hypervisor's own build."""
    return [Variant(granule, pa_bits, hyp) for granule in GRANULES for pa_bits in (48, 52) for hyp in (False, True)]


def without_comments(text: str) -> str:
    """The same lines with blanks for comments."""
    return _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def preprocessed(tree: Tree) -> dict[str, set[int]]:
    """The lines of each compiled file that leave tokens in some build."""
    found: dict[str, set[int]] = {file: set() for file in COMPILED}
    with tempfile.TemporaryDirectory(prefix="crosscheck-lines-") as name:
        folder = Path(name)
        file = stage(tree, folder)
        for variant in variants():
            command = ["gcc", *options_of(tree, variant), f"-I{folder}", f"-I{OURS}", "-E", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            here, number = None, 0
            for line in done.stdout.splitlines():
                if mark := re.match(r'# (\d+) "([^"]*)"', line):
                    number = int(mark[1])
                    short = next((each for each in FILES if mark[2].endswith("/" + each)), None)
                    here = FILES[short] if short else None
                    continue
                if here is not None and line.strip():
                    found[here].add(number)
                number += 1
    return found


@dataclass(frozen=True)
class _Seen:
    """What a tree's lines are judged by."""

    tree: Tree
    counts: Mapping[str, Counts]
    tokens: Mapping[str, set[int]]
    used: frozenset[str]
    """Identifiers on lines that ran, and what the macros among them stand for."""


def judge(old: Tree, new: Tree, counts: Mapping[str, Counts]) -> list[Line]:
    """Every changed line, in the order of the files."""
    seen = _Seen(new, counts, preprocessed(new), _used(new, counts))
    found: list[Line] = []
    for file in dict.fromkeys((*COMPILED, *new.text)):
        before, after = old.text.get(file, ""), new.text.get(file, "")
        if before == after or file == "Makefile":
            continue
        change = changed_lines(file, before, after)
        texts = after.splitlines()
        bare = without_comments(after).splitlines()
        code = changed_lines(file, *("\n".join(_plain(text)) for text in (before, after)))
        for number in change.added:
            if number not in code.added:  # only comments or blanks in it are other ones
                found.append(Line(file, number, texts[number - 1], What.NO_CODE))
                continue
            what = _compiled(seen, file, bare, number) if file in COMPILED else _excerpted(seen, file, bare, number)
            found.append(Line(file, number, texts[number - 1], what))
        gone = _gone(before, after)
        for number in change.deleted:
            if number in gone:
                what = _deleted(seen, file, bare, number)
                found.append(Line(file, number, texts[number - 1] if number else "", what, deleted=True))
    return found


def _plain(text: str) -> list[str]:
    """The lines without comments, and with single blanks."""
    return [" ".join(line.split()) for line in without_comments(text).splitlines()]


def _gone(before: str, after: str) -> set[int]:
    """The places where more than comments and blank lines went."""
    old = _plain(before)
    matcher = SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    return {
        start
        for tag, first, last, start, _ in matcher.get_opcodes()
        if tag == "delete" and any(line for line in old[first:last])
    }


def _used(tree: Tree, counts: Mapping[str, Counts]) -> frozenset[str]:
    words: set[str] = set()
    macros: dict[str, set[str]] = {}
    for file in tree.text:
        if file in (SYSREG, "Makefile"):
            continue
        text = without_comments(tree.text[file])
        lines = text.splitlines()
        for number, count in counts.get(file, Counts()).lines.items():
            if count and number <= len(lines):
                words.update(_WORD.findall(_statement(lines, number)))
        for found in re.finditer(r"^[ \t]*#[ \t]*define[ \t]+(\w+)((?:.*\\\n)*.*)$", text, re.MULTILINE):
            macros.setdefault(found[1], set()).update(_WORD.findall(found[2]))
    todo = list(words)
    while todo:
        for word in macros.get(todo.pop(), ()):
            if word not in words:
                words.add(word)
                todo.append(word)
    return frozenset(words)


def _statement(lines: Sequence[str], number: int) -> str:
    """A line with those that go on from it, up to the end of the statement."""
    text = lines[number - 1]
    for more in lines[number : number + 12]:
        if re.search(r"[;{}]\s*\\?\s*$", text):
            break
        text += " " + more
    return text


def _in_macro(bare: Sequence[str], number: int) -> str | None:
    """The macro that a line defines or goes on with."""
    at = number - 1
    while at > 0 and bare[at - 1].rstrip().endswith("\\"):
        at -= 1
    found = re.match(r"[ \t]*#[ \t]*define[ \t]+(\w+)", bare[at])
    return found[1] if found else None


def _compiled(seen: _Seen, file: str, bare: Sequence[str], number: int) -> What:
    text = bare[number - 1].strip()
    if not text:
        return What.NO_CODE
    counts = seen.counts.get(file, Counts())
    if number in counts.lines:
        return What.RUN if counts.lines[number] else What.NOT_RUN
    if (macro := _in_macro(bare, number)) is not None:
        return What.RUN if macro in seen.used else What.NOT_RUN
    if text.startswith("#"):
        return What.NO_CODE
    if number not in seen.tokens.get(file, ()):
        return What.NOT_BUILT
    function = next((each for each in counts.functions.values() if each[0] <= number <= each[1]), None)
    if function is not None:
        above = [line for line in counts.lines if function[0] <= line < number]
        ran = counts.lines[max(above)] if above else function[2]
        return What.RUN if ran else What.NOT_RUN
    # Outside functions: a declaration.  It counts when what it declares is used by something that ran.
    words = _WORD.findall(text)
    if not words:
        return What.NO_CODE
    if file == PGTABLE and any(each in seen.counts.get(PGTABLE, Counts()).functions for each in words):
        calls = [counts.functions[each][2] for each in words if each in counts.functions]
        return What.RUN if any(calls) else What.NOT_RUN
    return What.RUN if any(word in seen.used for word in words) else What.NOT_RUN


def _excerpted(seen: _Seen, file: str, bare: Sequence[str], number: int) -> What:
    """A header of which single macros are read, or the table of system registers."""
    if not bare[number - 1].strip():
        return What.NO_CODE
    if file == SYSREG:
        line = seen.tree.text[file].splitlines()[number - 1]
        block = re.search(r"^Sysreg\s+VTCR_EL2\s.*?^EndSysreg", seen.tree.text[file], re.MULTILINE | re.DOTALL)
        inside = bool(block and sysreg_header(seen.tree.text[file], "VTCR_EL2") and line in block[0].splitlines())
        return What.RUN if inside else What.SHIMMED
    macro = _in_macro(bare, number)
    names = next((names for name, names in EXCERPTS.items() if file == f"{ASM}/{name}"), None)
    if macro is None or names is None or not excerpt(f"#define {macro} 0", names):
        return What.SHIMMED
    return What.RUN if macro in seen.used else What.NOT_RUN


def _deleted(seen: _Seen, file: str, bare: Sequence[str], number: int) -> What:
    """By the code just before and just after it, in the same function."""
    if file not in COMPILED:
        return What.SHIMMED
    counts = seen.counts.get(file, Counts())
    function = next((each for each in counts.functions.values() if each[0] <= number <= each[1]), None)
    if function is None:
        return What.NO_CODE
    inside = {line: ran for line, ran in counts.lines.items() if function[0] <= line <= function[1]}
    near = [max((line for line in inside if line <= number), default=0)]
    near.append(min((line for line in inside if line > number), default=0))
    return What.RUN if any(inside.get(line) for line in near) else What.NOT_RUN
