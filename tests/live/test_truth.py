"""Every page that a guest touched is decoded to the frame that the VMM's pagemap names, and nothing else is mapped.

The oracle is the exerciser's own console output: what it asked the guests to touch, and the frames it read from
/proc/self/pagemap.  No part of KVM and none of our code has a hand in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures import truth
from inspector.capture.file import load, save
from inspector.check import run_checks
from inspector.snapshot import Capture
from inspector.target.connect import Backend
from tests.agreement import backing_agrees, disagreements, slots_agree, vtcr_agrees
from tests.live.conftest import Booted

pytestmark = pytest.mark.live

BACKENDS: tuple[Backend, ...] = ("process", "gdb")


@pytest.fixture(scope="module", params=BACKENDS)
def capture(request: pytest.FixtureRequest, booted: Booted) -> Capture:
    return booted.capture(request.param)


def test_the_exerciser_did_what_it_says(booted: Booted) -> None:
    """The truth is worth comparing with only if there is enough of it."""
    told = booted.truth
    assert not told.errors
    assert not [vm for vm in told.vms.values() if vm.failed]
    assert len(told.vms) >= 7
    assert sum(len(truth.expected_leaves(told)[n].pages) for n in told.vms) > 100
    assert {vm.ipa_bits for vm in told.vms.values()} >= {32, 36, 40}
    block = told.page_size * (told.page_size // 8)
    assert any(b.size == block for expected in truth.expected_leaves(told).values() for b in expected.blocks)
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
    slots_agree(capture, booted.truth)


def test_backing_is_what_pagemap_says(booted: Booted, capture: Capture) -> None:
    backing_agrees(capture, booted.truth)


def test_vtcr_is_reproduced_from_its_inputs(booted: Booted, capture: Capture) -> None:
    vtcr_agrees(capture, booted.truth)


def test_host_is_what_was_booted(booted: Booted, capture: Capture) -> None:
    boot = booted.truth.boot
    assert boot is not None
    assert capture.host.release == boot.release
    assert capture.host.page_size == boot.page_size
    assert capture.host.mode == ("nvhe" if booted.cell.cpu == "cortex-a57" else "vhe")
    assert len(capture.host.cpus) == booted.cell.smp
    assert bool(capture.host.features["fwb"]) == booted.cell.cpu.startswith("max")
    assert capture.host.notes == ()


def test_vm_list_and_files_agree(capture: Capture) -> None:
    """Where the kernel names vm_list, both ways find the same VMs; a bare 6.1 Image has the files alone."""
    ways = {vm.found_by for vm in capture.vms}
    assert len(ways) == 1
    assert {"files", "vcpu-files"} <= set(ways.pop())
