"""Taking a capture: everything is read in one stop of the machine, and put together after it runs on."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import inspector
from inspector.capture.view import unreadable_tables
from inspector.generations import code_of
from inspector.kernel.cpus import cpu_states, loaded_vcpus
from inspector.kernel.host import describe, find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.nested import GuestPage, guest_tables
from inspector.kernel.objects import HostKernel
from inspector.kernel.own import hyp_refcounts, own_tables
from inspector.kernel.pages import page_map
from inspector.kernel.space import BadPointer
from inspector.kernel.vmemmap import UnknownVmemmap
from inspector.kernel.vmm import backing
from inspector.kernel.vms import ReadVm, look_at, read_vms
from inspector.snapshot import Backing, Capture, Host, Look, Memslot, Mmu, Mode, OwnKind, OwnTable, PageInfo, Scope, Vm
from inspector.symbols.api import Symbols
from inspector.tables import Tree, walk_tree
from inspector.target.api import Target

Progress = Callable[[str], None]


def _quiet(_: str) -> None:
    pass


@dataclass(frozen=True)
class _Read:
    """What one stop brought."""

    host: Host
    vms: list[ReadVm]
    trees: list[Tree]
    guest_pages: Sequence[GuestPage]
    page_info: Mapping[int, PageInfo]
    backings: Mapping[tuple[str, int], Sequence[Backing]]
    own: tuple[OwnTable, ...]
    notes: list[str]


def _trees(kernel: HostKernel, host: Host, vms: Sequence[ReadVm]) -> list[Tree]:
    """The stage-2 tree of every MMU whose root and geometry are known."""
    trees = []
    for read in vms:
        for mmu in read.vm.mmus:
            root = _root(mmu)
            if root is not None and mmu.geometry is not None:
                memory = kernel.space.memory
                trees.append(walk_tree(memory.read_many, root, mmu.geometry, code_of(host).format(host, mmu)))
    return trees


def _nested(kernel: HostKernel, vms: Sequence[ReadVm], trees: Sequence[Tree]) -> tuple[list[ReadVm], list[GuestPage]]:
    """``vms`` with where the tables of guest hypervisors are that ``trees`` are shadows of, and those tables."""
    by_root = {tree.root_pa: tree for tree in trees}
    found, pages = [], []
    for read in vms:
        mmus = []
        for mmu in read.vm.mmus:
            tree = by_root.get(mmu.pgd_phys)
            mine = guest_tables(kernel, read.vm, read.mm, mmu, tree) if read.mm and tree is not None else []
            mmus.append(replace(mmu, nested_tables=tuple((one.ipa, one.pa) for one in mine)) if mine else mmu)
            pages += mine
        found.append(replace(read, vm=replace(read.vm, mmus=tuple(mmus))))
    return found, pages


def _own_trees(kernel: HostKernel, host: Host, own: Sequence[OwnTable]) -> list[Tree]:
    read, code = kernel.space.memory.read_many, code_of(host)
    return [walk_tree(read, one.root, one.geometry, code.own_format(host, one.kind)) for one in own]


def _root(mmu: Mmu) -> int | None:
    """Where the walk starts: what the hardware is given (``pgd_phys``), unless the table is not readable."""
    return None if mmu.unreadable or not mmu.pgd_phys else mmu.pgd_phys


def _pages(
    kernel: HostKernel, host: Host, trees: Sequence[Tree], notes: list[str]
) -> tuple[Mapping[int, PageInfo], tuple[tuple[int, int], ...]]:
    """``struct page`` of every table page, and the parts of its image that the kernel still holds."""
    try:
        pages = page_map(kernel)
        held = pages.reserved(*host.image_pa)
    except (BadPointer, UnknownVmemmap) as e:
        notes.append(f"reference counts are not known: {e}")
        return {}, ()
    return pages.page_info({table.pa for tree in trees for table in tree.tables}), held


def _counted_at_el2(
    kernel: HostKernel,
    host: Host,
    vms: Sequence[ReadVm],
    trees: Sequence[Tree],
    own: Sequence[OwnTable],
    page_info: Mapping[int, PageInfo],
) -> dict[int, PageInfo]:
    """The table pages of guests whose tables the hypervisor keeps, with its own count of each."""
    roots = {mmu.pgd_phys for read in vms for mmu in read.vm.mmus if mmu.at_el2}
    pas = [table.pa for tree in trees if tree.root_pa in roots for table in tree.tables]
    hyp = next((one for one in own if one.kind is OwnKind.HYP), None)
    if not pas or hyp is None:
        return {}
    counts = hyp_refcounts(kernel, host, hyp, pas)
    return {pa: replace(page_info[pa], refcount=counts[pa]) for pa in pas if pa in page_info and pa in counts}


def _backings(kernel: HostKernel, vms: Sequence[ReadVm], notes: list[str]) -> dict[tuple[str, int], Sequence[Backing]]:
    result: dict[tuple[str, int], Sequence[Backing]] = {}
    for read in vms:
        if read.vm.unreadable:
            continue
        if not read.mm:
            notes.append(f"what backs the memory of {read.vm.name} is not known: its VMM's address space is gone")
            continue
        ranges = [(s.userspace_addr, s.npages * kernel.space.geometry.granule) for s in read.vm.memslots]
        try:
            found = backing(kernel, read.mm, ranges)
        except BadPointer as e:
            notes.append(f"what backs the memory of {read.vm.name} cannot be read: {e}")
            continue
        result.update({(read.vm.name, s.id): runs for s, runs in zip(read.vm.memslots, found, strict=True)})
    return result


def _read(target: Target, symbols: Symbols, scope: Scope, progress: Progress) -> _Read:
    """Everything that needs the machine to stand still."""
    memory = StoppedMemory(target.memory)
    cpus = target.cpus()
    kernel = find_kernel(memory, symbols, cpus, progress)
    notes: list[str] = []
    if target.memory.why_not_faster:
        notes.append(f"memory is read through {target.memory.name}: {target.memory.why_not_faster}")
    host = describe(kernel, cpus, target.memory.name, ())
    vms: list[ReadVm] = []
    trees: list[Tree] = []
    guest_pages: list[GuestPage] = []
    own: tuple[OwnTable, ...] = ()
    page_info: Mapping[int, PageInfo] = {}
    backings: dict[tuple[str, int], Sequence[Backing]] = {}
    if host.mode is not Mode.NONE:
        progress("reading the VMs")
        pkvm = host.mode is Mode.PROTECTED
        running = loaded_vcpus(kernel, len(cpus), notes)
        vms = read_vms(kernel, running, 16 if host.features.get("vmid16") else 8, notes, pkvm=pkvm)
        if scope is not Scope.VMS:
            progress("reading stage-2 tables")
            own = own_tables(kernel, host, notes)
            trees = _trees(kernel, host, vms)
            vms, guest_pages = _nested(kernel, vms, trees)
            trees += _own_trees(kernel, host, own)
            page_info, kernel_pa = _pages(kernel, host, trees, notes)
            page_info = {**page_info, **_counted_at_el2(kernel, host, vms, trees, own, page_info)}
            host = replace(host, kernel_pa=kernel_pa)
        if scope is Scope.FULL:
            progress("reading what backs guest memory")
            backings = _backings(kernel, vms, notes)
    return _Read(host, vms, trees, guest_pages, page_info, backings, own, notes)


def _slots(vm: Vm, backings: Mapping[tuple[str, int], Sequence[Backing]]) -> tuple[Memslot, ...]:
    return tuple(replace(slot, backing=backings.get((vm.name, slot.id), ())) for slot in vm.memslots)


@contextmanager
def _stopped(target: Target) -> Iterator[None]:
    """``target`` stands still in the block, and runs on after it unless it was found stopped."""
    target.stop()
    try:
        yield
    finally:
        if target.runs_when_left:
            target.resume()


def take(
    target: Target, symbols: Symbols, *, scope: Scope = Scope.FULL, progress: Progress = _quiet, command: str = ""
) -> Capture:
    """One instant of ``target``, stopped for as long as reading takes; one that was found stopped stays so.

    Raises `BadInput` when ``symbols`` is another kernel's, `TargetLost` when no
    kernel runs or the machine goes away.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = time.monotonic()
    with _stopped(target):
        read = _read(target, symbols, scope, progress)
    stopped = time.monotonic() - start
    return Capture(
        tool=f"kvm-stage2-inspector {inspector.__version__}",
        made=made,
        command=command,
        stopped_seconds=stopped,
        host=replace(read.host, notes=tuple(read.notes)),
        vms=tuple(replace(r.vm, memslots=_slots(r.vm, read.backings)) for r in read.vms),
        pages={one.pa: one.data for one in read.guest_pages}
        | {table.pa: table.raw for tree in read.trees for table in tree.tables},
        page_info=read.page_info,
        unreadable={pa: why for tree in read.trees for pa, why in unreadable_tables(tree).items()},
        scope=scope,
        own=read.own,
    )


#: How many seconds the machine has run when the last of several looks comes: a foreign reference is held for
#: microseconds, a walk for milliseconds, and nobody waits long for a verdict.
_LAST_LOOK = 2.0


def look_again(
    target: Target,
    symbols: Symbols,
    capture: Capture,
    pages: Collection[int],
    count: int,
    progress: Progress = _quiet,
) -> Capture:
    """``capture``, just taken of ``target``, with ``count`` more looks at ``pages`` (PAs of tables).

    The machine runs in between, ever longer, for two seconds in all.  Without pages there is nothing to look at, and on
    a machine that was found stopped time stands still: then there are no looks.  Raises `TargetLost` as `take` does.
    """
    if not pages or not target.runs_when_left:
        return capture
    ran, stopped = 0.0, capture.stopped_seconds
    looks = []
    for number in range(1, count + 1):
        progress(f"looking again at {len(pages)} table pages ({number} of {count})")
        pause = max(0.0, _LAST_LOOK * (number / count) ** 2 - ran)
        time.sleep(pause)
        ran += pause
        start = time.monotonic()
        with _stopped(target):
            looks.append(_look(target, symbols, capture, pages, ran))
        stopped += time.monotonic() - start
    return replace(capture, looks=tuple(looks), stopped_seconds=stopped)


def _look(target: Target, symbols: Symbols, capture: Capture, pages: Collection[int], seconds: float) -> Look:
    memory = StoppedMemory(target.memory)
    cpus = target.cpus()
    kernel = find_kernel(memory, symbols, cpus, _quiet)
    locks: dict[str, bool | None] = {}
    roots: dict[int, int] = {}
    for vm in capture.vms:
        try:
            locks[vm.name], found = look_at(kernel, vm)
        except BadPointer:
            continue
        roots |= found
    page_info: Mapping[int, PageInfo] = {}
    with suppress(BadPointer, UnknownVmemmap):
        page_info = page_map(kernel).page_info(pages)
    read = memory.read_many([(pa, capture.host.page_size) for pa in pages])
    return Look(
        seconds=seconds,
        cpus=cpu_states(cpus, kernel, protected=capture.host.mode is Mode.PROTECTED),
        mmu_locks=locks,
        roots=roots,
        page_info=page_info,
        pages={pa: data for pa, data in zip(pages, read, strict=True) if data is not None},
    )
