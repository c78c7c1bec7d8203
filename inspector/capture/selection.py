"""Which of a capture's tables a command works on, and the translation of an address in one."""

from __future__ import annotations

from inspector.capture.nested import GuestView, guest_view
from inspector.capture.view import (
    OwnView,
    TableView,
    View,
    judged_own_views,
    judged_views,
    not_judged,
    own_views,
    table_views,
    vm_title,
)
from inspector.findings import BadInput, Untestable
from inspector.snapshot import Capture, MmuKind, Mode, OwnKind
from inspector.tables import Translation, translate


def choose_views(capture: Capture, name: str | None) -> list[TableView]:
    """The tables of the VM called ``name`` (``vm0``, ``0`` or its VMM's pid), or of all.

    Raises `BadInput` that lists the VMs when there is no such VM, or none at all.
    """
    if not capture.vms:
        raise BadInput("there are no VMs on this host: start one, or take a capture while one runs")
    views = list(table_views(capture))
    if name is None:
        return views
    wanted = [vm for vm in capture.vms if name in (vm.name, vm.name.removeprefix("vm"), str(vm.pid))]
    exact = [vm for vm in wanted if vm.name == name] or wanted
    if not exact:
        raise BadInput(f"there is no VM '{name}': {_vm_list(capture)}")
    chosen = [view for view in views if any(view.vm is vm for vm in exact)]
    if not chosen:
        reasons = "; ".join(mmu.unreadable for vm in exact for mmu in vm.mmus if mmu.unreadable)
        raise BadInput(f"{vm_title(exact[0])} has no table to show: {reasons or 'it has none yet'}")
    return chosen


def choose_one(capture: Capture, name: str | None, shadow: int | None = None) -> TableView:
    """The VM's own table, of the VM called ``name`` or of the only one; or its shadow table with the VMID ``shadow``.

    Raises `BadInput` as `choose_views`, and where there is no such shadow.
    """
    views = [view for view in choose_views(capture, name) if view.mmu.kind is MmuKind.VM]
    if shadow is not None:
        found = [view for view in choose_views(capture, name) if view.mmu.kind is MmuKind.SHADOW]
        views = [view for view in found if view.mmu.vmid == shadow]
        if not views:
            there = ", ".join(f"{view.mmu.vmid} of {view.vm.name}" for view in found if view.mmu.vmid is not None)
            raise BadInput(f"no shadow table has VMID {shadow}: {f'there are {there}' if there else 'there is none'}")
    if len({id(view.vm) for view in views}) > 1:
        raise BadInput(f"say which VM with --vm: {_vm_list(capture)}")
    if not views:
        raise BadInput(f"no VM has a table to walk: {_vm_list(capture)}")
    return views[0]


_WITHOUT_HYP = {
    Mode.VHE: "with VHE the host kernel runs at EL2 itself",
    Mode.NONE: "KVM is not initialised in the host kernel",
}


def choose_own(capture: Capture, kind: OwnKind) -> OwnView:
    """The table ``kind`` of the host's own.  Raises `BadInput` with the reason where there is none."""
    for view in own_views(capture):
        if view.table.kind is kind:
            return view
    mode = capture.host.mode
    if kind is OwnKind.HOST and mode is not Mode.PROTECTED:
        raise BadInput(f"the host has no stage-2 of its own in {mode} mode: only with kvm-arm.mode=protected")
    why = _WITHOUT_HYP.get(mode)
    if why is not None:
        raise BadInput(f"there is no hyp stage-1: {why}")
    raise BadInput(f"the {kind} of the host is not in this capture: it was made before it was kept, or names no root")


def _vm_list(capture: Capture) -> str:
    return "the VMs are " + ", ".join(vm_title(vm) for vm in capture.vms)


def require_vms(capture: Capture) -> Capture:
    """``capture``.  Raises `Untestable` when it holds no VM whose tables could be judged."""
    if capture.vms:
        return capture
    if capture.host.mode is Mode.NONE:
        why = "KVM is not initialised in the host kernel (switched off, or not built in): there is nothing to check"
        raise Untestable(why)
    raise Untestable("there are no VMs: nothing was checked; start one and try again")


def require_tables(capture: Capture, own_judged: bool = False) -> None:
    """Raises `Untestable` with the reasons when not one guest table could be judged.

    ``own_judged``: the host's own tables were, and nothing was found.
    """
    if not any(judged_views(capture)):
        left_out = list(not_judged(capture))
        reasons = "; ".join(dict.fromkeys(reason for _, reason in left_out)) or "no VM has one"
        tables = f"{len(left_out)} guest table{'s' * (len(left_out) != 1)}"
        own = " and the ".join(view.regime for view in judged_own_views(capture))
        judged = f"; in the {own} of the host nothing was found" if own_judged and own else ""
        raise Untestable(f"none of {tables} was judged: {reasons}{judged}")


class _NotCaptured(Exception):
    """A page that the capture does not hold; ``reason`` is what `translate` shows."""

    def __init__(self, view: View, pa: int) -> None:
        super().__init__(f"{pa:#x}")
        self.reason = view.capture.unreadable.get(pa - pa % view.geometry.granule, "not in the capture")


def translate_by_guest(view: TableView, ia: int) -> tuple[GuestView, Translation] | None:
    """For a shadow what the guest hypervisor's own stage 2 makes of ``ia``; ``None`` where it has none."""
    guest = guest_view(view)
    return None if guest is None else (guest, translate_in(guest, ia))


def translate_in(view: View, ia: int) -> Translation:
    """The translation of ``ia`` through the table of ``view``."""

    def read(pa: int, length: int) -> bytes:
        found = view.read_many([(pa, length)])[0]
        if found is None:
            raise _NotCaptured(view, pa)
        return found

    return translate(read, view.root_pa, view.geometry, view.format, ia)
