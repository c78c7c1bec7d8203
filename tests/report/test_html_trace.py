"""The timeline in a real browser: traces of a kernel's own code, one with an event taken away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.crosscheck.verdict import Part
from inspector.events import CALL, TLBI
from inspector.findings import ExitCode
from inspector.report.html.trace import validate_html
from inspector.trace.file import Writer
from inspector.trace.follow import replay
from inspector.trace.timeline import course
from inspector.validate.verdict import Validated
from tests.cli.test_cli import invoke
from tests.report.browser import Browser, browser
from tests.report.test_html import CONTRAST
from tests.trace.test_replay import LABEL, traced

pytestmark = [pytest.mark.harness, pytest.mark.processes]

EVIL = "</script><script>window.bad=1</script><img src=x onerror=window.bad=1>{{7*7}}\x1b[31m\u202e"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fifth operation makes no TLB invalidation; the caller of another is no function's name."""
    events = traced()
    starts = [at for at, (_, raw) in enumerate(events) if raw[0] == CALL]
    kept = [one for at, one in enumerate(events) if not (starts[4] <= at < starts[5] and one[1][0] == TLBI)]
    path = tmp_path_factory.mktemp("trace") / "run.s2trace"
    with path.open("wb", buffering=0) as stream:
        header = {"generation": LABEL, "page_shift": 12, "release": f"6.12.1{EVIL}", "qemu": EVIL}
        writer = Writer(stream, header)
        for lane, raw in kept:
            writer.add(lane, raw)
        writer.flush()
    return path


@pytest.fixture
def page(trace: Path, tmp_path: Path) -> Path:
    made = tmp_path / "run.html"
    assert invoke("replay", str(trace), "--html", str(made)).exit_code == 1
    return made


def test_operations_and_findings_are_those_of_replay(chromium: Browser, trace: Path, page: Path) -> None:
    told = json.loads(invoke("replay", str(trace), "--json").stdout)
    chromium.open(page)
    counted = chromium.js(
        "Object.fromEntries(DATA.courses[0].names.map((name, at) => [name, DATA.courses[0].pieces"
        ".filter(p => p[2] === at).reduce((n, p) => n + p[3], 0)]))"
    )
    assert counted == told["operations_by_name"]
    drawn = chromium.js("[...document.querySelectorAll('#map .bar')].reduce((n, b) => n + +b.dataset.operations, 0)")
    assert drawn >= told["operations"] and told["broken"]
    marks = chromium.js("DATA.courses[0].marks.map(m => [m[0], m[1]])")
    assert marks == [[one["operation"], one["table"]] for one in told["broken"]]
    chromium.key("n")
    detail = chromium.js("$('detail').textContent")
    first = told["broken"][0]
    assert first["what"] in detail and first["call"] in detail
    # Told event by event, as `--explain` does.
    for line in invoke("replay", str(trace), "--explain", str(first["operation"])).stdout.splitlines():
        assert line in detail
    start, end = chromium.js("[+$('map').dataset.from, +$('map').dataset.to]")
    assert start <= first["operation"] < end


def test_it_can_be_used(chromium: Browser, page: Path) -> None:
    for dark in (False, True):
        chromium.open(page, dark=dark)
        for key in ("n", "+", "-", "ArrowRight", "p", "Home", "?", "]"):
            chromium.key(key)
        many, bad = chromium.js(CONTRAST)
        assert many > 20 and bad == []
        assert chromium.complaints == [] and len(chromium.requests) == 1
        assert chromium.js("[typeof window.bad, document.images.length]") == ["undefined", 0]
    for width in (400, 1400):
        chromium.open(page, width=width)
        chromium.key("n")
        assert chromium.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_a_verdict(chromium: Browser, trace: Path, tmp_path: Path) -> None:
    followed = replay(trace)
    parts = [
        Part("vhe: protocol", ExitCode.FINDINGS, f"1 breaks a rule{EVIL}", ("line one", EVIL), script=(EVIL,)),
        Part("vhe: boot", ExitCode.UNTESTABLE, "it did not boot"),
    ]
    courses = [course(f"vhe{EVIL}", trace, followed.judge.broken, followed.judge.differing)] * 2
    made = tmp_path / "report.html"
    made.write_text(validate_html(Validated([f"kernel: {EVIL}", "seed 1"], parts, False, courses)))
    assert "\u202e" not in made.read_text() and "\x1b" not in made.read_text()
    chromium.open(made)
    for key in "nnn]":
        chromium.key(key)
    text = chromium.js("document.body.innerText")
    for part in parts:
        assert part.name in text
    assert "line one" in text and "{{7*7}}" in text and "49" not in chromium.js("document.title")
    assert chromium.js("[typeof window.bad, document.images.length, document.scripts.length]") == ["undefined", 0, 2]
    assert chromium.complaints == [] and len(chromium.requests) == 1
    # Without a script the findings are there, and what led to them.
    chromium.open(made, script=False)
    assert followed.judge.broken[0].violation.what in chromium.js("document.body.textContent")
    # Nothing was followed: the parts alone.
    made.write_text(validate_html(Validated(["kernel: x"], parts[1:])))
    chromium.open(made)
    assert chromium.complaints == [] and "it did not boot" in chromium.js("document.body.innerText")
