"""The machine: gdb/MI session, registers, physical memory, stopping and resuming, QEMU facts.

Knows gdb and QEMU.  Knows nothing of kernels, tables or policy.
"""
