"""``--vm``: the operations of one VM's tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inspector.events import CALL, RET, RawEvent
from inspector.findings import BadInput
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.kernel.vms import read_vms
from inspector.snapshot import Vm

_VMID_BITS = 16
"""Of no matter here."""


def tables_of(kernel: HostKernel, name: str) -> frozenset[int]:
    """Addresses of the ``struct kvm_pgtable`` of the VM called ``name`` (``vm0``, ``0`` or its VMM's pid).

    The machine stands.  Raises `BadInput` that lists the VMs when there is no such VM, or it has no table.
    """
    vms = [each.vm for each in read_vms(kernel, {}, _VMID_BITS, [], pkvm=False)]
    wanted = [vm for vm in vms if name in (vm.name, vm.name.removeprefix("vm"), str(vm.pid))]
    exact = [vm for vm in wanted if vm.name == name] or wanted
    if not exact:
        raise BadInput(f"there is no VM '{name}': {_listed(vms)}")
    found = {pgt for vm in exact for mmu in vm.mmus if (pgt := _table(kernel, mmu.address))}
    if not found:
        raise BadInput(f"{exact[0].name} has no table that could be followed")
    return frozenset(found)


def _table(kernel: HostKernel, mmu: int) -> int:
    try:
        return kernel.at("kvm_s2_mmu", mmu).u("pgt")
    except BadPointer:
        return 0


def _listed(vms: Sequence[Vm]) -> str:
    return "the VMs are " + ", ".join(f"{vm.name} (pid {vm.pid})" for vm in vms) if vms else "there are none"


@dataclass
class Only:
    """Lets events of operations on ``tables`` pass, and those of operations that name no table (RCU callbacks)."""

    tables: frozenset[int]
    _left_out: set[int] = field(default_factory=set)

    def passes(self, lane: int, raw: RawEvent) -> bool:
        """Whether this one is to be seen."""
        if raw[0] == CALL:
            words = dict(word.partition("=")[::2] for word in str(raw[2]).split(","))
            if "pgt" in words and int(words["pgt"], 16) not in self.tables:
                self._left_out.add(lane)
        if lane not in self._left_out:
            return True
        if raw[0] == RET:
            self._left_out.discard(lane)
        return False
