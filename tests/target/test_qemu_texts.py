"""QEMU's monitor texts, recorded from Debian's QEMU 7.2.22, parsed; and the same parsers on a live machine."""

from __future__ import annotations

import pytest

from inspector.target import qemu
from inspector.target.api import RamRange
from tests.target.conftest import Starter

# -M virt,secure=on -m 128
SECURE = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, i/o): io

FlatView #1
 AS "cpu-secure-memory-0", root: secure-memory
 Root memory region: secure-memory
  0000000000000000-0000000003ffffff (prio 0, romd): virt.flash0
  0000000004000000-0000000007ffffff (prio 0, romd): virt.flash1
  0000000009000000-0000000009000fff (prio 0, i/o): pl011
  000000000e000000-000000000effffff (prio 0, ram): virt.secure-ram
  0000000040000000-0000000047ffffff (prio 0, ram): mach-virt.ram

FlatView #2
 AS "gpex-root", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #3
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000004000000-0000000007ffffff (prio 0, romd): virt.flash1
  0000000009000000-0000000009000fff (prio 0, i/o): pl011
  0000000010000000-000000003efeffff (prio 0, i/o): gpex_mmio_window @0000000010000000
  0000000040000000-0000000047ffffff (prio 0, ram): mach-virt.ram
  0000008000000000-000000ffffffffff (prio 0, i/o): gpex_mmio_window @0000008000000000

"""


def test_system_ram_is_what_a_non_secure_cpu_reaches() -> None:
    views = qemu.parse_flat_views(SECURE)
    assert qemu.system_ram(views) == (RamRange(0x40000000, 0x48000000, "mach-virt.ram"),)
    assert [len(view.ram) for view in views] == [0, 2, 0, 1]


def test_parts_of_a_backend_and_other_kinds_of_memory() -> None:
    view = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000050000000-000000005fffffff (prio 0, ram): mach-virt.ram @0000000010000000
  0000000040000000-000000004fffffff (prio 0, ram): name with (odd) words
  0000000060000000-0000000060000fff (prio -1, rom): rom
  0000000061000000-0000000061ffffff (prio 0, nv-ram): nvdimm0
  0000000062000000-0000000062000fff (prio 0, ramd): vfio
"""
    assert qemu.system_ram(qemu.parse_flat_views(view)) == (
        RamRange(0x40000000, 0x50000000, "name with (odd) words"),
        RamRange(0x50000000, 0x60000000, "mach-virt.ram"),
        RamRange(0x61000000, 0x62000000, "nvdimm0"),
    )


@pytest.mark.parametrize("text", ["", "unknown command: 'info mtree -f'\r\n", "FlatView #0\r\n  nonsense\r\n"])
def test_no_memory_tree_is_no_ram(text: str) -> None:
    assert qemu.system_ram(qemu.parse_flat_views(text)) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("VM status: paused (prelaunch)\r\n", "prelaunch"),
        ("VM status: paused\r\n", "paused"),
        ("VM status: running\r\n", "running"),
        ("VM status: running (single step mode)\r\n", "running"),
        ("VM status: paused (single step mode) (debug)\r\n", "debug"),
        ("unknown command", None),
    ],
)
def test_the_run_state(text: str, expected: str | None) -> None:
    assert qemu.parse_status(text) == expected


def test_the_version() -> None:
    version = qemu.parse_version("7.2.22Debian 1:7.2+dfsg-7+deb12u18+b3\r\n")
    assert version == "7.2.22"
    assert qemu.version_tuple(version) < (8, 1) <= qemu.version_tuple("10.0.2")
    assert qemu.parse_version("?") is None
    assert qemu.version_tuple(None) < (0,)


def test_host_addresses() -> None:
    text = "Host virtual address for 0x40000000 (mach-virt.ram) is 0x7fa6d3e00000\r\n"
    assert qemu.parse_gpa2hva(text) == 0x7FA6D3E00000
    assert qemu.parse_gpa2hva("Memory at address 0x9000000 is not RAM\r\n") is None
    assert qemu.parse_gpa2hva("No memory is mapped at address 0x10000000000\r\n") is None


def test_architectures() -> None:
    head = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    assert qemu.parse_architecture(head + "<architecture>aarch64</architecture>") == "aarch64"
    assert qemu.parse_architecture(head + "<architecture>i386:x86-64</architecture>") == "i386:x86-64"
    assert qemu.parse_architecture(head) is None


def test_a_live_machine_with_two_backends_says_the_same_by_qmp(start_qemu: Starter) -> None:
    machine = start_qemu(
        None,
        *("-object", "memory-backend-ram,id=low,size=64M", "-object", "memory-backend-ram,id=high,size=192M"),
        *("-numa", "node,memdev=low", "-numa", "node,memdev=high"),
    )
    ram = qemu.system_ram(qemu.parse_flat_views(machine.monitor("info mtree -f")))
    assert ram == (
        RamRange(0x40000000, 0x44000000, "low"),
        RamRange(0x44000000, 0x50000000, "high"),
    )
    assert sum(one["size"] for one in machine.qmp("query-memdev")) == sum(one.end - one.start for one in ram)
    assert qemu.parse_status(machine.monitor("info status")) == machine.qmp("query-status")["status"]
    reported = machine.qmp("query-version")["qemu"]
    version = qemu.version_tuple(qemu.parse_version(machine.monitor("info version")))
    assert version == (reported["major"], reported["minor"], reported["micro"])
    assert qemu.parse_gpa2hva(machine.monitor("gpa2hva 0x44000000")) is not None
    assert qemu.parse_gpa2hva(machine.monitor("gpa2hva 0x9000000")) is None
