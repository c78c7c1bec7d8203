"""What several looks tell and one does not: whether what was found stays, or passes by itself.

A reference too many may be somebody's who looks at the page (compaction, page_idle, memory hotplug), and a LOCKED entry
or a count that is off may be a walk's that is in progress: both are gone a moment later.  A forgotten put stays.  Rules
mark such findings (`Finding.lasting`), and here alone later looks decide: what is not found again has passed and is not
reported; what is found again whenever no walk was in progress has stayed.  The rules themselves judge every look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from inspector.capture.view import table_views
from inspector.check.catalogue import CATALOGUE, in_order, judged, selected
from inspector.check.context import Context
from inspector.check.excuses import walk_in_progress
from inspector.findings import Finding, Where
from inspector.generations import code_of
from inspector.snapshot import Capture, Look, Vm

_HOW = (
    "one look does not tell: 'inspector check' looks again on a machine that runs, and 'inspector capture --looks 3' "
    "keeps several looks"
)
_ENOUGH = 2
"""Looks without a walk in progress that must agree: two foreign references in a row are no accident."""


def in_question(capture: Capture, only: Iterable[str] | None = None, skip: Iterable[str] | None = None) -> set[int]:
    """The table pages to look at again: those of findings that may pass, and the tables that lead there.

    ``only`` and ``skip`` are the rules chosen, as for `run_checks`.
    """
    rules = [one for one in selected(only, skip) if one.passing]
    wheres = [one.where for one in judged(Context(capture, code_of(capture.host)), rules) if one.lasting]
    return {
        table.pa
        for view in table_views(capture)
        for where in wheres
        if (where.vm, where.regime) == (view.vm.name, view.regime) and where.ipa is not None
        for table in view.tree.tables
        if table.ia <= where.ipa < table.ia + view.geometry.block_size(table.level) * view.geometry.entries
    }


def after_looks(context: Context, findings: Iterable[Finding]) -> list[Finding]:
    """``findings`` with those that may pass decided by the capture's later looks, errors first.

    Without looks they stay notes, which then say how to find out.
    """
    found = list(findings)
    rules = [CATALOGUE[check] for check in dict.fromkeys(one.check for one in found if one.lasting)]
    looks = [_as_it_was(context.capture, look) for look in context.capture.looks] if rules else []
    again = [judged(Context(then, context.code), rules) for then in looks]
    return in_order(one for each in found for one in _decide(context.capture, looks, again, each))


def _as_it_was(capture: Capture, look: Look) -> Capture:
    """What ``capture`` would be had only the pages of ``look`` been read, then; VMs and tables that are gone are."""
    vms = tuple(
        replace(
            vm,
            mmu_lock_held=look.mmu_locks[vm.name],
            mmus=tuple(mmu for mmu in vm.mmus if look.roots.get(mmu.address) == mmu.pgd_phys),
        )
        for vm in capture.vms
        if vm.name in look.mmu_locks
    )
    return replace(
        capture,
        host=replace(capture.host, cpus=look.cpus),
        vms=vms,
        pages=look.pages,
        page_info=look.page_info,
        unreadable={},
        looks=(),
    )


def _decide(capture: Capture, looks: list[Capture], again: list[list[Finding]], one: Finding) -> Iterator[Finding]:
    """``one`` itself, what it becomes since it stays, or nothing since it has passed."""
    if one.lasting is None:
        yield one
        return
    if not looks:
        yield replace(one, why=f"{one.why}; {_HOW}")
        return
    quiet = [number for number, then in enumerate(looks) if not _busy(then, one.where)]
    if any(not _found_again(one, again[number]) for number in quiet):
        return
    seconds = capture.looks[-1].seconds
    if len(quiet) + (not _busy(capture, one.where)) < _ENOUGH:
        why = f"{one.why}; a walk may have been in progress at nearly all of {1 + len(looks)} looks in {seconds:.1f} s"
        yield replace(one, why=why)
        return
    severity, why = one.lasting
    stays = f"so it is still after {seconds:.1f} s, at each of {1 + len(quiet)} looks with no walk in progress"
    yield replace(one, severity=severity, why=f"{why} ({stays})", lasting=None)


def _busy(capture: Capture, where: Where) -> bool:
    """Whether a walk may be in progress in the VM of ``where``; not in one that is gone."""
    vm: Vm | None = next((vm for vm in capture.vms if vm.name == where.vm), None)
    return vm is not None and walk_in_progress(capture.host, vm) is not None


def _found_again(one: Finding, findings: Iterable[Finding]) -> bool:
    """Whether the same is wrong at the same place: an entry of a span is enough."""
    start, size = one.where.ipa or 0, one.where.size or 1
    return any(
        (other.check, other.where.vm, other.where.regime, other.where.table_pa)
        == (one.check, one.where.vm, one.where.regime, one.where.table_pa)
        and (other.where.ipa or 0) < start + size
        and start < (other.where.ipa or 0) + (other.where.size or 1)
        and (other.lasting[1] if other.lasting else other.why) == (one.lasting[1] if one.lasting else one.why)
        for other in findings
    )
