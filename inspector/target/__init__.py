"""The machine: gdb/MI session, registers, physical memory, stopping and resuming, QEMU facts.

Knows gdb and QEMU.  Knows nothing of kernels, tables or policy.
"""

from inspector.target.api import Cpu, PhysicalMemory, RamRange, Target, UnreadableMemory
from inspector.target.connect import attached, open_target
from inspector.target.signals import Interrupted

__all__ = [
    "Cpu",
    "Interrupted",
    "PhysicalMemory",
    "RamRange",
    "Target",
    "UnreadableMemory",
    "attached",
    "open_target",
]
