"""Every page that a guest touched is decoded to the frame that the VMM's pagemap names, and nothing else is mapped.

The oracle is the exerciser's own console output: what it asked the guests to touch, and the frames it read from
/proc/self/pagemap.  No part of KVM and none of our code has a hand in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import truth
from inspector.capture.data import Capture, Vm
from inspector.capture.file import load, save
from inspector.capture.view import table_views
from inspector.check import run_checks
from inspector.codec import Geometry
from inspector.tables import entries
from inspector.target.connect import Backend
from tests.live.conftest import Booted

pytestmark = pytest.mark.live

PS_BITS = (32, 36, 40, 42, 44, 48, 52)  # DDI 0487 D24.2, ID_AA64MMFR0_EL1.PARange
BACKENDS: tuple[Backend, ...] = ("process", "gdb")


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
    expected = truth.expected_leaves(told)
    wrong = []
    for number, vm in told.vms.items():
        got = leaves(capture, vm_of(capture, vm))
        wrong += [f"VM {number}: {text}" for text in truth.differences(expected[number], got)]
    return wrong


@pytest.fixture(scope="module", params=BACKENDS)
def capture(request: pytest.FixtureRequest, booted: Booted) -> Capture:
    return booted.capture(request.param)


def test_the_exerciser_did_what_it_says(booted: Booted) -> None:
    """The truth is worth comparing with only if there is enough of it."""
    told = booted.truth
    assert not told.errors
    assert len(told.vms) >= 7
    assert sum(len(truth.expected_leaves(told)[n].pages) for n in told.vms) > 100
    assert {vm.ipa_bits for vm in told.vms.values()} >= {32, 36, 40}
    assert any(block.size == 2 << 20 for n in told.vms for block in truth.expected_leaves(told)[n].blocks)
    if booted.cell.gic == 2:
        assert any(vm.devices for vm in told.vms.values())
    limit = told.boot.ipa_limit if told.boot else None
    assert limit is not None
    assert [r.ipa_bits for r in told.refused if r.ipa_bits > limit], "no size above the limit was refused"


def test_every_touched_page_is_what_pagemap_says(booted: Booted, capture: Capture) -> None:
    assert disagreements(capture, booted.truth) == []


def test_no_vm_is_missed_or_invented(booted: Booted, capture: Capture) -> None:
    assert {(vm.pid, vm.fd) for vm in capture.vms} == {(vm.pid, vm.fd) for vm in booted.truth.vms.values()}


def test_no_check_fires(capture: Capture) -> None:
    assert run_checks(capture) == []


def test_the_file_gives_the_same(booted: Booted, capture: Capture, tmp_path: Path) -> None:
    save(capture, tmp_path / "a.s2cap")
    loaded = load(tmp_path / "a.s2cap")
    assert loaded == capture
    assert disagreements(loaded, booted.truth) == []


def test_memslots_are_those_that_the_vmm_set(booted: Booted, capture: Capture) -> None:
    page = booted.truth.page_size
    for told in booted.truth.vms.values():
        got = {
            (s.id, s.base_gfn * page, s.npages * page, s.userspace_addr, s.flags) for s in vm_of(capture, told).memslots
        }
        assert got == {(s.id, s.gpa, s.size, s.hva, s.flags) for s in told.slots}


def test_backing_is_what_pagemap_says(booted: Booted, capture: Capture) -> None:
    page = booted.truth.page_size
    for told in booted.truth.vms.values():
        slots = {s.id: s for s in vm_of(capture, told).memslots}
        for run in told.runs:
            offsets = [(run.hva + (ipa - run.ipa), pfn) for ipa, pfn in run.pages(page)]
            for hva, pfn in offsets:
                b = next(b for b in slots[run.slot].backing if b.hva <= hva < b.hva + b.size)
                assert b.pa is not None
                assert b.pa + hva - b.hva == pfn * page, hex(hva)


def test_vtcr_is_reproduced_from_its_inputs(booted: Booted, capture: Capture) -> None:
    """kvm_get_vtcr's inputs: the requested IPA size, the CPU's PARange (at most 48 bits without LPA2), VMID width, HA.

    HA is on in Debian's kernels (CONFIG_ARM64_HW_AFDBM), whatever the CPU.
    """
    features = capture.host.features
    lpa2 = bool(features["lpa2"]) and capture.host.va_bits > 48
    pa_bits = min(PS_BITS[features["parange"]], 52 if lpa2 else 48)
    for told in booted.truth.vms.values():
        mmu = vm_of(capture, told).mmus[0]
        geometry = Geometry.for_ipa(told.ipa_bits, 12, pa_bits, lpa2)
        assert geometry.to_vtcr(vmid16=bool(features["vmid16"]), ha=True) == mmu.vtcr
        assert mmu.geometry == geometry


def test_host_is_what_was_booted(booted: Booted, capture: Capture) -> None:
    boot = booted.truth.boot
    assert boot is not None
    assert capture.host.release == boot.release
    assert capture.host.page_size == boot.page_size
    assert capture.host.mode == ("nvhe" if booted.cell.cpu == "cortex-a57" else "vhe")
    assert len(capture.host.cpus) == booted.cell.smp
    assert bool(capture.host.features["fwb"]) == (booted.cell.cpu == "max")
    assert capture.host.notes == ()


def test_vm_list_and_files_agree(capture: Capture) -> None:
    """Where the kernel names vm_list, both ways find the same VMs; a bare 6.1 Image has the files alone."""
    ways = {vm.found_by for vm in capture.vms}
    assert len(ways) == 1
    assert {"files", "vcpu-files"} <= set(ways.pop())
