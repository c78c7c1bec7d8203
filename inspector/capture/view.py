"""What a capture says of one table: its geometry, its format, its tree, and its name.

Shared by the checks and the reports, so that both see one and the same table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from inspector.codec import Format, Geometry, decode
from inspector.generations import code_of
from inspector.snapshot import Capture, Mmu, MmuKind, OwnKind, OwnTable, Vm
from inspector.tables import ProblemKind, Tree, walk_tree
from inspector.target.dump import CORE, LEFT_OUT


def regime_name(mmu: Mmu) -> str:
    """``stage-2 VMID 3``, ``shadow stage-2 VMID 4``, ``stage-2, no VMID yet``."""
    kind = "stage-2" if mmu.kind is MmuKind.VM else f"{mmu.kind} stage-2"
    return f"{kind}, no VMID yet" if mmu.vmid is None else f"{kind} VMID {mmu.vmid}"


def vm_title(vm: Vm) -> str:
    """``vm0 (pid 123 qemu-system-aar)``, with what is known of the VMM."""
    known = [f"pid {vm.pid}"] if vm.pid is not None else []
    known += [vm.command] if vm.command else []
    return f"{vm.name} ({' '.join(known)})" if known else vm.name


@dataclass(frozen=True)
class View:
    """A table that can be walked: a VM's (`TableView`) or the host's own (`OwnView`)."""

    capture: Capture
    geometry: Geometry
    root_pa: int

    @property
    def regime(self) -> str:
        """``stage-2 VMID 3``, ``hyp stage-1``."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """`regime`, and whose it is."""
        return self.regime

    @property
    def addresses(self) -> str:
        """What goes in: ``IPA`` or ``VA``."""
        return "IPA"

    @property
    def shape(self) -> str:
        """`Geometry.describe`."""
        return self.geometry.describe(self.addresses)

    @property
    def format(self) -> Format:
        raise NotImplementedError

    @cached_property
    def tree(self) -> Tree:
        """The whole tree, walked in the captured pages."""
        return walk_tree(self.read_many, self.root_pa, self.geometry, self.format)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Captured bytes at each ``(pa, size)``; ``None`` where the capture holds none."""
        return [self._read(pa, size) for pa, size in requests]

    def _read(self, pa: int, size: int) -> bytes | None:
        granule = self.geometry.granule
        out = b""
        while len(out) < size:
            at = pa + len(out)
            page = self.capture.pages.get(at - at % granule)
            if page is None:
                return None
            out += page[at % granule :][: size - len(out)]
            if len(page) < granule:
                return out if len(out) == size else None
        return out

    def root_pages(self) -> list[int]:
        """The addresses of the concatenated root tables."""
        return [self.root_pa + i * self.geometry.granule for i in range(self.geometry.root_pages)]


@dataclass(frozen=True)
class TableView(View):
    """One MMU whose table can be walked; ``number`` is its place in ``vm.mmus``."""

    vm: Vm
    mmu: Mmu
    number: int

    @property
    def regime(self) -> str:
        return regime_name(self.mmu)

    @property
    def title(self) -> str:
        """``stage-2 VMID 3 of vm0 (pid 123 qemu)``."""
        return f"{self.regime} of {vm_title(self.vm)}"

    @cached_property
    def format(self) -> Format:
        return code_of(self.capture.host).format(self.capture.host, self.mmu)


@dataclass(frozen=True)
class OwnView(View):
    """A table of the host's own."""

    table: OwnTable

    @property
    def regime(self) -> str:
        return self.table.kind.value

    @property
    def title(self) -> str:
        """``hyp stage-1 of the host (hvhe)``."""
        return f"{self.regime} of the host ({self.capture.host.mode})"

    @property
    def addresses(self) -> str:
        return "VA" if self.table.kind is OwnKind.HYP else "IPA"

    @cached_property
    def format(self) -> Format:
        return code_of(self.capture.host).own_format(self.capture.host, self.table.kind)


def own_views(capture: Capture) -> Iterator[OwnView]:
    """Every table of the host's own."""
    for table in capture.own:
        yield OwnView(capture, table.geometry, table.root, table)


def table_views(capture: Capture) -> Iterator[TableView]:
    """Every MMU of every VM that has a root and a geometry, in order.

    The root is ``pgd_phys``, which is what the hardware is given.
    """
    for vm in capture.vms:
        for number, mmu in enumerate(vm.mmus):
            if mmu.pgd_phys and mmu.unreadable is None and mmu.geometry is not None:
                yield TableView(capture, mmu.geometry, mmu.pgd_phys, vm, mmu, number)


def unreadable_tables(tree: Tree) -> dict[int, str]:
    """The table pages that could not be read, with the reason: a root, or what the entry at the place points to."""
    found: dict[int, str] = {}
    for problem in tree.problems:
        if problem.kind is not ProblemKind.UNREADABLE:
            continue
        pa: int | None = problem.table_pa
        if problem.raw is not None:
            pa = decode(problem.raw, problem.level, tree.geometry, tree.format).output_address
        if pa is not None:
            found[pa] = problem.detail
    return found


def is_left_out(reason: str) -> bool:
    """Whether something could not be read only because a dump has not all of the machine's memory."""
    return LEFT_OUT in reason


def why_not_judged(view: View) -> str | None:
    """Why a table that can be shown cannot be judged: a dump lacks a part of it, or what its bits mean."""
    capture = view.capture
    if capture.host.memory_backend == CORE and "parange" not in capture.host.features:
        return f"what the CPU can do is not known: the kernel's record of it was {LEFT_OUT}"
    if not any(map(is_left_out, capture.unreadable.values())):
        return None
    missing = sum(is_left_out(capture.unreadable.get(pa, "")) for pa in unreadable_tables(view.tree))
    return f"{missing} of its tables {'was' if missing == 1 else 'were'} {LEFT_OUT}" if missing else None


def judged_views(capture: Capture) -> Iterator[TableView]:
    """Those of `table_views` that can be judged."""
    return (view for view in table_views(capture) if why_not_judged(view) is None)


def judged_own_views(capture: Capture) -> Iterator[OwnView]:
    """The host's own tables; they are judged together, or not at all."""
    views = list(own_views(capture))
    return iter(() if any(map(why_not_judged, views)) else views)


def not_judged(capture: Capture) -> Iterator[tuple[str, str]]:
    """(table, reason) of every MMU that `judged_views` leaves out, but for a shadow MMU that has no table; and of
    everything else that is not judged."""
    yield from _not_viewed(capture)
    reasons = ((view.title, why_not_judged(view)) for view in (*table_views(capture), *own_views(capture)))
    yield from ((title, reason) for title, reason in reasons if reason is not None)


def _not_viewed(capture: Capture) -> Iterator[tuple[str, str]]:
    # A list of VMs that breaks off, a VMM's page tables: of what a dump lacks the notes alone tell.
    yield from (("the host", note) for note in capture.host.notes if f"cannot be read: {LEFT_OUT}" in note)
    for vm in capture.vms:
        if vm.unreadable is not None and is_left_out(vm.unreadable):
            yield vm_title(vm), vm.unreadable
        for mmu in vm.mmus:
            table = f"{regime_name(mmu)} of {vm_title(vm)}"
            if mmu.unreadable is not None:
                yield table, mmu.unreadable
            elif not mmu.pgd_phys:
                if mmu.kind is MmuKind.VM:
                    yield table, "it has no table (yet, or any more)"
            elif mmu.geometry is None:
                yield table, f"its VTCR_EL2 {mmu.vtcr:#x} describes no table"
