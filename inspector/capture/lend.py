"""What the commands inside a person's gdb need to know of a machine that a capture does not say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.space import BadPointer
from inspector.snapshot import Capture, Scope
from inspector.symbols import open_symbols
from inspector.symbols.kernel import KernelSymbols
from inspector.target.lent import lent


@dataclass(frozen=True)
class Facts:
    """``tables`` are (``struct kvm_pgtable``, where its ``pgd`` is, ``pgd``) as kernel addresses, by the MMU's address;
    ``functions`` are the run-time addresses of those asked for that the kernel has."""

    capture: Capture
    symbols: KernelSymbols
    tables: Mapping[int, tuple[int, int, int]]
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
        for mmu in (mmu for vm in capture.vms for mmu in vm.mmus if mmu.unreadable is None):
            with suppress(BadPointer):
                pgt = kernel.at("kvm_s2_mmu", mmu.address).u("pgt")
                if pgt:
                    table = kernel.at("kvm_pgtable", pgt)
                    tables[mmu.address] = (pgt, table.addr("pgd"), table.u("pgd"))
        found = {name: address for name in functions if (address := kernel.symbol(name)) is not None}
    return Facts(capture, symbols, tables, found)
