"""Runs put together: codes, what is compared and what is not, and the shapes that machines read."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from inspector import report
from inspector.crosscheck.verdict import Part, Verdict
from inspector.findings import ExitCode
from inspector.report.format import Painter
from inspector.validate.configurations import CONFIGURATIONS, workload
from inspector.validate.run import Run
from inspector.validate.shape import shapes
from inspector.validate.verdict import compared
from tests.validate.test_shape import unmap

VHE = CONFIGURATIONS["quick"][0]
CLEAN = Part("vhe: protocol", ExitCode.CLEAN, "817 operations, 0 break a rule")
BROKEN = Part("vhe: model", ExitCode.FINDINGS, "1 does not", ("call <a> & ]]>", "\x1b[31mred"))
UNTESTED = Part("vhe: boot", ExitCode.UNTESTABLE, "it did not boot")


def run(level: int = 3, *parts: Part) -> Run:
    return Run(VHE, "6.12", list(parts), shapes(unmap(level=level)))


def test_the_same_is_identical() -> None:
    part = compared("vhe", run(), [run(), run()])
    assert (part.code, part.figures["changes"]) == (ExitCode.CLEAN, 0)
    assert "0 of 1 ways" in part.summary


def test_what_differs_is_shown_and_is_no_finding_by_itself() -> None:
    part = compared("vhe", run(2), [run(), run()])
    assert part.code is ExitCode.CLEAN
    assert part.summary.endswith("break no rule")
    assert "  +tlbi ipas2e1is level 2" in part.lines
    assert "see the findings" in compared("vhe", run(2, BROKEN), [run(), run()]).summary


def test_what_differs_in_the_same_way_is_told_once() -> None:
    """Two shapes of one operation, each with the other hint."""
    one, other = unmap(), unmap(page=0x5000077F)
    base = Run(VHE, "6.12", [], shapes([*one, *other]))
    done = Run(VHE, "6.12", [], shapes([*unmap(level=2), *unmap(page=0x5000077F, level=2)]))
    part = compared("vhe", done, [base, base])
    assert part.figures["changes"] == 2
    assert part.lines[-1] == "  and 1 more with this difference: 1 of unmap"


def test_a_run_that_is_not_whole_is_not_compared() -> None:
    for done, base in ((run(3, UNTESTED), [run()]), (run(), [run(3, UNTESTED)]), (Run(VHE), [run()])):
        assert compared("vhe", done, base).code is ExitCode.UNTESTABLE


def test_a_trailer_of_what_ran_where_all_of_it_is_clean() -> None:
    held = [
        Part(f"{mode}: {name}", ExitCode.CLEAN, "", (), {"held": 1200})
        for mode in ("vhe", "cortex-a76")
        for name in ("tables", "model")
    ]
    text = list(report.validate.lines(Painter(False), Verdict(["kernel: x"], held)))
    assert text[-1] == "Tested-by: NAME <ADDRESS>"
    said = " ".join(text[text.index("", -6) + 1 : -1])
    assert said.startswith("[KVM/arm64 stage-2 under QEMU (vhe, cortex-a76): 2,400 operations kept")
    assert said.endswith("all tables checked 2 times]")
    assert all(len(line) <= 75 for line in text)
    for other in (BROKEN, UNTESTED):
        assert "Tested-by" not in "".join(report.validate.lines(Painter(False), Verdict(["kernel: x"], [*held, other])))
    # Where nothing was followed there is nothing to say.
    assert "Tested-by" not in "".join(report.validate.lines(Painter(False), Verdict(["kernel: x"], [CLEAN])))


def test_junit() -> None:
    """Read by a parser: strings from the machine are data."""
    suite = Xml.fromstring(report.validate.junit(Verdict(["kernel: x"], [CLEAN, BROKEN, UNTESTED])))
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite}
    assert cases["protocol"].get("classname") == "vhe"
    failure = cases["model"].find("failure")
    assert failure is not None
    assert "call <a> & ]]>" in (failure.text or "")
    assert "\x1b" not in (failure.text or "")
    assert cases["boot"].find("skipped") is not None


def test_ktap() -> None:
    lines = list(report.crosscheck.ktap(Painter(color=False), Verdict([], [CLEAN, BROKEN, UNTESTED])))
    assert lines[:2] == ["KTAP version 1", "1..3"]
    assert [line for line in lines if line.startswith(("ok", "not ok"))] == [
        "ok 1 vhe: protocol",
        "not ok 2 vhe: model",
        "ok 3 vhe: boot # SKIP not tested",
    ]


def test_more_depth_is_more() -> None:
    quick, default, full = (CONFIGURATIONS[depth] for depth in ("quick", "default", "full"))
    assert set(quick) < set(default) < set(full)
    assert len({each.name for each in full}) == len(full)
    assert set(workload("quick", 1)) < set(workload("default", 1))
