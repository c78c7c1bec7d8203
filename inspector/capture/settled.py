"""A look at a kernel that runs on meanwhile (/proc/kcore): what of it was one instant.

Everything is read twice, one whole reading after the other.  What both readings hold alike, and nobody changed and
changed back in between, was so between them: all of it at once, at the instant at which the first reading had ended and
the second had not begun.  Of the rest nothing is known that could be judged: a table may have been freed, and be
something else by now.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from inspector.capture.view import own_views, table_views
from inspector.snapshot import Capture, Vm

READINGS: Final = 6
"""After so many, what still differs from one to the next is left."""
MOVED: Final = "it changed while it was read, and the kernel ran"


def settled(look: Callable[[], Capture]) -> Capture:
    """The last of several readings; a VM that differs from the one before has tables that are not to be read."""
    before = look()
    for _ in range(READINGS - 1):
        now = look()
        moved = _moved(before, now)
        own = _tables(before, own=True) != _tables(now, own=True)
        if not moved and not own and len(before.vms) == len(now.vms):
            break
        before = now
    said = "the kernel ran while it was read: what is judged was alike in two readings"
    if moved:
        said += f", which {len(moved)} of {len(now.vms)} VMs were not"
    vms = tuple(_without_tables(vm) if vm.name in moved else vm for vm in now.vms)
    notes = (*now.host.notes, said)
    return replace(now, vms=vms, own=() if own else now.own, host=replace(now.host, notes=notes))


def _moved(before: Capture, now: Capture) -> Collection[str]:
    """The names of the VMs of ``now`` that are otherwise than, or not, in ``before``."""
    known = {vm.address: vm for vm in before.vms}
    same_pages, tables = _tables(before), _tables(now)
    return [
        vm.name
        for vm in now.vms
        if (old := known.get(vm.address)) is None
        or _lasting(old) != _lasting(vm)
        or same_pages.get(vm.address) != tables.get(vm.address)
    ]


def _lasting(vm: Vm) -> Vm:
    """Without its name, which is its place among the others, and without what runs where."""
    return replace(vm, name="", vcpus=())


def _tables(capture: Capture, own: bool = False) -> dict[int, list[object]]:
    """Every table page with what it holds and its ``struct page``, by the VM's address (0: the host's own)."""
    found: dict[int, list[object]] = {}
    for owner, view in (
        [(0, view) for view in own_views(capture)]
        if own
        else [(view.vm.address, view) for view in table_views(capture)]
    ):
        pages = found.setdefault(owner, [])
        pages += [(table.pa, table.raw, capture.page_info.get(table.pa)) for table in view.tree.tables]
        pages += [(problem.table_pa, problem.index, problem.raw) for problem in view.tree.problems]
    return found


def _without_tables(vm: Vm) -> Vm:
    return replace(vm, mmus=tuple(replace(mmu, unreadable=mmu.unreadable or MOVED) for mmu in vm.mmus))
