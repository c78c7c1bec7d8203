"""The host kernel as a whole: found, named, described."""

from __future__ import annotations

import re
from collections.abc import Sequence

from inspector.kernel.cpus import cpu_states
from inspector.kernel.features import features
from inspector.kernel.idregs import id_registers
from inspector.kernel.locate import Progress, locate
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.mode import kvm_mode
from inspector.kernel.objects import HostKernel
from inspector.kernel.traits import traits
from inspector.snapshot import Host, Mode
from inspector.symbols.api import Symbols
from inspector.target.api import Cpu

_PATH = re.compile(r"(?<= )/.*/")  # a capture is passed on: it names files, not where they lie on this machine
_RELEASE = re.compile(r"Linux version (\S+)")


def find_kernel(memory: StoppedMemory, symbols: Symbols, cpus: Sequence[Cpu], progress: Progress) -> HostKernel:
    """The running kernel; raises `BadInput` for another kernel's file, `TargetLost` when none has booted."""
    return HostKernel(symbols, locate(memory, symbols, cpus, progress))


def describe(kernel: HostKernel, cpus: Sequence[Cpu], memory_backend: str, notes: Sequence[str]) -> Host:
    """Everything that `Host` says, from the running kernel and the CPUs' registers."""
    symbols, space = kernel.symbols, kernel.space
    banner = symbols.banner or ""
    release = _RELEASE.match(banner)
    mode = kvm_mode(kernel, cpus)
    return Host(
        release=release[1] if release else "unknown",
        banner=banner,
        build_id=symbols.build_id,
        symbols=_PATH.sub("", symbols.description),
        kaslr_slide=space.slide,
        page_size=space.geometry.granule,
        va_bits=space.geometry.ia_bits,
        mode=mode,
        cpus=cpu_states(cpus, kernel, protected=mode is Mode.PROTECTED),
        features=features(_with_id_registers(kernel, cpus)),
        traits=traits(symbols),
        ram=tuple((r.start, r.end) for r in space.memory.ram),
        image_pa=(space.image_pa, space.image_pa + space.image_size),
        memory_backend=memory_backend,
        notes=tuple(notes),
        zero_page=_zero_page(kernel),
    )


def _with_id_registers(kernel: HostKernel, cpus: Sequence[Cpu]) -> Sequence[Cpu]:
    """The CPUs, or one that has the ID registers as the kernel found them, where those of the CPUs are not known."""
    if any("ID_AA64MMFR0_EL1" in cpu.registers for cpu in cpus):
        return cpus
    return [Cpu(0, id_registers(kernel))]


def _zero_page(kernel: HostKernel) -> int | None:
    """PA of ``empty_zero_page`` (exported; arch/arm64/mm/mmu.c, mm/mm_init.c in 7.3)."""
    address = kernel.symbol("empty_zero_page")
    return None if address is None else kernel.space.pa(address)
