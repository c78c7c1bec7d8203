"""Leaf attributes of stage-2: from what a caller asks for to descriptor bits, and back.

Facts: kernel.md 1.3, 1.4; ``stage2_set_prot_attr``, ``stage2_set_xn_attr``, ``kvm_pgtable_stage2_pte_prot``,
``stage2_pte_cacheable``, ``stage2_pte_executable`` of 6.1.192, 6.12.117, 7.3.4; asm/memory.h ``MT_S2_*``.
The bit positions are this module's own, so that a test can hold them against ``inspector.codec``.
"""

from __future__ import annotations

from errno import EINVAL
from typing import Final

from inspector.generations import Generation
from inspector.model.machine import Machine
from inspector.model.prot import SW_MASK, Prot

MEMATTR_MASK: Final = 0xF << 2
S2AP_R: Final = 1 << 6
S2AP_W: Final = 1 << 7
SH_INNER: Final = 3 << 8
AF: Final = 1 << 10
XN: Final = 1 << 54
XN_FIELD: Final = 3 << 53
ATTR_LO: Final = 0xFFC
"""``KVM_PTE_LEAF_ATTR_LO``, bits [11:2]."""

MEMATTR: Final = {
    # name: (without FWB, with FWB), the field's value
    "normal": (0xF, 0x6),
    "nc": (0x5, 0x5),
    "device": (0x1, 0x1),
    "as_s1": (0xF, 0x7),
}

_R: Final = int(Prot.R)
_W: Final = int(Prot.W)
_X: Final = int(Prot.X)
_DEVICE: Final = int(Prot.DEVICE)
_NC: Final = int(Prot.NORMAL_NC)
# Plain integers: an IntFlag in an entry would make every later operation on it ten times slower.

_XN_CODES: Final = {_X: 0b00, int(Prot.UX): 0b01, 0: 0b10, int(Prot.PX): 0b11}
"""FEAT_XNX (DDI 0487, D8.4.1 "stage 2 execute permission"): who may execute → XN[1:0]."""


class Attributes:
    """The attribute rules of one page table: behaviours and CPU settled, results remembered.

    ``normal`` is the MemAttr value in place that counts as cacheable; ``perms`` the bits that a map may not change
    on a valid entry; ``keep`` all attribute bits (LO and HI); ``fwb`` what ``stage2_has_fwb`` says.
    """

    __slots__ = ("_known", "_lpa2", "_two_bit_xn", "_use_as_s1", "_xnx", "behaviours", "fwb", "keep", "normal", "perms")

    def __init__(self, behaviours: Generation, machine: Machine, lpa2: bool) -> None:
        self.behaviours = behaviours
        by_flag = behaviours.pgt_flags.bit("NOFWB") != 0
        self.fwb = machine.fwb and not (by_flag and machine.no_fwb)
        self._lpa2 = lpa2
        self._xnx = machine.xnx
        self._two_bit_xn = behaviours.two_bit_xn
        self._use_as_s1 = behaviours.as_s1 and machine.as_s1
        self.normal = self._memattr("normal")
        self.perms = S2AP_R | S2AP_W | (XN_FIELD if self._two_bit_xn else XN)
        self.keep = ATTR_LO | ((1 << 64) - (1 << behaviours.attr_hi_lsb))
        self._known: dict[int, int] = {}

    def _memattr(self, name: str) -> int:
        return MEMATTR["as_s1" if self._use_as_s1 else name][self.fwb] << 2

    def of_prot(self, prot: int) -> int:
        """``stage2_set_prot_attr``: the attribute bits, or ``-EINVAL``."""
        attr = self._known.get(prot)
        if attr is None:
            attr = self._known[prot] = self._compute(int(prot))
        return attr

    def _compute(self, prot: int) -> int:
        device, nc = prot & _DEVICE, prot & _NC
        if device and nc:
            return -EINVAL
        if (device or nc) and prot & _X:
            return -EINVAL
        xn = self.xn_of_prot(prot)
        if xn < 0:
            return xn
        attr = self._memattr("device" if device else "nc" if nc else "normal") | xn | AF
        if prot & _R:
            attr |= S2AP_R
        if prot & _W:
            attr |= S2AP_W
        if not self._lpa2:
            attr |= SH_INNER
        if self.behaviours.software_bits:
            attr |= prot & SW_MASK
        return attr

    def xn_of_prot(self, prot: int) -> int:
        """The XN bits in place, or ``-EINVAL`` (one execute bit alone on a CPU without FEAT_XNX)."""
        if not self._two_bit_xn:
            return 0 if prot & _X else XN
        wanted = prot & _X
        if not self._xnx and wanted not in (0, _X):
            return -EINVAL
        return _XN_CODES[wanted] << 53

    def prot_of(self, pte: int) -> int:
        """``kvm_pgtable_stage2_pte_prot``: permissions and software bits, never the memory type."""
        prot = pte & SW_MASK
        if not pte & 1:
            return prot
        if pte & S2AP_R:
            prot |= _R
        if pte & S2AP_W:
            prot |= _W
        if self._two_bit_xn:
            code = pte >> 53 & 3
            return prot | next(wanted for wanted, xn in _XN_CODES.items() if xn == code)
        return prot if pte & XN else prot | _X

    def cacheable(self, pte: int) -> bool:
        """``stage2_pte_cacheable``."""
        if self.behaviours.cmo_checks_valid and not pte & 1:
            return False
        return pte & MEMATTR_MASK == self.normal

    def executable(self, pte: int) -> bool:
        """``stage2_pte_executable``."""
        if self.behaviours.cmo_checks_valid and not pte & 1:
            return False
        if self._two_bit_xn:
            return pte & XN_FIELD != 0b10 << 53
        return not pte & XN
