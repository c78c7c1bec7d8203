"""The rules by their ids of docs/invariants.md, and what is said when one is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inspector.events import RawEvent, format_raw

RULES: Final[Mapping[str, str]] = {
    "B1": "a valid entry's address, size, memory type or shareability changes only by way of an invalid one",
    "B2": "an entry that was valid is invalidated in the TLBs, between barriers, before it is used again",
    "B3": "an invalidation reaches every CPU and every level and address that the old entry served",
    "B4": "an invalidation by IPA is followed by one of stage 1",
    "B5": "an invalidation is complete before its context is left: DSB, ISB, then VTTBR_EL2 or HCR_EL2",
    "B6": "range invalidations together cover all that was unmapped",
    "B7": "a table page is freed only after its parent entry was invalidated in the TLBs",
    "B8": "a permission that was taken away is taken away in the TLBs before the operation returns, or the ioctl",
    "B9": "a table is linked by a store that orders its contents, and after they were written",
    "B10": "an invalidation is made in its table's context: VTTBR_EL2 switched in order, TGE clear in VHE, ISB after",
    "B11": "caches are maintained before the entry that lets the guest at the memory",
    "C3": "in a shared walk entries are changed by cmpxchg, and a LOCKED one by who locked it",
    "M5": "what becomes executable was to be executed: an instruction abort, but where CTR_EL0.DIC is set",
    "R1": "a table page's count is 1 and one for each counted entry",
    "R2": "every table page is freed once, when nobody uses it, and none is left",
    "R3": "a page that a fault obtained is released once, whatever the fault comes to",
    "S3": "a table is a page that was allocated, and has one parent",
    "S6": "no entry stays LOCKED",
    "V1": "a guest runs with a VMID of its own, which is not 0",
    "V3": "a VMID is used again only after all TLB entries were invalidated",
    "V4": "a vCPU comes to a CPU on which it did not run last only after that CPU's TLB was invalidated",
    "V5": "a CPU that KVM is initialised on in nVHE invalidates for all VMIDs: ALLE1",
}


@dataclass(frozen=True)
class Violation:
    """One broken rule.

    ``rule`` is a key of `RULES`; ``what`` a sentence without its full stop; ``where`` names the entry or page;
    ``state`` is its automaton's; ``event`` broke the rule (``None``: the end of an operation, on ``cpu``); ``history``
    are the events that made the state, a line each.
    """

    rule: str
    what: str
    where: str
    state: str
    cpu: int
    operation: str
    event: RawEvent | None
    history: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The whole of it, for people."""
        event = format_raw(self.event) if self.event else "its end"
        said = [f"{self.rule}: {self.what}", f"  where: {self.where}", f"  state: {self.state}"]
        said.append(f"  at: {event} (CPU {self.cpu}, {self.operation or 'no operation'})")
        said += ["  before:", *(f"    {line}" for line in self.history)] if self.history else []
        return [*said, f"  rule: {RULES[self.rule]}"]

    def __str__(self) -> str:
        return "\n".join(self.lines())
