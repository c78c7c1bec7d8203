"""What rights are judged by comes back from a file: dirty logs, special mappings, locks and preempted vCPUs."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inspector.capture.file import load, save
from inspector.findings import BadInput
from inspector.snapshot import Capture
from tests.check.build import PAGE, World


def busy() -> Capture:
    """One VM with everything set."""
    world = World()
    guest = world.guest(vmid=1)
    slot = guest.slot(0x4000_0000, 20 * PAGE, 0x8000_0000)
    runs = (replace(slot.backing[0], special=True),)
    guest.slots[0] = replace(slot, dirty_bitmap=1 << 63, dirty_pages=bytes([0x81, 0x00, 0x0F]), backing=runs)
    guest.vm_changes["slots_locked"] = True
    guest.vcpu(0)
    guest.vm_changes["vcpus"] = (replace(guest.vm_changes["vcpus"][0], preempted=True),)
    return world.capture()


def rewritten(path: Path, change: Any) -> None:
    """Apply ``change`` to the header's first VM."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["header.json"])
    change(header["capture"]["vms"][0])
    members["header.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_they_come_back(tmp_path: Path) -> None:
    save(busy(), tmp_path / "a.s2cap")
    assert load(tmp_path / "a.s2cap") == busy()


def test_a_capture_from_before_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.s2cap"
    save(busy(), path)

    def older(vm: dict[str, Any]) -> None:
        del vm["slots_locked"], vm["vcpus"][0]["preempted"], vm["memslots"][0]["dirty_pages"]

    rewritten(path, older)
    vm = load(path).vms[0]
    assert (vm.slots_locked, vm.vcpus[0].preempted, vm.memslots[0].dirty_pages) == (None, False, None)


@pytest.mark.parametrize("value", ["zz", "123", 7, ["81"], True])
def test_a_dirty_log_that_is_no_hex(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.s2cap"
    save(busy(), path)
    rewritten(path, lambda vm: vm["memslots"][0].update(dirty_pages=value))
    with pytest.raises(BadInput, match="dirty_pages"):
        load(path)
