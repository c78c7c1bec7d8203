"""What code, tests and pages cite is in the repository: documents, and sections of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
_PAGE = re.compile(r"(?<![\w/.-])(?:docs/)?([a-z_]+)\.md\b(?:\)?`{0,2}((?:,? (?:and |to |or )?\d+(?:\.\d+[a-z]?)?)+))?")
_SECTION = re.compile(r"\d+(?:\.\d+[a-z]?)?")


@cache
def sections(page: str) -> frozenset[str]:
    """The numbers of a page's headings, ``4.4`` of ``### 4.4 `try_leaf```, and of the points that a section lists."""
    found: set[str] = set()
    above = ""
    for line in (REPO / "docs" / f"{page}.md").read_text().splitlines():
        if heading := re.match(r"#+ (\d+(?:\.\d+[a-z]?)?)\.? ", line):
            above = heading[1]
            found.add(above)
        elif above and "." not in above and (point := re.match(r"(\d+)\. ", line)):
            found.add(f"{above}.{point[1]}")
    return frozenset(found)


def tracked() -> list[Path]:
    """Every file of the repository that may cite something."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    kinds = {".py", ".md", ".sh", ".c", ".h", ".S", ".txt", ".toml"}
    files = [REPO / name for name in listed.splitlines()]
    return [path for path in files if path.suffix in kinds and path.is_file() and path != Path(__file__)]


def wrong(path: Path) -> Iterator[str]:
    """What a file cites that is not there."""
    text = path.read_text()
    for line in text.splitlines():
        for found in _PAGE.finditer(line):
            page, numbers = found[1], found[2] or ""
            if not (REPO / "docs" / f"{page}.md").is_file():
                yield f"{path}: there is no docs/{page}.md: {line.strip()}"
                continue
            for number in _SECTION.findall(numbers):
                if number not in sections(page):
                    yield f"{path}: docs/{page}.md has no section {number}: {line.strip()}"
    if re.search(r"\b[Ff]acts? \d+(\.\d+)?\b", text):
        yield f"{path}: facts are cited by page and section: kernel.md 4.4"


def test_every_citation_is_in_the_repository() -> None:
    assert [one for path in tracked() for one in wrong(path)] == []


def test_a_wrong_citation_is_seen(tmp_path: Path) -> None:
    cites = tmp_path / "cites.py"
    cites.write_text("# kernel.md 4.4, 99.9\n# docs/nowhere.md\n# fact" + "s 4.4\n")
    assert len(list(wrong(cites))) == 3
