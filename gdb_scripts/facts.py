"""Runs inside gdb: the machine's tables, operations and function names, as the tool beside it has told once.

Asked for again whenever VMs may have come or gone.  What is read of tables is read now, never remembered.
"""

from __future__ import annotations

import contextlib
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gdb

from gdb_scripts import lend
from inspector.codec import Format, Geometry, InvalidForm, Regime
from inspector.tables import Translation, translate

_TEXT_BITS = 55
"""Bit 55 tells the two halves of the address space apart (DDI 0487 D8.2): what is above is a tag or a signature."""


@dataclass(frozen=True)
class Table:
    """One stage-2 table.  ``pgt`` is the address of its ``struct kvm_pgtable``; ``linear`` is what is added to a PA to
    get its address in the linear map; ``marks`` are (PA, bytes, value) of what tells it from a later one there;
    ``memslots`` are (first frame, frames, address in the VMM)."""

    vm: str
    pid: int | None
    title: str
    number: int
    root: int
    pgt: int
    linear: int
    marks: Sequence[tuple[int, int, int]]
    geometry: Geometry
    format: Format
    memslots: Sequence[tuple[int, int, int]]

    def walk(self, ipa: int) -> Translation:
        """The translation of ``ipa``, read now."""
        with lend.physical():
            return translate(_read, self.root, self.geometry, self.format, ipa)

    def is_there(self) -> bool:
        """Whether it is still this VM's: one that is destroyed leaves its memory, and its addresses, to others."""
        return all(lend.read_physical(pa, size) == value.to_bytes(size, "little") for pa, size, value in self.marks)


NO_KVM = "KVM is not initialised in the host kernel (switched off, not built in, or not yet)"


class Unreadable(Exception):
    """Memory that the stub does not give."""

    reason = "the stub cannot read it"


def _read(address: int, size: int) -> bytes:
    data = lend.read(address, size)
    if data is None:
        raise Unreadable
    return data


@dataclass(frozen=True)
class Facts:
    """``operations``: address and names of the arguments; ``starts`` and ``names``: functions by link address."""

    release: str
    kvm: bool
    slide: int
    page_size: int
    operations: Mapping[str, tuple[int, Sequence[str]]]
    tables: Sequence[Table]
    starts: Sequence[int] = field(repr=False)
    names: Sequence[str] = field(repr=False)

    def table(self, vm: str | None) -> Table:
        """By the VM's name, number or pid; without any, the only one.  Raises ``gdb.GdbError``."""
        if not self.kvm:
            raise gdb.GdbError(NO_KVM)
        if not self.tables:
            raise gdb.GdbError("there is no VM with a stage-2 table on this host")
        own = [table for table in self.tables if table.number == 0]
        if vm is None:
            if len({table.vm for table in own}) == 1:
                return own[0]
            raise gdb.GdbError(f"which VM? --vm NAME; there are {self.listed()}")
        for table in own:
            if vm in (table.vm, table.vm.removeprefix("vm"), str(table.pid)):
                return table
        raise gdb.GdbError(f"there is no VM '{vm}'; there are {self.listed()}")

    def listed(self) -> str:
        return ", ".join(dict.fromkeys(table.vm for table in self.tables))

    def function(self, address: int) -> str:
        """``stage2_map_walker+0x1c``, or the address where no function is."""
        address = code_address(address)
        at = bisect_right(self.starts, address - self.slide) - 1
        if not 0 <= at < len(self.names) - 1:
            return f"{address:#x}"
        offset = address - self.slide - self.starts[at]
        return f"{self.names[at]}+{offset:#x}" if offset else self.names[at]


def code_address(address: int) -> int:
    """Without a pointer authentication code (DDI 0487 D8.10): kernel code has ones there."""
    return address | -(1 << 48) & (1 << 64) - 1 if address >> _TEXT_BITS & 1 else address & (1 << _TEXT_BITS) - 1


_known: dict[int, Facts] = {}
_names: dict[int, Sequence[str]] = {}
"""By the number of gdb's connection: another one is another machine."""
_NAMES_SECONDS = 5.0


def forget() -> None:
    """VMs may have come or gone."""
    _known.clear()


def moved(_: object = None) -> None:
    """The machine runs: names of VMs are asked for anew."""
    _names.clear()


def vm_names() -> Sequence[str]:
    """For completion: what was told since the machine stands; else asked for, once, and for no longer than a person
    waits for a Tab."""
    machine = _connection()
    if machine and machine not in _names:
        _names[machine] = ()
        with contextlib.suppress(gdb.error, gdb.GdbError, KeyboardInterrupt):
            facts(seconds=_NAMES_SECONDS)
    return _names.get(machine, ())


def _connection() -> int:
    return int(getattr(gdb.selected_inferior().connection, "num", 0))


def is_known() -> bool:
    """Whether `facts` needs to ask nobody."""
    return _connection() in _known


def facts(fresh: bool = False, seconds: float | None = None) -> Facts:
    """What the tool says of this machine.  Raises ``gdb.GdbError`` with the tool's own sentence when it cannot."""
    if fresh:
        forget()
    machine = _connection()
    if machine not in _known:
        said: list[str] = []
        code = lend.run(["gdb-facts"], said.append, seconds)
        text = "".join(said)
        try:
            told = json.loads(text)
        except ValueError:
            raise gdb.GdbError(text.strip().removeprefix("inspector: ") or f"the tool ended with {code}") from None
        _known[machine] = _of(told)
        _names[machine] = tuple(dict.fromkeys(table.vm for table in _known[machine].tables))
    return _known[machine]


def _of(told: Mapping[str, Any]) -> Facts:
    starts, names = [], []
    for line in told["symbols"].splitlines():
        start, _, name = line.partition(" ")
        starts.append(int(start, 16))
        names.append(name)
    return Facts(
        told["release"],
        told["kvm"],
        told["slide"],
        told["page_size"],
        {name: (address, tuple(arguments)) for name, (address, arguments) in told["operations"].items()},
        tuple(_table(each) for each in told["vms"]),
        starts,
        names,
    )


def _table(told: Mapping[str, Any]) -> Table:
    form = dict(told["format"])
    form["regime"], form["invalid"] = Regime(form["regime"]), InvalidForm(form["invalid"])
    return Table(
        told["name"],
        told["pid"],
        told["title"],
        told["number"],
        told["root"],
        told["pgt"],
        # The linear map is one displacement (arch/arm64/include/asm/memory.h, __phys_to_virt).
        told["pgd"] - told["root"],
        told["marks"],
        Geometry(**told["geometry"]),
        Format(**form),
        tuple((first, frames, hva) for first, frames, hva in told["memslots"]),
    )
