"""What the commands inside a person's gdb need to know of a machine that a capture does not say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inspector.capture.table_facts import TableFacts
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.objects import HostKernel, KernelObject
from inspector.kernel.space import BadPointer
from inspector.snapshot import Capture, Scope
from inspector.symbols import open_symbols
from inspector.symbols.kernel import KernelSymbols
from inspector.target.lent import lent


@dataclass(frozen=True)
class Facts:
    """``tables`` are by the address of the MMU; ``functions`` are the run-time addresses of those asked for that the
    kernel has."""

    capture: Capture
    symbols: KernelSymbols
    tables: Mapping[int, TableFacts]
    functions: Mapping[str, int]


def facts(
    connect: str,
    vmlinux: Path | None,
    image: Path | None,
    functions: Collection[str],
    progress: Callable[[str], None],
    most: int,
) -> Facts:
    """The machine that a gdb lends at ``connect``.  Raises as `inspector.capture.source.take_from`."""
    from inspector.capture.take import take

    with lent(connect) as target:
        if vmlinux is None and image is None:
            image = Path(target.kernel_file) if target.kernel_file else None
        symbols = open_symbols(vmlinux=vmlinux, image=image, progress=progress, most=most)
        capture = take(target, symbols, scope=Scope.VMS, progress=progress)
        kernel = find_kernel(StoppedMemory(target.memory), symbols, target.cpus(), progress)
        tables = {}
        for mmu, owner in ((mmu, vm) for vm in capture.vms for mmu in vm.mmus if mmu.unreadable is None):
            with suppress(BadPointer):
                pgt = kernel.at("kvm_s2_mmu", mmu.address).u("pgt")
                if pgt:
                    tables[mmu.address] = _table(kernel, owner.address, pgt)
        found = {name: address for name in functions if (address := kernel.symbol(name)) is not None}
    return Facts(capture, symbols, tables, found)


def _table(kernel: HostKernel, vm: int, pgt: int) -> TableFacts:
    table = kernel.at("kvm_pgtable", pgt)
    marks = (_mark(table, "pgd"), _mark(kernel.at("kvm", vm), "userspace_pid"))
    return TableFacts(pgt, table.u("pgd"), marks)


def _mark(of: KernelObject, member: str) -> tuple[int, int, int]:
    """Where a member is, and what is in it, its tag too."""
    found = of.kernel.member(of.struct, member)
    size = found.type.size or 8
    value = int.from_bytes(of.data[found.offset : found.offset + size], "little")
    return of.kernel.space.pa(of.addr(member)), size, value
