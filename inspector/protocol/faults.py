"""What a guest's fault entitles its mapping to: M5 of docs/invariants.md.

Without CTR_EL0.DIC a page is made executable only when the guest tries to execute it, for then its instructions are
fetched anew (`user_mem_abort`, arch/arm64/kvm/mmu.c of 6.1 to 7.3; 7.3 in `adjust_prot` and its like).
"""

from __future__ import annotations

from typing import Final

from inspector.codec import decode_register
from inspector.events import RawEvent
from inspector.protocol.rules import Violation

IABT_LOW: Final = 0x20
"""ESR_EL2.EC of an instruction abort from a lower exception level (DDI 0487 D24.2.40)."""


def is_exec_fault(esr: int) -> bool:
    """`kvm_vcpu_trap_is_exec_fault`: an instruction abort, not one of the walk of the guest's own tables (S1PTW)."""
    fields = decode_register("esr_el2", esr)
    return fields["EC"] == IABT_LOW and not esr >> 7 & 1


def unasked_execution(operation: str, where: str, esr: int, cpu: int, event: RawEvent) -> Violation:
    """An operation that makes something executable in a fault that asked for no such thing."""
    what = f"{operation} makes it executable, and the guest's fault is no instruction abort (ESR_EL2 {esr:#x})"
    return Violation("M5", what, where, "CTR_EL0.DIC is 0", cpu, operation, event)
