"""What a capture must agree on with the exerciser's ground truth, for live machines and recorded ones alike."""

from __future__ import annotations

from fixtures import truth
from inspector.capture.view import table_views
from inspector.codec import Geometry
from inspector.snapshot import Capture, Vm
from inspector.tables import entries

PS_BITS = (32, 36, 40, 42, 44, 48, 52)  # DDI 0487 D24.2, ID_AA64MMFR0_EL1.PARange


def vm_of(capture: Capture, told: truth.Vm) -> Vm:
    """The captured VM that the exerciser means: same process, same file number."""
    return next(vm for vm in capture.vms if (vm.pid, vm.fd) == (told.pid, told.fd))


def leaves(capture: Capture, vm: Vm) -> list[tuple[int, int, int]]:
    """(IPA, size, PA) of every valid leaf in the VM's own stage-2."""
    found = []
    for view in table_views(capture):
        if view.vm is vm and view.mmu.kind == "vm":
            for entry in entries(view.tree):
                address = entry.descriptor.output_address
                if entry.descriptor.kind.is_leaf and address is not None:
                    found.append((entry.ia, entry.descriptor.size, address))
    return found


def disagreements(capture: Capture, told: truth.Truth) -> list[str]:
    wrong = []
    for number, expected in truth.expected_leaves(told).items():
        got = leaves(capture, vm_of(capture, told.vms[number]))
        wrong += [f"VM {number}: {text}" for text in truth.differences(expected, got)]
    return wrong


def slots_agree(capture: Capture, told: truth.Truth) -> None:
    """The memslots are those that the VMM set."""
    page = told.page_size
    for vm in told.vms.values():
        got = {
            (s.id, s.base_gfn * page, s.npages * page, s.userspace_addr, s.flags) for s in vm_of(capture, vm).memslots
        }
        assert got == {(s.id, s.gpa, s.size, s.hva, s.flags) for s in vm.slots}


def backing_agrees(capture: Capture, told: truth.Truth) -> None:
    """What backs each touched page of the VMM is what pagemap says."""
    page = told.page_size
    for vm in told.vms.values():
        slots = {s.id: s for s in vm_of(capture, vm).memslots}
        for run in vm.runs:
            for ipa, pfn in run.pages(page):
                hva = run.hva + (ipa - run.ipa)
                b = next(b for b in slots[run.slot].backing if b.hva <= hva < b.hva + b.size)
                assert b.pa is not None
                assert b.pa + hva - b.hva == pfn * page, hex(hva)


def vtcr_agrees(capture: Capture, told: truth.Truth) -> None:
    """Each VTCR is what kvm_get_vtcr makes of its inputs: the IPA size asked for, PARange, VMID width, HA.

    PARange counts up to 48 bits without LPA2.  HA is on in Debian's kernels (CONFIG_ARM64_HW_AFDBM), whatever the CPU.
    """
    features = capture.host.features
    lpa2 = bool(features["lpa2"]) and capture.host.va_bits > 48
    shift = told.page_size.bit_length() - 1
    pa_bits = min(PS_BITS[features["parange"]], 52 if lpa2 else 48)
    for vm in told.vms.values():
        mmu = vm_of(capture, vm).mmus[0]
        geometry = Geometry.for_ipa(vm.ipa_bits, shift, pa_bits, lpa2)
        assert geometry.to_vtcr(vmid16=bool(features["vmid16"]), ha=True) == mmu.vtcr
        assert mmu.geometry == geometry
