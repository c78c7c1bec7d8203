"""The ID registers as the kernel has them, for a machine whose registers cannot be read.

``arm64_ftr_regs`` (arch/arm64/kernel/cpufeature.c, 5.10 to 7.3) is a table of (register's encoding, pointer to
``struct arm64_ftr_reg``), ascending by encoding; ``sys_val`` there is the value that is safe on all CPUs.  The table
has no symbol without KALLSYMS_ALL, so it is found by its contents: three registers in a row, each beside a pointer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import numpy as np

from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.symbols.api import MissingSymbol


def _encoding(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """``sys_reg()`` of arch/arm64/include/asm/sysreg.h."""
    return op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5


_MMFR: Final = tuple(_encoding(3, 0, 0, 7, op2) for op2 in range(3))
_NAMES: Final = {
    **{encoding: f"ID_AA64MMFR{number}_EL1" for number, encoding in enumerate(_MMFR)},
    _encoding(3, 0, 0, 6, 0): "ID_AA64ISAR0_EL1",
}
_PART: Final = 4096
_ENTRY: Final = 2
"""Words of a table entry: the encoding, padded, and the pointer."""
_BEFORE: Final = 64
"""Entries that are looked at before the three."""


def id_registers(kernel: HostKernel) -> Mapping[str, int]:
    """By their architectural names; empty where the table is not found."""
    space = kernel.space
    try:
        offset = kernel.member("arm64_ftr_reg", "sys_val").offset
    except MissingSymbol:
        return {}
    # Some of the image is given back after boot, and a dump may leave out what is free.
    places = [(pa, _PART) for pa in range(space.image_pa, space.image_pa + (space.image_size & -_PART), _PART)]
    parts = space.memory.read_many(places)
    words = np.frombuffer(b"".join(part or bytes(_PART) for part in parts), np.uint64)
    first, second, third = _MMFR
    inner = words[: -2 * _ENTRY - 1]
    (found,) = np.nonzero(
        (inner == first) & (words[_ENTRY : -_ENTRY - 1] == second) & (words[2 * _ENTRY : -1] == third)
    )
    for at in found.tolist():
        # Entries are words apart by `_ENTRY`; those before the three have registers of lower encodings.
        low = at - min(at // _ENTRY, _BEFORE) * _ENTRY
        values = {}
        for entry in range(low, at + 3 * _ENTRY, _ENTRY):
            if name := _NAMES.get(int(words[entry])):
                with suppress(BadPointer):
                    values[name] = space.u64(int(words[entry + 1]) + offset)
        if all(f"ID_AA64MMFR{number}_EL1" in values for number in range(3)):
            return values
    return {}
