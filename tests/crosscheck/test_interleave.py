"""Operations at the same time: true kernels do what the model does in every order, and wrong ones are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inspector.crosscheck.interleave.pairs import BLOCK, racing, scenarios, states
from inspector.crosscheck.interleave.part import Done, explore, interleave, replayed_meeting, setups
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.reproducer import INTERLEAVINGS, read, text_of, write
from inspector.crosscheck.verdict import WIDTH
from inspector.findings import BadInput, ExitCode
from inspector.generations import GENERATIONS
from tests.crosscheck import kernels
from tests.crosscheck.faults.catalogue import APART
from tests.crosscheck.faults.patch import Patch
from tests.crosscheck.mutate import Mutation, answers, applied

pytestmark = pytest.mark.harness

LABELS = kernels.labels()
SHARED = [label for label in LABELS if GENERATIONS[label].shared_walks]


@pytest.mark.parametrize("label", LABELS)
def test_every_pair_in_every_order(label: str) -> None:
    """All pairs of operations that may meet, in all states, with two preemptions: the model agrees, nothing breaks."""
    kernel = kernels.kernel(label)
    setup = next(setups(label, ["4k"]))
    done = Done()
    for scenario in scenarios(setup):
        violation = explore(kernel, scenario, 2, done)
        assert violation is None, (scenario, violation)
    assert done.incomplete == 0
    if racing(setup):
        assert done.scenarios >= len(states(setup)) * len(racing(setup))
        assert done.schedules > done.distinct > done.scenarios
    else:
        assert not done.scenarios


@pytest.mark.parametrize("label", SHARED[-1:])
@pytest.mark.parametrize("granule", ["16k", "64k"])
def test_other_page_sizes(label: str, granule: str) -> None:
    """The same rules on tables of other sizes: pages alone, as a block's are thousands."""
    done = Done()
    for scenario in scenarios(next(setups(label, [granule]))):
        if "block" not in scenario.state and all(o.size <= 1 << 16 for o in scenario.operations):
            violation = explore(kernels.kernel(label), scenario, 1, done)
            assert violation is None, (scenario, violation)
    assert done.scenarios > 50
    assert done.incomplete == 0


@pytest.mark.parametrize("label", SHARED[-1:])
def test_a_block_of_64k_pages_goes_on_in_a_table_of_8192_entries(label: str) -> None:
    """The longest schedules that there are: the block's walk enters the table that a page's fault made of it."""
    done = Done()
    names = racing(setup := next(setups(label, ["64k"])))
    pair = (names["map another page there"], names[BLOCK])
    (scenario,) = (each for each in scenarios(setup) if (each.state, each.operations) == ("an empty tree", pair))
    assert explore(kernels.kernel(label), scenario, 2, done, model=False) is None
    assert done.incomplete == 0
    assert done.distinct > 1


@pytest.mark.parametrize("label", SHARED[:1])
def test_three_at_once(label: str) -> None:
    part = interleave(kernels.kernel(label), count=3, bound=1, seconds=4)
    assert part.code is ExitCode.CLEAN, part
    assert int(part.figures["schedules"]) > 500


def test_a_kernel_whose_lock_is_held_has_nothing_to_interleave() -> None:
    assert racing(next(setups("5.10", ["4k"]))) == {}
    assert racing(next(setups("5.15", ["4k"]))) == {}
    assert set(racing(next(setups("6.1", ["4k"])))) == {"relax_perms", "relax_perms, next page"}


def wrong(name: str) -> Kernel:
    """6.12 with a fault of the catalogue."""
    return next(fault for fault in APART if fault.name == name).patch.put_on(kernels.kernel("6.12"))


def test_a_violation_is_said_in_a_mails_width() -> None:
    """That each fault is found is test_faults.py's."""
    part = interleave(wrong("LOCKED not honoured"), model=False)
    assert part.code is ExitCode.FINDINGS, part
    assert [line for line in part.lines if line.startswith("A ")]
    assert all(len(line) <= WIDTH for line in part.lines if not line.startswith(("machine", "map", "A: ", "B: "))), part


def test_the_model_that_ignores_a_lost_race_is_found() -> None:
    """The model is held to every order as well: one that goes on after it has lost does otherwise."""
    kernel = kernels.kernel("6.12")
    with applied(Mutation("LOCKED is never seen", "map_unlink.try_break_pte", answers(False))):
        part = interleave(kernel)
    assert part.code is ExitCode.FINDINGS
    assert any("the model" in line for line in part.lines)


def test_a_broken_schedule_can_be_read_and_is_said_whole() -> None:
    """Events stand between the accesses, a table's many empty entries are one line, the schedule names every turn."""
    lines = list(interleave(wrong("freed without a grace period"), model=False).lines)
    shown = lines[next(at for at, line in enumerate(lines) if line.startswith("A  ")) : lines.index("A returns 0")]
    assert any(re.fullmatch(r"(T\d)\[\d+\] to \1\[511\] 0x0", line.strip()) for line in shown), shown
    assert any(re.fullmatch(r"free T\d", line.strip()) for line in shown)
    assert any(line.strip().endswith("=> LOCKED") for line in shown)
    assert any("tlbi" in line for line in shown)
    assert any(line.startswith("schedule: A") for line in lines)


def test_a_meeting_can_be_run_again(tmp_path: Path) -> None:
    """A violation's reproducer holds the meeting: broken on the same code, and clean on the true kernel."""
    broken = wrong("LOCKED not honoured")
    part = interleave(broken, model=False)
    write(tmp_path / "r.txt", text_of(INTERLEAVINGS, ["about"], part.script))
    script = read(tmp_path / "r.txt")
    assert len(script.together) == 2
    again = replayed_meeting(broken, script, 2, model=False)
    assert again.code is ExitCode.FINDINGS
    assert again.lines == part.lines or again.lines[0] == part.lines[0]
    assert replayed_meeting(kernels.kernel("6.12"), script, 2, model=True).code is ExitCode.CLEAN


@pytest.mark.parametrize(
    "text", ["machine\ninit\n", "machine\ninit\nA: unmap 0 4K\n", "machine\nA: init\nB: nothing\n"]
)
def test_a_meeting_of_one_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.txt").write_text(f"# part: {INTERLEAVINGS}\n{text}")
    with pytest.raises(BadInput):
        read(tmp_path / "r.txt")


def test_the_protocol_is_kept_over_all_cpus() -> None:
    """A break without its TLBI is no misuse, leaves the same tables, and is seen in what the CPUs did together."""
    patch = Patch(
        "a break without its TLBI",
        "stage2_try_break_pte",
        r"kvm_call_hyp\(__kvm_tlb_flush_vmid_ipa, mmu,\s+ctx->addr, ctx->level\);",
        ";",
    )
    part = interleave(patch.put_on(kernels.kernel("6.12")), model=False)
    assert part.code is ExitCode.FINDINGS
    assert part.lines[0].startswith("B2: ")


def test_the_split_changes_nothing() -> None:
    """The same part from two processes as from one: of a clean kernel, and of one that is wrong."""
    clean = kernels.kernel("6.1")
    assert interleave(clean) == interleave(clean, jobs=2)
    broken = wrong("freed without a grace period")
    one, two = interleave(broken), interleave(broken, jobs=2)
    assert one.code is ExitCode.FINDINGS
    assert one == two
