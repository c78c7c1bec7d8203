"""The engine of interleavings: it runs all schedules that there are, sees wrong kernels break, and true ones not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import comb

import pytest

from inspector.crosscheck.harness import Harness, Op, pack
from inspector.crosscheck.interleave.engine import Engine, preemptions
from inspector.crosscheck.interleave.outcome import RCU, Outcome
from inspector.crosscheck.kernel import Kernel
from inspector.crosscheck.tree import PGTABLE
from inspector.generations import GENERATIONS
from tests.crosscheck import kernels
from tests.crosscheck.faults.patch import Patch

pytestmark = pytest.mark.harness

PAGE, BLOCK = 4096, 2 << 20
IPA, PHYS = 0x8000_0000, 0x4820_0000

LABELS = [label for label in kernels.labels() if GENERATIONS[label].shared_walks]


@contextmanager
def table(kernel: Kernel) -> Iterator[Harness]:
    """An empty table as of a guest on a CPU with FWB."""
    with Harness(kernel.library(every_access=True), store_pages=1 << 14, check_faults=False, fwb=True) as h:
        assert h.stage2_init(40)[0] == 0
        yield h


def shared(h: Harness) -> int:
    """The flags of a fault's walk."""
    names = "SHARED HANDLE_FAULT" if h.constant("WALK_HANDLE_FAULT") is not None else "SHARED"
    return h.bits("WALK_", names)


def map_op(h: Harness, addr: int, size: int = PAGE, phys: int = PHYS, prot: str = "rw", cache: int = 8) -> bytes:
    return pack(Op.MAP, addr=addr, size=size, phys=phys, prot=h.prot(prot), flags=shared(h), mc=cache)


def outcomes(h: Harness, ops: Sequence[bytes], label: str, *, bound: int = 2, reduce: bool = True) -> list[Outcome]:
    with Engine(h, ops, GENERATIONS[label], bound=bound, reduce=reduce) as engine:
        found = list(engine.outcomes())
        assert engine.complete
        assert len(found) == engine.distinct
        return found


def ends(found: Sequence[Outcome]) -> set[object]:
    """What can be seen afterwards: returns, contents and counts of every page."""
    return {
        (tuple(r.ret for r in one.results), tuple(sorted(one.pages.items())), tuple(sorted(one.counts.items())))
        for one in found
    }


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("bound", [0, 1, 2])
def test_it_runs_as_many_schedules_as_there_are(label: str, bound: int) -> None:
    """Two walks that only read have n and m accesses whatever the order: the schedules can be counted by hand.

    With no preemption there are 2.  With one: 2, and one for each place inside the first walk (n - 1 and m - 1).  With
    two also those that come back and leave again: both walks are cut once, one after the other, in (n-1)(m-1) ways for
    either beginner, or one walk is cut twice around the whole other, which is not two preemptions but one (the other's
    end is free).
    """
    with table(kernels.kernel(label)) as h:
        h.stage2_map(IPA, PAGE, PHYS, h.prot("rw"))
        ops = [pack(Op.GET_LEAF, addr=IPA), pack(Op.GET_LEAF, addr=IPA + PAGE)]
        with Engine(h, ops, GENERATIONS[label], bound=bound, reduce=False) as engine:
            first = next(engine.outcomes())
            n, m = (sum(a.fiber == fiber for a in first.accesses) for fiber in (0, 1))
            assert n > 2
            assert m > 2
            engine.exhaust()
            once = (n - 1) + (m - 1)
            twice = 2 * (n - 1) * (m - 1)
            assert engine.schedules == [2, 2 + once, 2 + once + twice][bound]


@pytest.mark.parametrize("label", LABELS)
def test_without_a_bound_all_orders_run(label: str) -> None:
    """n and m accesses can be merged in (n+m)!/(n! m!) ways."""
    with table(kernels.kernel(label)) as h:
        ops = [pack(Op.GET_LEAF, addr=IPA), pack(Op.GET_LEAF, addr=IPA)]
        with Engine(h, ops, GENERATIONS[label], bound=99, reduce=False) as engine:
            first = next(engine.outcomes())
            n, m = (sum(a.fiber == fiber for a in first.accesses) for fiber in (0, 1))
            engine.exhaust()
            assert engine.schedules == comb(n + m, n)


def _pairs(h: Harness) -> dict[str, list[bytes]]:
    # Up to 6.18 these two choose the flags themselves.
    flags = shared(h) if h.constant("WALK_HANDLE_FAULT") is None else 0
    relax = pack(Op.RELAX_PERMS, addr=IPA, prot=h.prot("rwx"), flags=flags)
    young = pack(Op.MKYOUNG, addr=IPA, flags=flags)
    page, block = map_op(h, IPA), map_op(h, IPA, BLOCK, 0x4000_0000)
    return {
        "two pages": [page, map_op(h, IPA + PAGE, phys=PHYS + PAGE)],
        "one page": [page, map_op(h, IPA, prot="r")],
        "page and block": [map_op(h, IPA, PAGE, 0x5000_0000), block],
        "one block": [block, block],
        "page and permissions": [page, relax],
        "permissions and age": [relax, young],
    }


_NAMES = ("two pages", "one page", "page and block", "one block", "page and permissions", "permissions and age")

LONG = {("page and block", PAGE), ("one block", PAGE), ("page and block", BLOCK)}
"""A block that meets another walk's table goes on page by page: 512 pages, and too many places without reduction."""


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("mapped", [None, PAGE, BLOCK])
def test_the_reduction_loses_no_end(label: str, name: str, mapped: int | None) -> None:
    """The same ends as without it, on fewer schedules; nothing is broken in any."""
    found, ran = [], []
    for reduce in (True, True) if (name, mapped) in LONG else (False, True):
        with table(kernels.kernel(label)) as h:
            if mapped:
                h.stage2_map(IPA, mapped, 0x4000_0000, h.prot("r"))
            with Engine(h, _pairs(h)[name], GENERATIONS[label], reduce=reduce) as engine:
                found.append(list(engine.outcomes()))
                ran.append(engine.schedules)
    assert ends(found[0]) == ends(found[1])
    assert ran[1] <= ran[0]
    for one in (*found[0], *found[1]):
        assert one.sound, (one.faults, one.broken, one.schedule)
        assert one.preemptions <= 2


@pytest.mark.parametrize("label", LABELS)
def test_the_callback_waits_for_who_is_inside(label: str) -> None:
    """A block over a table hands the table to RCU; a fault that was inside it is out before its page is freed."""
    with table(kernels.kernel(label)) as h:
        h.stage2_map(IPA, PAGE, PHYS, h.prot("r"))
        (unlinked,) = (page.pa for page in h.dump() if page.level == 3)
        found = outcomes(h, [map_op(h, IPA, BLOCK, 0x4000_0000), map_op(h, IPA + PAGE)], label)
        for one in found:
            assert one.sound
            assert unlinked not in one.counts
            callback = min(at for at, access in enumerate(one.accesses) if access.fiber == RCU)
            visits = [at for at, a in enumerate(one.accesses) if a.fiber == 1 and a.pa & -PAGE == unlinked]
            assert all(at < callback for at in visits)


@pytest.mark.parametrize("label", LABELS)
def test_a_schedule_can_be_run_again(label: str) -> None:
    with (
        table(kernels.kernel(label)) as h,
        Engine(h, [map_op(h, IPA), map_op(h, IPA, prot="r")], GENERATIONS[label]) as engine,
    ):
        for one in list(engine.outcomes()):
            assert engine.replay(one.schedule) == one


@pytest.mark.parametrize("label", LABELS)
def test_three_at_once(label: str) -> None:
    with table(kernels.kernel(label)) as h:
        found = outcomes(h, [map_op(h, IPA), map_op(h, IPA), map_op(h, IPA + PAGE)], label)
        assert all(one.sound for one in found)
        assert max(one.preemptions for one in found) == 2


def test_the_tables_are_left_as_they_were() -> None:
    with table(kernels.kernel(LABELS[0])) as h:
        h.stage2_map(IPA, PAGE, PHYS, h.prot("r"))
        before = h.dump(), h.outstanding()
        outcomes(h, [map_op(h, IPA, BLOCK, 0x4000_0000), map_op(h, IPA + PAGE)], LABELS[0])
        assert (h.dump(), h.outstanding()) == before
        assert h.stage2_map(IPA + PAGE, PAGE, PHYS, h.prot("r"))[0] == 0


def test_preemptions_are_counted() -> None:
    assert preemptions((0, 0, 1, 1)) == 0
    assert preemptions((0, 1, 1, 0)) == 1
    assert preemptions((0, 1, 0, 1)) == 2


def _patch(name: str, old: str, new: str, function: str = "stage2_try_set_pte") -> Patch:
    return Patch(name, function, old, new)


WRONG = (
    _patch("a plain store for the cmpxchg", r"return cmpxchg\(.*?;", "WRITE_ONCE(*ctx->ptep, new); return true;"),
    _patch("a store by no macro", r"return cmpxchg\(.*?;", "*ctx->ptep = new; return true;"),
    _patch(
        "freed without a grace period",
        r"mm_ops->free_unlinked_table\(",
        "kvm_pgtable_stage2_free_unlinked(mm_ops, ",
        "stage2_map_walk_table_pre",
    ),
    _patch("its result ignored", r"return (cmpxchg\(.*?\)) == .*?;", r"\1; return true;"),
)


def test_a_page_that_is_freed_meets_who_only_reads_it() -> None:
    """Nobody writes the entry that relax_perms reads; what races with it is the page's end."""
    true = kernels.tree("6.12")
    (patch,) = (each for each in WRONG if each.name == "freed without a grace period")
    tree = replace(true, text={**true.text, PGTABLE: patch.apply(true.text[PGTABLE])})
    for reduce in (False, True):
        with table(Kernel(patch.name, tree, "6.12", kernels.builds())) as h:
            h.stage2_map(IPA, PAGE, PHYS, h.prot("r"))
            relax = pack(Op.RELAX_PERMS, addr=IPA + PAGE, prot=h.prot("r"))
            found = outcomes(h, [map_op(h, IPA, BLOCK, 0x4000_0000), relax], "6.12", bound=1, reduce=reduce)
            assert any(one.faults for one in found)


@pytest.mark.parametrize("patch", WRONG, ids=lambda patch: patch.name)
def test_a_wrong_kernel_breaks(patch: Patch) -> None:
    true = kernels.tree("6.12")
    tree = replace(true, text={**true.text, PGTABLE: patch.apply(true.text[PGTABLE])})
    wrong = Kernel(patch.name, tree, "6.12", kernels.builds())
    assert any(_breaks(wrong, name, mapped) for mapped in (None, PAGE) for name in _NAMES[:3])


def _breaks(kernel: Kernel, name: str, mapped: int | None) -> bool:
    with table(kernel) as h:
        if mapped:
            h.stage2_map(IPA, mapped, PHYS, h.prot("r"))
        with Engine(h, _pairs(h)[name], GENERATIONS["6.12"]) as engine:
            return any(not one.sound for one in engine.outcomes())
