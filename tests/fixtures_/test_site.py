"""The pages as a site: every link leads somewhere, and nothing is fetched from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(https?:|//)[^>]*>")
_OF_THE_PAGE = re.compile(r'rel="?(?:canonical|prev|next)')


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    config = REPO / "fixtures/site/mkdocs.yml"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", config, "-d", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").glob("*.html"))
    assert {path.stem for path in pages} >= {path.stem for path in (REPO / "docs").glob("*.md")}
    for path in pages:
        fetched = [found[0] for found in _FETCHED.finditer(path.read_text()) if not _OF_THE_PAGE.search(found[0])]
        assert not fetched, path.name
    for path in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?https?:|@import", path.read_text()), path.name
