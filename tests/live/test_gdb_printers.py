"""The pretty printers on objects of a running kernel, by its own debug information.

What they must say is what the tool reads of the same objects by itself, by the same file.
"""

from __future__ import annotations

import re
import threading

import pytest

from tests.live.gdb_session import PROMPT, Session
from tests.live.machine import Machine

pytestmark = pytest.mark.live

_TABLE = "(struct kvm_pgtable *)$x0"


def test_objects_of_a_running_kernel() -> None:
    """At the entry of an operation, whose first argument is the table."""
    with Machine.start("6.1", scenario="none") as machine, Session() as gdb:
        assert machine.vmlinux is not None
        gdb.attach(machine.gdb_socket)
        slide = re.search(r"KASLR slide +(0x[0-9a-f]+)", gdb("stage2 info"))
        assert slide is not None
        gdb("stage2 break map if overlaps(0x40020000+4K)")
        gdb(f"symbol-file {machine.vmlinux} -o {slide[1]}")
        gdb.type("continue")
        asking = threading.Thread(target=machine.command, args=("run one",))
        asking.start()
        # gdb knows where it is, and the break is where it was.
        assert "kvm_pgtable_stage2_map () at arch/arm64/kvm/hyp/pgtable.c" in gdb.read_to(PROMPT)
        table, mmu = gdb(f"p *{_TABLE}"), gdb(f"p *({_TABLE})->mmu")
        root, entry = gdb(f"output/x (unsigned long)({_TABLE})->pgd"), gdb(f"p (({_TABLE})->pgd)[1]")
        told = gdb("stage2 vms")
        tree = gdb("stage2 dump --tree")
        gdb("delete")
        gdb("detach")
        asking.join()
    at = re.search(r"stage-2 VMID (\d+), struct kvm_s2_mmu at (0x[0-9a-f]+)\n +(.*)\n +VTTBR_EL2 .* BADDR=(\S+)", told)
    assert at is not None, told
    vmid, address, geometry, base = at.groups()
    assert geometry.startswith("40-bit IPA, 4K granule")
    assert f"40-bit input address, starts at level 1, pgd {root}, mmu {address}" in table
    # 6.1 has VTCR in struct kvm_arch, so the geometry is not this structure's to tell.
    assert f"VMID {vmid}, root at PA {base}, pgt " in mmu
    # The second gigabyte of the guest's addresses: the entry that leads to the page that is being mapped.
    raw = re.search(r"(0x[0-9a-f]{16}), table, or page at level 3", entry)
    assert raw is not None, entry
    assert raw[1] in tree
