"""The picture in a real browser: what it shows is what `--json` says, it fetches nothing, and it can be used.

Numbers of contrast are those of WCAG 2.2, 1.4.3 (4.5 to 1) and its definition of relative luminance.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inspector.capture.file import load
from tests.check.build import RWX, WRITE, good_world
from tests.cli.test_cli import bad_world, invoke, stored
from tests.cli.test_hostile import poisoned
from tests.report.browser import Browser, browser
from tests.terminal import raw_in

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
CAPTURES = sorted((ROOT / "fixtures/captures").glob("*.s2cap"))
RECORDED = ROOT / "fixtures/captures/7.3-max.s2cap"


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSPECTOR_CONNECT", raising=False)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


def drawn(folder: Path, capture: Path | str, *more: str) -> Path:
    made = folder / "picture.html"
    result = invoke("--from", str(capture), "dump", "--html", str(made), *more)
    assert result.exit_code == 0 and result.stderr == "", result.output
    return made


def bad_page(folder: Path) -> Path:
    return drawn(folder, stored(folder / "bad.s2cap", bad_world()))


def changed_page(folder: Path) -> tuple[Path, list[str]]:
    """Two captures and the picture of them: a page write-protected, one gone, one new."""
    world = good_world()
    before = stored(folder / "before.s2cap", world)
    world.guests[0].map(0x4000_8000, 0x8000_8000, RWX)
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] ^= WRITE
    table, index = world.guests[0].place(0x4000_2000, 3)
    world.pages[table][index] = 0
    after = stored(folder / "after.s2cap", world)
    made = folder / "changed.html"
    assert invoke("diff", before, after, "--html", str(made)).exit_code == 1
    return made, [before, after]


def told(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(*arguments, "--json").stdout)
    return found


RANGES = """
DATA.maps.map(m => m.panels[0].ranges.map(r => {
  const p = m.panels[0].patterns[r[4]];
  return {ipa: hex(r[0]), size: r[1], level: r[2], pa: hex(r[3]), leaves: r[5], raw: r[6], ...p.leaf};
}))
"""
_PAGES = """
DATA.maps.map(m => m.panels[0].pages.map(p => ({
  pa: hex(p[2]), parent_pa: p[0] < 0 ? null : hex(m.panels[0].pages[p[0]][2]), parent_index: p[0] < 0 ? null : p[1],
  page_count: p[3], raw: p[5]})))
"""


# --- what it says is what the documents say ---


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_what_is_drawn_is_what_dump_prints(chromium: Browser, tmp_path: Path, capture: Path) -> None:
    chromium.open(drawn(tmp_path, capture))
    tables = told("--from", str(capture), "dump")["tables"]
    assert chromium.js(RANGES) == [table["ranges"] for table in tables]
    # The text in the page, which is there without the script.
    cells = "[...document.querySelectorAll('section.map')].map(s => [...s.querySelectorAll('tr[data-ipa]')].map(r => "
    shown = chromium.js(cells + "[r.cells[0].textContent, r.cells[4].textContent, r.cells[11].textContent]))")
    assert shown == [[[one["ipa"], one["pa"], one["raw"]] for one in table["ranges"]] for table in tables]


def test_the_tree_is_the_tree(chromium: Browser, tmp_path: Path) -> None:
    """Pages with parents and counts; and each entry as the tree shows it, found by its address."""
    chromium.open(drawn(tmp_path, RECORDED))
    tables = told("--from", str(RECORDED), "dump", "--tree")["tables"]
    for page, table in zip(chromium.js(_PAGES), tables, strict=True):
        known = [
            {name: one[name] for name in ("pa", "parent_pa", "parent_index", "page_count")} for one in table["pages"]
        ]
        leading = {(one["table_pa"], one["index"]): one["raw"] for one in table["entries"]}
        for one in known:
            one["raw"] = leading.get((one["parent_pa"], one["parent_index"]))
        order = lambda one: (one["pa"], one["parent_pa"] or "")  # noqa: E731
        assert sorted(page, key=order) == sorted(known, key=order)
    for at in (0, 6, 7, 8):
        for entry in tables[at]["entries"]:
            if "leaf" in entry:
                _reach(chromium, at, entry["ipa"], 1)
                last = chromium.js(
                    "[...$('detail').querySelectorAll('tbody tr:last-child td')].map(c => c.textContent)"
                )
                assert last[1] == f"{entry['table_pa']}[{entry['index']}]"
                assert last[3:] == [entry["raw"], entry["text"]]


def _reach(page: Browser, table: int, ipa: str, size: int) -> None:
    """As a link in a mail does."""
    page.js(f"new Promise(done => {{ addEventListener('hashchange', () => setTimeout(done), {{once: true}});"
            f"location.hash = '#t{table}@{ipa}+{size:#x}'; }})")  # fmt: skip


def test_ranges_are_to_scale(chromium: Browser, tmp_path: Path) -> None:
    """Where the drawn edges are, in units of the axis, is where the ranges are."""
    chromium.open(drawn(tmp_path, stored(tmp_path / "good.s2cap", good_world())))
    _reach(chromium, 0, "0x40000000", 0x600000)
    scale = """(() => {
      const box = $('map'), from = +box.dataset.from, to = +box.dataset.to;
      const left = document.querySelector('#map .ground').getBoundingClientRect();
      return [...document.querySelectorAll('#map g.leaf:not(.thin)')].map(g => {
        const r = g.firstChild.getBBox(), w = document.querySelector('#map .ground').getBBox();
        const address = at => from + (at - w.x) / w.width * (to - from);
        return [parseInt(g.dataset.ipa), +g.dataset.size, address(r.x), address(r.x + r.width), from, to, w.width];
      });
    })()"""
    seen = 0
    for ipa, size, left, right, start, end, width in chromium.js(scale):
        pixel = (end - start) / width
        if start < ipa and ipa + size < end:
            seen += 1
            assert abs(left - ipa) < pixel and abs(right - ipa - size) < pixel
    assert seen >= 2


# --- what it does ---


def test_it_fetches_nothing_and_complains_of_nothing(chromium: Browser, tmp_path: Path) -> None:
    for made in (drawn(tmp_path, RECORDED), changed_page(tmp_path)[0]):
        chromium.open(made)
        for key in ("n", "p", "j", "k", "+", "-", "f", "]", "[", "t", "?", "Enter", "Escape", "Home", "ArrowLeft"):
            chromium.key(key)
        assert chromium.js("$('viewer').hidden") is False
        assert [url.partition("?")[0] for url in chromium.requests] == [made.resolve().as_uri()]
        assert chromium.complaints == []
        assert not re.search(
            r"(?:src|href)=[\"'](?!#)", re.sub(r"<script>.*</script>", "", made.read_text(), flags=re.S)
        )


def test_the_policy_is_in_force(chromium: Browser, tmp_path: Path) -> None:
    """A script, a style and a request that are put into the page are refused."""
    chromium.open(drawn(tmp_path, stored(tmp_path / "good.s2cap", good_world())))
    chromium.js(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.bad = 1'}))"
    )
    assert chromium.js("typeof window.bad") == "undefined"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert chromium.js(f"fetch('{url}').then(() => 'let', e => 'refused')") == "refused"
        chromium.js(f"new Promise(r => {{ const i = new Image(); i.onerror = r; i.src = '{url}x.png'; }})")
        with pytest.raises(TimeoutError):
            server.accept()
    assert any("Content Security Policy" in one for one in chromium.complaints)


def shown(page: Browser) -> tuple[float, float]:
    start, end = page.js("[+$('map').dataset.from, +$('map').dataset.to]")
    return start, end


def test_keys_zoom_and_pan(chromium: Browser, tmp_path: Path) -> None:
    """From the whole of 2^48 to one page and back."""
    chromium.open(drawn(tmp_path, RECORDED), anchor="#t5")
    chromium.key("Home")
    assert shown(chromium) == (0, 1 << 48)
    chromium.key("+")
    start, end = shown(chromium)
    assert end - start == 1 << 47
    chromium.key("ArrowLeft")
    assert shown(chromium)[0] == start - (end - start) * 0.2
    chromium.key("j")
    for _ in range(50):
        chromium.key("+")
    start, end = shown(chromium)
    assert end - start == 4096
    chosen = chromium.js("document.querySelector('#map .leaf').dataset.ipa")
    assert start <= int(chosen, 16) < end
    for _ in range(50):
        chromium.key("-")
    assert shown(chromium) == (0, 1 << 48)
    chromium.key("]")
    assert chromium.js("document.querySelector('section.current').id") == "t6"


def test_holes_are_folded_on_demand(chromium: Browser, tmp_path: Path) -> None:
    """All ranges of a sparse guest can be seen then, in order; and to scale again after."""
    chromium.open(drawn(tmp_path, RECORDED), anchor="#t7")
    thin = "document.querySelectorAll('#map g.leaf.thin').length"
    wide = (
        "[...document.querySelectorAll('#map g.leaf:not(.thin)')].map(g => [g.dataset.ipa, g.firstChild.getBBox().x])"
    )
    assert chromium.js(thin) > 5
    scale = shown(chromium)
    chromium.key("c")
    ranges = told("--from", str(RECORDED), "dump", "--vm", "vm7")["tables"][0]["ranges"]
    assert chromium.js(thin) == 0 and "not to scale" in chromium.js("$('shown').textContent")
    places = sorted(chromium.js(wide), key=lambda one: int(one[0], 16))
    assert [ipa for ipa, _ in places] == [one["ipa"] for one in ranges]
    assert [left for _, left in places] == sorted(left for _, left in places)
    chromium.key("+")
    chromium.key("ArrowLeft")
    start, end = shown(chromium)
    assert 0 <= start < end < 1 << 40
    chromium.key("c")
    assert shown(chromium) == scale


def test_a_finding_leads_to_its_place(chromium: Browser, tmp_path: Path) -> None:
    made = bad_page(tmp_path)
    findings = told("--from", str(tmp_path / "bad.s2cap"), "check")["findings"]
    assert len(findings) > 4
    chromium.open(made)
    for at, one in enumerate(findings):
        chromium.click(f"#f{at} a")
        start, end = shown(chromium)
        where = one["where"]
        assert start <= int(where["ipa"], 16) < end and end - start <= 8 * (where["size"] or 1 << 30)
        assert chromium.js("document.querySelector('section.current h2').textContent").find(where["vm"]) > 0
        assert one["actual"] in chromium.js("$('detail').textContent")
        assert chromium.js("document.activeElement.id") == "map"
    seen = set()
    for _ in findings:
        chromium.key("n")
        seen.add(chromium.js("$('detail').querySelector('.told').textContent"))
    assert len(seen) >= len(findings) - 1


def test_what_changed_is_marked(chromium: Browser, tmp_path: Path) -> None:
    made, captures = changed_page(tmp_path)
    chromium.open(made)
    (vm,) = told("diff", *captures)["vms"]
    kinds = {(False, True): "came", (True, False): "gone", (True, True): "changed"}
    known = [
        [kinds[bool(one["before"]), bool(one["after"])], int((one["after"] or one["before"])["ipa"], 16)]
        for one in vm["tables"][0]["mappings"]
    ]
    assert chromium.js("DATA.maps[0].marks.map(m => [m.kind, m.ipa])") == known
    for side, capture in enumerate(captures):
        ranges = told("--from", capture, "dump", "--vm", vm["vm"])["tables"][0]["ranges"]
        assert chromium.js(RANGES.replace("panels[0]", f"panels[{side}]"))[0] == ranges
    chromium.key("n")
    assert "was page PA 0x80001000 RW-" in chromium.js("$('detail').textContent")


def test_what_the_model_makes_otherwise_is_marked(chromium: Browser, tmp_path: Path) -> None:
    world = good_world()
    table, index = world.guests[0].place(0x4000_1000, 3)
    world.pages[table][index] |= 1 << 11
    path, made = stored(tmp_path / "stray.s2cap", world), tmp_path / "model.html"
    assert invoke("--from", path, "diff", "--html", str(made)).exit_code == 1
    (difference,) = told("--from", path, "diff")["tables"][0]["differences"]
    chromium.open(made)
    cells = chromium.js("[...document.querySelectorAll('#f0 td')].map(cell => cell.textContent)")
    assert cells[3] == f"{difference['model']['raw']} {difference['model']['text']}, page_count 7"
    assert cells[4] == f"{difference['live']['raw']} {difference['live']['text']}, page_count 7"
    chromium.click("#f0 a")
    start, end = shown(chromium)
    assert start <= 0x4000_1000 < end and difference["live"]["raw"] in chromium.js("$('detail').textContent")
    assert "what the model of 6.12" in chromium.js("document.body.textContent") and chromium.complaints == []


# --- how it looks ---

CONTRAST = (Path(__file__).with_name("contrast.js")).read_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_readable(chromium: Browser, tmp_path: Path, dark: bool) -> None:
    for made in (bad_page(tmp_path), changed_page(tmp_path)[0]):
        chromium.open(made, dark=dark)
        for keys in ("", "n", "]jj", "jj"):
            for key in keys:
                chromium.key(key)
            many, bad = chromium.js(CONTRAST)
            assert many > 50 and bad == []


def test_light_and_dark(chromium: Browser, tmp_path: Path) -> None:
    """As the system says, unless the reader says otherwise."""
    made = drawn(tmp_path, stored(tmp_path / "good.s2cap", good_world()))
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    chromium.open(made)
    light = chromium.js(ground)
    chromium.open(made, dark=True)
    dark = chromium.js(ground)
    assert light == "rgb(255, 255, 255)" and dark != light
    chromium.click("#theme")
    assert chromium.js(ground) == light
    chromium.key("t")
    assert chromium.js(ground) == dark


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_runs_out_of_the_page(chromium: Browser, tmp_path: Path, width: int) -> None:
    for made in (bad_page(tmp_path), changed_page(tmp_path)[0], drawn(tmp_path, RECORDED)):
        chromium.open(made, width=width)
        chromium.key("n")
        chromium.key("j")
        assert chromium.js("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), made


def test_without_a_script_ranges_and_findings_are_there(chromium: Browser, tmp_path: Path) -> None:
    made = bad_page(tmp_path)
    found = told("--from", str(tmp_path / "bad.s2cap"), "check")
    ranges = [one for table in told("--from", str(tmp_path / "bad.s2cap"), "dump")["tables"] for one in table["ranges"]]
    chromium.open(made, script=False)
    text = chromium.js("document.body.innerText")
    for one in ranges:
        assert one["ipa"] in text and one["raw"] in text
    for one in found["findings"]:
        assert one["actual"] in text and one["why"] in text
    assert "next finding" not in text


# --- what a machine says of itself ---

EVIL = "</script><script>window.bad=1</script><img src=x onerror=window.bad=1>'\"<!--\u2028{{7*7}}\u202e"


def test_hostile_strings(chromium: Browser, tmp_path: Path) -> None:
    """In every string of a capture; those that end a script, and those that turn the direction of writing."""
    import tests.cli.test_hostile as hostile

    before, hostile.HOSTILE = hostile.HOSTILE, EVIL
    try:
        captures = [poisoned(bad_world().capture()), poisoned(load(str(RECORDED)))]
    finally:
        hostile.HOSTILE = before
    paths = [stored(tmp_path / f"{at}.s2cap", one) for at, one in enumerate(captures)]
    changed = tmp_path / "changed.html"
    assert invoke("diff", *paths, "--html", str(changed)).exit_code == 1
    for made in (drawn(tmp_path, paths[0]), drawn(tmp_path, paths[1]), changed):
        assert "\u202e" not in made.read_text() and "\u2028" not in made.read_text()
        assert [one for one in raw_in(made.read_text()) if one != "\n"] == []
        chromium.open(made)
        for key in "njt]n":
            chromium.key(key)
        assert chromium.js("[typeof window.bad, document.images.length, document.scripts.length]") == [
            "undefined",
            0,
            2,
        ]
        assert len(chromium.requests) == 1 and chromium.complaints == []
        assert "</script><script>window.bad=1" in chromium.js("$('which').textContent")


def test_damaged_tables(chromium: Browser, tmp_path: Path) -> None:
    """A loop, a table with two parents, a reserved entry, an annotation, a slot beyond all addresses."""
    world = good_world()
    guest = world.guests[0]
    (table, first), (_, second) = guest.place(0x5000_0000, 2), guest.place(0x5020_0000, 2)
    leaf_table, index = guest.place(0x4000_1000, 3)
    world.pages[table][first], world.pages[table][second] = guest.root | 3, leaf_table | 3
    world.pages[leaf_table][index + 50], world.pages[leaf_table][index + 51] = 0x1, 0x0F00_0000_0000_0000
    guest.slot(1 << 62, 1 << 63, None)
    path = stored(tmp_path / "damaged.s2cap", world)
    chromium.open(drawn(tmp_path, path))
    entries = told("--from", path, "dump", "--tree")["tables"][0]["entries"]
    odd = [one for one in entries if "leaf" not in one and one["table_pa"] in (hex(table), hex(leaf_table))]
    assert {one["kind"] for one in odd} >= {"table", "reserved"} and len(odd) >= 4
    for one in odd:
        if one["ipa"] != hex(0x4000_0000):
            _reach(chromium, 0, one["ipa"], 4096)
            assert one["raw"] in chromium.js("$('detail').textContent")
            assert one["text"] in chromium.js("$('detail').textContent")
    for key in ("f", "c", "j", "k", "+", "c", "n", "Home"):
        chromium.key(key)
    start, end = shown(chromium)
    assert (start, end) == (0, 1 << 40) and chromium.complaints == []


# --- large, and installed ---


def test_a_large_table_is_folded_and_says_so(chromium: Browser, tmp_path: Path) -> None:
    """Half of the entries used, none contiguous: no two leaves merge, and what is drawn covers them all."""
    world = good_world()
    guest = world.guests[0]
    count = 60_000
    for page in range(count):
        guest.map(0x10_0000_0000 + 2 * page * 0x1000, 0x8000_0000 + page * 0x2000)
    guest.slot(0x10_0000_0000, 2 * count * 0x1000, 0x8000_0000)
    made = drawn(tmp_path, stored(tmp_path / "large.s2cap", world), "--vm", "vm0")
    assert made.stat().st_size < 6 << 20
    chromium.open(made)
    table = told("--from", str(tmp_path / "large.s2cap"), "dump", "--vm", "vm0")["tables"][0]["ranges"]
    ranges = chromium.js("DATA.maps[0].panels[0].ranges.map(r => [r[0], r[1], r[5], r[7]])")
    assert len(table) > count > 24_000 >= len(ranges)
    assert sum(leaves for _, _, leaves, _ in ranges) == sum(one["leaves"] for one in table)
    assert sum(mapped for _, _, _, mapped in ranges) == sum(one["size"] for one in table)
    edges = [(start, start + size) for start, size, _, _ in ranges]
    assert all(any(a <= int(one["ipa"], 16) < b for a, b in edges) for one in table[:: len(table) // 50])
    assert f"{len(table):,} ranges are drawn as {len(ranges):,}" in chromium.js("$('notice').textContent")
    assert "more ranges" in chromium.js("document.body.innerText")


def test_a_machine_without_a_table_that_can_be_shown(chromium: Browser, tmp_path: Path) -> None:
    world = good_world()
    for guest in world.guests:
        guest.mmu_changes["unreadable"] = "its pgt is NULL"
    chromium.open(drawn(tmp_path, stored(tmp_path / "none.s2cap", world)))
    text = chromium.js("document.body.innerText")
    assert "no table that can be shown" in text and "its pgt is NULL" in text and chromium.complaints == []


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    for arguments in (
        ("--from", str(RECORDED), "dump", "--tree", "--html", "x.html"),
        ("--from", str(RECORDED), "dump", "--html", str(tmp_path / "none" / "x.html")),
        ("--from", str(RECORDED), "diff", "--html", str(tmp_path)),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and result.stdout == ""


def test_a_wheel_holds_what_a_page_is_made_of() -> None:
    """The patterns of pyproject.toml leave no file out."""
    import tomllib

    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = ROOT / "inspector/report/html"
    held = {path for pattern in packed["inspector.report.html"] for path in folder.glob(pattern)}
    assert held == set((folder / "assets").iterdir()) and len(held) > 5
