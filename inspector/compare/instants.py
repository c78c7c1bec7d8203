"""What changed between two captures: VMs, memslots, VMIDs, mappings as merged ranges, and table pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.capture.view import TableView, regime_name, table_views
from inspector.codec.bulk import Flat, Words
from inspector.snapshot import Capture, Host, Memslot, Mmu, PageState, Vm
from inspector.tables import Range, Tree
from inspector.tables.columns import Columns, columns_of
from inspector.tables.intervals import runs

LIMIT = 64
"""At most this many changed ranges of one table are shown."""


class ChangeKind(StrEnum):
    """What became of a VM between two captures."""

    CAME = "came"
    GONE = "gone"
    CHANGED = "changed"


@dataclass(frozen=True)
class Change:
    """One fact that changed: what it is, and what it was and is, in words (``None``: it was not, or is not there)."""

    what: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class MappingChange:
    """Leaves that went (``after`` is ``None``), came (``before`` is ``None``), or changed in place."""

    before: Range | None
    after: Range | None

    @property
    def ipa(self) -> int:
        found = self.before or self.after
        assert found is not None
        return found.ia


@dataclass(frozen=True)
class TableChange:
    """One stage-2 table: changed mappings in order of address (the first `LIMIT`; ``omitted`` counts the rest of them),
    PAs of table pages ``allocated`` and ``freed``, and pages with the same entries but another reference count.

    ``leaves`` counts the leaves in ``removed``, ``added``, ``changed`` mappings, those omitted included.
    ``number`` is the table's place among the VM's MMUs.
    """

    number: int
    regime: str
    removed: int
    added: int
    changed: int
    mappings: tuple[MappingChange, ...]
    omitted: int
    allocated: tuple[int, ...]
    freed: tuple[int, ...]
    counts: tuple[Change, ...]

    @property
    def nothing(self) -> bool:
        return not (self.mappings or self.allocated or self.freed or self.counts)


@dataclass(frozen=True)
class VmChange:
    """One VM that ``came``, is ``gone``, or ``changed``; ``name`` as in the later capture, unless it is gone.

    ``was`` is what a VM that changed was before.
    """

    name: str
    vm: Vm
    kind: ChangeKind
    facts: tuple[Change, ...] = ()
    tables: tuple[TableChange, ...] = ()
    was: Vm | None = None


@dataclass(frozen=True)
class Changes:
    """Everything that differs; ``same`` when nothing does.  ``other_boot``: VMs are matched by name only."""

    before: Capture
    after: Capture
    other_boot: bool
    host: tuple[Change, ...]
    vms: tuple[VmChange, ...]

    @property
    def same(self) -> bool:
        return not self.host and not self.vms


def changes(before: Capture, after: Capture) -> Changes:
    """What differs between two captures.

    VMs of one boot are matched by their ``struct kvm`` and VMM, else by name.  When a capture was taken, where the CPUs
    were and how long the machine stood still are not compared.
    """
    other_boot = _boot(before.host) != _boot(after.host)
    pairs, gone, came = _matched(before, after, other_boot)
    found = [VmChange(vm.name, vm, ChangeKind.GONE) for vm in gone]
    views = {side: _views(capture) for side, capture in (("before", before), ("after", after))}
    for old, new in pairs:
        facts = tuple(_vm_facts(old, new, before.host.page_size))
        tables = tuple(_table_changes(views["before"].get(old.name, []), views["after"].get(new.name, [])))
        if facts or tables:
            found.append(VmChange(new.name, new, ChangeKind.CHANGED, facts, tables, old))
    found += [VmChange(vm.name, vm, ChangeKind.CAME) for vm in came]
    return Changes(before, after, other_boot, tuple(_host_facts(before.host, after.host)), tuple(found))


def _boot(host: Host) -> tuple[object, ...]:
    return host.release, host.build_id, host.kaslr_slide


def _matched(before: Capture, after: Capture, other_boot: bool) -> tuple[list[tuple[Vm, Vm]], list[Vm], list[Vm]]:
    """Pairs of one VM, those that are gone, and those that came."""

    def key(vm: Vm) -> object:
        return vm.name if other_boot else (vm.address, vm.pid)

    later = {key(vm): vm for vm in after.vms}
    pairs = [(vm, later.pop(key(vm))) for vm in before.vms if key(vm) in later]
    old = {id(vm) for vm, _ in pairs}
    return pairs, [vm for vm in before.vms if id(vm) not in old], list(later.values())


def _views(capture: Capture) -> dict[str, list[TableView]]:
    found: dict[str, list[TableView]] = {}
    for view in table_views(capture):
        found.setdefault(view.vm.name, []).append(view)
    return found


def _fact(what: str, before: object, after: object) -> Iterator[Change]:
    if before != after:
        yield Change(what, None if before is None else str(before), None if after is None else str(after))


def _host_facts(before: Host, after: Host) -> Iterator[Change]:
    yield from _fact("kernel", before.banner, after.banner)
    yield from _fact("KASLR slide", f"{before.kaslr_slide:#x}", f"{after.kaslr_slide:#x}")
    yield from _fact("mode", before.mode, after.mode)


# --- facts of a VM ---


def _slot_text(slot: Memslot, page: int) -> str:
    start = slot.base_gfn * page
    end = start + slot.npages * page
    logging = ", dirty bitmap" if slot.dirty_bitmap else ""
    return f"IPA {start:#x}-{end:#x} at HVA {slot.userspace_addr:#x}, flags {slot.flags:#x}{logging}"


def _vm_facts(old: Vm, new: Vm, page: int) -> Iterator[Change]:
    yield from _fact("name", old.name, new.name)
    before, after = ({(slot.as_id, slot.id): _slot_text(slot, page) for slot in vm.memslots} for vm in (old, new))
    for space, number in sorted(before.keys() | after.keys()):
        what = f"memslot {number}" + (f" of address space {space}" if space else "")
        yield from _fact(what, before.get((space, number)), after.get((space, number)))
    mmus = [{mmu.address: mmu for mmu in vm.mmus} for vm in (old, new)]
    for was, now in zip(old.mmus, new.mmus, strict=False):
        yield from _mmu_facts(was, mmus[1].get(was.address, now))
    yield from _fact("number of MMUs", len(old.mmus), len(new.mmus))
    yield from _fact("vCPUs", _ids(old), _ids(new))


def _ids(vm: Vm) -> str:
    return ", ".join(str(vcpu.id) for vcpu in vm.vcpus) or "none"


def _mmu_facts(old: Mmu, new: Mmu) -> Iterator[Change]:
    what = regime_name(new)
    yield from _fact(f"VMID of {what}", old.vmid, new.vmid)
    if old.vmid == new.vmid:
        yield from _fact(f"VMID generation of {what}", f"{old.vmid_raw:#x}", f"{new.vmid_raw:#x}")
    yield from _fact(f"root of {what}", f"{old.pgd_phys:#x}", f"{new.pgd_phys:#x}")
    yield from _fact(f"VTCR_EL2 of {what}", f"{old.vtcr:#x}", f"{new.vtcr:#x}")


# --- mappings and table pages ---


def _leaves(tree: Tree) -> tuple[Columns, Flat, Words]:
    """A tree, its leaves in order of address, and their keys: input address with the level in the low bits."""
    columns = columns_of(tree)
    at = np.flatnonzero(columns.leaf)
    key = columns.ia[at] | columns.level[at].astype(np.uint64)
    order = np.argsort(key, kind="stable")
    return columns, at[order], key[order]


def _range(columns: Columns, at: int | None, leaves: int) -> Range | None:
    """So many leaves from the one at position ``at`` on."""
    if at is None:
        return None
    leaf = columns.decoded(at)
    return Range(int(columns.ia[at]), leaves * leaf.size, leaf.output_address or 0, leaf.level, leaf, leaves)


def _table_changes(before: Sequence[TableView], after: Sequence[TableView]) -> Iterator[TableChange]:
    """Tables are matched by their place among the VM's MMUs."""
    old, new = ({view.number: view for view in views} for views in (before, after))
    for number in sorted(old.keys() | new.keys()):
        found = _table_change(old.get(number), new.get(number))
        if not found.nothing:
            yield found


def _table_change(before: TableView | None, after: TableView | None) -> TableChange:
    view = after or before
    assert view is not None
    nothing = Tree(view.geometry, view.format, view.root_pa, (), ())
    old, old_at, old_key = _leaves(before.tree if before else nothing)
    new, new_at, new_key = _leaves(after.tree if after else nothing)
    _, in_old, in_new = np.intersect1d(old_key, new_key, assume_unique=True, return_indices=True)
    altered = old.raw[old_at[in_old]] != new.raw[new_at[in_new]]
    gone, came = np.delete(old_at, in_old), np.delete(new_at, in_new)
    was, now = old_at[in_old[altered]], new_at[in_new[altered]]
    merged: list[tuple[int, int, int | None, int | None, int]] = []
    merged += [(int(old.ia[gone[n]]), 0, int(gone[n]), None, count) for n, count in _merged((old, gone))]
    merged += [
        (int(old.ia[was[n]]), 1, int(was[n]), int(now[n]), count) for n, count in _merged((old, was), (new, now))
    ]
    merged += [(int(new.ia[came[n]]), 2, None, int(came[n]), count) for n, count in _merged((new, came))]
    merged.sort(key=lambda one: one[:2])
    shown = tuple(MappingChange(_range(old, a, count), _range(new, b, count)) for _, _, a, b, count in merged[:LIMIT])
    omitted = len(merged) - len(shown)
    return TableChange(view.number, view.regime, len(gone), len(came), len(was), shown, omitted, *_pages(before, after))


def _merged(*sides: tuple[Columns, Flat]) -> Iterator[tuple[int, int]]:
    """(first, count) of leaves that go on in address and attributes on every side."""
    columns: list[tuple[NDArray[Any], NDArray[Any] | int]] = []
    for side, at in sides:
        size = side.size[at]
        columns += [(side.ia[at], size), (side.raw[at], size), (side.level[at], 0)]
    for start, end in zip(*runs(*columns), strict=True):
        yield int(start), int(end - start)


def _pages(
    before: TableView | None, after: TableView | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Change, ...]]:
    """Table pages allocated and freed, and those whose reference count alone changed."""
    old, new = ({t.pa: t for t in view.tree.tables} if view else {} for view in (before, after))
    allocated = tuple(sorted(new.keys() - old.keys()))
    freed = tuple(sorted(old.keys() - new.keys()))
    counts: list[Change] = []
    if before is not None and after is not None:
        for pa in sorted(old.keys() & new.keys()):
            was, now = before.capture.page_info.get(pa), after.capture.page_info.get(pa)
            if was is not None and now is not None and was != now and old[pa].raw == new[pa].raw:
                texts = _count(was.refcount, was.state), _count(now.refcount, now.state)
                counts.append(Change(f"table {pa:#x}", *texts))
    return allocated, freed, tuple(counts)


def _count(refcount: int, state: str) -> str:
    return f"page_count {refcount}" + ("" if state is PageState.USED else f", {state}")
