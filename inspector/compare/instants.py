"""What changed between two captures: VMs, memslots, VMIDs, mappings as merged ranges, and table pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.capture.view import TableView, regime_name, table_views
from inspector.codec import bulk, decode
from inspector.compare.columns import LevelColumn, columns_of
from inspector.snapshot import Capture, Host, Memslot, Mmu, PageState, Vm
from inspector.tables import Range

LIMIT = 64
"""At most this many changed ranges of one table are shown."""


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
    """

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
    """One VM that ``came``, is ``gone``, or ``changed``; ``name`` as in the later capture, unless it is gone."""

    name: str
    vm: Vm
    kind: str
    facts: tuple[Change, ...] = ()
    tables: tuple[TableChange, ...] = ()


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
    found = [VmChange(vm.name, vm, "gone") for vm in gone]
    views = {side: _views(capture) for side, capture in (("before", before), ("after", after))}
    for old, new in pairs:
        facts = tuple(_vm_facts(old, new, before.host.page_size))
        tables = tuple(_table_changes(views["before"].get(old.name, []), views["after"].get(new.name, [])))
        if facts or tables:
            found.append(VmChange(new.name, new, "changed", facts, tables))
    found += [VmChange(vm.name, vm, "came") for vm in came]
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


@dataclass(frozen=True)
class _Leaves:
    """The leaves of a tree in order of ``key``: input address with the level in its low bits."""

    view: TableView | None
    key: bulk.Words
    raw: bulk.Words

    def range(self, start: int, leaves: int) -> Range:
        """The leaves from position ``start`` on."""
        assert self.view is not None
        key, raw = int(self.key[start]), int(self.raw[start])
        level = key & 0xF
        found = decode(raw, level, self.view.geometry, self.view.format)
        return Range(key & ~0xF, leaves * found.size, found.output_address or 0, level, found, leaves)


def _leaves_of(view: TableView | None) -> _Leaves:
    keys, raws = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.uint64)]
    for column in _columns(view):
        at = np.flatnonzero(column.leaf)
        keys.append(column.entry_ia(at) | np.uint64(column.level))
        raws.append(column.raw[at])
    key, raw = np.concatenate(keys), np.concatenate(raws)
    order = np.argsort(key, kind="stable")
    return _Leaves(view, key[order], raw[order])


def _columns(view: TableView | None) -> Sequence[LevelColumn]:
    return () if view is None else columns_of(view.tree, view.format)


def _table_changes(before: Sequence[TableView], after: Sequence[TableView]) -> Iterator[TableChange]:
    """Tables are matched by their place among the VM's MMUs."""
    old, new = ({view.number: view for view in views} for views in (before, after))
    for number in sorted(old.keys() | new.keys()):
        found = _table_change(old.get(number), new.get(number))
        if not found.nothing:
            yield found


def _table_change(before: TableView | None, after: TableView | None) -> TableChange:
    old, new = _leaves_of(before), _leaves_of(after)
    _, in_old, in_new = np.intersect1d(old.key, new.key, assume_unique=True, return_indices=True)
    altered = old.raw[in_old] != new.raw[in_new]
    removed, added = np.ones(len(old.key), dtype=bool), np.ones(len(new.key), dtype=bool)
    removed[in_old], added[in_new] = False, False
    gone, came = np.flatnonzero(removed), np.flatnonzero(added)
    was, now = in_old[altered], in_new[altered]
    runs = [(int(old.key[gone[first]]), 0, first, count) for first, count in _runs((old, gone))]
    runs += [(int(old.key[was[first]]), 1, first, count) for first, count in _runs((old, was), (new, now))]
    runs += [(int(new.key[came[first]]), 2, first, count) for first, count in _runs((new, came))]
    runs.sort(key=lambda run: (run[0] & ~0xF, run[1], run[0]))
    shown = []
    for _, kind, first, count in runs[:LIMIT]:
        if kind == 0:
            shown.append(MappingChange(old.range(int(gone[first]), count), None))
        elif kind == 2:
            shown.append(MappingChange(None, new.range(int(came[first]), count)))
        else:
            shown.append(MappingChange(old.range(int(was[first]), count), new.range(int(now[first]), count)))
    allocated, freed, counts = _pages(before, after)
    view = after or before
    assert view is not None
    return TableChange(
        view.regime, len(gone), len(came), len(was), tuple(shown), len(runs) - len(shown), allocated, freed, counts
    )


def _runs(*sides: tuple[_Leaves, NDArray[np.intp]]) -> Iterator[tuple[int, int]]:
    """(first, count) of neighbours that go on in address and attributes, on every side."""
    leaves, at = sides[0]
    if not len(at) or leaves.view is None:
        return
    geometry = leaves.view.geometry
    key = leaves.key[at]
    level = (key & np.uint64(0xF)).astype(np.int64)
    size = np.array([geometry.block_size(n) for n in range(4)], dtype=np.uint64)[level]
    apart = np.diff(key) != size[:-1]
    for one, places in sides:
        raw = one.raw[places]
        apart |= raw[1:] - raw[:-1] != size[:-1]
    starts = np.concatenate((np.zeros(1, dtype=np.intp), np.flatnonzero(apart) + 1))
    ends = np.append(starts[1:], len(at))
    yield from zip(starts.tolist(), (ends - starts).tolist(), strict=True)


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
