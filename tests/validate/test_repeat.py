"""A run that is repeated: what it is told to do at once, and what is said of what cannot be aligned."""

from __future__ import annotations

from pathlib import Path

from inspector.findings import ExitCode
from inspector.trace.file import Writer
from inspector.validate.configurations import CONFIGURATIONS, workload
from inspector.validate.repeat import deterministic, in_order
from tests.validate.test_aligned import mapped


def test_everything_is_on_the_command_line_of_one_cpu() -> None:
    (quick,) = CONFIGURATIONS["quick"]
    options = deterministic(quick, workload("default", 7)).options()
    assert options[options.index("--smp") + 1] == "1"
    assert "--deterministic" in options
    scenario = options[options.index("--scenario") + 1]
    assert scenario.startswith("default,log,manual,")
    assert scenario.endswith(",random,seed=7,actions=300")
    assert "--deterministic" not in quick.options()


def trace(path: Path, *ipas: int) -> Path:
    with path.open("wb", buffering=0) as stream:
        writer = Writer(stream, {"release": "6.12"})
        for ipa in ipas:
            for lane, raw in mapped(ipa=ipa, table=0x40000000 + (ipa >> 9)):
                writer.add(lane, raw)
        writer.flush()
    return path


def test_a_run_that_is_not_repeated_does_not_pass(tmp_path: Path) -> None:
    """It is no finding about the kernel either; of the kernel a difference alone is none."""
    one = trace(tmp_path / "one", 0x1000, 0x2000, 0x3000)
    two = trace(tmp_path / "two", 0x1000, 0x3000)
    repeated, order = in_order("vhe", one, [one, two])
    assert (repeated.name, repeated.code) == ("vhe: repeated", ExitCode.UNTESTABLE)
    assert repeated.figures == {"same": 2, "first": 1, "second": 0, "displaced": 0, "moved": 0}
    assert "1 and 0 could not be aligned" in repeated.summary
    (line,) = repeated.lines
    assert line.startswith("only in the first: operation 2, call fn=kvm_pgtable_stage2_map") and "addr=0x2000" in line
    assert (order.name, order.code) == ("vhe: in order", ExitCode.CLEAN)
    assert order.figures["same"] == 3
    repeated, order = in_order("vhe", two, [one, one])
    assert (repeated.code, order.code) == (ExitCode.CLEAN, ExitCode.CLEAN)
    assert order.figures["first"] == 1
