"""What QEMU tells of itself: its monitor's texts as data, and its process on this host.

Each parser shows the sample it was written for and the QEMU version that printed it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from inspector.target.api import RamRange


def parse_version(text: str) -> str | None:
    """``monitor info version`` (QEMU 7.2.22, Debian 12)::

    7.2.22Debian 1:7.2+dfsg-7+deb12u18+b3
    """
    match = re.match(r"\s*([0-9]{1,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)(?![0-9])", text)
    return match[1] if match else None


def version_tuple(version: str | None) -> tuple[int, ...]:
    """``7.2.22`` as ``(7, 2, 22)``; an unknown version as ``()``, which is older than any."""
    return tuple(int(part) for part in version.split(".")) if version else ()


def parse_status(text: str) -> str | None:
    """The run state of ``monitor info status`` (QEMU 7.2.22)::

        VM status: paused (prelaunch)

    is ``prelaunch`` (started with ``-S``, not yet run); ``VM status: paused`` is ``paused`` and ``VM status:
    running`` is ``running``.  ``(single step mode)``, which 7.2 adds under ``-singlestep``, is not a state.
    """
    match = re.search(r"VM status: (\w+)((?: \([^)]*\))*)", text)
    if not match:
        return None
    details = [part for part in re.findall(r"\(([^)]*)\)", match[2]) if part != "single step mode"]
    return details[0] if details else match[1]


@dataclass(frozen=True)
class FlatView:
    """One flat view of ``info mtree -f``: the address spaces that use it and its readable ranges."""

    spaces: tuple[str, ...]
    ram: tuple[RamRange, ...]


_RANGE = re.compile(
    r"^\s+(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?P<type>[\w-]+)\): (?P<name>.*)$"
)
_SPACE = re.compile(r'^ AS "(?P<name>[^"]*)"')


def parse_flat_views(text: str) -> list[FlatView]:
    """``monitor info mtree -f`` (QEMU 7.2.22)::

        FlatView #2
         AS "memory", root: system
         AS "cpu-memory-0", root: system
         Root memory region: system
          0000000000000000-0000000003ffffff (prio 0, romd): virt.flash0
          0000000009000000-0000000009000fff (prio 0, i/o): pl011
          0000000040000000-000000004fffffff (prio 0, ram): mach-virt.ram
          0000000050000000-000000005fffffff (prio 0, ram): mach-virt.ram @0000000010000000

    Both ends of a range are included.  ``ram`` and ``nv-ram`` (NVDIMM) are RAM; ``rom``, ``romd`` (flash),
    ``ramd`` (a device's memory) and ``i/o`` are not.  A backend may give several ranges (``@`` is the offset
    in it).
    """
    views: list[FlatView] = []
    spaces: list[str] = []
    ram: list[RamRange] = []

    def finish() -> None:
        if spaces or ram:
            views.append(FlatView(tuple(spaces), tuple(ram)))
        spaces.clear()
        ram.clear()

    for line in text.splitlines():
        if line.startswith("FlatView"):
            finish()
        elif space := _SPACE.match(line):
            spaces.append(space["name"])
        elif (match := _RANGE.match(line)) and match["type"] in ("ram", "nv-ram"):
            name = re.sub(r" @[0-9a-f]{16}.*$", "", match["name"]).strip()
            ram.append(RamRange(int(match["start"], 16), int(match["last"], 16) + 1, name))
    finish()
    return views


def system_ram(views: Sequence[FlatView]) -> tuple[RamRange, ...]:
    """The RAM of the system address space, ascending.

    That is the view of address space ``memory``: the one that ``gpa2hva`` and the stub's physical mode use
    (QEMU: ``get_system_memory()``, ``address_space_memory``).  With ``secure=on`` the CPUs have a second view
    with secure RAM, which a non-secure host kernel cannot reach.
    """
    for view in views:
        if "memory" in view.spaces:
            return tuple(sorted(view.ram, key=lambda one: one.start))
    return ()


_PA_BITS = 52
"""Architectural limit without FEAT_D128 (DDI 0487 D8.1); QEMU emulates none beyond."""
_MAX_RANGES = 4096


def impossible_ram(ram: Sequence[RamRange]) -> str | None:
    """Why ``ram`` (ascending) cannot be a machine's, in words; ``None`` when it can."""
    if len(ram) > _MAX_RANGES:
        return f"{len(ram)} ranges"
    for one in ram:
        if not one.start < one.end <= 1 << _PA_BITS:
            return f"{one.start:#x} to {one.end:#x}, beyond {_PA_BITS} bits or backwards"
    for one, after in itertools.pairwise(ram):
        if one.end > after.start:
            return f"two ranges that overlap at {after.start:#x}"
    return None


def parse_gpa2hva(text: str) -> int | None:
    """``monitor gpa2hva 0x40000000`` (QEMU 7.2.22)::

        Host virtual address for 0x40000000 (mach-virt.ram) is 0x7fa6d3e00000

    and ``None`` for ``Memory at address 0x9000000 is not RAM`` or ``No memory is mapped at address 0x…``.
    """
    match = re.search(r"Host virtual address for 0x[0-9a-f]+ \(.*\) is (0x[0-9a-f]+)", text)
    return int(match[1], 16) if match else None


def parse_architecture(target_xml: str) -> str | None:
    """The architecture of a stub's ``target.xml`` (QEMU 7.2.22)::

        <?xml version="1.0"?>…<target><architecture>aarch64</architecture><xi:include href="…"/>…

    ``arm`` for a 32-bit CPU, ``i386:x86-64`` for a PC; QEMU gives none where the CPU has no description.
    """
    match = re.search(r"<architecture>([^<]+)</architecture>", target_xml)
    return match[1].strip() if match else None
