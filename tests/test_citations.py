"""What code, tests and pages cite is in the repository: documents, and sections of them."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", tracked(), ids=lambda path: str(path.relative_to(REPO)))
def test_every_citation_is_in_the_repository(path: Path) -> None:
    text = path.read_text()
    for line in text.splitlines():
        for found in _PAGE.finditer(line):
            page, numbers = found[1], found[2] or ""
            assert (REPO / "docs" / f"{page}.md").is_file(), f"there is no docs/{page}.md: {line.strip()}"
            for number in _SECTION.findall(numbers):
                assert number in sections(page), f"docs/{page}.md has no section {number}: {line.strip()}"
    assert not re.search(r"\b[Ff]acts? \d+(\.\d+)?\b", text), "facts are cited by page and section: kernel.md 4.4"
