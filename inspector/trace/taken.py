"""The tables that a capture shows, as the model and the protocol take them over.

A capture is one instant: what was made before a trace begins is known by it.  Counts are those of ``struct page``.
While nobody walks a table they are what its entries are worth (kernel.md 10.1); one that is larger may be anybody's
passing reference, which no table's walk sees go (`inspector.check.refcount`), and is not taken over.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from inspector.capture.view import OwnView, TableView, View, own_views, table_views
from inspector.generations import Generation
from inspector.protocol.facts import Counted, Facts, facts_of
from inspector.snapshot import Capture, Mode, OwnKind
from inspector.trace.performed import features_of, generation_of, geometry_of
from inspector.trace.truth import Truth


@dataclass(frozen=True)
class Taken:
    """One table.  ``words`` are what its init would have told; ``pgt`` is 0 where it is not known (the hypervisor's).

    ``vmid`` is the one that VTTBR_EL2 gets, ``None`` before its guest ran.
    """

    title: str
    pgt: int
    words: Mapping[str, int]
    root: int
    truth: Truth
    facts: Facts
    vmid: int | None = None

    @property
    def is_hyp(self) -> bool:
        """It is the hypervisor's own."""
        return not self.pgt


@dataclass(frozen=True)
class TakenCpu:
    """What a CPU has loaded: VTTBR_EL2, and a vCPU by its address; ``in_guest``: it runs it."""

    number: int
    vttbr: int
    vcpu: int | None
    in_guest: bool


@dataclass(frozen=True)
class Before:
    """What a trace begins with: ``tables`` in the order of their numbers, from 1; ``left_out`` are those that are not
    taken over, with the reason."""

    tables: tuple[Taken, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    cpus: tuple[TakenCpu, ...] = ()


def taken_over(capture: Capture, header: Mapping[str, Any]) -> Before:
    """Every table of ``capture`` that can be followed in a trace of ``header``, which says what the CPU can do, and
    which tables alone are followed (``only``).  Raises `BadInput` for a generation that is not known.
    """
    generation, features = generation_of(header), features_of(header)
    only = header.get("only") if isinstance(header.get("only"), list) else None
    tables: list[Taken] = []
    left_out: list[tuple[str, str]] = []
    for view in _views(capture):
        if only is not None and _pgt(view) not in only:
            continue
        words = _words(view, features)
        why = _why_not(view, words, generation)
        if why:
            left_out.append((view.title, why))
            continue
        facts = facts_of(generation, view.geometry, hyp=isinstance(view, OwnView))
        vmid = view.mmu.vmid if isinstance(view, TableView) else None
        tables.append(Taken(view.title, _pgt(view), words, view.root_pa, _truth(view, facts), facts, vmid))
    loaded = {vcpu.loaded_on: vcpu.address for vm in capture.vms for vcpu in vm.vcpus}
    cpus = tuple(
        TakenCpu(cpu.index, cpu.registers.get("VTTBR_EL2", 0), loaded.get(cpu.index), cpu.vttbr_live)
        for cpu in capture.host.cpus
    )
    return Before(tuple(tables), tuple(left_out), cpus)


def _views(capture: Capture) -> Iterator[View]:
    if capture.host.mode is Mode.PROTECTED:
        return
    yield from (view for view in own_views(capture) if view.table.kind is OwnKind.HYP)
    yield from table_views(capture)


def _pgt(view: View) -> int:
    return (view.mmu.pgt or 0) if isinstance(view, TableView) else 0


def _words(view: View, features: Mapping[str, int]) -> dict[str, int]:
    """As its init would have told them."""
    words = {"ia_bits": view.geometry.ia_bits, "start_level": view.geometry.start_level, "vtcr": 0, **features}
    if isinstance(view, TableView):
        mmu = view.mmu
        words |= {"ia_bits": mmu.ia_bits or 0, "start_level": mmu.start_level or 0, "vtcr": mmu.vtcr}
        words |= {"flags": mmu.pgt_flags} if mmu.pgt_flags is not None else {}
    return words


def _why_not(view: View, words: Mapping[str, int], generation: Generation) -> str:
    if view.tree.problems:
        problem = view.tree.problems[0]
        return f"its tree is not whole: {problem.kind} at table {problem.table_pa:#x}"
    if isinstance(view, TableView) and not view.mmu.pgt:
        return "its struct kvm_pgtable is not known"
    try:
        told = geometry_of(words, view.geometry.granule_shift)
    except ValueError as error:
        return str(error)
    if told.lpa2 and not generation.lpa2:
        return "its VTCR_EL2 has DS set, which this kernel does not know"
    same = ("ia_bits", "start_level", "root_pages")
    if any(getattr(told, name) != getattr(view.geometry, name) for name in same):
        return "its struct kvm_pgtable and VTCR_EL2 do not agree"
    return ""


def _truth(view: View, facts: Facts) -> Truth:
    granule = view.geometry.granule
    truth = Truth(granule)
    # A root may be less than a page: the kernel allocates whole ones (kvm_pgd_pages).
    for pa in {*view.root_pages(), *(table.pa for table in view.tree.tables)}:
        truth.pages[pa] = array("Q", view.capture.pages.get(pa, b"")[:granule].ljust(granule, b"\0"))
        info = view.capture.page_info.get(pa)
        truth.counts[pa] = info.refcount if info is not None else 1 + _references(truth.pages[pa], facts)
    return truth


def without_surplus(truth: Truth, facts: Facts) -> tuple[int, ...]:
    """The pages that have more references than their entries are worth while nobody walks: these are left out."""
    found = []
    for pa, entries in truth.pages.items():
        worth = 1 + _references(entries, facts)
        if truth.counts.get(pa, 0) > worth:
            truth.counts[pa] = worth
            found.append(pa)
    return tuple(sorted(found))


def _references(entries: array[int], facts: Facts) -> int:
    if facts.counted is Counted.NONE:
        return 0
    if facts.counted is Counted.VALID:
        return sum(value & 1 for value in entries)
    return sum(1 for value in entries if value and not _is_locked(value, facts))


def _is_locked(value: int, facts: Facts) -> bool:
    return bool(facts.locked_mask) and not value & 1 and value & facts.locked_mask == facts.locked_value
