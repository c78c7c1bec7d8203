"""VMCOREINFO, what a kernel tells crash tools of itself: lines of ``KEY=value`` (kernel/vmcore_info.c)."""

from __future__ import annotations

from inspector.kernel.accessors import accessor_variable
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer

_NOTE_HEADER = 12  # Elf64_Nhdr: namesz, descsz, type
_NAME = b"VMCOREINFO\0"
_LARGEST = 1 << 16


def parse(text: bytes) -> dict[str, str]:
    """The text, which a NUL ends, by key."""
    lines = text.split(b"\0")[0].decode("ascii", "replace").splitlines()
    return {key: value for key, found, value in (line.partition("=") for line in lines) if found}


def vmcoreinfo(kernel: HostKernel) -> dict[str, str]:
    """What the running kernel's own note says; empty when it has none (CONFIG_VMCORE_INFO off) or cannot name it.

    ``vmcoreinfo_note`` is a pointer to the ELF note; ``paddr_vmcoreinfo_note``, exported, names the variable.
    Raises `BadPointer`.
    """
    variable = kernel.symbol("vmcoreinfo_note") or accessor_variable(kernel, "paddr_vmcoreinfo_note")
    note = kernel.space.pointer(variable) if variable is not None else 0
    if not note >> 63:  # none; or 5.10's accessor, whose __pa() reads another variable (vabits_actual) first
        return {}
    header = kernel.space.read(note, _NOTE_HEADER + len(_NAME))
    size = int.from_bytes(header[4:8], "little")
    if header[_NOTE_HEADER:] != _NAME or size > _LARGEST:
        raise BadPointer(note, "not a VMCOREINFO note")
    start = note + _NOTE_HEADER + (len(_NAME) + 3 & ~3)
    return parse(kernel.space.read(start, size))
