"""The context that invalidations run in: VTTBR_EL2 and HCR_EL2 of each CPU, VMIDs, and which vCPU ran where last.

What a table's automaton takes for granted, that a TLBI is of the table's own VMID, is judged here (rules B3, B5, B10,
V1, V3 and V4 of docs/invariants.md).  One for a whole machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from inspector.events import BARRIER, SYSREG, TLBI, RawEvent, format_raw
from inspector.protocol.rules import Violation
from inspector.protocol.tlbi import TLBIS, Reach, is_of_el2

NVHE: Final = "__kvm_nvhe_"
"""How the functions of EL2's own code begin where that is not the kernel's level."""
_TGE: Final = 1 << 27
"""HCR_EL2.TGE: with E2H too, TLBI of the EL1&0 regime is of the host's (DDI 0487 D8.17)."""
ALL_VMIDS: Final = "alle1"
_VMID: Final = 48
_BADDR: Final = (1 << _VMID) - 2
"""VTTBR_EL2: VMID in [63:48], BADDR below, CnP in bit 0; with 52-bit addresses bits [5:2] are BADDR's upper ones."""
_LOW: Final = 0x3E
_HISTORY: Final = 12
_BROADCAST: Final = frozenset({"ish", "sy", "osh"})
_LOCAL: Final = frozenset({*_BROADCAST, "nsh"})


def stale_at_init(invalidated: Sequence[str], event: RawEvent) -> Violation:
    """What a CPU's TLB has from before KVM was initialised on it stays (`___kvm_hyp_init`, nvhe/hyp-init.S)."""
    what = f"EL2 is initialised with {', '.join(invalidated)}: entries of other VMIDs than the one in force stay"
    return Violation("V5", what, "__kvm_nvhe____kvm_hyp_init", "before the first guest", 0, "hyp_init", event)


def root_of(vttbr: int) -> int:
    """The physical address in VTTBR_EL2 (DDI 0487; bits [5:2] are [51:48] where a table is aligned to 64 bytes)."""
    return vttbr & _BADDR & ~_LOW | (vttbr >> 2 & 0xF) << _VMID


@dataclass(slots=True, eq=False)
class Flush:
    """One run of a TLB function.

    ``table`` is the one that it is for, where an operation says so; ``vttbr`` what is in force.  ``switched``:
    VTTBR_EL2 was written; ``guest``: HCR_EL2.TGE is clear; ``synced``: no write of a register is without an ISB after
    it; ``waiting``: TLBI that no DSB has completed; ``open``: a DSB has, and no ISB came since; ``did``: there was a
    TLBI; ``ordered``: DSB that came; ``reached``: a TLBI was of all addresses; ``said``: rules that it broke.
    """

    function: str
    cpu: int
    table: int | None
    vttbr: int
    events: list[RawEvent] = field(default_factory=list)
    switched: bool = False
    guest: bool = False
    synced: bool = True
    waiting: str = ""
    open: bool = False
    did: bool = False
    ordered: frozenset[str] = frozenset()
    reached: bool = False
    said: frozenset[str] = frozenset()

    @property
    def at_el2(self) -> bool:
        """The code is EL2's own (nVHE, hVHE): there is no TGE to clear."""
        return self.function.startswith(NVHE)

    @property
    def local(self) -> bool:
        """It is about this CPU alone."""
        return self.function.endswith(("_nsh", "_flush_cpu_context"))


@dataclass(frozen=True)
class Found:
    """A violation, and the number of the table that it is about (0: none)."""

    table: int
    violation: Violation


class Contexts:
    """Fed by whoever follows a machine; `found` grows.

    ``orders_switches``: in nVHE a DSB ISH comes before VTTBR_EL2 is switched, and an ISB after it is restored (6.6 and
    later; 6.1 has neither: docs/invariants.md).
    """

    def __init__(self, *, orders_switches: bool) -> None:
        self.found: list[Found] = []
        self._orders_switches = orders_switches
        self._tables: dict[int, int] = {}
        self._force: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._vmids: dict[int, int] = {}
        self._gone: set[int] = set()
        self._running: dict[int, int] = {}
        self._loading: set[int] = set()
        self._last: dict[tuple[int, int], int] = {}
        self._before: set[int] = set()

    # ---- tables

    def made(self, number: int, root: int) -> None:
        """A table with its root at a physical address."""
        self._tables[root] = number

    def take_over(self, number: int, root: int, vmid: int | None) -> None:
        """A table that was made before, and the VMID of its guest: which of its vCPUs ran where last is not known."""
        self.made(number, root)
        self._before.add(number)
        if vmid:
            self._vmids[number] = vmid

    def take_over_cpu(self, cpu: int, vttbr: int, vcpu: int | None, *, in_guest: bool) -> None:
        """What a CPU has in VTTBR_EL2, and which vCPU is loaded on it; the VMID that a guest runs with is its own."""
        self.forced(cpu, vttbr)
        if vcpu is not None:
            self._running[cpu] = vcpu
        table = self.table_at(vttbr)
        if in_guest and table is not None and vttbr >> _VMID:
            self._owners[vttbr >> _VMID] = table

    def forced(self, cpu: int, vttbr: int) -> None:
        """VTTBR_EL2 is written in a TLB function that is not judged."""
        self._force[cpu] = vttbr

    def gone(self, number: int) -> None:
        """A table is no more; its VMID stays unusable until all are given out anew (kvm_arm_vmid_update)."""
        for root in [root for root, each in self._tables.items() if each == number]:
            del self._tables[root]
        self._gone.add(number)
        for key in [key for key in self._last if key[1] == number]:
            del self._last[key]

    def table_at(self, vttbr: int) -> int | None:
        """The number of the table that a value of VTTBR_EL2 names."""
        return self._tables.get(root_of(vttbr))

    # ---- vCPUs

    def load(self, cpu: int, vcpu: int) -> None:
        """kvm_arch_vcpu_load is entered (preemption is disabled)."""
        self._running[cpu] = vcpu
        self._loading.add(cpu)

    def loaded(self, cpu: int) -> None:
        """It has returned."""
        self._loading.discard(cpu)

    def wrote(self, cpu: int, value: int) -> None:
        """VTTBR_EL2 is written by no TLB function: a guest is to run."""
        self._force[cpu] = value
        table = self.table_at(value)
        if table is None:
            return
        vmid = value >> _VMID
        raw = (SYSREG, cpu, "vttbr_el2", value)
        owner = self._owners.setdefault(vmid, table) if vmid else table
        if not vmid:
            self._say("V1", "a guest is to run with VMID 0, the host's", table, cpu, "", (raw,))
        elif owner != table:
            whose = f"VMID {vmid} is table {owner}'s"
            if owner in self._gone:
                what = f"{whose}, which is no more, and what it left in the TLBs was not invalidated (ALLE1IS)"
                self._say("V3", what, table, cpu, "", (raw,))
            else:
                self._say("V1", f"{whose}, of the same generation", table, cpu, "", (raw,))
            self._owners[vmid] = table
        self._vmids[table] = vmid
        vcpu = self._running.get(cpu)
        if vcpu is None:
            return
        before = self._last.get((cpu, table))
        if before is None and table in self._before:
            self._last[cpu, table] = vcpu
        elif before != vcpu:
            who = f"vCPU {before:#x} of this VM ran last" if before else "no vCPU of this VM ran yet"
            what = f"{who} on CPU {cpu}, and its TLB was not invalidated before vCPU {vcpu:#x} comes"
            self._say("V4", what, table, cpu, "", (raw,))
            self._last[cpu, table] = vcpu

    # ---- TLB functions

    def enter(self, function: str, cpu: int, table: int | None) -> Flush:
        """A TLB function begins."""
        return Flush(function, cpu, table, self._force.get(cpu, 0))

    def feed(self, flush: Flush, raw: RawEvent) -> None:
        """A barrier, an invalidation or a write of a system register in it."""
        if raw[0] == SYSREG:
            self._write(flush, raw)
        elif raw[0] == BARRIER:
            _barrier(flush, raw[1])
        elif raw[0] == TLBI:
            self._invalidate(flush, raw)
        flush.events.append(raw)

    def _write(self, flush: Flush, raw: RawEvent) -> None:
        _, cpu, register, value = raw
        flush.cpu = cpu
        leaves = register == "vttbr_el2" or value & _TGE
        if flush.did and leaves:
            self._leave(flush, raw)
        if register == "vttbr_el2":
            if not flush.did and flush.at_el2 and self._orders_switches:
                needed = _LOCAL if flush.local else _BROADCAST
                if not flush.ordered & needed:
                    what = "VTTBR_EL2 is switched with no DSB before: walks and stores are not complete"
                    self._complain(flush, "B10", what, raw)
            flush.vttbr, flush.switched = value, True
            self._force[cpu] = value
        elif register == "hcr_el2":
            flush.guest = not value & _TGE
        flush.synced = False

    def _leave(self, flush: Flush, raw: RawEvent) -> None:
        """The context of the invalidation is given up."""
        if flush.waiting:
            self._complain(flush, "B5", f"{raw[2]} is restored before a DSB completes {flush.waiting}", raw)
        elif flush.open:
            self._complain(flush, "B5", f"{raw[2]} is restored with no ISB after the DSB", raw)
        flush.waiting, flush.open = "", False

    def _invalidate(self, flush: Flush, raw: RawEvent) -> None:
        word = str(raw[1])
        tlbi = TLBIS.get(word)
        flush.did = True
        flush.waiting = word
        if tlbi is None or is_of_el2(word):
            return
        flush.open = True
        if word.startswith(ALL_VMIDS):
            if not tlbi.local:
                self._owners.clear()
                self._vmids.clear()
            return
        if not flush.at_el2 and not flush.guest:
            self._complain(flush, "B10", f"{word} with HCR_EL2.TGE set is of the host's own regime", raw)
        elif not flush.synced:
            what = f"no ISB between the last write of a system register and {word}: it may be of the old VMID"
            self._complain(flush, "B10", what, raw)
        named = self.table_at(flush.vttbr)
        if flush.table is None:
            flush.table = named
        if flush.table is None:
            return
        if named != flush.table:
            whose = f"table {named}'s" if named is not None else "no table's that is known"
            what = f"{word} is of VMID {flush.vttbr >> _VMID}: VTTBR_EL2, {flush.vttbr:#x}, is {whose}"
            self._complain(flush, "B3", what, raw)
        elif (vmid := self._vmids.get(flush.table, flush.vttbr >> _VMID)) != flush.vttbr >> _VMID:
            what = f"{word} is of VMID {flush.vttbr >> _VMID}, and the table's guest runs with VMID {vmid}"
            self._complain(flush, "B3", what, raw)
        flush.reached |= tlbi.reach is Reach.ALL

    def leave(self, flush: Flush) -> None:
        """It returns."""
        if flush.at_el2 and flush.switched and flush.did and not flush.synced and self._orders_switches:
            self._complain(flush, "B5", "VTTBR_EL2 is restored, and no ISB comes after", None)
        if not flush.at_el2 and flush.guest:
            self._complain(flush, "B10", "the function returns with HCR_EL2.TGE clear", None)
        table, vcpu = self.table_at(flush.vttbr), self._running.get(flush.cpu)
        if flush.table is not None:
            table = flush.table
        if flush.cpu in self._loading and flush.reached and table is not None and vcpu is not None:
            self._last[flush.cpu, table] = vcpu

    # ---- violations

    def _complain(self, flush: Flush, rule: str, what: str, raw: RawEvent | None) -> None:
        """Each rule once for a run of a function."""
        if rule in flush.said:
            return
        flush.said |= {rule}
        events = (*flush.events, raw) if raw is not None else tuple(flush.events)
        self._say(rule, what, flush.table or 0, flush.cpu, flush.function, events)

    def _say(self, rule: str, what: str, table: int, cpu: int, function: str, events: tuple[RawEvent, ...]) -> None:
        *before, last = events or (None,)
        history = tuple(f"CPU {cpu}: {format_raw(each)}" for each in before[-_HISTORY:] if each is not None)
        state = f"VTTBR_EL2 {self._force.get(cpu, 0):#x}"
        where = f"CPU {cpu}"
        self.found.append(Found(table, Violation(rule, what, where, state, cpu, function, last, history)))

    def take_found(self, call: str = "") -> list[Found]:
        """What was found since the last time; ``call`` names what it was found in where that has no name of its own."""
        found, self.found = self.found, []
        return [
            Found(each.table, replace(each.violation, operation=each.violation.operation or call)) for each in found
        ]


def _barrier(flush: Flush, kind: str) -> None:
    if kind == "isb":
        flush.synced = True
        if not flush.waiting:
            flush.open = False
        return
    flush.ordered |= {kind}
    local = flush.waiting in TLBIS and TLBIS[flush.waiting].local
    if kind in (_LOCAL if local else _BROADCAST):
        flush.waiting = ""
