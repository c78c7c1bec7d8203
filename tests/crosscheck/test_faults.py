"""Each fault of the catalogue is seen by every channel that owns it; what the sanitizers say can be read and replayed.

``python -m tests.crosscheck.faults`` prints the whole table, each fault on every channel.
"""

from __future__ import annotations

import pytest

from inspector.crosscheck import campaign
from inspector.crosscheck.differ import What, run_on
from inspector.crosscheck.reproducer import SANITIZERS
from inspector.crosscheck.sanitize import UnderSanitizers
from inspector.crosscheck.sequential import Budget, Run, sanitizers
from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode
from tests.crosscheck import kernels
from tests.crosscheck.faults.catalogue import ALL, APART, Channel, Fault
from tests.crosscheck.faults.measure import look

pytestmark = pytest.mark.harness

LABEL = "6.12"
OWNED = [(fault, channel) for fault in ALL for channel in fault.owners]


@pytest.mark.parametrize(("fault", "channel"), OWNED, ids=[f"{fault.name}-{channel}" for fault, channel in OWNED])
def test_a_fault_is_seen(fault: Fault, channel: Channel) -> None:
    assert look(fault.patch.put_on(kernels.kernel(LABEL)), channel) is not None


def test_a_dozen_and_more_are_seen_without_the_comparison() -> None:
    apart = {Channel.INTERLEAVINGS, Channel.SANITIZERS}
    assert sum(bool(apart & set(fault.owners)) for fault in APART) >= 12


@pytest.mark.parametrize("label", kernels.labels())
def test_a_clean_kernel_has_nothing_under_sanitizers(label: str) -> None:
    kernel = kernels.kernel(label)
    part = part_of(kernel.name, Run(sanitizers(kernel), Budget(6_000, None, 3, ("4k", "16k", "64k"))))
    assert part.code is ExitCode.CLEAN, part
    assert part.summary.endswith("no misuse of memory, nothing undefined, no warning, nothing leaked")


def part_of(name: str, run: Run) -> Part:
    run.go(lambda text: None)
    (part,) = run.parts()
    assert part.name == SANITIZERS
    return part


def said_of(name: str) -> Part:
    kernel = next(fault for fault in APART if fault.name == name).patch.put_on(kernels.kernel(LABEL))
    return part_of(name, Run(sanitizers(kernel), Budget(20_000, None, 1, ("4k",))))


def test_a_misuse_is_said_with_its_line() -> None:
    part = said_of("the next entry looked at, beyond the table's end")
    text = "\n".join(part.lines)
    assert part.code is ExitCode.FINDINGS
    assert part.summary.startswith("fault of the kernel's code in '")
    assert "reads what is not its own" in text
    assert "(void)*(volatile kvm_pte_t *)&((kvm_pte_t *)pgtable)[idx + 1];" in text
    assert len(part.script) <= 4


def test_what_c_leaves_undefined_is_said() -> None:
    text = " ".join(said_of("a shift by more bits than there are").lines)
    assert "does what C leaves undefined: a shift by as many bits as there are" in " ".join(text.split())


def test_a_leak_names_the_operation_that_allocated() -> None:
    part = said_of("an unlinked table leaked on an error path")
    assert part.summary.startswith("pages are left allocated, which nobody can give back, in 'destroy")
    assert any("of 'create_unlinked" in line or "of 'split" in line for line in part.lines)


def test_what_a_script_plants_is_not_the_kernels() -> None:
    """A WARN over a LOCKED entry that was poked, a table overwritten by a poke: the script's own doing."""
    script = [
        f"machine generation={LABEL}",
        "init",
        "map 0x200000 0x1000 pa=0x40000000 prot=RW",
        "poke 0x200000 level=2",
        "map 0x200000 0x1000 pa=0x40000000 prot=RW",
        "poke 0x201000 level=3 entry=0x400 refs=1",
        "map 0x201000 0x1000 pa=0x40000000 prot=RW",
        "poke 0x201000 level=3 refs=-1",
        "destroy",
    ]
    assert run_on(script, UnderSanitizers(kernels.kernel(LABEL))) is None


def test_an_unlinked_table_is_whose_made_it() -> None:
    """It is no leak as long as the script can free it; freed and then lost, it would be."""
    kernel = kernels.kernel(LABEL)
    script = [f"machine generation={LABEL}", "init", "create_unlinked pa=0x40000000 level=2 prot=RW", "destroy"]
    assert run_on(script, UnderSanitizers(kernel)) is None
    wrong = next(fault for fault in APART if fault.name == "a reference taken for LOCKED").patch.put_on(kernel)
    script = [script[0], "init", "map 0x200000 0x1000 pa=0x40000000 prot=RW", "destroy"]
    found = run_on(script, UnderSanitizers(wrong))
    assert found is not None
    assert found.what is What.LEAK


def test_a_kernel_that_the_model_does_not_know_is_not_misused() -> None:
    """A wrong memory type misuses nothing; what a script plants by the model's tables would make a misuse of it."""
    fault = next(fault for fault in ALL if fault.name == "device memory mapped as normal")
    kernel = fault.patch.put_on(kernels.kernel(LABEL))
    matter = sanitizers(kernel)
    outcome = campaign.Outcome(kernel, 1)
    campaign.fill(outcome, campaign.Plan(kernel, ("4k",), matter.open_sides, matter.focus), 20_000)
    assert outcome.difference is None
    assert outcome.abandoned > 0
