"""Which variable a one-line accessor names: just enough A64 decoding to learn it.

Kernels without KALLSYMS_ALL name no static data, but their accessors (`kvm_get_mode`, `kvm_get_running_vcpus`) are
text symbols whose first ADRP names the variable (DDI 0487 C6.2: ADRP, ADD (immediate), LDR (immediate), LDRB).
"""

from __future__ import annotations

from inspector.kernel.objects import HostKernel

_PAGE = 4096
_ACCESSOR_BYTES = 64


def _bits(insn: int, hi: int, lo: int) -> int:
    return (insn >> lo) & ((1 << (hi - lo + 1)) - 1)


def _adrp_target(insn: int, pc: int) -> int:
    imm = (_bits(insn, 23, 5) << 2) | _bits(insn, 30, 29)
    if imm >> 20:
        imm -= 1 << 21
    return (pc & -_PAGE) + imm * _PAGE


def accessed_address(code: bytes, pc: int) -> int | None:
    """The address formed by the first ADRP of ``code`` (at ``pc``) and the ADD or LDR that completes it.

    ``None`` when there is no such pair before the function returns.
    """
    pages: dict[int, int] = {}
    for offset in range(0, len(code) - 3, 4):
        insn = int.from_bytes(code[offset : offset + 4], "little")
        base = pages.get(_bits(insn, 9, 5))
        if insn & 0x9F00_0000 == 0x9000_0000:  # ADRP
            pages[_bits(insn, 4, 0)] = _adrp_target(insn, pc + offset)
        elif insn & 0xFFC0_0000 == 0x9100_0000 and base is not None:  # ADD Xd, Xn, #imm12
            return base + _bits(insn, 21, 10)
        elif insn & 0x3FC0_0000 == 0x3940_0000 and base is not None:  # LDR{B,H} Wt/Xt, [Xn, #imm12 << size]
            return base + (_bits(insn, 21, 10) << _bits(insn, 31, 30))
        elif insn == 0xD65F_03C0:  # RET
            return None
    return None


def accessor_variable(kernel: HostKernel, function: str) -> int | None:
    """Run-time address of the variable that a one-line accessor returns, or ``None``."""
    link = kernel.symbols.address(function)
    code = kernel.symbols.text(link, _ACCESSOR_BYTES) if link is not None else None
    if link is None or code is None:
        return None
    address = accessed_address(code, link)
    return None if address is None else kernel.space.runtime(address)
